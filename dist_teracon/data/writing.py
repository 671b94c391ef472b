"""Writing a data set folder: split, Parquet files shard by shard, checksums, `dataset.json` last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data import ragged
from dist_teracon.data.schema import (
    FIRST_ITEM,
    DatasetInfo,
    FileEntry,
    SplitRule,
    Task,
    task_file,
    users_file,
    vocabulary_file,
)
from dist_teracon.data.sharded import Sharded, ShardLabels, ShardRows, TaskHead
from dist_teracon.data.split import Cut, row_keys, user_keys
from dist_teracon.errors import DataError

_SMALL_SHARDS = 8
_USERS_A_SHARD = 50_000


def default_shards(users: int) -> int:
    """Return the number of shards for so many users: a power of two, 8 or more, with at most 50,000 users a shard."""
    return max(_SMALL_SHARDS, 1 << (users // _USERS_A_SHARD).bit_length())


def fill(
    folder: Path, source: Sharded, rule: SplitRule, shards: int | None, *, advance: Callable[[int, int], None] = lambda _done, _all: None
) -> DatasetInfo:
    """Write all files of a data set into a folder, `dataset.json` last; equal sources give equal bytes.

    Args:
        folder: A folder of its own.
        source: What is written.
        rule: The split.
        shards: Their number; by the number of users where None.
        advance: Takes how many shards of how many are written.

    Raises:
        DataError: a task has no example in one of the parts.
    """
    hashes = source.hashes()
    count = shards or default_shards(len(hashes))
    writer = _Writer(folder)
    heads = [TaskHead(source.next_task, "next", source.items), *source.tasks]
    splitter = _Splitter(source, rule, hashes, count, [head.name for head in heads])
    tallies = [np.zeros(3, dtype=np.int64) for _ in heads]
    users_of_task = [0] * len(heads)
    item_counts = np.zeros(len(source.items) + FIRST_ITEM, dtype=np.int64)
    label_counts = [np.zeros(len(head.classes), dtype=np.int64) for head in source.tasks]
    events = 0
    for done, (shard, rows) in enumerate(source.shards(count), 1):
        values, offsets = ragged.last(rows.values, rows.offsets, limit=source.length_limit)
        indices = values + np.int32(FIRST_ITEM)
        item_counts += np.bincount(indices, minlength=len(item_counts))
        events += len(indices)
        hash_column = pa.array(rows.user_hash, pa.uint64())
        writer.table(users_file(shard), {"user_id": rows.user_ids, "user_hash": hash_column, "sequence": _lists(indices, offsets)})
        for place, labels in enumerate((next_labels(rows, source.length_limit), *rows.labels)):
            split = splitter.split(heads[place].name, rows.user_hash, labels)
            tallies[place] += np.bincount(split, minlength=3)
            users_of_task[place] += len(labels.rows)
            if place:
                label_counts[place - 1] += np.bincount(labels.values, minlength=len(label_counts[place - 1]))
            columns = {
                "row": pa.array(labels.rows, pa.int32()),
                "labels": _lists(labels.values, labels.offsets),
                "split": _lists(split, labels.offsets),
            }
            writer.table(task_file(heads[place].name, shard), columns)
        advance(done, count)
    tasks = tuple(map(_task, heads, users_of_task, tallies))
    writer.vocabulary("items", "item", _names([None] * FIRST_ITEM, source.items), item_counts)
    for head, counts in zip(source.tasks, label_counts, strict=True):
        writer.vocabulary(head.name, "label", _names([], head.classes), counts)
    order = [vocabulary_file("items"), *(vocabulary_file(head.name) for head in source.tasks)]
    order += [users_file(shard) for shard in range(count)]
    order += [task_file(head.name, shard) for head in heads for shard in range(count)]
    info = DatasetInfo(
        name=source.name,
        users=len(hashes),
        items=len(source.items) + FIRST_ITEM,
        events=events,
        length_limit=source.length_limit,
        shards=count,
        split=rule,
        tasks=tasks,
        files={path: writer.files[path] for path in order},
        source=source.source,
        notes=source.notes,
    )
    io.write_json(folder / "dataset.json", info.to_json())
    return info


def next_labels(rows: ShardRows, length_limit: int) -> ShardLabels:
    """Return the first task's labels: the last item of each user who has two or more; an unseen one is never a target."""
    able = np.diff(rows.offsets) >= 2
    last = rows.values[rows.offsets[1:] - 1]
    able &= last >= 0
    if rows.next_users is not None:
        able &= rows.next_users
    if length_limit < 2:
        able[:] = False
    users = np.flatnonzero(able)
    return ShardLabels(users, last[users], np.arange(len(users) + 1, dtype=np.int64))


