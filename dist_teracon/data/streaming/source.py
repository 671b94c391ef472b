"""From files of rows to shards in bounded memory: rows are spilled by user once, then counted and made into shards.

A user is an unpadded sequence, and where it comes again within a task's file its k-th occurrence. What stays in memory while the
files are read is a few bytes a user (`SeenSequences`), and the vocabularies afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.files import LineBlocks
from dist_teracon.data.schema import TaskKind
from dist_teracon.data.shard_source import ShardLabels, ShardRows, TaskColumns
from dist_teracon.data.streaming.rows import FindSeen, Rows, parse_rows
from dist_teracon.data.streaming.seen import SeenSequences
from dist_teracon.data.streaming.spill import Partitioning, Spill, lists, numbers, read_spill
from dist_teracon.data.streaming.vocabulary import NumberCounts, NumberPlaces, by_count
from dist_teracon.errors import ConfigError, DataError

_MOST_CLASSES = 100
SEQUENCES = "sequences"

Int = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class TaskFiles:
    """A task's files, read one after another as one."""

    name: str
    uris: list[str]


def spill_rows(tasks: Sequence[TaskFiles], context: ReadContext, partitioning: Partitioning) -> int:
    """Read every task's files, the first task's first, and spill their rows by user; returns the widest row's fields.

    Raises:
        DataError: a missing, empty or damaged file, or too many malformed rows.
    """
    seen, fields = SeenSequences(), 0
    sequences = Spill(context.spill, SEQUENCES, partitioning)
    for number, task in enumerate(tasks):
        labels = Spill(context.spill, labels_kind(number), partitioning) if number else None
        row = 0
        for uri in task.uris:
            kept, widest = spill_file(uri, number, context, sequences, labels, row=row, seen=seen, alone=len(task.uris) == 1)
            row, fields = row + kept, max(fields, widest)
        check_rows(task, row)
        if labels is not None:
            labels.close()
    sequences.close()
    return fields


def spill_file(
    uri: str,
    task: int,
    context: ReadContext,
    sequences: Spill,
    labels: Spill | None,
    *,
    row: int = 0,
    seen: SeenSequences | None = None,
    alone: bool = True,
) -> tuple[int, int]:
    """Read one file of a task and spill its rows.

    Args:
        uri: The file.
        task: The task's number.
        context: The preparation.
        sequences: Collects sequences; where `seen` is given, those that were not seen before alone.
        labels: Collects a later task's targets; None for the first task.
        row: The task's rows before this file.
        seen: The sequences seen so far.
        alone: Whether it is the task's only file, which must have rows; a part may be empty.

    Returns:
        How many rows were kept, and the fields of the widest.
    """
    total = kept = fields = 0
    for rows, count in _parsed(uri, context, targets=labels is not None, seen=seen.find if seen is not None and task else None):
        total += count
        fields = max(fields, rows.fields)
        fresh_hashes = rows.user_hash[rows.fresh]
        if seen is not None:
            seen.add(rows.text_hash[rows.fresh], fresh_hashes, np.diff(rows.item_offsets).astype(np.int32))
        first = row + kept
        columns: dict[str, NDArray[Any]] = {
            "hash": fresh_hashes,
            "file": np.full(len(rows.fresh), task, dtype=np.int16),
            "row": first + rows.fresh,
        }
        sequences.add(columns, (rows.items, rows.item_offsets))
        if labels is not None:
            columns = {"hash": rows.user_hash, "row": first + np.arange(len(rows.lines))}
            labels.add(columns, (rows.targets, rows.target_offsets))
        kept += len(rows.lines)
    if total == 0 and alone:
        raise DataError(f"{uri}: is empty; expected rows of items")
    context.bad.check(uri, total)
    if kept == 0 and alone:
        raise DataError(f"{uri}: has no rows")
    return kept, fields


def check_rows(task: TaskFiles, rows: int) -> None:
    """Raise DataError where no part of a task has rows."""
    if rows == 0:
        raise DataError(f"{task.uris[0]}: has no rows, nor has another part of task '{task.name}'")


