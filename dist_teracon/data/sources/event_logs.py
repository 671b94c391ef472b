"""Several tables of events, one a service, put one behind the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.recipe_columns import LogRule
from dist_teracon.data.sources.base import Events
from dist_teracon.errors import ConfigError, DataError


def labelled(events: Events, log: LogRule, *, type: str | None) -> Events:
    """Return a log's events with its prefix in front of the items' names and, where it is given, one type for all of them."""
    item = Categorical(events.item.codes, [f"{log.prefix}{name}" for name in events.item.names]) if log.prefix else events.item
    types = events.type if type is None else Categorical(np.zeros(len(events), dtype=np.int32), [type] if len(events) else [])
    return replace(events, item=item, type=types)


def together(logs: Mapping[str, Events]) -> Events:
    """Return the events of all logs, in the logs' order; types and values are unknown where a log has none.

    Raises:
        DataError: some logs have times and others have none.
    """
    parts = list(logs.values())
    if len(parts) == 1:
        return parts[0]
    without = [name for name, part in logs.items() if part.timestamp is None]
    if without and len(without) < len(parts):
        timed = next(name for name in logs if name not in without)
        raise DataError(
            f"logs: the events of '{without[0]}' have no times, those of '{timed}' do, so no order of both is known: name the column "
            f"(logs.{without[0]}.timestamp), or take the order of the files for all logs (columns.timestamp: null)"
        )
    seconds = [part.timestamp for part in parts if part.timestamp is not None]
    nanoseconds = [part.nanoseconds for part in parts if part.nanoseconds is not None]
    return Events(
        Categorical.concatenate([part.user for part in parts]),
        Categorical.concatenate([part.item for part in parts]),
        np.concatenate(seconds) if seconds else None,
        _types(parts),
        _values(parts),
        np.concatenate(nanoseconds) if len(nanoseconds) == len(parts) else None,
    )


def _types(parts: list[Events]) -> Categorical | None:
    if all(part.type is None for part in parts):
        return None
    unknown = [Categorical(np.full(len(part), -1, dtype=np.int32), []) for part in parts]
    return Categorical.concatenate([none if part.type is None else part.type for part, none in zip(parts, unknown, strict=True)])


def _values(parts: list[Events]) -> NDArray[np.float64] | None:
    if all(part.value is None for part in parts):
        return None
    return np.concatenate([np.full(len(part), np.nan) if part.value is None else part.value for part in parts])


def log_of_file(recipe: Recipe, uri: str) -> dict[str, LogRule]:
    """Return the one log that a file is of: by the end of its path, or the only one of histories; none where the recipe has no logs.

    Raises:
        ConfigError: the file is of a log that no history is of, or it is not known of which one it is.
    """
    if not recipe.logs:
        return {}
    read, file = recipe.logs_of_history(), uri.rsplit("/", 1)[-1]
    fits = [name for name, log in recipe.logs.items() if any(_names(pattern, uri) for pattern in log.files)]
    if len(fits) == 1 and fits[0] not in read:
        raise ConfigError(f"{uri}: is of the recipe's log '{fits[0]}', and histories are of {', '.join(read)} alone")
    found = fits if len(fits) == 1 else list(read) if len(read) == 1 and not fits else []
    if not found:
        shown = "; ".join(f"{name}: {', '.join(log.files)}" for name, log in read.items())
        raise ConfigError(
            f"{uri}: its path does not tell of which of the recipe's logs it is ({shown}); name it as there, or give the folder of all logs"
        )
    return {found[0]: read[found[0]].model_copy(update={"files": (file,)})}


def _names(pattern: str, uri: str) -> bool:
    """Return whether the end of a path fits a pattern of files, or of a folder that the file lies in."""
    wanted, path = pattern.strip("/").removeprefix("./").split("/"), uri.split("/")
    ends = range(len(wanted), len(path) + 1)
    return any(all(map(fnmatchcase, path[end - len(wanted) : end], wanted)) for end in ends)
