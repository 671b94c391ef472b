"""What a history holds of its events beside their items: when they were, and of which type.

The columns lie beside the items' column and are cut, padded, gathered and joined with it. Legend: N events of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data import ragged

Int = NDArray[np.int64]

# What stands for a time that is not known, as of padding, and for a type that is not.
NO_TIME = int(np.iinfo(np.int64).min)
UNKNOWN_TYPE = 0


@dataclass(frozen=True)
class EventColumns:
    """Columns beside a flat column of items; None where a data set has none, or nothing reads it.

    Attributes:
        times: int64 [N], seconds since 1970, `NO_TIME` for unknown.
        types: int32 [N], numbers of types, `UNKNOWN_TYPE` for unknown.
    """

    times: NDArray[np.int64] | None = None
    types: NDArray[np.int32] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Which columns there are."""
        return tuple(name for name in ("times", "types") if getattr(self, name) is not None)

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> EventColumns:
        """Return every column that there is, changed."""
        return EventColumns(*(None if column is None else change(column) for column in (self.times, self.types)))

    def __getitem__(self, index: Any) -> EventColumns:
        """Return some of the events."""
        return self.map(lambda column: column[index])

    def last(self, offsets: Int, *, limit: int) -> EventColumns:
        """Return the columns beside the last `limit` items of each row."""
        return self.map(lambda column: ragged.last(column, offsets, limit=limit)[0])

    def take(self, offsets: Int, rows: Int) -> EventColumns:
        """Return the columns beside some rows."""
        return self.map(lambda column: ragged.take(column, offsets, rows)[0])

    def only(self, names: Sequence[str]) -> EventColumns:
        """Return the columns of these names."""
        return EventColumns(self.times if "times" in names else None, self.types if "types" in names else None)

    @classmethod
    def empty(cls, names: Sequence[str]) -> EventColumns:
        """Return columns of these names without events."""
        return cls(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)).only(names)

    @classmethod
    def concatenate(cls, parts: Sequence[EventColumns]) -> EventColumns:
        """Lay columns behind one another; all parts have the same ones."""
        assert len({part.names for part in parts}) <= 1, "parts with different columns"

        def joined(columns: list[Any]) -> Any:
            return np.concatenate(columns) if columns and columns[0] is not None else None

        return cls(joined([part.times for part in parts]), joined([part.types for part in parts]))


# Of a data set whose histories are items alone.
NO_COLUMNS = EventColumns()
