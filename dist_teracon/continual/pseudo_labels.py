"""Pseudo-labels ahead of time: pools of users, the frozen teacher's pass, the store and the stream of replayed rows (SPEC section 4).

On disk, a past task and shard: `pseudo_labels/<past task>/shard-00042.arrow` with `row` (int32, of the user in the shard) and
`target` (fixed-size list of float32: the teacher's logits, or its representation where the labels are too many to store).

Legend: n rows, C channels, Y labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon import io
from dist_teracon.data.batches import PackedBatch, PackedRows, concatenate, take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Split
from dist_teracon.errors import RunError
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
    batch: int = 1024,
) -> Iterator[Path]:
    """Run the teacher over a pool, shard by shard; yields each shard's file once it is whole. What is there is kept and extended.

    Args:
        teach: Maps a packed batch of whole sequences to targets [n, d].
        pool: `pool_of_users`.
        folder: Where the shards' files go.
        mask_index: Row of the teacher's mask table.
        shards: The shards that this rank owns.
        batch: Users encoded at a time.
    """
    for shard in shards:
        path = folder / f"shard-{shard:05d}.arrow"
        rows, targets = read_shard(path) if path.exists() else (np.zeros(0, dtype=np.int32), None)
        kept = min(len(rows), len(pool[shard]))
        if not np.array_equal(rows[:kept], pool[shard][:kept]):
            kept = 0  # made for another pool
        data = dataset.shard(shard)
        parts = [] if targets is None or not kept else [targets[:kept]]
        wanted = pool[shard][kept:]
        for first in range(0, len(wanted), batch):
            packed = take_rows(data.values, data.offsets, wanted[first : first + batch])
            parts.append(teach(plain_batch(packed, mask_index)).float().cpu().numpy())
        if wanted.size or targets is None:
            _write_shard(path, pool[shard], np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32))
        yield path


def plain_batch(rows: PackedRows, mask_index: int) -> PackedBatch:
    """Return rows of one task as a batch whose last positions are read."""
    return PackedBatch(
        values=torch.from_numpy(rows.values),
        row_offsets=torch.from_numpy(rows.offsets),
        task_of_row=torch.full((rows.rows,), mask_index, dtype=torch.int32),
        positions="last",
    )


def _write_shard(path: Path, rows: NDArray[np.int64], targets: NDArray[np.float32]) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(targets.reshape(-1)), targets.shape[1])
    table = pa.table({"row": pa.array(rows.astype(np.int32)), "target": values})
    with io.atomic_write(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


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


class ReplayStream:
    """The rows of one past task in the order in which batches draw them, the same at any world size.

    Args:
        dataset: Where the sequences are.
        pool: `pool_of_users`, of own shards at least.
        targets: From `open_store`; None where a teacher answers online.
        key: Distinguishes streams.
        seed: Seed of the order.
        shards: The shards that this rank owns.
        sizes: Rows of every shard's pool, where `pool` holds those of own shards alone.
    """

    def __init__(
        self,
        dataset: Dataset,
        pool: Sequence[NDArray[np.int64]],
        targets: Store | None,
        *,
        key: str,
        seed: int,
        shards: range,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.dataset, self.pool, self.targets = dataset, pool, targets
        self.seed, self.key, self.shards = seed, stable_hash(key), shards
        self.starts = np.concatenate([[0], np.cumsum([len(rows) for rows in pool] if sizes is None else sizes)])
        self.begin_epoch(1)

    @property
    def size(self) -> int:
        """Rows of the whole pool."""
        return int(self.starts[-1])

    def begin_epoch(self, epoch: int) -> None:
        """Shuffle anew."""
        self.epoch, self.passes, self.position = epoch, 0, 0
        self._shuffle()

    def _shuffle(self) -> None:
        sequence = np.random.SeedSequence([self.seed, self.key, self.epoch, self.passes])
        self.order = np.random.Generator(np.random.PCG64(sequence)).permutation(self.size)

    def draw(self, count: int) -> tuple[PackedRows, Tensor | None, int]:
        """Draw the next `count` rows of the stream, at most the pool.

        Returns:
            This rank's rows among them, their targets [n, d] (None for an online teacher), and how many were drawn over all ranks.
        """
        count = min(count, self.size)
        if self.position + count > self.size:
            self.passes, self.position = self.passes + 1, 0
            self._shuffle()
        drawn = self.order[self.position : self.position + count]
        self.position += count
        parts: list[PackedRows] = []
        targets: list[NDArray[np.float32]] = []
        for shard in self.shards:
            local = drawn[(drawn >= self.starts[shard]) & (drawn < self.starts[shard + 1])] - self.starts[shard]
            data = self.dataset.shard(shard)
            parts.append(take_rows(data.values, data.offsets, self.pool[shard][local]))
            if self.targets is not None:
                targets.append(self.targets.shards[shard][local])
        if self.targets is None:
            return concatenate(parts), None, count
        none = np.zeros((0, self.targets.width), dtype=np.float32)
        return concatenate(parts), torch.from_numpy(np.concatenate([none, *targets])), count


def open_store(folder: Path, pool: Sequence[NDArray[np.int64]], shards: range, width: int) -> Store:
    """Return the targets of each own shard, cut to the pool."""
    opened = {}
    for shard in shards:
        _, targets = read_shard(folder / f"shard-{shard:05d}.arrow")
        opened[shard] = targets[: len(pool[shard])] if len(pool[shard]) else np.zeros((0, width), dtype=np.float32)
    return Store(width, opened)