def _parsed(uri: str, context: ReadContext, *, targets: bool, seen: FindSeen | None) -> Iterator[tuple[Rows, int]]:
    blocks = LineBlocks(uri, size=context.block)

    def reject(kind: str, line: int, text: str) -> None:
        context.bad.add(kind, f"{uri}:{line}", text=text)

    for block in blocks:
        yield parse_rows(block, targets=targets, seen=seen, reject=reject)
        context.report_position(uri, blocks.position)
    context.sha256[uri] = blocks.sha256


def labels_kind(number: int) -> str:
    """Return the name of a later task's spilled rows."""
    return f"labels-{number}"


@dataclass(frozen=True)
class _Users:
    """Users of some partitions in the order of their first appearance.

    Attributes:
        hashes, occurrence: Who they are.
        sequence: int64 [U], rows of `items` that hold their sequences.
        items: The spilled sequences.
        next_users: bool [U], who stands in the first task's file.
        rows: A later task: int64, the users of its rows.
        targets: A later task: its rows' targets.
    """

    hashes: Hashes
    occurrence: Int
    sequence: Int
    items: tuple[NDArray[np.int32], Int]
    next_users: NDArray[np.bool_]
    rows: list[Int]
    targets: list[tuple[NDArray[np.int32], Int]]

    def sequences(self) -> tuple[NDArray[np.int32], Int]:
        """Return the users' sequences, ragged."""
        values, offsets = self.items
        if len(self.sequence) == len(offsets) - 1 and np.array_equal(self.sequence, np.arange(len(self.sequence))):
            return self.items
        return ragged.take(values, offsets, self.sequence)


class ReadSpill(Protocol):
    """Returns the rows of one kind and some partitions, in order, as an Arrow table; None where there are none."""

    def __call__(self, kind: str, partitions: list[int]) -> Any: ...


@dataclass(frozen=True)
class PartitionCounts:
    """What a partition holds.

    Attributes:
        hashes: uint64 [U], of its users.
        items: The items' numbers, ascending, and their counts.
        labels: The same of each later task's labels.
        several: Whether a user has several labels, by later task.
        groups, grouped_users: Sequences that several users have, and how many users have them.
    """

    hashes: Hashes
    items: tuple[Int, Int]
    labels: list[tuple[Int, Int]]
    several: list[bool]
    groups: int
    grouped_users: int


