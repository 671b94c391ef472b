"""Pseudo-labels ahead of time: the frozen teacher's pass over the users to replay (docs/method.md, Retention).

`pseudo_labels/shard-00042.pass.json` is there while a pass extends a shard: where it began.

Legend: n rows, d numbers of a target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon import io
from dist_teracon.atomic import write_json
from dist_teracon.console import Log, no_log
from dist_teracon.continual.replayed_users import PastPool
from dist_teracon.continual.target_store import damage_of, other_teacher, read_shard, shard_file, write_shard
from dist_teracon.data.batches import PackedBatch, PackedRows, take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.errors import DataError, RunError

# Maps a packed batch of whole sequences, whose rows lie task by task (names and numbers of rows), to each task's targets [n, d].
Teach = Callable[[PackedBatch, Sequence[tuple[str, int]]], Sequence[Tensor]]


def write_pseudo_labels(
    teach: Teach,
    dataset: Dataset,
    pools: Sequence[PastPool],
    *,
    folder: Path,
    shards: range,
    teacher: str = "",
    half: bool = False,
    batch: int = 1024,
    log: Log = no_log,
) -> Iterator[Path]:
    """Run the teacher over the pools of all past tasks, shard by shard; yields each file once it is whole.

    Rows of several past tasks share a packed pass. What is there is kept, and extended where a pool has grown; a file that is damaged, or
    that another teacher has made, is made anew. A pass that was killed is made again with the same rows side by side, so that it ends with
    the same bits.

    Args:
        teach: The teacher.
        dataset: Where the sequences are.
        pools: One a past task.
        folder: `pseudo_labels` of the stage.
        shards: The shards that this rank owns.
        teacher: Hash of the teacher (`hash_of_weights`).
        half: Keep targets as float16 instead of float32.
        batch: Rows encoded at a time.
        log: Takes a line on what is made anew.
    """
    for shard in shards:
        found = [_find(folder, pool, shard, teacher=teacher, half=half, log=log) for pool in pools]
        note = folder / f"shard-{shard:05d}.pass.json"
        if not all(part.is_whole for part in found):
            firsts = _first_rows(found, note, teacher)
            missing = [part.pool[first:] for part, first in zip(found, firsts, strict=True)]
            made = _answers(teach, dataset, shard, pools, missing, half=half, batch=batch)
            for part, first, targets in zip(found, firsts, made, strict=True):
                if not part.is_whole:
                    kept = [] if part.targets is None or not first else [part.targets[:first]]
                    write_shard(part.path, part.pool, np.concatenate([*kept, targets]), teacher)
                yield part.path
        else:
            yield from (part.path for part in found)
        if _noted(note, found, teacher) is not None:
            note.unlink()


@dataclass(frozen=True)
class _Found:
    """What there is of a past task's targets in a shard: `targets` of the first rows of `pool`; None where there is no sound file."""

    path: Path
    pool: NDArray[np.int64]
    targets: NDArray[Any] | None

    @property
    def kept(self) -> int:
        return 0 if self.targets is None else self.targets.shape[0]

    @property
    def is_whole(self) -> bool:
        return self.targets is not None and self.kept == len(self.pool)


def _find(folder: Path, pool: PastPool, shard: int, *, teacher: str, half: bool, log: Log) -> _Found:
    path, wanted = shard_file(folder, pool.task, shard), pool.rows[shard]
    if not path.exists():
        return _Found(path, wanted, None)
    if unfit := damage_of(path) or other_teacher(path, teacher):
        log(f"warning: {path}: {unfit}; these pseudo-labels are made anew")
        return _Found(path, wanted, None)
    rows, targets = read_shard(path)
    kept = min(len(rows), len(wanted))
    if not np.array_equal(rows[:kept], wanted[:kept]) or (kept and targets.dtype != _number(half)):
        return _Found(path, wanted, None)  # made for another pool
    return _Found(path, wanted, targets[:kept])


