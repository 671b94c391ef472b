"""Whether several logs speak of the same users and items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log
from dist_teracon.data.prepare.filters import matching
from dist_teracon.data.prepare.matched import Funnel, check_join, join_of
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.sources.base import EventData


def meeting_logs(data: EventData, recipe: Recipe, *, limit: float, log: Log) -> dict[str, dict[str, int]]:
    """Return of each log how many events it has and how many of them fit the histories, its users and items, and how many others have too.

    Args:
        data: Events of logs; an empty one meets nobody.
        recipe: Has the histories' filter.
        limit: `--max-unmatched`; services may well share few users, so below 1 only a log that shares none is refused.
        log: Receives what a person should look at.

    Raises:
        ConfigError: the histories' filter asks for what the events do not have.
        DataError: no user of a log is in another one.
    """
    ends = np.cumsum(list(data.logs.values())).tolist()
    ranges = [slice(end - count, end) for end, count in zip(ends, data.logs.values(), strict=True)]
    users, items = (_names_in(column, ranges) for column in (data.events.user, data.events.item))
    fits = matching("history.events", recipe.history.events, data.events, Funnel("events", len(data.events)))
    facts: dict[str, dict[str, int]] = {}
    for number, name in enumerate(data.logs):
        facts[name] = {"events": data.logs[name], "in_history": int(np.count_nonzero(fits[ranges[number]]))}
        for kind, within in (("users", users), ("items", items)):
            elsewhere = np.delete(within, number, axis=0).any(axis=0)
            facts[name] |= {kind: int(within[number].sum()), f"{kind}_elsewhere": int((within[number] & elsewhere).sum())}
    there = [number for number, count in enumerate(data.logs.values()) if count]
    for number, name in enumerate(data.logs):
        if number not in there or len(there) < 2:
            continue
        own, others = users[number : number + 1], np.delete(users, number, axis=0)
        join = join_of(_texts(data.events.user, own), _texts(data.events.user, others))
        allowed = 1.0 if join.both else limit
        if told := check_join(f"logs.{name}.user", join, noun="users", left=name, right="the other logs", limit=allowed):
            log(told)
    return facts


def _names_in(column: Categorical, ranges: list[slice]) -> NDArray[np.bool_]:
    """Return which names each range of events has, bool [ranges, names]."""
    found = np.zeros((len(ranges), len(column.names)), dtype=bool)
    for row, part in enumerate(ranges):
        codes = column.codes[part]
        found[row, codes[codes >= 0]] = True
    return found


def _texts(column: Categorical, within: NDArray[np.bool_]) -> list[str]:
    """Return the names that any of the ranges has."""
    return [column.names[code] for code in np.flatnonzero(within.any(axis=0)).tolist()]
