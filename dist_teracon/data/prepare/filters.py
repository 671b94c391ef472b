"""Filters of events, each step of them counted."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.prepare.matched import Funnel
from dist_teracon.data.recipe import EventFilter
from dist_teracon.data.recipe_values import parse_comparisons
from dist_teracon.data.sources.base import Events
from dist_teracon.errors import ConfigError, nearest

# A bound so near to 1970 is a year, or another number that is no time, where all events are years later.
_NO_TIME_BELOW, _TIME_FROM = 1e8, 3e8


def matching(where: str, rule: EventFilter, events: Events, funnel: Funnel) -> NDArray[np.bool_]:
    """Return which events fit a filter, bool [E]; what does not is counted in `funnel`.

    Raises:
        ConfigError: the filter asks for what the events do not have.
    """
    mask = np.ones(len(events), dtype=bool)

    def keep(fits: NDArray[np.bool_], reason: str) -> None:
        before = np.count_nonzero(mask)
        np.logical_and(mask, fits, out=mask)
        funnel.drop(reason, before - np.count_nonzero(mask))

    if rule.type is not None:
        known = types_of(f"{where}.type", events)
        found = [known.index(name) for name in rule.type if name in known]
        if not found:
            raise ConfigError(absent_type(f"{where}.type", rule.type[0], known))
        assert events.type is not None
        keep(np.isin(events.type.codes, found), "another type")
    if rule.value is not None:
        if events.value is None or not (there := ~np.isnan(events.value)).any():
            missing = "have no column of values" if events.value is None else "have no value in that column"
            raise ConfigError(f"{where}.value: the events {missing} (columns.value in the recipe, or of a log logs.NAME.value, names one)")
        keep(there, "no value")
        for compare, number in parse_comparisons(rule.value):
            keep(compare(events.value, number), f"value not {rule.value}")
    for bound, name in ((rule.since, "from"), (rule.until, "until")):
        if bound is not None:
            moments = timestamps(f"{where}.{name}", events)
            _check_bound(f"{where}.{name}", bound, moments)
            after = events.from_moment(bound)
            keep(after if name == "from" else ~after, f"before {day_text(bound)}" if name == "from" else f"from {day_text(bound)} on")
    return mask


def absent_types(where: str, rule: EventFilter, events: Events) -> list[str]:
    """Return a line for each type of a filter that no event has."""
    if rule.type is None:
        return []
    known = types_of(f"{where}.type", events)
    return [absent_type(f"{where}.type", name, known) for name in rule.type if name not in known]


def types_of(where: str, events: Events) -> list[str]:
    """Return the names of all types.

    Raises:
        ConfigError: the events have no types.
    """
    if events.type is None:
        raise ConfigError(f"{where}: the events have no column of types (columns.type in the recipe names one)")
    return list(events.type.names)


def absent_type(where: str, name: str, known: list[str]) -> str:
    """Return what is wrong with a type that no event has."""
    return f"{where}: no event is of type '{name}'{nearest(name, known)} (there are: {', '.join(known[:20])})"


def timestamps(where: str, events: Events) -> NDArray[np.float64]:
    """Return the events' times.

    Raises:
        ConfigError: there are none.
    """
    if events.timestamp is None:
        raise ConfigError(f"{where}: the events have no timestamps (columns.timestamp in the recipe names their column)")
    return events.timestamp


def period(events: Events) -> str:
    """Return when the events were, for an error's text."""
    if events.timestamp is None or not len(events):
        return ""
    try:
        first, last = (datetime.fromtimestamp(float(edge), UTC).date() for edge in (events.timestamp.min(), events.timestamp.max()))
    except (ValueError, OverflowError, OSError):
        return "; their timestamps are no seconds since 1970 (columns.timestamp_unit sets another unit)"
    return f"; they run from {first} to {last}"


def _check_bound(where: str, bound: float, moments: NDArray[np.float64]) -> None:
    if abs(bound) < _NO_TIME_BELOW and len(moments) and float(moments.min()) >= _TIME_FROM:
        text = int(bound) if bound.is_integer() else bound
        raise ConfigError(
            f"{where}: {day_text(bound)} (a bare number, as {text}, counts seconds since 1970) is years before the first event; "
            "write a date of the events' own time, as 2026-01-31, or leave it out"
        )


def day_text(seconds: float) -> str:
    """Return a moment as text: a day, and where it does not begin in UTC then, the time and its zone."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC".removesuffix(" 00:00:00 UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"
