"""Reading a prepared data set, shard by shard: from its files, or through the local cache where it is large.

Legend: U users of a shard, N items, R rows (users with labels), E labels.
"""

from __future__ import annotations

import hashlib
import io as bytes_io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data import ragged
from dist_teracon.data.cache import Columns, cache_folder, cached_columns
from dist_teracon.data.event_columns import NO_COLUMNS, NO_TIME, EventColumns
from dist_teracon.data.input_features import NO_FEATURES, InputFeatures, close
from dist_teracon.data.moments import Moments
from dist_teracon.data.schema import (
    EARLIER_FILE,
    FIRST_ITEM,
    INPUT_COLUMN,
    ITEM_INPUTS_FILE,
    TYPES_FILE,
    DatasetInfo,
    FileEntry,
    Split,
    earlier_file,
    input_file,
    read_dataset_info,
    task_file,
    users_file,
    vocabulary_file,
)
from dist_teracon.errors import DataError

Ragged = tuple[NDArray[Any], NDArray[np.int64]]

# Data sets of at least so many events go through the local cache; smaller ones are read into memory.
CACHE_FROM = 1 << 22


@dataclass(frozen=True)
class Labels:
    """A task's labels in one shard: row i has `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        users: int64 [R], rows of the shard's users.
        values: int32 [E].
        offsets: int64 [R + 1].
        split: int8 [E], a `Split` each.
        period: int8 [E], the test period of each, from 0 on; None where the test has one.
    """

    users: NDArray[np.int64]
    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    split: NDArray[np.int8]
    period: NDArray[np.int8] | None = None

    def of(self, split: Split, *, period: int | None = None) -> Labels:
        """Return the labels of one split, of the test those of one period where it is given, and only the rows that have any."""
        kept = self.split == split
        if period is not None and self.period is not None and split == Split.TEST:
            kept &= self.period == period
        counts = np.diff(ragged.offsets_of(kept)[self.offsets])
        rows = counts > 0
        period_kept = None if self.period is None else self.period[kept]
        return Labels(self.users[rows], self.values[kept], ragged.offsets_of(counts[rows]), self.split[kept], period_kept)

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
        targets: int32 [U], items of each sequence that a next-item task predicts: those after its first that are in the vocabulary.
        columns: What is read of the events beside their items.
        features: int32 [U, F], all features of the users; None where there are none. Rows of tasks take theirs from
            `Dataset.user_features`, without what is closed to them.
    """

    user_hash: NDArray[np.uint64]
    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]
    columns: EventColumns = NO_COLUMNS
    features: NDArray[np.int32] | None = None


class Dataset:
    """A prepared data set opened for reading; shards are read and checked once, on first use.

    Args:
        uri: Folder or URI.
        cached: Read through the local cache; by the number of events where None.

    Attributes:
        columns_read: What shards hold of events beside their items; `read_columns` sets it.
        inputs_read: Side features that rows have; none until `read_inputs` sets it.
        closed: By task, which of them its rows do not have, as `DatasetInfo.inputs` says unless `read_inputs` sets it.
        moments: When rows are predicted; None, and rows have none, where nothing reads it.

    Raises:
        DataError: no data set there.
    """

    def __init__(self, uri: str, *, cached: bool | None = None) -> None:
        self.uri = uri
        self.info: DatasetInfo = read_dataset_info(uri)
        self._cache: Path | None = cache_folder() if (self.info.events >= CACHE_FROM if cached is None else cached) else None
        self.columns_read: tuple[str, ...] = self.info.history.names
        self.inputs_read: InputFeatures = NO_FEATURES
        self.closed: Mapping[str, Collection[str]] = self.info.inputs.closed
        self.moments: Moments | None = None
        self._shards: dict[int, Shard] = {}
        self._earlier: dict[int, Ragged] = {}
        self._label_of_earlier: dict[str, NDArray[np.int64]] = {}
        self._labels: dict[tuple[str, int], Labels] = {}
        self._train_counts: dict[tuple[str, tuple[int, ...]], NDArray[np.int64]] = {}
        self._label_of_item: dict[str, NDArray[np.int64] | None] = {}

    def shard(self, index: int) -> Shard:
        """Return a shard's users."""
        if index not in self._shards:
            path, beside = users_file(index), self.info.history.names
            inputs = [f"{INPUT_COLUMN}{feature.name}" for feature in self.info.inputs.user]
            names = (*_SHARD, *beside, *(["features"] if inputs else []))
            read = ["user_hash", "sequence", *beside, *inputs]
            found = self._columns(path, names, lambda: _users_columns(self.table(path, read), beside, inputs))
            columns = EventColumns(**{name: found.pop(name) for name in beside}).only(self.columns_read)
            self._shards[index] = Shard(**found, columns=columns)
        return self._shards[index]

    def read_columns(self, names: Iterable[str]) -> None:
        """Read of the events, beside their items, these columns alone from here on (`DatasetInfo.history.names` by default)."""
        self.columns_read = tuple(names)
        assert set(self.columns_read) <= set(self.info.history.names), names
        self._shards.clear()

    def earlier(self, index: int) -> Ragged | None:
        """Return the items that each of a shard's users took before the sequence begins, by index; None where it is not known.

        Indices from the number of items on are those of `earlier_items`.
        """
        if not self.info.keeps_earlier:
            return None
        if index not in self._earlier:
            table = self.table(earlier_file(index))
            items, counts = table["items"].combine_chunks(), np.zeros(len(self.shard(index).user_hash), dtype=np.int64)
            counts[table["row"].to_numpy()] = np.diff(_offsets(items))
            self._earlier[index] = items.flatten().to_numpy().astype(np.int32, copy=False), ragged.offsets_of(counts)
        return self._earlier[index]

    def earlier_items(self) -> list[str]:
        """Return the names of items that users took before their sequences begin, and that no sequence holds."""
        names: list[str] = self.table(EARLIER_FILE)["item"].to_pylist() if EARLIER_FILE in self.info.files else []
        return names

    def earlier_labels(self, task: str, index: int) -> Ragged | None:
        """Return the labels of a task that each of a shard's users took before the sequence begins; None where it is not known."""
        found = self.earlier(index)
        if found is None:
            return None
        if task not in self._label_of_earlier:
            self._label_of_earlier[task] = self._labels_of_earlier(task)
        labels = self._label_of_earlier[task][found[0]]
        return ragged.keep(labels, found[1], labels >= 0)

    def _labels_of_earlier(self, task: str) -> NDArray[np.int64]:
        """Return which label of a task each index of `earlier` is, −1 for none."""
        label_of, others = self.label_of_item(task), self.earlier_items()
        if label_of is None:
            return np.full(self.info.items + len(others), -1, dtype=np.int64)
        known = [] if self.info.task(task).predicts_next else self.vocabulary(task)["label"].to_pylist()
        return np.concatenate([label_of, label_of_name(others, known)])

    def last_event(self, shards: Iterable[int]) -> int:
        """Return when the last event of some shards was, in seconds since 1970; `NO_TIME` where no time is known."""
        times = [column for shard in shards if (column := self.shard(shard).columns.times) is not None]
        return max((int(column.max()) for column in times if column.size), default=NO_TIME)

    def read_inputs(self, names: Sequence[str], *, closed: Mapping[str, Collection[str]] | None = None) -> None:
        """Give rows these side features from here on.

        Args:
            names: Of features of users and items.
            closed: By task, features of users that its rows do not have, where more are closed than the data set says.
        """
        assert set(names) <= set(self.info.inputs.names), names
        self.inputs_read = self.info.inputs.of(names)
        self.closed = self.info.inputs.closed if closed is None else closed

    def user_features(self, index: int, *tasks: str) -> NDArray[np.int32] | None:
        """Return the features that are read of a shard's users, in rows of some tasks: int32 [U, F]; None where none is.

        What is closed to any of the tasks is `CLOSED`.
        """
        names = [feature.name for feature in self.inputs_read.user]
        if not names:
            return None
        every, features = [feature.name for feature in self.info.inputs.user], self.shard(index).features
        assert features is not None
        values = features[:, [every.index(name) for name in names]]
        return close(values, names, [name for task in tasks for name in self.closed.get(task, ())])

    def item_features(self) -> NDArray[np.int32]:
        """Return the features that are read of the items, int32 [items, F]."""
        names = [f"{INPUT_COLUMN}{feature.name}" for feature in self.inputs_read.item]
        table = self.table(ITEM_INPUTS_FILE, names) if names else None
        columns = [] if table is None else [table[name].to_numpy().astype(np.int32, copy=False) for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((self.info.items, 0), dtype=np.int32)

    def behind(self, task: str, split: Split) -> int:
        """Return how many items of a user's sequence stand behind what a task's examples of a split are about (`SplitRule.behind`)."""
        return self.info.split.behind(split) if self.info.task(task).predicts_next else 0

    def next_targets(self, index: int, *, behind: int) -> NDArray[np.int32]:
        """Return how many known items a next-item task predicts of each of a shard's sequences without its last ones: int32 [U]."""
        shard = self.shard(index)
        if not behind:
            return shard.targets
        known = ragged.offsets_of(shard.values >= FIRST_ITEM)
        starts, ends = shard.offsets[:-1] + 1, shard.offsets[1:] - behind
        return (known[np.maximum(starts, ends)] - known[np.minimum(starts, shard.offsets[1:])]).astype(np.int32)

    def forget(self, index: int) -> None:
        """Drop a shard's users from memory, where each shard is read once."""
        self._shards.pop(index, None)
        self._earlier.pop(index, None)

    def labels(self, task: str, index: int) -> Labels:
        """Return a shard's labels of a task, all splits."""
        key = (task, index)
        if key not in self._labels:
            path = task_file(task, index)
            found = Labels(**self._columns(path, _LABELS, lambda: _labels_columns(self.table(path, ["row", "labels", "split"]))))
            if self.info.test_periods:
                period = np.maximum(found.split - np.int8(Split.TEST), 0).astype(np.int8)
                found = replace(found, split=np.minimum(found.split, np.int8(Split.TEST)), period=period)
            self._check_range(task, index, found.values)
            self._labels[key] = found
        return self._labels[key]

    def train_counts(self, task: str, shards: Iterable[int] | None = None) -> NDArray[np.int64]:
        """Return how often each label is a training target, int64 [Y]; for a next-item task over all positions of training users.

        Args:
            task: The task's name.
            shards: Count in these only, as in those that a rank owns; None for all.
        """
        chosen = tuple(range(self.info.shards) if shards is None else shards)
        if (task, chosen) not in self._train_counts:
            self._train_counts[task, chosen] = self._count_training_targets(task, chosen)
        return self._train_counts[task, chosen]

    def label_of_item(self, task: str) -> NDArray[np.int64] | None:
        """Return which label of a task each item is, int64 [items], −1 for none; None for a task whose labels are not items.

        Labels are items in the first task, and in item tasks whose recipe has `label: item`.
        """
        if task not in self._label_of_item:
            found = None
            if self.info.task(task).predicts_next:
                found = next_label_of_item(self.info.items, self.info.task(task).labels)
            elif self.info.labels_are_items(task):
                items, labels = self.vocabulary("items")["item"].to_pylist(), self.vocabulary(task)["label"].to_pylist()
                found = label_of_name(items, labels)
            self._label_of_item[task] = found
        return self._label_of_item[task]

    def vocabulary(self, name: str) -> pa.Table:
        """Return a vocabulary, `items` or a task's."""
        return self.table(vocabulary_file(name))

    def types(self) -> list[str | None]:
        """Return the names of the events' types by number, None for the unknown one; nothing where they are not kept."""
        return self.table(TYPES_FILE)["type"].to_pylist() if self.info.history.types else []

    def input_values(self, feature: str) -> list[str | None]:
        """Return the names of a side feature's values by number, None for the missing one."""
        names: list[str | None] = self.table(input_file(feature))["value"].to_pylist()
        return names

    def table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Return columns of a file of the data set, all where None."""
        return pq.read_table(bytes_io.BytesIO(self.content(path)), columns=columns)

    def content(self, path: str) -> bytes:
        """Return a file's bytes, checked.

        Raises:
            DataError: there is no such file, or it is not the one that was prepared.
        """
        uri, entry = io.join(self.uri, path), self._entry(path)
        content = io.read_bytes(uri)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise DataError(
                f"{uri}: the file is not the one that was prepared (its SHA-256 differs from dataset.json); "
                "was it changed or cut off? prepare the data set again"
            )
        return content

    def _columns(self, path: str, names: tuple[str, ...], make: Any) -> dict[str, NDArray[Any]]:
        if self._cache is None:
            return dict(make())
        return cached_columns(self._entry(path).sha256, names, make, folder=self._cache)

    def _count_training_targets(self, name: str, shards: Iterable[int]) -> NDArray[np.int64]:
        task = self.info.task(name)
        counts = np.zeros(task.labels, dtype=np.int64)
        for index in shards:
            train = self.labels(name, index).of(Split.TRAIN)
            targets = train.values
            if task.predicts_next:
                shard = self.shard(index)
                starts = shard.offsets[train.users] + 1  # the first item of a sequence is no target
                ends = shard.offsets[train.users + 1] - self.behind(name, Split.TRAIN)
                positions = ragged.positions(starts, ends - starts)
                targets = shard.values[positions] - np.int32(FIRST_ITEM)
                targets = targets[targets >= 0]
            counts += np.bincount(targets, minlength=task.labels)
        return counts

    def _check_range(self, task: str, index: int, values: NDArray[np.int32]) -> None:
        known = self.info.task(task).labels
        if values.size and (values.min() < 0 or values.max() >= known):
            bad = values[(values < 0) | (values >= known)][0]
            raise DataError(f"{io.join(self.uri, task_file(task, index))}: label {bad} of task '{task}' is out of range 0…{known - 1}")

    def _entry(self, path: str) -> FileEntry:
        entry = self.info.files.get(path)
        if entry is None:
            raise DataError(f"{io.join(self.uri, path)}: dataset.json does not list this file; prepare the data set again")
        return entry


def next_label_of_item(items: int, labels: int) -> NDArray[np.int64]:
    """Return which of the first task's labels each item is, int64 [items]; −1 for the reserved ones, and for items that came later."""
    label = np.arange(items, dtype=np.int64) - FIRST_ITEM
    return np.where((label >= 0) & (label < labels), label, -1)


def label_of_name(items: Sequence[str | None], labels: Sequence[str]) -> NDArray[np.int64]:
    """Return the place among `labels` of each item's name, −1 for none."""
    place = {label: index for index, label in enumerate(labels)}
    return np.array([-1 if name is None else place.get(name, -1) for name in items], dtype=np.int64)


_SHARD = ("user_hash", "values", "offsets", "targets")
_LABELS = ("users", "values", "offsets", "split")


def _users_columns(table: pa.Table, beside: Sequence[str], inputs: Sequence[str]) -> Columns:
    sequence = table["sequence"].combine_chunks()
    values, offsets = sequence.flatten().to_numpy().astype(np.int32, copy=False), _offsets(sequence)
    known = ragged.offsets_of(values >= FIRST_ITEM)
    targets = known[offsets[1:]] - known[np.minimum(offsets[:-1] + 1, offsets[1:])]
    columns = {name: table[name].combine_chunks().flatten().to_numpy() for name in beside}
    if inputs:
        columns["features"] = np.stack([table[name].to_numpy() for name in inputs], axis=1)
    return {
        "user_hash": table["user_hash"].to_numpy(), "values": values, "offsets": offsets, "targets": targets.astype(np.int32), **columns
    }  # fmt: skip


def _labels_columns(table: pa.Table) -> Columns:
    labels, split = table["labels"].combine_chunks(), table["split"].combine_chunks()
    return {
        "users": table["row"].to_numpy().astype(np.int64),
        "values": labels.flatten().to_numpy().astype(np.int32, copy=False),
        "offsets": _offsets(labels),
        "split": split.flatten().to_numpy().astype(np.int8, copy=False),
    }


def _offsets(column: pa.ListArray) -> NDArray[np.int64]:
    offsets = column.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]
