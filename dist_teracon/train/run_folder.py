"""A run on disk: its description, its stages, the checkpoint within a stage, the event log, and who may write.

docs/architecture.md, A run on disk, lists the files. Everything that a run reads or writes below its folder goes through here.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon import io
from dist_teracon.config import RunConfig
from dist_teracon.config_io import dump_config, validate
from dist_teracon.data.schema import DatasetInfo, info_from_json
from dist_teracon.errors import ConfigError, RunError
from dist_teracon.evaluate.scorer import UserScores
from dist_teracon.train.config_changes import compare_configs

_USER_SCORES = pa.schema(
    {"split": pa.string(), "task": pa.string(), "user_hash": pa.uint64(), "score": pa.float64(), "examples": pa.int64()}
)


# Of a stage's state.json; 2: item tables are `…item_embedding.weight`, and metrics beside the first are kept.
FORMAT_VERSION = 2


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically and without a copy of them all in memory.

    Raises:
        RunError: they cannot be written, as where the disk is full.
    """
    with io.atomic_path(path) as temporary:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        try:
            safetensors.torch.save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
        except (OSError, safetensors.SafetensorError) as error:
            raise RunError(f"{path}: cannot be written ({error}); what was finished is kept") from None
        temporary.chmod(mode)  # the library's own files are their owner's alone


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors.

    Raises:
        RunError: the file is missing or not whole.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove the stage's folder to train it again") from None


class EventLog:
    """`events.jsonl`: appended as the run goes, cut back to the checkpoint on resume; only the main process writes."""

    def __init__(self, path: Path, *, writes: bool, position: int) -> None:
        self._file = None
        if writes:
            self._file = path.open("ab")
            self._file.truncate(min(position, path.stat().st_size))
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


@dataclass(frozen=True)
class StageCheckpoint:
    """The checkpoint within a stage, at the end of an epoch or within one.

    Attributes:
        phase, epoch: Where the stage is: the phase, and how many of its epochs are finished.
        step: Steps taken of the epoch after these; 0 at an epoch's end.
        state: Small state as JSON values: early stopping, the method's, the loader's, the event log's length.
        engine: The engine's state.
        best: Parameters of the best epoch so far; empty if there is none.
        average: Running average of the parameters; empty where there is none.
    """

    phase: int
    epoch: int
    step: int
    state: dict[str, Any]
    engine: dict[str, Tensor]
    best: dict[str, Tensor]
    average: dict[str, Tensor]


