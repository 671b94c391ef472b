"""A run on disk: its description, its stages, the checkpoint within a stage, the event log, and who may write.

docs/architecture.md, A run on disk, lists the files. Everything that a run reads or writes below its folder goes through here.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dist_teracon import io
from dist_teracon.atomic import atomic_write, remove_temporary_files, remove_temporary_folders, write_json
from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import dump_config, read_yaml, validate
from dist_teracon.console import Log, no_log
from dist_teracon.data.cache import cache_folder
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import TYPES_FILE, DatasetInfo, Task, info_from_json, input_file, vocabulary_file
from dist_teracon.errors import ConfigError, DataError, RunError
from dist_teracon.runtime import Runtime
from dist_teracon.store.commits import send_files
from dist_teracon.store.holder import hold_folder
from dist_teracon.store.manifest import Part
from dist_teracon.store.mirror import Mirror
from dist_teracon.store.view import everything, fetch_view
from dist_teracon.train.config_changes import compare_configs
from dist_teracon.train.stage_folder import StageFolder
from dist_teracon.train.trackers.registry import Trackers

_CHECKSUM = "# sha256 of the lines above: "
# Files of a run's folder itself that the process with the lock writes.
_UNDER_LOCK = ("additions.json", "baselines.json", "config.yaml", "dataset.json", "results.json", "timing.json")


class EventLog:
    """`events.jsonl`: appended as the run goes, cut back to the checkpoint on resume; only the main process writes.

    No result depends on it, so a run goes on where it is damaged or gone; its report lacks what is lost.

    Args:
        path: The file.
        writes: Whether this process writes.
        position: Its length at the checkpoint from which the run goes on.
        log: Takes a line on what is lost.
        trackers: Get every event, at first those that are there.
    """

    def __init__(
        self, path: Path, *, writes: bool, position: int, log: Log = no_log, trackers: Trackers | None = None
    ) -> None:  # fmt: skip
        self._file, self._trackers = None, trackers
        if writes:
            if position and (lost := _lost_events(path, position)):
                log(f"warning: {path}: {lost}; results do not depend on it, the report's curves lack what is lost")
            self._file = path.open("ab")
            self._file.truncate(min(position, path.stat().st_size))
            self._file.seek(0, os.SEEK_END)  # else `tell` answers the old length until something is written
            if self._file.tell() and _last_byte(path) != b"\n":
                self._file.write(b"\n")  # what follows is a line of its own
            if trackers is not None:
                for record in _readable(path):
                    trackers.past(record)
        self.stage: dict[str, Any] = {}

    def write(self, event: str, **fields: Any) -> None:
        """Append an event with the time and the present stage."""
        if self._file is not None:
            record = {"event": event, "time": round(time.time(), 3), **self.stage, **fields}
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            if self._trackers is not None:
                self._trackers.take(record)

    def commit(self) -> int:
        """Bring everything to disk; returns the length in bytes, for a checkpoint to remember."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._trackers is not None:
            self._trackers.flush()
        return self._file.tell()

    def close(self, *, failed: bool = False) -> None:
        """Commit and close."""
        if self._file is not None:
            self.commit()
            self._file.close()
            if self._trackers is not None:
                self._trackers.close(failed=failed)


