"""A stage on disk: its weights and state once it is finished, and before that the checkpoints from which it goes on.

Every file that is read back has its SHA-256 in the state beside it, so that damage is noticed where it would change what follows.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
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
from dist_teracon.atomic import atomic_folder, atomic_path, atomic_write, write_json
from dist_teracon.data.schema import folder_of
from dist_teracon.errors import DataError, RunError, TeraconError
from dist_teracon.evaluate.scorer import UserScores
from dist_teracon.evaluate.seen_labels import unpacked_labels

_USER_SCORES = pa.schema(
    {"split": pa.string(), "task": pa.string(), "user_hash": pa.uint64(), "score": pa.float64(), "examples": pa.int64()}
)


# Of a stage's state.json; 2: item tables are `…item_embedding.weight`, metrics beside the first are kept; 3: with checksums.
FORMAT_VERSION = 3

# In a stage's state.json: the labels that its training saw.
SEEN_LABELS = "seen_labels"

# In a stage's timing.json: another run has trained it, and took this time.
TAKEN_OVER = "taken_over"


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors as safetensors, atomically and without a copy of them all in memory; returns the file's SHA-256.

    Raises:
        RunError: they cannot be written, as where the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        try:
            safetensors.torch.save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
        except (OSError, safetensors.SafetensorError) as error:
            raise RunError(f"{path}: cannot be written ({error}); what was finished is kept") from None
        temporary.chmod(mode)  # the library's own files are their owner's alone
    return io.sha256(str(path))


def load_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read tensors, checked against the SHA-256 that their writer noted where it is given.

    Raises:
        RunError: the file is missing or damaged.
    """
    check_file(path, sha256)
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove the stage's folder to train it again") from None


