"""The one form that every source brings its data into before it is split, sharded and written.

Ragged columns lie flat: `values` with `offsets`, row r being `values[offsets[r]:offsets[r + 1]]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns
from dist_teracon.data.input_features import NO_INPUTS, FeatureColumn, InputTables
from dist_teracon.data.shard_source import Hashes, ShardLabels, ShardRows, TaskColumns, rows_by_group


@dataclass(frozen=True)
class SequenceTable:
    """Users with their behaviour sequences.

    Attributes:
        user_ids: Unique names, one a user.
        user_hash: uint64 [U], stable hash of the user's identity (`stable_hash`); equal within a group that is split as one.
        values: int32 [N], positions in `Tables.items`, oldest first within a user; −1 is an item outside of it (written as unseen).
        offsets: int64 [U + 1].
        columns: Times and types of the events, beside `values`.
        features: int32 [U, F], the users' features; None where there are none.
        earlier: As of `ShardRows`.
    """

    user_ids: Sequence[str]
    user_hash: NDArray[np.uint64]
    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    columns: EventColumns = NO_COLUMNS
    features: NDArray[np.int32] | None = None
    earlier: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None


@dataclass(frozen=True)
class LabelTable:
    """A task's labels.

    Attributes:
        name: The task's name.
        kind: `item` or `profile`.
        classes: Names of the classes; a label is a position in it.
        users: int64 [R], rows of the sequence table, ascending, each once.
        values: int32 [E], labels.
        offsets: int64 [R + 1].
    """

    name: str
    kind: Literal["item", "profile"]
    classes: Sequence[str]
    users: NDArray[np.int64]
    values: NDArray[np.int32]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """A whole data set before splitting and sharding.

    Attributes:
        name: Name for people.
        items: The catalogue; sequence values are positions in it (from 0; the reserved rows are added when written).
        sequences: Users and sequences.
        next_task: Name of the self-supervised first task.
        next_users: Rows of users that take part in the first task; None for all with at least two items.
        labels: The later tasks in order.
        length_limit: Longest sequence kept; longer ones keep their last items.
        source, notes: As in `DatasetInfo`.
        types: Names of the events' types in the order of their numbers, from 1 on.
        splits: int8 [U], the users' splits; None where they or their examples are cut by the rule.
        test_periods: As in `DatasetInfo`.
        earlier_items: As of `ShardSource`.
        inputs: Side features, the values of those of users being in `sequences`.
    """

    name: str
    items: Sequence[str]
    sequences: SequenceTable
    labels: Sequence[LabelTable]
    length_limit: int
    next_task: str = "next"
    next_users: NDArray[np.int64] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    types: Sequence[str] = ()
    splits: NDArray[np.int8] | None = None
    inputs: InputTables = NO_INPUTS
    test_periods: tuple[float, ...] = ()
    earlier_items: Sequence[str] = ()

    def feature_values(self) -> Iterator[tuple[FeatureColumn, NDArray[np.int32]]]:
        """Yield each feature with its values, of users or items."""
        for columns, values in ((self.inputs.user, self.sequences.features), (self.inputs.item, self.inputs.item_values)):
            for place, column in enumerate(columns):
                assert values is not None
                yield column, values[:, place]


class TablesSource:
    """Tables in memory, shard by shard; users of a shard keep their order."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.name, self.items, self.next_task = tables.name, tables.items, tables.next_task
        self.length_limit, self.source, self.notes, self.types = tables.length_limit, tables.source, tables.notes, tables.types
        self.inputs, self.test_periods, self.earlier_items = tables.inputs, tables.test_periods, tables.earlier_items
        self.tasks: Sequence[TaskColumns] = [TaskColumns(table.name, table.kind, table.classes) for table in tables.labels]

    def user_hashes(self) -> Hashes:
        """Return every user's hash."""
        return self.tables.sequences.user_hash

    def shard_groups(self, count: int) -> Sequence[Any]:
        """Return one group: tables are in memory as a whole."""
        return (None,)

    def iter_shards(self, _group: Any, count: int) -> Iterator[tuple[int, ShardRows]]:
        """Yield each shard."""
        sequences = self.tables.sequences
        shard_of_user = (sequences.user_hash % np.uint64(count)).astype(np.int64)
        members: NDArray[np.bool_] | None = None
        if self.tables.next_users is not None:
            members = np.zeros(len(shard_of_user), dtype=bool)
            members[self.tables.next_users] = True
        by_shard = rows_by_group(shard_of_user, count)
        labels_by_shard = [rows_by_group(shard_of_user[table.users], count) for table in self.tables.labels]
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
            columns = sequences.columns.take(sequences.offsets, users)
            taking_part = None if members is None else members[users]
            splits = None if self.tables.splits is None else self.tables.splits[users]
            features = None if sequences.features is None else sequences.features[users]
            earlier = None if sequences.earlier is None else ragged.take(*sequences.earlier, users)
            hashes = sequences.user_hash[users]
            yield shard, ShardRows(ids, hashes, values, offsets, taking_part, labels, columns, splits, features, earlier)
