"""What a data set is written from: tasks with their classes, and shards made one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.schema import TaskKind
from dist_teracon.data.tables import Tables

Int = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class TaskHead:
    """A later task: name, kind, names of its classes (a sequence or an Arrow string array)."""

    name: str
    kind: TaskKind
    classes: Any


@dataclass(frozen=True)
class ShardLabels:
    """A task's labels in a shard: rows int64 [R] of its users, ascending; values int32, offsets int64 [R + 1]."""

    rows: Int
    values: NDArray[np.int32]
    offsets: Int


@dataclass(frozen=True)
class ShardRows:
    """A shard's users.

    Attributes:
        user_ids: Arrow string array [U].
        user_hash: uint64 [U].
        values: int32, positions in the catalogue, −1 for an item outside of it; whole sequences.
        offsets: int64 [U + 1].
        next_users: bool [U], who takes part in the first task; None for all.
        labels: One a later task, in their order.
    """

    user_ids: Any
    user_hash: Hashes
    values: NDArray[np.int32]
    offsets: Int
    next_users: NDArray[np.bool_] | None
    labels: Sequence[ShardLabels]


class Sharded(Protocol):
    """A data set before it is split and written.

    Attributes:
        name, next_task, length_limit, source, notes: As in `Tables`.
        items: The catalogue in its order, a sequence of names or an Arrow string array.
        tasks: The later tasks in order.
    """

    name: str
    items: Any
    tasks: Sequence[TaskHead]
    next_task: str
    length_limit: int
    source: dict[str, Any]
    notes: dict[str, Any]

    def hashes(self) -> Hashes:
        """Return every user's hash, uint64 [U], in any order."""

    def groups(self, count: int) -> Sequence[Any]:
        """Return what is made together: groups of shards, each shard of `count` in one of them."""

    def made(self, group: Any, count: int) -> Iterator[tuple[int, ShardRows]]:
        """Yield the number and the users of each shard of a group, in any order; users of hash h lie in shard h mod `count`."""


class TablesSource:
    """Tables in memory, shard by shard; users of a shard keep their order."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.name, self.items, self.next_task = tables.name, tables.items, tables.next_task
        self.length_limit, self.source, self.notes = tables.length_limit, tables.source, tables.notes
        self.tasks: Sequence[TaskHead] = [TaskHead(table.name, table.kind, table.classes) for table in tables.labels]

    def hashes(self) -> Hashes:
        """Return every user's hash."""
        return self.tables.sequences.user_hash

    def groups(self, count: int) -> Sequence[Any]:
        """Return one group: tables are in memory as a whole."""
        return (None,)

    def made(self, _group: Any, count: int) -> Iterator[tuple[int, ShardRows]]:
        """Yield each shard."""
        sequences = self.tables.sequences
        shard_of_user = (sequences.user_hash % np.uint64(count)).astype(np.int64)
        members: NDArray[np.bool_] | None = None
        if self.tables.next_users is not None:
            members = np.zeros(len(shard_of_user), dtype=bool)
            members[self.tables.next_users] = True
        by_shard = grouped(shard_of_user, count)
        labels_by_shard = [grouped(shard_of_user[table.users], count) for table in self.tables.labels]
        row_of_user = np.empty(len(shard_of_user), dtype=np.int64)
        for users in by_shard:
            row_of_user[users] = np.arange(len(users))
        for shard, users in enumerate(by_shard):
            labels = [
                ShardLabels(row_of_user[table.users[at[shard]]], *ragged.take(table.values, table.offsets, at[shard]))
                for table, at in zip(self.tables.labels, labels_by_shard, strict=True)
            ]
            ids = pa.array([sequences.user_ids[user] for user in users], pa.string())
            values, offsets = ragged.take(sequences.values, sequences.offsets, users)
            yield shard, ShardRows(ids, sequences.user_hash[users], values, offsets, None if members is None else members[users], labels)


def grouped(group: Int, groups: int) -> list[Int]:
    """Return the positions of each group's members, in order."""
    order = np.argsort(group, kind="stable")
    ends: list[int] = np.cumsum(np.bincount(group, minlength=groups)).tolist()
    return np.split(order, ends[:-1])