class SequenceSource:
    """Spilled rows as a data set that can be written; see `ShardSource`.

    Args:
        name, next_task: As in `Tables`.
        tasks: The later tasks' names in the order of their files, with the kinds that a recipe sets.
        context: Where the rows were spilled.
        partitioning: How.
        length_limit: Longest sequence kept.
        min_count: Items of fewer occurrences count as unseen.
        spilled: Reads the rows of a kind and some partitions; from the context's folder where None.

    Raises:
        ConfigError: a recipe makes a task a profile whose users have several targets.
        DataError: a task has one label only, or no item is common enough.
    """

    def __init__(
        self,
        *,
        name: str,
        next_task: str,
        tasks: Sequence[tuple[int, str, Literal["item", "profile"] | None]],
        context: ReadContext,
        partitioning: Partitioning,
        length_limit: int,
        min_count: int,
        spilled: ReadSpill | None = None,
    ) -> None:
        self.name, self.next_task, self.length_limit = name, next_task, length_limit
        self.source: dict[str, Any] = {}
        self.partitioning, self._files = partitioning, [number for number, _, _ in tasks]
        self._spilled: ReadSpill = spilled or partial(read_spill, context.spill)
        item_counts, label_counts, several = NumberCounts(), [NumberCounts() for _ in tasks], [False] * len(tasks)
        hashes, groups, grouped_users = [], 0, 0
        partitions = range(partitioning.partitions)
        every: Iterable[PartitionCounts] = (
            map(self.count, partitions) if context.workers is None else context.workers.map(self.count, partitions)
        )
        for done, part in enumerate(every, 1):
            item_counts.add_counted(*part.items)
            hashes.append(part.hashes)
            for place, labels in enumerate(part.labels):
                label_counts[place].add_counted(*labels)
                several[place] |= part.several[place]
            groups, grouped_users = groups + part.groups, grouped_users + part.grouped_users
            context.report("counting", done, partitioning.partitions)
        self._hashes = np.concatenate(hashes)
        distinct, occurrences = item_counts.found()
        catalogue = by_count(distinct, occurrences, min_count=min_count)
        rare = {f"fewer than {min_count} times: unseen": len(distinct) - len(catalogue)} if len(distinct) > len(catalogue) else {}
        items = {"unit": "items", "total": len(distinct), "kept": len(catalogue), "left_out": rare}
        self.notes: dict[str, Any] = {
            "groups_of_equal_sequences": groups, "users_in_groups_of_equal_sequences": grouped_users, "matched": {"items": items},
        }  # fmt: skip
        if len(catalogue) == 0:
            raise DataError(f"--min-count: no item occurs {min_count} times or more")
        self._items, self.items = NumberPlaces(catalogue), _texts(catalogue)
        self._labels: list[NumberPlaces] = []
        columns: list[TaskColumns] = []
        for (_, task, kind), counts, many in zip(tasks, label_counts, several, strict=True):
            classes, found = _classes(task, kind, counts, several=many)
            self._labels.append(NumberPlaces(classes))
            columns.append(TaskColumns(task, found, _texts(classes)))
        self.tasks: Sequence[TaskColumns] = columns

    def user_hashes(self) -> Hashes:
        """Return every user's hash."""
        return self._hashes

    def shard_groups(self, count: int) -> Sequence[tuple[list[int], list[int]]]:
        """Return partitions and the shards that are made of them."""
        return list(self.partitioning.groups(count))

    def iter_shards(self, group: tuple[list[int], list[int]], count: int) -> Iterator[tuple[int, ShardRows]]:
        """Yield each shard of a group."""
        partitions, shards = group
        users = self._users(partitions)
        values, offsets = users.sequences()
        values = self._items.of(values)
        labels = [self._labels_of(place, users) for place in range(len(self.tasks))]
        ids = _user_ids(users.hashes, users.occurrence)
        if len(shards) == 1:
            yield shards[0], ShardRows(ids, users.hashes, values, offsets, users.next_users, labels)
            return
        shard_of_user = users.hashes % np.uint64(count)
        for shard in shards:
            own = np.flatnonzero(shard_of_user == shard)
            yield (
                shard,
                ShardRows(
                    ids.take(pa.array(own)),
                    users.hashes[own],
                    *ragged.take(values, offsets, own),
                    users.next_users[own],
                    [_of_users(part, own) for part in labels],
                ),
            )

    def count(self, partition: int) -> PartitionCounts:
        """Count what a partition holds."""
        users = self._users([partition])
        items = NumberCounts()
        items.add(users.sequences()[0])
        labels = []
        for values, _ in users.targets:
            found = NumberCounts()
            found.add(values)
            labels.append(found.found())
        _, sizes = np.unique(users.hashes, return_counts=True)
        return PartitionCounts(
            users.hashes,
            items.found(),
            labels,
            [bool(np.diff(offsets).max(initial=0) > 1) for _, offsets in users.targets],
            int((sizes > 1).sum()),
            int(sizes[sizes > 1].sum()),
        )

    def _labels_of(self, place: int, users: _Users) -> ShardLabels:
        order = ragged.stable_order(users.rows[place])
        values, offsets = ragged.take(*users.targets[place], order)
        return ShardLabels(users.rows[place][order], self._labels[place].of(values), offsets)

    def _users(self, partitions: list[int]) -> _Users:
        """Return the users of some partitions."""
        spilled = self._spilled(SEQUENCES, partitions)
        hashes, files, rows, items = _columns(spilled)
        order = np.lexsort((rows, files))  # of one partition they are in this order already
        if not np.array_equal(order, np.arange(len(order))):
            hashes, files, items = hashes[order], files[order], ragged.take(*items, order)
        own = files == 0
        records, targets = [hashes[own]], []
        for number in self._files:
            task_hashes, _, task_rows, task_targets = _columns(self._spilled(labels_kind(number), partitions))
            if len(partitions) > 1:
                order = ragged.stable_order(task_rows)
                task_hashes, task_targets = task_hashes[order], ragged.take(*task_targets, order)
            records.append(task_hashes)
            targets.append(task_targets)
        user_of_record, first_record, occurrence = _identify(records)
        user_hashes = np.concatenate(records)[first_record]
        by_hash = ragged.stable_order(hashes)
        sequence = by_hash[np.searchsorted(hashes[by_hash], user_hashes)]
        ends: list[int] = np.cumsum([len(part) for part in records]).tolist()
        parts = np.split(user_of_record, ends[:-1])
        next_users = np.zeros(len(user_hashes), dtype=bool)
        next_users[parts[0]] = True
        return _Users(user_hashes, occurrence, sequence, items, next_users, parts[1:], targets)


