"""Events as Parquet or CSV: a folder with `events.*`, and `users.*` and `items.*` where there are attributes.

Columns of events: user, item, and where they mean something timestamp, type, value. Those of users: user and attributes; of items:
item and attributes. A recipe's `columns` gives other names. `events` may also be a folder of such files, read in natural order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from dist_teracon import io
from dist_teracon.data.raw.bad_rows import column_missing
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.table import ColumnSpec, Dialect, RawTable, read_arrow, read_delimited, read_header, read_parquet
from dist_teracon.data.recipe import Columns, Recipe
from dist_teracon.data.sources.base import (
    Attributes,
    EventData,
    Events,
    SourceFormat,
    attributes_from,
    event_column_specs,
    event_columns,
    events_from,
    folder_name,
    natural_key,
)
from dist_teracon.errors import DataError

_OWN = {"user": "user", "item": "item", "timestamp": "timestamp", "type": "type", "value": "value"}
_DIALECT = Dialect(delimiter=",", quote='"')
_ENDINGS = (".parquet", ".csv", ".csv.gz")


def files(folder: str) -> list[str]:
    """Return the folder's files of events, users and items.

    Raises:
        DataError: there are no events, or a table is there in two forms.
    """
    return [uri for stem in ("events", "users", "items") for uri in _files_of(folder, stem)]


def _files_of(folder: str, stem: str) -> list[str]:
    names = io.list_folder(folder)
    found = [name for name in names if name in {f"{stem}{ending}" for ending in _ENDINGS}]
    inside = sorted(io.list_folder(io.join(folder, stem)), key=natural_key) if stem in names else []
    parts = [io.join(stem, name) for name in inside if name.endswith(_ENDINGS)]
    if not found and not parts and stem == "events":
        raise DataError(f"{folder}: no events.parquet or events.csv there (has: {', '.join(names[:10]) or 'nothing'})")
    if len(found) > 1 or (found and parts):
        raise DataError(f"{folder}: {stem} are there more than once ({', '.join(found + parts[:1])}); keep one form")
    return [io.join(folder, name) for name in found or parts]


def read(folder: str, recipe: Recipe | None, context: ReadContext) -> EventData:
    """Read a folder of events, users and items."""
    columns = recipe.columns if recipe else Columns()
    events = read_events(_files_of(folder, "events"), columns, context)
    users, items = (
        _attributes(folder, stem, getattr(columns, key) or _OWN[key], context) for stem, key in (("users", "user"), ("items", "item"))
    )
    return EventData(folder_name(folder), events, users, items)


def read_events(uris: Sequence[str], columns: Columns, context: ReadContext) -> Events:
    """Read files of events of one form, one behind the other.

    Raises:
        ConfigError: `columns` names a column that is not there.
        DataError: a file is missing or malformed.
    """
    found = event_columns(columns, _header(uris[0]), _OWN, where=uris[0])
    return events_from([_read(uri, event_column_specs(found, columns), context) for uri in uris], found)


def events_of_table(table: Any, columns: Columns, context: ReadContext, *, where: str = "events") -> Events:
    """Read an Arrow table of events as a Parquet file of them; raises as `read_events`."""
    found = event_columns(columns, table.column_names, _OWN, where=where)
    return events_from([read_arrow(table, event_column_specs(found, columns), where=where, context=context)], found)


def _attributes(folder: str, stem: str, key: str, context: ReadContext) -> Attributes | None:
    uris = _files_of(folder, stem)
    if not uris:
        return None
    if len(uris) > 1:
        raise DataError(f"{folder}: expected one file of {stem}, got {len(uris)}")
    header = _header(uris[0])
    if key not in header:
        raise column_missing(f"{uris[0]}:1", key, header)
    table = _read(uris[0], {name: ColumnSpec("token", required=name == key) for name in header}, context)
    return attributes_from(table, key, file=uris[0], bad=context.bad)


def _header(uri: str) -> list[str]:
    if not uri.endswith(".parquet"):
        return read_header(uri, _DIALECT)
    with io.open_binary(uri) as file:
        try:
            return list(pq.read_schema(file).names)
        except (ArrowInvalid, OSError) as error:
            raise DataError(f"{uri}: cannot be read as Parquet ({error}); was the file cut off?") from None


def _read(uri: str, specs: Mapping[str, ColumnSpec], context: ReadContext) -> RawTable:
    return (
        read_parquet(uri, specs, context=context)
        if uri.endswith(".parquet")
        else read_delimited(uri, specs, dialect=_DIALECT, context=context)
    )


FORMAT = SourceFormat(files, read)