def _first_rows(found: Sequence[_Found], note: Path, teacher: str) -> list[int]:
    """Return the row of each pool at which this shard's pass begins, and note it where it is not the first row.

    With the note a pass that was killed between two files is made again as it was, with the same rows side by side.
    """
    firsts = [part.kept for part in found] if all(part.targets is not None for part in found) else [0] * len(found)
    firsts = _noted(note, found, teacher) or firsts
    if any(not part.is_whole and part.kept < first for part, first in zip(found, firsts, strict=True)):
        firsts = [0] * len(found)  # what the pass would begin with was lost since
    if any(firsts):
        write_json(note, {"teacher": teacher, "firsts": firsts, "ends": [len(part.pool) for part in found]})
    return firsts


def _noted(note: Path, found: Sequence[_Found], teacher: str) -> list[int] | None:
    """Return where a pass of this teacher to the ends of these pools began, as it noted; None where there is no such note."""
    try:
        noted = io.read_json(str(note)) if note.exists() else None
    except DataError:
        return None
    if not isinstance(noted, dict) or (noted.get("teacher"), noted.get("ends")) != (teacher, [len(part.pool) for part in found]):
        return None
    return [int(first) for first in noted["firsts"]]


def _answers(
    teach: Teach, dataset: Dataset, shard: int, pools: Sequence[PastPool], rows: Sequence[NDArray[np.int64]], *, half: bool, batch: int
) -> list[NDArray[Any]]:
    """Return the teacher's targets for rows of a shard, of each past task some, encoded `batch` rows at a time."""
    data, number = dataset.shard(shard), _number(half)
    # a row reads what is open to its own past task
    features = [dataset.user_features(shard, pool.task) for pool in pools]
    made: list[list[NDArray[Any]]] = [[] for _ in pools]
    task_of_row = np.repeat(np.arange(len(pools)), [len(part) for part in rows])
    flat = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    mask_of_task = np.array([pool.mask_index for pool in pools], dtype=np.int32)
    for first in range(0, len(flat), batch):
        tasks = task_of_row[first : first + batch]
        counts = [(place, int(count)) for place, count in enumerate(np.bincount(tasks, minlength=len(pools))) if count]
        users = flat[first : first + batch]
        own = [part[users[tasks == place]] for place, part in enumerate(features) if part is not None]
        taken = take_rows(data.values, data.offsets, users, columns=data.columns)
        # all are rows of the one new task
        moments = None if pools[0].moment is None else np.full(len(users), pools[0].moment, dtype=np.int64)
        taken = replace(taken, features=np.concatenate(own) if own else None, moments=moments)
        packed = plain_batch(taken, mask_of_task[tasks])
        answered = teach(packed, [(pools[place].task, count) for place, count in counts])
        for (place, _), targets in zip(counts, answered, strict=True):
            made[place].append(_as_number(targets, number, pools[place].task))
    return [np.concatenate(parts) if parts else np.zeros((0, 1), dtype=number) for parts in made]


def _number(half: bool) -> type[np.float16] | type[np.float32]:
    return np.float16 if half else np.float32


def _as_number(targets: Tensor, number: type[np.float16] | type[np.float32], task: str) -> NDArray[Any]:
    """Return targets in the numbers that the store keeps.

    Raises:
        RunError: they are too large for float16.
    """
    values: NDArray[np.float32] = targets.float().cpu().numpy()
    if number is np.float16 and values.size and np.abs(values).max() > np.finfo(np.float16).max:
        raise RunError(f"pseudo-labels of '{task}' are larger than fp16 holds (65,504): set method.retention.store to fp32")
    return values.astype(number, copy=False)


def plain_batch(rows: PackedRows, mask_index: int | NDArray[np.int32]) -> PackedBatch:
    """Return rows as a batch whose last positions are read, all under one mask or each under its own."""
    return PackedBatch(
        values=torch.from_numpy(rows.values),
        row_offsets=torch.from_numpy(rows.offsets),
        task_of_row=torch.from_numpy(np.broadcast_to(np.asarray(mask_index, dtype=np.int32), rows.rows).copy()),
        positions="last",
    ).with_beside(rows)
