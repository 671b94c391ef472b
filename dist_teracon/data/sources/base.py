"""The common form of event sources: events, attributes of users, attributes of items."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.raw.bad_rows import BadRows, column_missing
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.table import ColumnSpec, RawTable
from dist_teracon.data.recipe import Columns, Recipe
from dist_teracon.data.shard_source import ShardSource
from dist_teracon.errors import ConfigError, DataError, nearest

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@dataclass(frozen=True)
class Events:
    """Events in file order.

    Attributes:
        user, item: Who and with what; never −1.
        timestamp: float64 seconds since 1970, or None where the source has none.
        type: What happened, or None.
        value: float64 with NaN for nothing, as a rating; or None.
    """

    user: Categorical
    item: Categorical
    timestamp: NDArray[np.float64] | None = None
    type: Categorical | None = None
    value: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.user.codes)


@dataclass(frozen=True)
class Attributes:
    """Attributes of users or of items.

    Attributes:
        file: Where they come from, for messages.
        rows: Row of each name.
        columns: String arrays by attribute, null where there is nothing.
        where: From a row to its place in the file.
    """

    file: str
    rows: Mapping[str, int]
    columns: Mapping[str, Any]
    where: Callable[[int], str]


@dataclass(frozen=True)
class EventData:
    """Events, with the attributes of users and items where a source has them."""

    name: str
    events: Events
    users: Attributes | None = None
    items: Attributes | None = None


def attributes_from(table: RawTable, key: str, *, file: str, bad: BadRows) -> Attributes:
    """Return a raw table's columns by the names in its `key` column; a name that comes again is a malformed row.

    Raises:
        DataError: too many malformed rows.
    """
    rows: dict[str, int] = {}
    for row, name in enumerate(table.columns[key].to_pylist()):
        if rows.setdefault(name, row) != row:
            bad.add(f"{key} that came before", table.where(row), text=name)
    bad.check(file, table.rows)
    return Attributes(file, rows, {name: column for name, column in table.columns.items() if name != key}, table.where)


def concatenated(parts: Sequence[Any]) -> Any:
    """Concatenate categorical columns, string arrays or numpy arrays of several files."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Categorical):
        return Categorical.concatenate(parts)
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else pa.concat_arrays(parts)


@dataclass(frozen=True)
class SourceFormat:
    """A reader of one raw format.

    Attributes:
        files: From a folder to the URIs of the files that are read, in a fixed order; raises DataError where they are not there.
        read: From a folder, the recipe and the context to events, or to shards where the format has its own tasks.
        needs_recipe: Whether nothing can be made without a recipe.
        on_cluster: Whether `read` can leave its work to `ReadContext.workers`.
    """

    files: Callable[[str], list[str]]
    read: Callable[[str, Recipe | None, ReadContext], EventData | ShardSource]
    needs_recipe: bool = True
    on_cluster: bool = False


def folder_name(uri: str) -> str:
    """Return the last part of a folder's URI, a name for its data set."""
    return uri.rstrip("/").rsplit("/", 1)[-1] or "data"


def natural_key(name: str) -> tuple[list[Any], str]:
    """Return a key that sorts names by the numbers in them, so that `events-2` comes before `events-10`."""
    # the odd parts are the digits
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))], name


def one_file(folder: str, endings: Sequence[str]) -> str | None:
    """Return the URI of the one file in a folder whose name ends in one of `endings`, or None.

    Raises:
        DataError: there is no such folder, or several such files.
    """
    names = [name for name in io.list_folder(folder) if name.endswith(tuple(endings)) and not name.startswith(".")]
    if len(names) > 1:
        raise DataError(f"{folder}: expected one file {' or '.join(f'*{ending}' for ending in endings)}, got {', '.join(names)}")
    return io.join(folder, names[0]) if names else None


def event_columns(columns: Columns, header: Sequence[str], own: Mapping[str, str], *, where: str) -> dict[str, str]:
    """Return the file's column for each of user, item, timestamp, type, value that it has.

    Args:
        columns: The recipe's `columns`.
        header: The file's columns.
        own: The format's own names.
        where: The file, for messages.

    Raises:
        ConfigError: the recipe names a column that is not there.
        DataError: there is no column of users or items.
    """
    found = {}
    for role in ("user", "item", "timestamp", "type", "value"):
        named: str | None = getattr(columns, role)
        if named is not None and named not in header:
            raise ConfigError(f"columns.{role}: {where} has no column '{named}'{nearest(named, header)} (there are: {', '.join(header)})")
        if (name := named or own[role]) in header:
            found[role] = name
        elif role in ("user", "item"):
            raise column_missing(f"{where}:1", name, header)
    return found


def event_column_specs(found: Mapping[str, str], columns: Columns) -> dict[str, ColumnSpec]:
    """Return how the columns of events are read."""
    specs = {
        "user": ColumnSpec("name", required=True),
        "item": ColumnSpec("name", required=True),
        "timestamp": ColumnSpec("time", required=True, per_second=_PER_SECOND[columns.timestamp_unit]),
        "type": ColumnSpec("name"),
        "value": ColumnSpec("number"),
    }
    return {name: specs[role] for role, name in found.items()}


def events_from(tables: Sequence[RawTable], found: Mapping[str, str]) -> Events:
    """Put raw tables of events, one after another, into the common form."""

    def column(role: str) -> Any:
        return concatenated([table.columns[found[role]] for table in tables]) if role in found else None

    return Events(column("user"), column("item"), column("timestamp"), column("type"), column("value"))
