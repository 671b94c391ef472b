"""A run on disk: stages, the checkpoint within a stage, the event log and who may write (ARCHITECTURE 5)."""

from __future__ import annotations

import fcntl
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
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon import io
from dist_teracon.errors import RunError
from dist_teracon.evaluate.scorer import UserScores

_USER_SCORES = pa.schema(
    {"split": pa.string(), "task": pa.string(), "user_hash": pa.uint64(), "score": pa.float64(), "examples": pa.int64()}
)


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
    """The checkpoint within a stage, at the end of an epoch.

    Attributes:
        phase, epoch: Where the stage is; epochs count from 1.
        state: Small state as JSON values: early stopping, the method's, the event log's length.
        engine: The engine's state.
        best: Parameters of the best epoch so far; empty if there is none.
        average: Running average of the parameters; empty where there is none.
    """

    phase: int
    epoch: int
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
        """Tell whether the stage is whole: its state is written last."""
        return (self.path / "state.json").exists()

    def state(self) -> dict[str, Any]:
        """Return a finished stage's state."""
        state: dict[str, Any] = io.read_json(str(self.path / "state.json"))
        return state

    def tensors(self) -> dict[str, Tensor]:
        """Return a finished stage's weights."""
        return load_tensors(self.path / "model.safetensors")

    def finish(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a stage's weights and, last, its state; its progress is no longer needed."""
        save_tensors(self.path / "model.safetensors", tensors)
        io.write_json(self.path / "state.json", state)
        self.drop_checkpoints()

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
        """Tell whether there is a checkpoint within the stage."""
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
        """Write a checkpoint as a folder that appears whole, then drop the one before."""
        name = f"phase-{checkpoint.phase}-epoch-{checkpoint.epoch:05d}"
        older = [folder for folder in self._checkpoints() if folder.name != name]
        shutil.rmtree(self._progress / name, ignore_errors=True)
        with io.atomic_folder(self._progress / name) as folder:
            save_tensors(folder / "engine.safetensors", checkpoint.engine)
            for name, tensors in (("best", checkpoint.best), ("average", checkpoint.average)):
                if tensors:
                    save_tensors(folder / f"{name}.safetensors", tensors)
            io.write_json(folder / "state.json", {"phase": checkpoint.phase, "epoch": checkpoint.epoch, **checkpoint.state})
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
            state=state,
            engine=load_tensors(newest / "engine.safetensors"),
            **{name: load_tensors(path) if path.exists() else {} for name, path in kept.items()},
        )

    def _checkpoints(self) -> list[Path]:
        found = [folder for folder in self._progress.glob("phase-*-epoch-*") if (folder / "state.json").exists()]
        return sorted(found, key=lambda folder: [int(part) for part in folder.name.split("-")[1::2]])


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Hold a run folder for writing.

    Raises:
        RunError: another process is writing it, or it is something else; then nothing is written into it.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"{run}: is a file; name a folder for the run")
    if run.is_dir() and not (run / "config.yaml").exists():
        # a run killed before its configuration was whole has left these at most
        others = sorted(entry.name for entry in run.iterdir() if not entry.name.startswith(".") and entry.name != "dataset.json")
        if others:
            raise RunError(f"{run}: is no run of this program and not empty (it holds {others[0]}); name a new folder")
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{run}: another process is writing this run; wait for it or name another folder") from None
        yield
