"""Pseudo-labels ahead of time: pools of users, the frozen teacher's pass, and the store (docs/method.md,
Retention).

On disk, a past task and shard: `pseudo_labels/<past task>/shard-00042.arrow` with `row` (int32, of the user in the shard) and
`target` (fixed-size list of float32 or float16: the teacher's logits, or its representation where the labels are too many to store).
Beside it `shard-00042.json`: the SHA-256 of the shard and of the teacher that made it. `pseudo_labels/shard-00042.pass.json` is there
while a pass extends a shard: where it began.

Legend: n rows, C channels, Y labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon import io
from dist_teracon.console import Log, no_log
from dist_teracon.data.batches import PackedBatch, PackedRows, take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Split, folder_of
from dist_teracon.errors import DataError, RunError
from dist_teracon.hashing import mix64, stable_hash

# `pool: auto` keeps every training user of a task of at most so many, and else a share of so many times the largest ρ.
SMALL_TASK = 100_000
HEADROOM = 4


def pool_of_users(
    dataset: Dataset, task: str, past: str, *, seed: int, share: float, shards: Iterable[int] | None = None
) -> list[NDArray[np.int64]]:
    """Choose the users to replay for a past task: for each shard the rows of `task`'s training users whose keyed hash lies in `share`.

    Rows are ordered by hash, so a smaller pool is the beginning of a larger one. Where `shards` are named, as those that a rank owns,
    only they are opened, and the others' rows are left empty.
    """
    key = stable_hash(f"{task}:{past}:{seed}")
    pool = [np.zeros(0, dtype=np.int64)] * dataset.info.shards
    for shard in range(dataset.info.shards) if shards is None else shards:
        users = dataset.labels(task, shard).of(Split.TRAIN).users
        hashed = mix64(dataset.shard(shard).user_hash[users], key=key)
        order = np.lexsort((users, hashed))
        inside = hashed[order] < np.uint64(min(share * 2.0**64, 2.0**64 - 2048)) if share < 1 else slice(None)
        pool[shard] = users[order][inside]
    return pool


def pool_share(setting: float | str, *, users: int, largest_rate: float, batch: int, max_steps: int | None) -> float:
    """Resolve `pool: auto`: all of a small task's users, else four times the largest ρ, cut to what `max_steps` can draw."""
    if not isinstance(setting, str):
        return float(setting)
    share = 1.0 if users <= SMALL_TASK else min(1.0, HEADROOM * largest_rate)
    if max_steps is not None and users:
        drawn = max_steps * max(1.0, HEADROOM * largest_rate * batch)
        share = min(share, max(drawn / users, min(1.0, 100 / users)))
    return share


@dataclass(frozen=True)
class PastPool:
    """The users whom a stage replays for a past task.

    Attributes:
        task: The past task's name.
        mask_index: Its row of the teacher's mask table.
        rows: `pool_of_users`, of own shards at least.
        moment: When their rows are predicted, as those of the new task, whose rows they are; None where it is not read.
    """

    task: str
    mask_index: int
    rows: Sequence[NDArray[np.int64]]
    moment: int | None = None


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
                    _write_shard(part.path, part.pool, np.concatenate([*kept, targets]), teacher)
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
    if unfit := damage_of(path) or _other_teacher(path, teacher):
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
        io.write_json(note, {"teacher": teacher, "firsts": firsts, "ends": [len(part.pool) for part in found]})
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


def shard_file(folder: Path, task: str, shard: int) -> Path:
    """Return where a past task's targets of a shard lie below a stage's `pseudo_labels`."""
    return folder / folder_of(task) / f"shard-{shard:05d}.arrow"


def plain_batch(rows: PackedRows, mask_index: int | NDArray[np.int32]) -> PackedBatch:
    """Return rows as a batch whose last positions are read, all under one mask or each under its own."""
    return PackedBatch(
        values=torch.from_numpy(rows.values),
        row_offsets=torch.from_numpy(rows.offsets),
        task_of_row=torch.from_numpy(np.broadcast_to(np.asarray(mask_index, dtype=np.int32), rows.rows).copy()),
        positions="last",
    ).with_beside(rows)


