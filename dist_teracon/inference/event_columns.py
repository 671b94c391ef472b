"""Times and types of events in use: read beside the items of histories where the model was trained with them, and refused without.

Legend: N events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data.event_columns import NO_COLUMNS, UNKNOWN_TYPE, EventColumns
from dist_teracon.data.prepare.kept_columns import seconds_of
from dist_teracon.data.sources.base import Events
from dist_teracon.errors import DataError
from dist_teracon.inference.vocabulary import Vocabulary

_RECIPE_NAMES: dict[str, Literal["time", "type"]] = {"times": "time", "types": "type"}
_FURTHEST_S = 1e11  # of a number that counts seconds; milliseconds of our days are larger


@dataclass(frozen=True)
class ColumnReader:
    """Reads what a model reads of events beside their items.

    Attributes:
        names: The columns: `times`, `types`.
        types: Names of the types by number, for `types`.
        known: Types that the model has an embedding of; those behind came later and are read as the unknown type.
        zone: Of datetimes without one, as the recipe has it for the events' (`columns.timezone`).
    """

    names: tuple[str, ...] = ()
    types: Vocabulary | None = None
    known: int = 0
    zone: tzinfo = UTC

    @property
    def keep(self) -> tuple[Literal["time", "type"], ...]:
        """The columns as a recipe's `history.keep` names them."""
        return tuple(_RECIPE_NAMES[name] for name in self.names)

    def of_events(self, events: Events, ordered: NDArray[np.int64]) -> EventColumns:
        """Return the columns of some events, in this order.

        Raises:
            DataError: the events do not have them.
        """
        times = types = None
        if "times" in self.names:
            if events.order is None:
                raise self._missing("times", "the events have no column of times (columns.timestamp of the recipe names it)")
            times = seconds_of(events)[ordered]
        if "types" in self.names:
            if events.type is None:
                raise self._missing("types", "the events have no column of types (columns.type of the recipe names it)")
            types = self.numbers(pa.array([*events.type.names, None], pa.string()))[events.type.codes[ordered]]
        return EventColumns(times, types)

    def of_mappings(self, events: Sequence[Any]) -> EventColumns:
        """Return the columns of events given as `{"item": …, "time": …, "type": …}`; nothing where the model reads items alone.

        Raises:
            DataError: an event is an id alone, has no time or type that is read, or a time that is none.
        """
        if not self.names:
            return NO_COLUMNS
        example = '{"item": "a", ' + ", ".join(f'"{key}": {_EXAMPLES[key]}' for key in self.keep) + "}"
        for event in events:
            for name, key in zip(self.names, self.keep, strict=True):
                if not isinstance(event, Mapping) or key not in event:
                    shown = repr(event)[:80] if event is not None else "an array of ids"
                    raise self._missing(name, f"expected a table of events, or each event of a history as {example}, got {shown}")
        times = types = None
        if "times" in self.names:
            times = np.array([_seconds(event["time"], zone=self.zone) for event in events], dtype=np.int64)
        if "types" in self.names:
            given = [event["type"] for event in events]
            if (wrong := next((value for value in given if not isinstance(value, str | None)), None)) is not None:
                raise DataError(f"type: expected the type's name, or null for unknown, got {wrong!r}")
            # as in preparation: without blanks around it, and an empty cell is none
            types = self.numbers(pa.array([value.strip() or None if value else None for value in given], pa.string()))
        return EventColumns(times, types)

    def strange(self, types: NDArray[np.int32] | None, given: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Return which events have a type that the model does not know; None where it reads none.

        Args:
            types: int32 [N], as they are read.
            given: bool [N], whether the event has a type.
        """
        return None if types is None else (types == UNKNOWN_TYPE) & given

    def numbers(self, names: pa.Array) -> NDArray[np.int32]:
        """Return the numbers of types by name; those that the model does not know are the unknown type."""
        assert self.types is not None
        found = self.types.indices(names)
        return np.where((found < 0) | (found >= self.known), UNKNOWN_TYPE, found).astype(np.int32)

    def _missing(self, name: str, why: str) -> DataError:
        return DataError(f"histories: the model reads {name} of events, and {why}")


def moments_of(at: Any, users: int, *, default: int, zone: tzinfo = UTC) -> NDArray[np.int64]:
    """Return when each user is predicted, int64 [users], in seconds since 1970.

    Args:
        at: Seconds or a datetime for all, or a list of them for each; None for the default.
        users: How many.
        default: What None stands for.
        zone: Of datetimes without one.

    Raises:
        DataError: a value is neither, or there is not one for each user.
    """
    if at is not None and (isinstance(at, str) or not isinstance(at, Sequence | np.ndarray)):
        at = [at] * users
    if at is not None and len(at) != users:
        raise DataError(f"at: expected a moment for all, or one for each of {users} users, got {len(at)}")
    values = [default if value is None else _seconds(value, "at", zone=zone) for value in (at if at is not None else [None] * users)]
    return np.array(values, dtype=np.int64)


_EXAMPLES = {"time": "1600000000", "type": '"click"'}
ITEMS_ALONE = ColumnReader()


def _seconds(value: Any, name: str = "time", *, zone: tzinfo) -> int:
    """Return a moment's whole seconds since 1970, rounded down.

    Raises:
        DataError: it is neither seconds nor a datetime.
    """
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=zone)).timestamp()
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not abs(value) < _FURTHEST_S:
        also = "; in which unit is it?" if number else ""
        raise DataError(f"{name}: expected seconds since 1970, or a datetime (in {zone} where it has no zone), got {value!r}{also}")
    return int(np.floor(value))
