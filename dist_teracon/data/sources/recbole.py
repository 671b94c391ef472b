"""RecBole's atomic files: `*.inter`, `*.user`, `*.item`, tab-separated, the header's fields `name:type`."""

from __future__ import annotations

from dist_teracon import io
from dist_teracon.data.raw.bad_rows import column_missing
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.table import ColumnSpec, Dialect, RawTable, read_delimited, read_header
from dist_teracon.data.recipe import Columns, Recipe
from dist_teracon.data.sources.base import (
    Attributes,
    EventData,
    SourceFormat,
    attributes_from,
    event_column_specs,
    event_columns,
    events_from,
    folder_name,
    one_file,
)
from dist_teracon.errors import DataError

_DIALECT = Dialect(delimiter="\t")
_TYPES = ("token", "token_seq", "float", "float_seq")
_OWN = {"user": "user_id", "item": "item_id", "timestamp": "timestamp", "type": "type", "value": "rating"}


def files(folder: str) -> list[str]:
    """Return the folder's atomic files.

    Raises:
        DataError: there is no `*.inter`, or there are several files of a kind.
    """
    found = [one_file(folder, (f".{kind}", f".{kind}.gz")) for kind in ("inter", "user", "item")]
    if found[0] is None:
        raise DataError(f"{folder}: no *.inter file there (has: {', '.join(io.list_folder(folder)[:10]) or 'nothing'})")
    return [uri for uri in found if uri is not None]


def read(folder: str, recipe: Recipe | None, context: ReadContext) -> EventData:
    """Read a folder of atomic files."""
    columns = recipe.columns if recipe else Columns()
    inter, *others = files(folder)
    header = _header(inter)
    found = event_columns(columns, list(header), _OWN, where=inter)
    table = _read(inter, header, event_column_specs(found, columns), context)
    attributes: dict[str, Attributes] = {}
    for uri in others:
        kind = "user" if uri.removesuffix(".gz").endswith(".user") else "item"
        fields = _header(uri)
        key = getattr(columns, kind) or _OWN[kind]
        if key not in fields:
            raise column_missing(f"{uri}:1", key, fields)
        raw = _read(uri, fields, {name: ColumnSpec("token", required=name == key) for name in fields}, context)
        attributes[kind] = attributes_from(raw, key, file=uri, bad=context.bad)
    return EventData(folder_name(folder), events_from([table], found), attributes.get("user"), attributes.get("item"))


def _header(uri: str) -> dict[str, str]:
    """Return the header's fields by name."""
    fields = {}
    for written in read_header(uri, _DIALECT):
        name, _, kind = written.rpartition(":")
        if not name or kind not in _TYPES:
            raise DataError(f"{uri}:1: column '{written}': expected `name:type`, with a type of {', '.join(_TYPES)}")
        fields[name] = written
    return fields


def _read(uri: str, header: dict[str, str], specs: dict[str, ColumnSpec], context: ReadContext) -> RawTable:
    """Read columns, naming them without their types."""
    written = {header[name]: spec for name, spec in specs.items()}
    table = read_delimited(uri, written, dialect=_DIALECT, context=context)
    return RawTable({name: table.columns[header[name]] for name in specs}, table.rows, table.where)


FORMAT = SourceFormat(files, read)