def _write_shard(path: Path, rows: NDArray[np.int64], targets: NDArray[Any], teacher: str) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(targets.reshape(-1)), targets.shape[1])
    table = pa.table({"row": pa.array(rows.astype(np.int32)), "target": values})
    _checksum_file(path).unlink(missing_ok=True)  # a shard without one is made anew
    with io.atomic_write(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    checksum = io.sha256(str(path))
    io.write_json(_checksum_file(path), {"sha256": checksum, "teacher": teacher, "own_sha256": _own_checksum(checksum, teacher)})


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _own_checksum(checksum: str, teacher: str) -> str:
    """Return the checksum of what stands beside a shard, so that damage to it is seen as well."""
    return hashlib.sha256(f"{checksum} {teacher}".encode()).hexdigest()


def damage_of(path: Path) -> str:
    """Return what is wrong with a shard that a killed stage has left, or nothing: a damaged one is made anew."""
    noted = _checksum_file(path)
    if not noted.exists():
        return "its checksum is missing"
    try:
        known = io.read_json(str(noted))
    except DataError:
        return "its checksum was damaged"
    if not isinstance(known, dict) or known.get("own_sha256") != _own_checksum(str(known.get("sha256")), str(known.get("teacher"))):
        return "its checksum was damaged"
    return "" if known["sha256"] == io.sha256(str(path)) else "it is not as it was written"


def _other_teacher(path: Path, teacher: str) -> str:
    """Return that another teacher has made a sound shard, or nothing."""
    return "" if io.read_json(str(_checksum_file(path))).get("teacher", "") == teacher else "another teacher has made it"


def hash_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_shard(path: Path) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Map a shard of the store: rows int32 [n] and targets float32 or float16 [n, d], read from disk as they are touched.

    Raises:
        RunError: the file was changed or cut off since it was written.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        width = table.schema.field("target").type.list_size
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        if not path.exists():
            raise
        raise RunError(f"{path}: these pseudo-labels were damaged ({error}); remove the file, and the same command makes it anew") from None
    if not table.num_rows:
        number = np.float16 if table.schema.field("target").type.value_type == pa.float16() else np.float32
        return np.zeros(0, dtype=np.int32), np.zeros((0, width), dtype=number)
    # a shard is written as one chunk: taken as it lies, since combining chunks would copy it into memory
    return table["row"].chunk(0).to_numpy(), table["target"].chunk(0).flatten().to_numpy().reshape(-1, width)


@dataclass(frozen=True)
class Store:
    """Stored targets of one past task.

    Attributes:
        width: Numbers a row, d.
        shards: float32 or float16 [n, d] by own shard, rows as in the pool; none where a rank owns no shard.
    """

    width: int
    shards: dict[int, NDArray[Any]]

    def take(self, rows: Sequence[tuple[int, NDArray[np.int64]]]) -> NDArray[Any]:
        """Return the targets of rows of the pool, given shard by shard: [n, d]."""
        parts = [self.shards[shard][chosen] for shard, chosen in rows if len(chosen)]
        return np.concatenate(parts) if parts else np.zeros((0, self.width), dtype=np.float32)


def open_store(folder: Path, pool: PastPool, shards: range, width: int) -> Store:
    """Return the targets of each own shard, cut to the pool.

    Args:
        folder: `pseudo_labels` of the stage.
        pool: The past task's.
        shards: The shards that this rank owns.
        width: Numbers a row.
    """
    opened = {}
    for shard in shards:
        _, targets = read_shard(shard_file(folder, pool.task, shard))
        size = len(pool.rows[shard])
        opened[shard] = targets[:size] if size else np.zeros((0, width), dtype=targets.dtype)
    return Store(width, opened)
