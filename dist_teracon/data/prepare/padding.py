"""`history.padding: token`: every sequence is filled up on the left with one more item, which is learned and predicted like any other.

The published code pads so. It makes a user's representation depend on the length limit and costs the computation of the padding, so it is
here for comparisons with published numbers alone; by default sequences are stored without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.event_columns import NO_TIME, UNKNOWN_TYPE, EventColumns
from dist_teracon.data.input_features import MISSING, NO_INPUTS, InputTables
from dist_teracon.data.shard_source import Hashes, ShardRows, ShardSource
from dist_teracon.errors import DataError

PADDING = "<padding>"


class PaddedSource:
    """A source whose sequences are all `length_limit` long, the catalogue's last item standing for padding; see `ShardSource`.

    Raises:
        DataError: the catalogue has an item of padding's name.
    """

    def __init__(self, source: ShardSource) -> None:
        names = source.items if isinstance(source.items, pa.Array) else pa.array(list(source.items), pa.string())
        if pa.compute.index(names, PADDING).as_py() >= 0:
            raise DataError(f"history.padding: the data has an item named '{PADDING}', which is padding's name; rename it")
        self._inner = source
        self.name, self.tasks, self.next_task = source.name, source.tasks, source.next_task
        self.length_limit, self.source = source.length_limit, source.source
        self.notes: dict[str, Any] = {**source.notes, "padding": "token"}
        self.types: Sequence[str] = getattr(source, "types", ())
        self.inputs: InputTables = getattr(source, "inputs", NO_INPUTS)
        self.test_periods: tuple[float, ...] = getattr(source, "test_periods", ())
        self.earlier_items: Sequence[str] = getattr(source, "earlier_items", ())
        if self.inputs.item:
            values = self.inputs.item_values
            self.inputs = replace(self.inputs, item_values=np.pad(values, ((0, 1), (0, 0)), constant_values=MISSING))
        self.items: Any = pa.concat_arrays([names.cast(pa.string()), pa.array([PADDING], pa.string())])

    def user_hashes(self) -> Hashes:
        """Return every user's hash."""
        return self._inner.user_hashes()

    def shard_groups(self, count: int) -> Sequence[Any]:
        """Return what is made together."""
        return self._inner.shard_groups(count)

    def iter_shards(self, group: Any, count: int) -> Iterator[tuple[int, ShardRows]]:
        """Yield each shard of a group."""
        for shard, rows in self._inner.iter_shards(group, count):
            values, offsets = left_padded(rows.values, rows.offsets, length=self.length_limit, padding=len(self.items) - 1)
            columns = padded_columns(rows.columns, rows.offsets, length=self.length_limit)
            yield shard, replace(rows, values=values, offsets=offsets, columns=columns)


def padded_columns(columns: EventColumns, offsets: NDArray[np.int64], *, length: int) -> EventColumns:
    """Return the columns of events beside `left_padded` items; padding has no time and no type."""

    def padded(column: NDArray[Any] | None, nothing: int) -> Any:
        return None if column is None else left_padded(column, offsets, length=length, padding=nothing)[0]

    return EventColumns(padded(columns.times, NO_TIME), padded(columns.types, UNKNOWN_TYPE))


def left_padded(values: NDArray[Any], offsets: NDArray[np.int64], *, length: int, padding: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return rows of the same length, their last `length` values behind as much padding as it takes."""
    values, offsets = ragged.last(values, offsets, limit=length)
    rows = len(offsets) - 1
    filled = np.full((rows, length), padding, dtype=values.dtype)
    # row-major, the columns from length − n on take a row's n values in order
    filled[np.arange(length) >= length - np.diff(offsets)[:, None]] = values
    return filled.reshape(-1), np.arange(rows + 1, dtype=np.int64) * length
