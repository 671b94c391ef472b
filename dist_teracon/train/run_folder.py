"""A run on disk: its description, its stages, the checkpoint within a stage, the event log, and who may write.

docs/architecture.md, A run on disk, lists the files. Everything that a run reads or writes below its folder goes through here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dist_teracon import io
from dist_teracon.config import RunConfig
from dist_teracon.config_io import dump_config, read_yaml, validate
from dist_teracon.console import Log, no_log
from dist_teracon.data.schema import DatasetInfo, info_from_json
from dist_teracon.errors import ConfigError, RunError
from dist_teracon.train.config_changes import compare_configs
from dist_teracon.train.stage_folder import StageFolder

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
    """

    def __init__(self, path: Path, *, writes: bool, position: int, log: Log = no_log) -> None:
        self._file = None
        if writes:
            if position and (lost := _lost_events(path, position)):
                log(f"warning: {path}: {lost}; results do not depend on it, the report's curves lack what is lost")
            self._file = path.open("ab")
            self._file.truncate(min(position, path.stat().st_size))
            self._file.seek(0, os.SEEK_END)  # else `tell` answers the old length until something is written
            if self._file.tell() and _last_byte(path) != b"\n":
                self._file.write(b"\n")  # what follows is a line of its own
        self.stage: dict[str, Any] = {}

    def write(self, event: str, **fields: Any) -> None:
        """Append an event with the time and the present stage."""
        if self._file is not None:
            record = {"event": event, "time": round(time.time(), 3), **self.stage, **fields}
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def commit(self) -> int:
        """Bring everything to disk; returns the length in bytes, for a checkpoint to remember."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Commit and close."""
        if self._file is not None:
            self.commit()
            self._file.close()


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
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

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
                f"{self.path}: config.yaml was damaged, or written by another version of this program ({error}); "
                "name a new folder with --run"
            ) from None

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved configuration; with it the folder is a run."""
        with io.atomic_write(self.path / "config.yaml") as file:
            file.write(dump_config(config).encode())

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
        io.write_json(self.path / name, value)

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
            return f"{gap}: is missing, though later stages are finished; bring it back, or remove this stage and those after it", []
        change = compare_configs(before, config, tasks=tasks, finished=self.finished_stages(tasks))
        if change.problem:
            problem = f"{self.path}: was started with another configuration: {change.problem}"
            return f"{problem}; use the old value or name a new folder with --run", []
        if info_from_json(self.dataset_json()).fingerprint != info.fingerprint:
            return (
                f"{self.path}: the data set {config.dataset} has changed since this run began (dataset.json differs); "
                "bring the old one back or name a new folder with --run"
            ), []
        if before != config:
            self.write_config(config)
        return "", change.notes

    def finished_stages(self, tasks: Sequence[str]) -> int:
        """Return how many stages are there, from the first on."""
        done = 0
        while done < len(tasks) and self.stage(done, tasks[done]).finished:
            done += 1
        return done

    def missing_stage(self, tasks: Sequence[str]) -> str:
        """Return the state.json that is gone from among finished stages, or nothing."""
        done = self.finished_stages(tasks)
        later = any(self.stage(number, task).finished for number, task in enumerate(tasks) if number > done)
        return str(self.stage(done, tasks[done]).path / "state.json") if later else ""

    def write_timing(self, machine: dict[str, Any]) -> None:
        """Gather the stages' times into `timing.json`, with what they were taken on."""
        stages = [io.read_json(str(path)) for path in sorted((self.path / "stages").glob("*/timing.json"))]
        self.write_json("timing.json", {"stages": stages, "machine": machine})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing.

        Raises:
            RunError: another process is writing it, or it is something else; then nothing is written into it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; name a folder for the run")
        if self.path.is_dir() and not self.exists:
            # a run killed before its configuration was whole has left these at most
            others = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(".") and entry.name != "dataset.json")
            if others:
                raise RunError(f"{self.path}: is no run of this program and not empty (it holds {others[0]}); name a new folder")
        self.path.mkdir(parents=True, exist_ok=True)
        busy = RunError(f"{self.path}: another process is writing this run; wait for it or name another folder")
        with io.exclusive_lock(self.path / ".lock", busy):
            self._remove_temporary_files()
            yield

    def _remove_temporary_files(self) -> None:
        """Remove what a killed process has left of files that are written under the lock alone; a report may be under way without it."""
        io.remove_temporary_files(self.path, of=_UNDER_LOCK)
        for folder in (self.path / "stages").glob("**/"):
            io.remove_temporary_files(folder)
        for progress in (self.path / "stages").glob("*/progress"):
            io.remove_temporary_folders(progress)