def _columns(table: Any) -> tuple[Hashes, NDArray[np.int16], Int, tuple[NDArray[np.int32], Int]]:
    if table is None:
        empty = np.zeros(0, dtype=np.int64)
        return empty.astype(np.uint64), empty.astype(np.int16), empty, (empty.astype(np.int32), np.zeros(1, dtype=np.int64))
    files = numbers(table, "file") if "file" in table.column_names else np.zeros(len(table), dtype=np.int16)
    return numbers(table, "hash"), files, numbers(table, "row"), lists(table)


def _identify(records: list[Hashes]) -> tuple[Int, Int, Int]:
    """Identify users by hash and occurrence within a file.

    Args:
        records: A file: the hashes of its rows in order.

    Returns:
        The user of each record (files one behind the other); each user's first record; each user's occurrence, from 1.
    """
    hashes = np.concatenate(records)
    count = len(hashes)
    if count == 0:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty
    file = np.repeat(np.arange(len(records), dtype=np.int16), [len(part) for part in records])
    order = ragged.stable_order(hashes)
    ordered, ordered_file = hashes[order], file[order]
    new_hash = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    new_run = new_hash | np.concatenate(([True], ordered_file[1:] != ordered_file[:-1]))
    place = np.arange(count)
    occurrence = place - np.maximum.accumulate(np.where(new_run, place, 0))
    if occurrence.any():
        again = np.lexsort((order, occurrence, ordered))
        order, ordered, occurrence = order[again], ordered[again], occurrence[again]
        new_hash = np.concatenate(([True], (ordered[1:] != ordered[:-1]) | (occurrence[1:] != occurrence[:-1])))
    first = np.flatnonzero(new_hash)
    group = np.cumsum(new_hash) - 1
    by_appearance = np.argsort(order[first])
    rank = np.empty(len(first), dtype=np.int64)
    rank[by_appearance] = np.arange(len(first))
    user_of_record = np.empty(count, dtype=np.int64)
    user_of_record[order] = rank[group]
    return user_of_record, order[first][by_appearance], occurrence[first][by_appearance] + 1


def _of_users(labels: ShardLabels, users: Int) -> ShardLabels:
    """Return the labels of some users, ascending, their rows numbered anew."""
    at = np.searchsorted(users, labels.rows)
    kept = np.flatnonzero(users[np.minimum(at, len(users) - 1)] == labels.rows) if len(users) else np.zeros(0, dtype=np.int64)
    return ShardLabels(at[kept], *ragged.take(labels.values, labels.offsets, kept))


def _classes(name: str, kind: Literal["item", "profile"] | None, counts: NumberCounts, *, several: bool) -> tuple[Int, TaskKind]:
    """Return a task's labels; an item task where a user has several targets or there are more than 100 labels, unless `kind` is given."""
    found, occurrences = counts.found()
    if len(found) == 1:
        raise DataError(f"task '{name}': expected two labels or more, got '{found[0]}' alone")
    if kind is None:
        kind = "item" if several or len(found) > _MOST_CLASSES else "profile"
    elif kind == "profile" and several:
        raise ConfigError(f"tasks.{name}.kind: expected 'item', as users have several targets, got 'profile'")
    return (by_count(found, occurrences) if kind == "item" else found), kind


def _texts(values: Int) -> Any:
    return pa.array(values, pa.int64()).cast(pa.string())


def _user_ids(hashes: Hashes, occurrence: Int) -> Any:
    """Return `hash-occurrence` with the hash in 16 hexadecimal digits, an Arrow string array."""
    big = hashes.astype(">u8").view(np.uint8).reshape(-1, 8)
    nibbles = np.stack((big >> 4, big & 15), axis=2).reshape(-1, 16)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[nibbles]
    text = pa.StringArray.from_buffers(
        len(hashes), pa.py_buffer((np.arange(len(hashes) + 1, dtype=np.int32) * 16).tobytes()), pa.py_buffer(digits.tobytes())
    )
    return pa.compute.binary_join_element_wise(text, _texts(occurrence), "-")
