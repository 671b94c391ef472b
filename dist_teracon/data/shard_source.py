"""What a data set is written from: tasks with their classes, and shards made one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns
from dist_teracon.data.schema import TaskKind

Int = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class TaskColumns:
    """A task's name, kind and the names of its classes (a sequence or an Arrow string array)."""

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
        columns: What there is of the events beside their items; the same columns in every shard.
        splits: int8 [U], the rows' splits as they are stored, where the source decides on them; None where users or examples are cut.
        features: int32 [U, F], features of the users, where the source has any.
        earlier: Ragged [U], what each user took before `values`, each item once: positions in the catalogue, and −1 − k for the k-th of
            the source's `earlier_items`; None where it is not kept.
    """

    user_ids: Any
    user_hash: Hashes
    values: NDArray[np.int32]
    offsets: Int
    next_users: NDArray[np.bool_] | None
    labels: Sequence[ShardLabels]
    columns: EventColumns = NO_COLUMNS
    splits: NDArray[np.int8] | None = None
    features: NDArray[np.int32] | None = None
    earlier: tuple[NDArray[np.int32], Int] | None = None


class ShardSource(Protocol):
    """A data set before it is split and written.

    Attributes:
        name, next_task, length_limit, source, notes: As in `Tables`.
        items: The catalogue in its order, a sequence of names or an Arrow string array.
        tasks: The later tasks in order.

    A source whose events have types also has `types`, their names in the order of their numbers, from 1 on; one with side features has
    `inputs` (`InputTables`), one with several test periods `test_periods`, and one whose rows have `earlier` may have `earlier_items`, the
    names of items that are in no sequence.
    """

    name: str
    items: Any
    tasks: Sequence[TaskColumns]
    next_task: str
    length_limit: int
    source: dict[str, Any]
    notes: dict[str, Any]

    def user_hashes(self) -> Hashes:
        """Return every user's hash, uint64 [U], in any order."""

    def shard_groups(self, count: int) -> Sequence[Any]:
        """Return groups of shards that are made together, each shard of `count` in one of them."""

    def iter_shards(self, group: Any, count: int) -> Iterator[tuple[int, ShardRows]]:
        """Yield the number and the users of each shard of a group, in any order; users of hash h lie in shard h mod `count`."""


def rows_by_group(group: Int, groups: int) -> list[Int]:
    """Return the positions of each group's members, in order."""
    order = np.argsort(group, kind="stable")
    ends: list[int] = np.cumsum(np.bincount(group, minlength=groups)).tolist()
    return np.split(order, ends[:-1])
