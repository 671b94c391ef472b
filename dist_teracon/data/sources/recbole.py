"""RecBole's atomic files: `*.inter`, `*.user`, `*.item`, tab-separated, the header's fields `name:type`."""

from __future__ import annotations

from dist_teracon import io
from dist_teracon.data.raw.context import Job
from dist_teracon.data.raw.table import Dialect, RawTable, Wanted, read_delimited, read_header
from dist_teracon.data.recipe import Columns, Recipe
from dist_teracon.data.sources.base import (
    Adapter,
    Attributes,
    Source,
    attributes_from,
    event_columns,
    event_wants,
    events_from,
    folder_name,
    one_file,
)
from dist_teracon.errors import DataError, nearest

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


def read(folder: str, recipe: Recipe | None, job: Job) -> Source:
    """Read a folder of atomic files."""
    columns = recipe.columns if recipe else Columns()
    inter, *others = files(folder)
    header = _header(inter)
    found = event_columns(columns, list(header), _OWN, where=inter)
    table = _read(inter, header, event_wants(found, columns), job)
    attributes: dict[str, Attributes] = {}
    for uri in others:
        kind = "user" if uri.removesuffix(".gz").endswith(".user") else "item"
        fields = _header(uri)
        key = getattr(columns, kind) or _OWN[kind]
        if key not in fields:
            raise DataError(f"{uri}:1: no column '{key}'{nearest(key, fields)} (there are: {', '.join(fields)})")
        raw = _read(uri, fields, {name: Wanted("token", required=name == key) for name in fields}, job)
        attributes[kind] = attributes_from(raw, key, file=uri, bad=job.bad)
    return Source(folder_name(folder), events_from([table], found), attributes.get("user"), attributes.get("item"))


def _header(uri: str) -> dict[str, str]:
    """Return the header's fields by name."""
    fields = {}
    for written in read_header(uri, _DIALECT):
        name, _, kind = written.rpartition(":")
        if not name or kind not in _TYPES:
            raise DataError(f"{uri}:1: column '{written}': `name:type` is wanted, with a type of {', '.join(_TYPES)}")
        fields[name] = written
    return fields


def _read(uri: str, header: dict[str, str], wants: dict[str, Wanted], job: Job) -> RawTable:
    """Read columns, naming them without their types."""
    written = {header[name]: want for name, want in wants.items()}
    table = read_delimited(uri, written, dialect=_DIALECT, job=job)
    return RawTable({name: table.columns[header[name]] for name in wants}, table.rows, table.where)


ADAPTER = Adapter(files, read)
