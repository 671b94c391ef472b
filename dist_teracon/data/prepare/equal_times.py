"""Events of a user that happened at one time, whose order is that of the files, and events that are there more than once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log
from dist_teracon.data.sources.base import Events

Int = NDArray[np.int64]

# From this share of the events on, a line is printed.
_MANY = 0.01
# Of neighbours in time, the share that stands in the files the other way round from which on the files run from new to old.
_BACKWARDS = 0.9


@dataclass(frozen=True)
class EqualTimes:
    """Events of histories at the same time as another one of their user.

    Attributes:
        events: How many.
        again: How many of them are there before: the same user, item and time, and the same type and value where these are read.
        backwards: Whether the files run from new to old, so that such events probably stand the wrong way round.
    """

    events: int
    again: int
    backwards: bool


def count_equal_times(events: Events, ordered: Int, logs: Mapping[str, int] = MappingProxyType({})) -> EqualTimes:
    """Count events of one time.

    Args:
        events: With times.
        ordered: int64 [N], the events of whole histories, user by user in time, then in the order of the files.
        logs: How many of the events are of each table, in their order, where there are several.
    """
    assert events.order is not None
    log_of = np.searchsorted(np.cumsum(list(logs.values())), ordered, side="right") if len(logs) > 1 else np.zeros(len(ordered), np.int64)
    users, times = events.user.codes[ordered], events.order[ordered]
    of_user = users[1:] == users[:-1]
    same = of_user & (times[1:] == times[:-1])
    tied = np.zeros(len(ordered), dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    others = of_user & ~same & (log_of[1:] == log_of[:-1])  # what stands in which table says nothing of its order in time
    back = np.count_nonzero(others & (ordered[1:] < ordered[:-1]))
    backwards = bool(same.any()) and back > _BACKWARDS * np.count_nonzero(others)
    return EqualTimes(int(tied.sum()), _again(events, ordered[tied], log_of[tied]), bool(backwards))


def _again(events: Events, chosen: Int, log_of: Int) -> int:
    """Return how many of some events, which lie user by user in time, are the same as an earlier one of them in the same table."""
    assert events.order is not None
    users, times = events.user.codes[chosen], events.order[chosen]
    begins = np.ones(len(chosen), dtype=bool)
    begins[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    key = (np.cumsum(begins, dtype=np.int64) << 32) + events.item.codes[chosen]
    columns: list[NDArray[Any]] = [key]
    if log_of.any():
        columns.append(log_of)
    if events.type is not None:
        columns.append(events.type.codes[chosen])
    if events.value is not None:
        columns.append(np.nan_to_num(events.value[chosen], nan=-np.inf))
    if len(columns) > 1:  # few are of one item, and only they are told apart by type and value
        _, place, counts = np.unique(key, return_inverse=True, return_counts=True)
        columns = [column[counts[place] > 1] for column in columns]
    order = np.lexsort(columns)
    same = np.ones(max(0, len(order) - 1), dtype=bool)
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    return int(same.sum())


def note_equal_times(events: Events, ordered: Int, *, logs: Mapping[str, int], log: Log) -> dict[str, Any]:
    """Return what there is of equal times as JSON values, nothing where there is none; log what a reader may have to mend.

    Args:
        events: A source's.
        ordered, logs: As of `count_equal_times`.
        log: Takes lines.
    """
    if events.order is None:
        return {}
    found = count_equal_times(events, ordered, logs)
    if not found.events:
        return {}
    of = f"of {len(ordered):,} events of histories"
    if found.again:
        parts = ["user", "item", "time", *(name for name in ("type", "value") if getattr(events, name) is not None)]
        log(
            f"history: {found.again:,} {of} are there again ({', '.join(parts)} are the same) and count again; is a file there twice, or "
            "do exports overlap?"
        )
    if found.backwards:
        log(
            f"warning: history: {found.events:,} {of} are at the same time as another one of their user, so the order of the files is "
            "taken for theirs, and the files run from new to old: write them from old to new, or with finer times"
        )
    elif found.events >= _MANY * len(ordered):
        log(f"history: {found.events:,} {of} are at the same time as another one of their user; they stand in the order of the files")
    return {"equal_times": asdict(found)}
