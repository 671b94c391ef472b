"""What a recipe keeps of the events of histories beside their items (`history.keep`): times in seconds, and numbers of types."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log
from dist_teracon.data.event_columns import UNKNOWN_TYPE, EventColumns
from dist_teracon.data.moments import day_of
from dist_teracon.data.recipe import HistoryRule
from dist_teracon.data.sources.base import Events
from dist_teracon.errors import ConfigError, DataError

# More are no types but ids.
MOST_TYPES = 10_000
_FIRST_YEAR = 1990
_SHOWN = 5
_AHEAD = 86_400  # seconds: times of a place may be read as UTC

Int = NDArray[np.int64]


def kept_columns(
    rule: HistoryRule, events: Events, ordered: Int, *, counted: NDArray[np.bool_], log: Log, years: tuple[int, int] | None = None
) -> tuple[EventColumns, list[str]]:  # fmt: skip
    """Return the columns that a recipe keeps of the chosen events, and the types' names in the order of their numbers, from 1 on.

    Types are numbered by falling count, then name.

    Args:
        rule: The recipe's history.
        events: Its source's events.
        ordered: int64 [N], the events of all histories in their order.
        counted: bool [N], those that types are counted in; a type of others alone is unknown.
        log: Takes a line where types tell nothing, and where events have not happened yet.
        years: The first and the last year in which events are plausible; 1990 and next year where None.

    Raises:
        ConfigError: the source has no column that the recipe names.
        DataError: times that can hardly be right, or too many types.
    """
    for column, there in (("time", events.order), ("type", events.type)):
        if column in rule.keep and rule.keep != "all" and there is None:
            name = {"time": "timestamp"}.get(column, column)
            raise ConfigError(f"history.keep: the events have no column of {column}s (columns.{name} in the recipe names one)")
    times = types = None
    names: list[str] = []
    if rule.keeps("time") and events.order is not None:
        times = seconds_of(events)[ordered]
        _check_plausible(times, years or (_FIRST_YEAR, datetime.now(UTC).year + 1))
        if years is None:
            _tell_future(times, log)
    if rule.keeps("type") and events.type is not None:
        codes = events.type.codes[ordered]
        types, names = _numbered(codes, events.type.names, counted)
        late = (codes >= 0) & (types == UNKNOWN_TYPE)
        if late.any():
            few = ", ".join(events.type.names[code] for code in np.unique(codes[late])[:_SHOWN].tolist())
            log(
                f"history.keep: {late.sum():,} of {len(codes):,} events in rows have types that no training row has ({few}); "
                "they are kept as the unknown type"
            )
        if len(names) == 1 and types.all():
            log(f"history.keep: all events of the histories are of type '{names[0]}', so their types tell nothing")
    return EventColumns(times, types), names


def seconds_of(events: Events) -> Int:
    """Return the events' times, which there are, in whole seconds since 1970, rounded down: int64 [E]."""
    if events.nanoseconds is not None:
        return events.nanoseconds // 10**9
    assert events.timestamp is not None
    return np.floor(events.timestamp).astype(np.int64)


def _numbered(codes: NDArray[np.int32], names: Sequence[str], counted: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[str]]:
    counts = np.bincount(codes[(codes >= 0) & counted], minlength=len(names))
    used = np.flatnonzero(counts).tolist()
    if len(used) > MOST_TYPES:
        raise DataError(f"history.keep: {len(used):,} types of events, more than {MOST_TYPES:,}; does columns.type name a column of ids?")
    if not used:
        raise DataError("history.keep: no event of the histories has a type; leave 'type' out, or name another column (columns.type)")
    used.sort(key=lambda code: (-int(counts[code]), names[code]))
    number = np.zeros(len(names) + 1, dtype=np.int32)  # the last one for events without a type
    number[used] = np.arange(1, len(used) + 1, dtype=np.int32)
    return number[codes], [names[code] for code in used]


def _tell_future(times: Int, log: Log) -> None:
    """Tell of events that cannot have happened yet: one of them alone moves the last event, and with it what `recency` counts from."""
    now = int(datetime.now(UTC).timestamp())
    late = times > now + _AHEAD
    if late.any():
        last = day_of(int(times.max()))
        log(
            f"history.keep: {late.sum():,} of {len(times):,} events lie in the future (after {day_of(now)}; the last on {last}). "
            "They are kept as they are, and where no date ends the histories, the last event is when labels without times are predicted; "
            "history.events.until in the recipe leaves out what comes after a date"
        )


def _check_plausible(times: Int, years: tuple[int, int]) -> None:
    """Raise DataError where most times cannot be those of events, as numbers in another unit are not."""
    first, end = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (years[0], years[1] + 1))
    last = "next year" if years[1] == datetime.now(UTC).year + 1 else years[1]
    early, late = int((times < first).sum()), int((times >= end).sum())
    if 2 * (early + late) > len(times):
        raise DataError(
            f"history.keep: of {len(times):,} times of events {early:,} lie before {years[0]} and {late:,} after the end of {last}; "
            "are they in another unit (columns.timestamp_unit in the recipe: s, ms, us, ns, date), "
            "or are the years right (columns.timestamp_years, as [1970, 2030])? "
            "Without 'time' in history.keep only their order counts"
        )