class _Splitter:
    """Splits by quotas over the whole data set, shard by shard; it keeps eight bytes a user, or an example under `rows`."""

    def __init__(self, source: Sharded, rule: SplitRule, hashes: NDArray[np.uint64], shards: int, tasks: list[str]) -> None:
        self.rule = rule
        self.cuts: dict[str, Cut] = {}
        if rule.by == "users":
            self.cuts[""] = Cut(user_keys(hashes, rule), rule)
            return
        keys: dict[str, list[NDArray[np.uint64]]] = {name: [] for name in tasks}
        for _, rows in source.shards(shards):
            for name, labels in zip(tasks, (next_labels(rows, source.length_limit), *rows.labels), strict=True):
                keys[name].append(self._keys(name, rows.user_hash, labels))
        self.cuts = {name: Cut(np.concatenate(parts), rule) for name, parts in keys.items()}

    def split(self, task: str, user_hash: NDArray[np.uint64], labels: ShardLabels) -> NDArray[np.int8]:
        """Return the split of a task's examples, int8 [E]."""
        if self.rule.by == "users":
            own = self.cuts[""].of(user_keys(user_hash[labels.rows], self.rule))
            return np.repeat(own, np.diff(labels.offsets))
        return self.cuts[task].of(self._keys(task, user_hash, labels))

    def _keys(self, task: str, user_hash: NDArray[np.uint64], labels: ShardLabels) -> NDArray[np.uint64]:
        lengths = np.diff(labels.offsets)
        position = np.arange(len(labels.values)) - np.repeat(labels.offsets[:-1], lengths)
        return row_keys(task, user_hash[np.repeat(labels.rows, lengths)], position, self.rule)


def _task(head: TaskHead, users: int, tally: NDArray[np.int64]) -> Task:
    if head.kind == "next" and users == 0:
        raise DataError(f"task '{head.name}': no user has two items or more whose last one is in the catalogue")
    train, validation, test = tally.tolist()
    for part, size in (("training", train), ("validation", validation), ("test", test)):
        if size == 0:
            sizes = f"{train} training, {validation} validation, {test} test examples of {users} users"
            raise DataError(f"task '{head.name}': has no {part} example ({sizes}); give it more users or that part a larger share")
    return Task(head.name, head.kind, len(head.classes), users, (train, validation, test))


def _names(reserved: list[None], names: Any) -> Any:
    strings = names if isinstance(names, pa.Array) else pa.array(list(names), pa.string())
    return pa.concat_arrays([pa.array(reserved, pa.string()), strings.cast(pa.string())]) if reserved else strings


def _lists(values: NDArray[Any], offsets: NDArray[np.int64]) -> Any:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


class _Writer:
    """Writes Parquet files into a folder and keeps their rows, bytes and checksums."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileEntry] = {}

    def table(self, path: str, columns: dict[str, Any]) -> None:
        """Write columns as a file of the data set."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns)
        pq.write_table(table, target, compression="zstd", version="2.6")
        self.files[path] = FileEntry(len(table), target.stat().st_size, io.sha256(str(target)))

    def vocabulary(self, name: str, column: str, names: Any, counts: NDArray[np.int64]) -> None:
        """Write names with their index and count."""
        index = pa.array(np.arange(len(names)), pa.int32())
        self.table(vocabulary_file(name), {column: names, "index": index, "count": pa.array(counts, pa.int64())})