def _readable(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events that can be read."""
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _lost_events(path: Path, position: int) -> str:
    """Return what is wrong with the events before a checkpoint, or nothing."""
    if not path.exists():
        return "the log of events is gone and begins anew"
    size, unreadable, read = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        for line in file:
            if read >= position:
                break
            read += len(line)
            try:
                unreadable += not isinstance(json.loads(line[: len(line) - max(0, read - position)]), dict)
            except ValueError:
                unreadable += 1
    if size < position:
        return f"the log of events is damaged: {position - size} of its {position} bytes are missing at the end"
    return f"the log of events is damaged: {unreadable} of its lines cannot be read" if unreadable else ""


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


class RunFolder:
    """A run's folder.

    Args:
        path: Where it is; it need not exist.
        uri: Of a run on a store, which is written in `path`.

    Attributes:
        mirror: Uploads what is written, on the main process of a run on a store.
        machines: How many of its machines have a folder of their own; 1 for a run on a disk.
        leads: Whether this process sends what its machine has made; none does on the main process's.
    """

    def __init__(self, path: Path, *, uri: str = "") -> None:
        self.path, self.uri = path, uri
        self.mirror: Mirror | None = None
        self.machines, self.leads = 1, False
        self._above = ""
        self._is_there: Callable[[], bool] | None = None

    def __str__(self) -> str:
        return self.uri or str(self.path)

    def below(self, name: str) -> RunFolder:
        """Return a run of its own in a folder of this one."""
        folder = RunFolder(self.path / name, uri=self.uri and f"{self.uri}/{name}")
        folder.mirror, folder._above = self.mirror, f"{self._above}{name}/"
        folder.machines, folder.leads, folder._is_there = self.machines, self.leads, self._is_there
        return folder

    def commit(self, *, wait: bool = False) -> None:
        """Have the present state kept on the run's store; a local run is kept as it is written.

        Args:
            wait: Return when it is there; else it is uploaded while the run goes on.

        Raises:
            RunError: another process has taken the run over; or the store has failed for too long.
        """
        if self.mirror is not None:
            self.mirror.commit(wait=wait)

    def share_pseudo_labels(self, stage: Path, runtime: Runtime) -> None:
        """Have a run's store keep the pseudo-labels that the ranks of other machines have made for a stage; all ranks call it."""
        if self.machines == 1:
            return
        made: dict[str, Part] = {}
        if self.leads:
            root = self.uri.removesuffix(f"/{self._above.rstrip('/')}") if self._above else self.uri
            made = send_files(root, stage / "pseudo_labels", below=f"{self._above}{stage.relative_to(self.path).as_posix()}/pseudo_labels")
        gathered = runtime.gather(made)
        if self.mirror is not None:
            self.mirror.add_files({path: part for of_rank in gathered for path, part in of_rank.items()})

    def open_log(self, *, writes: bool, position: int, log: Log = no_log, trackers: Trackers | None = None) -> EventLog:
        """Open the event log, cut to a length; only the main process writes."""
        events = EventLog(self.path / "events.jsonl", writes=writes, position=position, log=log, trackers=trackers)
        if self.mirror is not None:
            self.mirror.cut_log(f"{self._above}events.jsonl", position)
        return events

    @classmethod
    def open_for_reading(
        cls, run: str | Path, cache: Path | None = None, *, wanted: Callable[[str], bool] = everything
    ) -> RunFolder:  # fmt: skip
        """Return a run to read: a local one as it lies there, or the newest state of one on a store, brought to this machine.

        The view of a run on a store is a folder that never changes; a later state gets another one. Nothing may be written into it.

        Args:
            run: Folder or URI.
            cache: Where views lie; by default `runs` in `DIST_TERACON_CACHE`, as data sets' columns. It may be deleted at any time.
            wanted: Which files to bring from a store, by their path in the run's folder, as `stages/01-next/model.safetensors`.

        Raises:
            RunError: there is no run on the store, or a part of it is damaged.
        """
        if io.is_local(str(run)):
            return cls(io.local_path(str(run)).expanduser())
        return cls(fetch_view(str(run), cache or cache_folder() / "runs", wanted=wanted))

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "config.yaml").exists()

    def stage(self, position: int, task: str) -> StageFolder:
        """Return the folder of a stage; positions count from 0."""
        return StageFolder(self.path, position, task)

    def config(self) -> RunConfig:
        """Return the resolved configuration of the run.

        Raises:
            RunError: another version of this program has written it.
        """
        written = self.path / "config.yaml"
        try:
            return validate(RunConfig, read_yaml(str(written)), where=str(written))
        except ConfigError as error:
            raise RunError(
                f"{self}: config.yaml was damaged, or written by another version of this program ({error}); name a new folder with --run"
            ) from None

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved configuration; with it the folder is a run. A comment at its end has its checksum, for `verify`."""
        content = dump_config(config).encode()
        with atomic_write(self.path / "config.yaml") as file:
            file.write(content + f"{_CHECKSUM}{hashlib.sha256(content).hexdigest()}\n".encode())

    def config_is_whole(self) -> bool:
        """Return whether the configuration is as it was written; one of a version that noted no checksum counts as whole."""
        content, mark, noted = (self.path / "config.yaml").read_bytes().rpartition(_CHECKSUM.encode())
        return not mark or noted.decode(errors="replace").strip() == hashlib.sha256(content).hexdigest()

    def dataset_json(self) -> dict[str, Any]:
        """Return the copy of the data set's description."""
        value: dict[str, Any] = self.read_json("dataset.json")
        return value

    def additions(self) -> list[dict[str, Any]]:
        """Return what was added to the run, in order."""
        listed: list[dict[str, Any]] = self.read_json("additions.json") if (self.path / "additions.json").exists() else []
        return listed

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file."""
        return io.read_json(str(self.path / name))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, atomically."""
        write_json(self.path / name, value)

    def create_or_verify(self, config: RunConfig, info: DatasetInfo, tasks: Sequence[str]) -> tuple[str, list[str]]:
        """Make the folder a run of this configuration and data set, or check that it is one and take over what may change.

        Args:
            config: Resolved.
            info: The data set's description.
            tasks: Names of the tasks in their order.

        Returns:
            What is wrong, or nothing; and what changes, for a person.

        Raises:
            RunError: another version of this program has written the run.
        """
        if not self.exists:
            self.write_json("dataset.json", info.to_json())
            self.write_config(config)
            return "", []
        before = self.config()
        if gap := self.missing_stage(tasks):
            return f"{gap}: is missing, though later stages are there; bring it back, or remove this stage's folder and those after it", []
        change = compare_configs(before, config, tasks=tasks, finished=self.finished_stages(tasks))
        if change.problem:
            problem = f"{self}: was started with another configuration: {change.problem}"
            return f"{problem}; use the old value or name a new folder with --run", []
        if info_from_json(self.dataset_json()).fingerprint != info.fingerprint:
            return (
                f"{self}: the data set {config.dataset} has changed since this run began (dataset.json differs); "
                "bring the old one back or name a new folder with --run"
            ), []
        if before != config:
            self.write_config(config)
        return "", change.notes

    def keep_vocabularies(self, dataset: Dataset, tasks: Sequence[Task]) -> None:
        """Copy the vocabularies of items, labels, types and side features, whose checksums are in `dataset.json`; what is there is kept.

        With them raw ids go in and out of what was trained, wherever the data set is by then.
        """
        for name in ("items", *(task.name for task in tasks if not task.predicts_next)):
            path = vocabulary_file(name)
            if self.vocabulary(name) is None:
                with atomic_write(self.path / path) as file:
                    file.write(dataset.content(path))
        others = [*([TYPES_FILE] if dataset.info.history.types else []), *map(input_file, dataset.info.inputs.names)]
        for path in others:
            if self._listed(path) is None:
                with atomic_write(self.path / path) as file:
                    file.write(dataset.content(path))

    def vocabulary(self, name: str) -> bytes | None:
        """Return the Parquet file of a vocabulary, `items` or a task's; None where the run has none, or that of another data set."""
        return self._listed(vocabulary_file(name))

    def types(self) -> bytes | None:
        """Return the Parquet file of the names of events' types, as `vocabulary`."""
        return self._listed(TYPES_FILE)

    def input_values(self, feature: str) -> bytes | None:
        """Return the Parquet file of the names of a side feature's values, as `vocabulary`."""
        return self._listed(input_file(feature))

    def _listed(self, path: str) -> bytes | None:
        entry, target = self.dataset_json().get("files", {}).get(path), self.path / path
        if entry is None or not target.is_file():
            return None
        content = target.read_bytes()
        return content if hashlib.sha256(content).hexdigest() == entry["sha256"] else None

    def finished_stages(self, tasks: Sequence[str]) -> int:
        """Return how many stages are there, from the first on."""
        done = 0
        while done < len(tasks) and self.stage(done, tasks[done]).finished:
            done += 1
        return done

    def missing_stage(self, tasks: Sequence[str]) -> str:
        """Return the state.json that is gone from before stages that are finished or under way, which followed from it; or nothing."""
        done = self.finished_stages(tasks)
        later = (self.stage(number, task) for number, task in enumerate(tasks) if number > done)
        return str(self.stage(done, tasks[done]).path / "state.json") if any(stage.finished or stage.in_progress for stage in later) else ""

    def write_timing(self, machine: dict[str, Any]) -> None:
        """Gather the stages' times into `timing.json`, with what they were taken on."""
        stages = []
        for path in sorted((self.path / "stages").glob("*/timing.json")):
            with suppress(DataError):  # no result depends on it, so a damaged one stops nothing
                stages.append(io.read_json(str(path)))
        self.write_json("timing.json", {"stages": stages, "machine": machine})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing.

        Raises:
            RunError: another process is writing it, or it is something else; then nothing is written into it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self}: is a file; name a folder for the run")
        if self.path.is_dir() and not self.exists:
            # a run killed before its configuration was whole has left these at most
            others = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(".") and entry.name != "dataset.json")
            if others:
                raise RunError(f"{self}: is no run of this program and not empty (it holds {others[0]}); name a new folder")
        self.path.mkdir(parents=True, exist_ok=True)

        def busy(holder: str) -> RunError:
            return RunError(f"{self}: another process is writing this run{holder}; wait for it or name another folder")

        with hold_folder(self.path, busy) as is_there:
            self._is_there = is_there
            self._remove_temporary_files()
            yield

    def check_place(self) -> None:
        """Check, before something is written, that the folder still lies where it was locked; else a second one would be begun there.

        Raises:
            RunError: it was moved or removed.
        """
        if self._is_there is not None and not self._is_there():
            raise RunError(
                f"{self}: the run's folder was moved or removed while it was trained; with --run and its new name the same command goes on "
                "from its last checkpoint"
            )

    def _remove_temporary_files(self) -> None:
        """Remove what a killed process has left of files that are written under the lock alone; a report may be under way without it."""
        remove_temporary_files(self.path, of=_UNDER_LOCK)
        for folder in (self.path / "stages").glob("**/"):
            remove_temporary_files(folder)
        for progress in (self.path / "stages").glob("*/progress"):
            remove_temporary_folders(progress)