class StageFolder:
    """`RUN/stages/03-star5`: a finished stage, or one with progress in it."""

    def __init__(self, run: Path, position: int, task: str) -> None:
        self.path = run / "stages" / f"{position + 1:02d}-{task}"
        self._progress = self.path / "progress"

    @property
    def finished(self) -> bool:
        """Whether the stage is whole: its state is written last."""
        return (self.path / "state.json").exists()

    def state(self) -> dict[str, Any]:
        """Return a finished stage's state."""
        state: dict[str, Any] = io.read_json(str(self.path / "state.json"))
        if state.get("format_version") != FORMAT_VERSION:
            raise RunError(f"{self.path}: was written by another version of this program; name a new folder with --run")
        return state

    def tensors(self) -> dict[str, Tensor]:
        """Return a finished stage's weights."""
        return load_tensors(self.path / "model.safetensors")

    def finish(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a stage's weights and, last, its state; its progress is no longer needed."""
        save_tensors(self.path / "model.safetensors", tensors)
        io.write_json(self.path / "state.json", state)
        self.drop_checkpoints()

    def write_timing(self, timing: dict[str, Any]) -> None:
        """Write what the stage took."""
        io.write_json(self.path / "timing.json", timing)

    def save_user_scores(self, parts: Sequence[tuple[str, str, UserScores]]) -> None:
        """Write `scores.parquet` in one order always: split, task, user_hash, examples, and `UserScores.score` and each of `others`.

        A score is null where it is not kept by user, and another metric's for tasks that do not have it.
        """
        others = list(dict.fromkeys(name for _, _, part in parts for name in part.others))

        def column(values: list[NDArray[np.float64]]) -> pa.Array:
            return pa.array(np.concatenate(values), from_pandas=True)  # NaN is null

        table = pa.table(
            {
                "split": np.concatenate([np.full(part.score.shape[0], split, dtype=object) for split, _, part in parts]),
                "task": np.concatenate([np.full(part.score.shape[0], task, dtype=object) for _, task, part in parts]),
                "user_hash": np.concatenate([part.user_hash for _, _, part in parts]),
                "score": column([part.score for _, _, part in parts]),
                "examples": np.concatenate([part.examples for _, _, part in parts]),
                **{name: column([part.others.get(name, np.full(part.score.shape, np.nan)) for _, _, part in parts]) for name in others},
            },
            schema=pa.schema([*_USER_SCORES, *(pa.field(name, pa.float64()) for name in others)]),
        ).sort_by([(name, "ascending") for name in ("split", "task", "user_hash", "score", "examples")])
        with io.atomic_write(self.path / "scores.parquet") as file:
            pq.write_table(table, file)

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of a finished stage, also where a run was killed before it could."""
        shutil.rmtree(self._progress, ignore_errors=True)

    @property
    def in_progress(self) -> bool:
        """Whether there is a checkpoint within the stage."""
        return bool(self._checkpoints())

    def checkpoint_state(self) -> dict[str, Any]:
        """Return the small state of the newest checkpoint."""
        state: dict[str, Any] = io.read_json(str(self._checkpoints()[-1] / "state.json"))
        return state

    def save_phase_start(self, phase: int, tensors: dict[str, Tensor]) -> None:
        """Keep all weights as a later phase found them; its checkpoints hold what it trains."""
        save_tensors(self._progress / f"phase-{phase}.safetensors", tensors)

    def phase_start(self, phase: int) -> dict[str, Tensor]:
        """Return what `save_phase_start` kept."""
        return load_tensors(self._progress / f"phase-{phase}.safetensors")

    def save_checkpoint(self, checkpoint: StageCheckpoint) -> None:
        """Write a checkpoint as a folder that appears whole, then drop the one before.

        Within an epoch `best` and `average` are what the epoch began with: where the checkpoint before has their files they are linked.
        """
        name = f"phase-{checkpoint.phase}-epoch-{checkpoint.epoch:05d}" + (f"-step-{checkpoint.step:08d}" if checkpoint.step else "")
        older = [folder for folder in self._checkpoints() if folder.name != name]
        shutil.rmtree(self._progress / name, ignore_errors=True)
        with io.atomic_folder(self._progress / name) as folder:
            save_tensors(folder / "engine.safetensors", checkpoint.engine)
            for part, tensors in (("best", checkpoint.best), ("average", checkpoint.average)):
                if not tensors:
                    continue
                before = older[-1] / f"{part}.safetensors" if older and checkpoint.step else None
                if before is not None and before.exists():
                    os.link(before, folder / before.name)
                else:
                    save_tensors(folder / f"{part}.safetensors", tensors)
            where = {"phase": checkpoint.phase, "epoch": checkpoint.epoch, "step": checkpoint.step}
            io.write_json(folder / "state.json", {**where, **checkpoint.state})
        for folder in older:
            shutil.rmtree(folder)

    def load_checkpoint(self) -> StageCheckpoint | None:
        """Return the newest checkpoint, or None."""
        folders = self._checkpoints()
        if not folders:
            return None
        newest = folders[-1]
        state = io.read_json(str(newest / "state.json"))
        kept = {name: newest / f"{name}.safetensors" for name in ("best", "average")}
        return StageCheckpoint(
            phase=state["phase"],
            epoch=state["epoch"],
            step=state["step"],
            state=state,
            engine=load_tensors(newest / "engine.safetensors"),
            **{name: load_tensors(path) if path.exists() else {} for name, path in kept.items()},
        )

    def _checkpoints(self) -> list[Path]:
        found = [folder for folder in self._progress.glob("phase-*-epoch-*") if (folder / "state.json").exists()]
        return sorted(found, key=lambda folder: [int(part) for part in folder.name.split("-")[1::2]])


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
            return validate(RunConfig, yaml.safe_load(written.read_text(encoding="utf-8")), where=str(written))
        except ConfigError as error:
            raise RunError(f"{self.path}: was begun by another version of this program ({error}); name a new folder with --run") from None

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
            yield