def check_file(path: Path, sha256: str | None) -> None:
    """Check a file against the SHA-256 that its writer noted.

    Raises:
        RunError: it is missing, or not as it was written.
    """
    if not path.is_file():
        raise RunError(f"{path}: the file is missing; remove the stage's folder to train it again")
    if sha256 is not None and _sha256_of(path) != sha256:
        raise RunError(f"{path}: the file was damaged or changed since it was written; remove the stage's folder to train it again")


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
        self.path = run / "stages" / f"{position + 1:02d}-{folder_of(task)}"
        self._progress = self.path / "progress"

    @property
    def finished(self) -> bool:
        """Whether the stage is whole: its state is written last."""
        return (self.path / "state.json").exists()

    def state(self) -> dict[str, Any]:
        """Return a finished stage's state.

        Raises:
            RunError: it is damaged, or another version of this program has written it.
        """
        return _read_state(self.path / "state.json")

    def seen_labels(self, labels: int) -> NDArray[np.bool_] | None:
        """Return which of so many labels the stage's training saw, bool [labels]; None of a stage that has not kept it, or is not here.

        Raises:
            RunError: the state is damaged.
        """
        if not self.finished:
            return None
        try:
            return unpacked_labels(self.state().get(SEEN_LABELS), labels)
        except ValueError as error:
            raise RunError(f"{self.path / 'state.json'}: {SEEN_LABELS}: {error}; remove the stage's folder to train it again") from None

    def tensors(self) -> dict[str, Tensor]:
        """Return a finished stage's weights.

        Raises:
            RunError: the file is missing or damaged.
        """
        return load_tensors(self.path / "model.safetensors", self.state()["files"]["model.safetensors"])

    def finish(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a stage's weights and, last, its state; its progress is no longer needed."""
        files = {"model.safetensors": save_tensors(self.path / "model.safetensors", tensors)}
        if (scores := self.path / "scores.parquet").exists():
            files[scores.name] = io.sha256(str(scores))
        _write_state(self.path / "state.json", {**state, "files": files})
        self.drop_checkpoints()

    def adopt(self, state: dict[str, Any], *, renamed: Callable[[str], str] | None = None) -> None:
        """Write the state of a stage whose files were copied from another run, checked against it.

        Args:
            state: The stage's state there.
            renamed: What a weight is called here, by its name there; None where names are the same.

        Raises:
            RunError: a file is missing or damaged.
        """
        files = dict(state["files"])
        for name, sha256 in files.items():
            check_file(self.path / name, sha256)
        if renamed is not None:
            weights = self.path / "model.safetensors"
            files[weights.name] = save_tensors(weights, {renamed(name): value for name, value in load_tensors(weights).items()})
        _write_state(self.path / "state.json", {**state, "files": files})

    def write_timing(self, timing: dict[str, Any]) -> None:
        """Write what the stage took."""
        write_json(self.path / "timing.json", timing)

    def timing(self) -> dict[str, Any]:
        """Return what the stage took; empty where it is not known, as no result depends on it."""
        path = self.path / "timing.json"
        try:
            timing: dict[str, Any] = io.read_json(str(path)) if path.exists() else {}
        except DataError:
            return {}
        return timing

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
        with atomic_write(self.path / "scores.parquet") as file:
            pq.write_table(table, file)

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of a finished stage, also where a run was killed before it could."""
        shutil.rmtree(self._progress, ignore_errors=True)

    @property
    def in_progress(self) -> bool:
        """Whether there is a whole checkpoint within the stage."""
        return self._newest_whole()[0] is not None

    @property
    def identity(self) -> str:
        """What tells a finished stage, or the newest whole checkpoint within one, from every other; empty where there is neither."""
        newest = self.path if self.finished else self._newest_whole()[0]
        return "" if newest is None else f"{newest.name}/{io.sha256(str(newest / 'state.json'))}"

    def checkpoint_state(self) -> dict[str, Any]:
        """Return the small state of the newest whole checkpoint."""
        folder = self._newest_whole()[0]
        assert folder is not None
        return _read_state(folder / "state.json")

    def damaged_checkpoints(self) -> list[str]:
        """Return what is wrong with the checkpoints that are newer than the one in use, for a person."""
        return self._newest_whole()[1]

    def drop_damaged_checkpoints(self) -> None:
        """Remove the checkpoints that are newer than the one in use: those of the new way come between, and must take nothing of them."""
        whole = self._newest_whole()[0]
        for folder in self._checkpoints():
            if whole is None or _order(folder) > _order(whole):
                shutil.rmtree(folder)

    def save_phase_start(self, phase: int, tensors: dict[str, Tensor]) -> None:
        """Keep all weights as a later phase found them; its checkpoints hold what it trains."""
        path = self._progress / f"phase-{phase}.safetensors"
        _write_state(path.with_suffix(".json"), {"sha256": save_tensors(path, tensors)})

    def phase_start(self, phase: int) -> dict[str, Tensor]:
        """Return what `save_phase_start` kept.

        Raises:
            RunError: the file is missing or damaged.
        """
        path = self._progress / f"phase-{phase}.safetensors"
        return load_tensors(path, _read_state(path.with_suffix(".json")).get("sha256"))

    def save_checkpoint(self, checkpoint: StageCheckpoint) -> None:
        """Write a checkpoint as a folder that appears whole; the one before stays, in case this one is damaged, and older ones go.

        Within an epoch `best` and `average` are what the epoch began with: where the checkpoint before, of the same phase, has their files
        they are linked.
        """
        name = f"phase-{checkpoint.phase}-epoch-{checkpoint.epoch:05d}" + (f"-step-{checkpoint.step:08d}" if checkpoint.step else "")
        older = [folder for folder in self._checkpoints() if _order(folder) < _order(self._progress / name)]
        shutil.rmtree(self._progress / name, ignore_errors=True)
        # that of the phase before has other ones
        before = older[-1] if older and checkpoint.step and older[-1].name.startswith(f"phase-{checkpoint.phase}-") else None
        known = self._files_of(before)
        with atomic_folder(self._progress / name) as folder:
            files = {"engine.safetensors": save_tensors(folder / "engine.safetensors", checkpoint.engine)}
            for part, tensors in (("best.safetensors", checkpoint.best), ("average.safetensors", checkpoint.average)):
                if not tensors:
                    continue
                if before is not None and part in known and _linked(before / part, folder / part):
                    files[part] = known[part]
                else:
                    files[part] = save_tensors(folder / part, tensors)
            where = {"phase": checkpoint.phase, "epoch": checkpoint.epoch, "step": checkpoint.step}
            _write_state(folder / "state.json", {**where, **checkpoint.state, "files": files})
        for folder in older[:-1]:
            shutil.rmtree(folder)

    def load_checkpoint(self) -> StageCheckpoint | None:
        """Return the newest whole checkpoint, or None."""
        folder = self._newest_whole()[0]
        if folder is None:
            return None
        state = _read_state(folder / "state.json")
        kept = {name: folder / f"{name}.safetensors" for name in ("best", "average")}
        return StageCheckpoint(
            phase=state["phase"],
            epoch=state["epoch"],
            step=state["step"],
            state=state,
            engine=load_tensors(folder / "engine.safetensors"),
            **{name: load_tensors(path) if path.name in state["files"] else {} for name, path in kept.items()},
        )

    def _newest_whole(self) -> tuple[Path | None, list[str]]:
        """Return the newest checkpoint whose files are as they were written, and what is wrong with newer ones."""
        problems: list[str] = []
        for folder in reversed(self._checkpoints()):
            try:
                _check_checkpoint(folder)
            except TeraconError as error:
                problems.append(str(error).partition(";")[0])
                continue
            return folder, problems
        return None, problems

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield each file that the stage would read back, and what is wrong with it, or nothing."""
        if self.finished:
            state = self.state()
            for name, sha256 in state["files"].items():
                yield _checked(self.path / name, sha256)
        for folder in self._checkpoints():
            try:
                state = _read_state(folder / "state.json")
            except RunError as error:
                yield str(folder / "state.json"), str(error)
                continue
            for name, sha256 in state["files"].items():
                yield _checked(folder / name, sha256)

    @staticmethod
    def _files_of(folder: Path | None) -> dict[str, str]:
        """Return a checkpoint's files with their checksums; none of a damaged one."""
        try:
            files: dict[str, str] = {} if folder is None else _read_state(folder / "state.json")["files"]
        except RunError:
            return {}
        return files

    def _checkpoints(self) -> list[Path]:
        found = [folder for folder in self._progress.glob("phase-*-epoch-*") if (folder / "state.json").exists()]
        return sorted(found, key=_order)


def _order(folder: Path) -> list[int]:
    """Return what checkpoints are ordered by: phase, epoch, and step within the epoch after it."""
    return [int(part) for part in folder.name.split("-")[1::2]]


def _sha256_of(path: Path) -> str:
    """Return a file's SHA-256, computed once in a process while the file stays as it is."""
    stat = path.stat()
    return _sha256(str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, _changed: int, _size: int, _inode: int) -> str:
    return io.sha256(path)


def _linked(source: Path, target: Path) -> bool:
    """Link a file; returns whether that worked, as not every file system has links."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state with a checksum of its own."""
    write_json(path, {**state, "checksum": _checksum(state)})


def _read_state(path: Path) -> dict[str, Any]:
    """Return a state as it was written.

    Raises:
        RunError: it is missing or damaged, or another version of this program has written it.
    """
    try:
        state = io.read_json(str(path))
    except (TeraconError, ValueError) as error:
        raise RunError(f"{path}: was damaged ({error}); remove the stage's folder to train it again") from None
    if not isinstance(state, dict):
        raise RunError(f"{path}: was damaged, expected a mapping; remove the stage's folder to train it again")
    if state.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise RunError(f"{path}: was written by another version of this program; name a new folder with --run")
    checksum = state.pop("checksum", None)
    if checksum != _checksum(state):
        raise RunError(f"{path}: was damaged or changed since it was written; remove the stage's folder to train it again")
    return state


def _checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _check_checkpoint(folder: Path) -> None:
    """Check that a checkpoint is as it was written.

    Raises:
        RunError: a file is missing or damaged.
    """
    state = _read_state(folder / "state.json")
    for name, sha256 in state["files"].items():
        check_file(folder / name, sha256)


def _checked(path: Path, sha256: str) -> tuple[str, str]:
    try:
        check_file(path, sha256)
    except RunError as error:
        return str(path), str(error)
    return str(path), ""
