"""Pseudo-labels ahead of time: pools of users, the frozen teacher's pass, and the store (docs/method.md,
Retention).

On disk, a past task and shard: `pseudo_labels/<past task>/shard-00042.arrow` with `row` (int32, of the user in the shard) and
`target` (fixed-size list of float32: the teacher's logits, or its representation where the labels are too many to store). Beside it
`shard-00042.json`: the SHA-256 of the shard and of the teacher that made it.

Legend: n rows, C channels, Y labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon import io
from dist_teracon.console import Log, no_log
from dist_teracon.data.batches import PackedBatch, PackedRows, take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Split
from dist_teracon.errors import DataError, RunError
from dist_teracon.hashing import mix64, stable_hash

# `pool: auto` keeps every training user of a task of at most so many.
SMALL_TASK = 100_000


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
    share = 1.0 if users <= SMALL_TASK else min(1.0, 4 * largest_rate)
    if max_steps is not None and users:
        drawn = max_steps * max(1.0, 4 * largest_rate * batch)
        share = min(share, max(drawn / users, min(1.0, 100 / users)))
    return share


def write_pseudo_labels(
    teach: Callable[[PackedBatch], Tensor],
    dataset: Dataset,
    pool: Sequence[NDArray[np.int64]],
    *,
    folder: Path,
    mask_index: int,
    shards: range,
    teacher: str = "",
    batch: int = 1024,
    log: Log = no_log,
) -> Iterator[Path]:
    """Run the teacher over a pool, shard by shard; yields each shard's file once it is whole. What is there is kept and extended.

    A shard that is damaged, or that another teacher has made, is made anew.

    Args:
        teach: Maps a packed batch of whole sequences to targets [n, d].
        pool: `pool_of_users`.
        folder: Where the shards' files go.
        mask_index: Row of the teacher's mask table.
        shards: The shards that this rank owns.
        teacher: Hash of the teacher (`hash_of_weights`).
        batch: Users encoded at a time.
        log: Takes a line on what is made anew.
    """
    for shard in shards:
        path = folder / f"shard-{shard:05d}.arrow"
        rows, targets = np.zeros(0, dtype=np.int32), None
        if path.exists() and not (unfit := damage_of(path) or _other_teacher(path, teacher)):
            rows, targets = read_shard(path)
        elif path.exists():
            log(f"warning: {path}: {unfit}; these pseudo-labels are made anew")
        kept = min(len(rows), len(pool[shard]))
        if not np.array_equal(rows[:kept], pool[shard][:kept]):
            kept = 0  # made for another pool
        data = dataset.shard(shard)
        parts = [] if targets is None or not kept else [targets[:kept]]
        missing = pool[shard][kept:]
        for first in range(0, len(missing), batch):
            packed = take_rows(data.values, data.offsets, missing[first : first + batch], columns=data.columns)
            parts.append(teach(plain_batch(packed, mask_index)).float().cpu().numpy())
        if missing.size or targets is None:
            _write_shard(path, pool[shard], np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32), teacher)
        yield path


def plain_batch(rows: PackedRows, mask_index: int) -> PackedBatch:
    """Return rows of one task as a batch whose last positions are read."""
    return PackedBatch(
        values=torch.from_numpy(rows.values),
        row_offsets=torch.from_numpy(rows.offsets),
        task_of_row=torch.full((rows.rows,), mask_index, dtype=torch.int32),
        positions="last",
    ).with_columns(rows.columns)


def _write_shard(path: Path, rows: NDArray[np.int64], targets: NDArray[np.float32], teacher: str) -> None:
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


def read_shard(path: Path) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Map a shard of the store: rows int32 [n] and targets float32 [n, d], read from disk as they are touched.

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
        return np.zeros(0, dtype=np.int32), np.zeros((0, width), dtype=np.float32)
    # a shard is written as one chunk: taken as it lies, since combining chunks would copy it into memory
    return table["row"].chunk(0).to_numpy(), table["target"].chunk(0).flatten().to_numpy().reshape(-1, width)


@dataclass(frozen=True)
class Store:
    """Stored targets of one past task.

    Attributes:
        width: Numbers a row, d.
        shards: float32 [n, d] by own shard, rows as in the pool; none where a rank owns no shard.
    """

    width: int
    shards: dict[int, NDArray[np.float32]]


def open_store(folder: Path, pool: Sequence[NDArray[np.int64]], shards: range, width: int) -> Store:
    """Return the targets of each own shard, cut to the pool."""
    opened = {}
    for shard in shards:
        _, targets = read_shard(folder / f"shard-{shard:05d}.arrow")
        opened[shard] = targets[: len(pool[shard])] if len(pool[shard]) else np.zeros((0, width), dtype=np.float32)
    return Store(width, opened)
