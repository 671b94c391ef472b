"""RecBole's atomic files: `*.inter`, `*.user`, `*.item`, tab-separated, the header's fields `name:type`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.delimited import Dialect
from dist_teracon.data.raw.files import without_compression
from dist_teracon.data.raw.listing import Layout, list_source
from dist_teracon.data.raw.parts import Part, open_parts, read_parts
from dist_teracon.data.raw.table import ColumnSpec, RawTable
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.recipe_columns import Columns
from dist_teracon.data.sources.base import (
    Attributes,
    EventData,
    SourceFormat,
    attributes_from,
    check_missing,
    event_column_specs,
    event_columns,
    events_from,
    folder_name,
    wanted_attributes,
)
from dist_teracon.errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")
_OWN = {"user": "user_id", "item": "item_id", "timestamp": "timestamp", "type": "type", "value": "rating"}
_ENDINGS = {"events": ".inter", "users": ".user", "items": ".item"}


def layout(source: str, recipe: Recipe | None = None) -> Layout:
    """Return the folder's atomic files, by their endings or as the recipe's `files` names them.

    Raises:
        ConfigError: the recipe's `files` names something that is not there.
        DataError: there is no `*.inter`, or there are several files of a kind.
    """
    listing = list_source(source)
    roles: dict[str, list[str]] = {}
    for role, ending in _ENDINGS.items():
        if patterns := getattr(recipe.files, role) if recipe else None:
            roles[role] = listing.match(patterns, where=f"files.{role}")
            continue
        roles[role] = [name for name in listing.files if without_compression(name).lower().endswith(ending)]
        if len(roles[role]) > 1:
            raise DataError(
                f"{source}: expected one file *{ending}, got {', '.join(roles[role])}; "
                f"`files: {{{role}: NAME}}` in the recipe names one or several"
            )
    if not roles["events"]:
        raise DataError(f"{source}: no *.inter file there (has: {listing.shown()})")
    listing.leave_others([name for names in roles.values() for name in names], "is no *.inter, *.user or *.item file")
    return Layout(listing, roles)


def read(source: str, recipe: Recipe | None, context: ReadContext) -> EventData:
    """Read a folder of atomic files."""
    found = layout(source, recipe)
    context.notes["files"] = found.note
    columns = recipe.columns if recipe else Columns()
    dialect = Dialect(delimiter="\t", encoding=recipe.encoding if recipe else "utf-8")
    parts = open_parts(found.uris("events"), dialect=dialect, context=context)
    header = _fields(parts[0])
    roles = event_columns(columns, list(header), _OWN, where=parts[0].uri, context=context)
    events = events_from(_read(parts, header, event_column_specs(roles, recipe), context), roles)
    tables: dict[str, Attributes] = {}
    known: list[str] = []
    for kind, key in (("users", columns.user or _OWN["user"]), ("items", columns.item or _OWN["item"])):
        if uris := found.uris(kind):
            parts = open_parts(uris, dialect=dialect, context=context)
            header = _fields(parts[0])
            specs = wanted_attributes(recipe, kind, key, list(header), file=parts[0].uri)
            tables[kind] = attributes_from(_read(parts, header, specs, context), key, recipe=recipe, context=context)
            known += [name for name in header if name != key]
    check_missing(recipe, known, context)
    return EventData(folder_name(source), events, tables.get("users"), tables.get("items"))


def _fields(part: Part) -> dict[str, str]:
    """Return the header's fields by name."""
    fields: dict[str, str] = {}
    for written in part.header:
        name, _, kind = written.rpartition(":")
        if not name or kind not in _TYPES:
            raise DataError(f"{part.uri}:1: column '{written}': expected `name:type`, with a type of {', '.join(_TYPES)}")
        if name in fields:
            raise DataError(f"{part.uri}:1: column '{name}' stands there more than once ('{fields[name]}', '{written}')")
        fields[name] = written
    return fields


def _read(parts: Sequence[Part], header: Mapping[str, str], specs: Mapping[str, ColumnSpec], context: ReadContext) -> RawTable:
    """Read columns, naming them without their types."""
    table = read_parts(parts, {header[name]: spec for name, spec in specs.items()}, context)
    return RawTable({name: table.columns[header[name]] for name in specs}, table.rows, table.where, table.file)


FORMAT = SourceFormat(lambda source, recipe: layout(source, recipe).all, read)
