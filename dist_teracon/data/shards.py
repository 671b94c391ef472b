"""Reading a prepared data set, shard by shard.

Legend: U users of a shard, N items, R rows (users with labels), E labels.
"""

from __future__ import annotations

import hashlib
import io as bytes_io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.batches import ragged_positions
from dist_teracon.data.schema import FIRST_ITEM, DatasetInfo, Split, read_dataset_info, task_file, users_file, vocabulary_file
from dist_teracon.errors import DataError


@dataclass(frozen=True)
class Labels:
    """A task's labels in one shard: row i has `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        users: int64 [R], rows of the shard's users.
        values: int64 [E].
        offsets: int64 [R + 1].
        split: int8 [E], a `Split` each.
    """

    users: NDArray[np.int64]
    values: NDArray[np.int64]
    offsets: NDArray[np.int64]
    split: NDArray[np.int8]

    def of(self, split: Split) -> Labels:
        """Return the labels of one split, and only the rows that have any."""
        kept = self.split == split
        counts = np.diff(np.concatenate([[0], np.cumsum(kept)])[self.offsets])
        rows = counts > 0
        offsets = np.concatenate([[0], np.cumsum(counts[rows])]).astype(np.int64)
        return Labels(self.users[rows], self.values[kept], offsets, self.split[kept])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Labels a row, int64 [R]."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Shard:
    """Users and sequences of one shard.

    Attributes:
        user_hash: uint64 [U].
        values: int32 [N], item indices.
        offsets: int64 [U + 1].
    """

    user_hash: NDArray[np.uint64]
    values: NDArray[np.int32]
    offsets: NDArray[np.int64]


class Dataset:
    """A prepared data set opened for reading; shards are read and checked once, when they are first wanted.

    Args:
        uri: Folder or URI.

    Raises:
        DataError: no data set there.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.info: DatasetInfo = read_dataset_info(uri)
        self._shards: dict[int, Shard] = {}
        self._labels: dict[tuple[str, int], Labels] = {}
        self._train_counts: dict[str, NDArray[np.int64]] = {}

    def shard(self, index: int) -> Shard:
        """Return a shard's users."""
        if index not in self._shards:
            table = self._read(users_file(index))
            sequence = table["sequence"].combine_chunks()
            self._shards[index] = Shard(
                table["user_hash"].to_numpy(), sequence.flatten().to_numpy().astype(np.int32, copy=False), _offsets(sequence)
            )
        return self._shards[index]

    def labels(self, task: str, index: int) -> Labels:
        """Return a shard's labels of a task, all splits."""
        key = (task, index)
        if key not in self._labels:
            table = self._read(task_file(task, index))
            labels, split = table["labels"].combine_chunks(), table["split"].combine_chunks()
            values = labels.flatten().to_numpy().astype(np.int64)
            self._check_range(task, index, values)
            self._labels[key] = Labels(
                table["row"].to_numpy().astype(np.int64), values, _offsets(labels), split.flatten().to_numpy().astype(np.int8)
            )
        return self._labels[key]

    def train_counts(self, task: str) -> NDArray[np.int64]:
        """Return how often each label is a training target, int64 [Y]; for a next-item task over all positions of training users."""
        if task not in self._train_counts:
            self._train_counts[task] = self._count_training_targets(task)
        return self._train_counts[task]

    def vocabulary(self, name: str) -> pa.Table:
        """Return a vocabulary, `items` or a task's."""
        return self._read(vocabulary_file(name))

    def _count_training_targets(self, name: str) -> NDArray[np.int64]:
        task = self.info.task(name)
        counts = np.zeros(task.labels, dtype=np.int64)
        for index in range(self.info.shards):
            train = self.labels(name, index).of(Split.TRAIN)
            targets = train.values
            if task.kind == "next":
                shard = self.shard(index)
                starts = shard.offsets[train.users] + 1  # the first item of a sequence is no target
                positions = ragged_positions(starts, shard.offsets[train.users + 1] - starts)
                targets = shard.values[positions].astype(np.int64) - FIRST_ITEM
                targets = targets[targets >= 0]
            counts += np.bincount(targets, minlength=task.labels)
        return counts

    def _check_range(self, task: str, index: int, values: NDArray[np.int64]) -> None:
        known = self.info.task(task).labels
        if values.size and (values.min() < 0 or values.max() >= known):
            bad = values[(values < 0) | (values >= known)][0]
            raise DataError(f"{io.join(self.uri, task_file(task, index))}: label {bad} of task '{task}' is out of range 0…{known - 1}")

    def _read(self, path: str) -> pa.Table:
        uri = io.join(self.uri, path)
        entry = self.info.files.get(path)
        if entry is None:
            raise DataError(f"{uri}: dataset.json does not list this file; prepare the data set again")
        content = io.read_bytes(uri)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise DataError(
                f"{uri}: the file is not the one that was prepared (its SHA-256 differs from dataset.json); "
                "was it changed or cut off? prepare the data set again"
            )
        return pq.read_table(bytes_io.BytesIO(content))


def _offsets(column: pa.ListArray) -> NDArray[np.int64]:
    offsets = column.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]
