"""Events as Parquet or CSV: a folder with `events.*`, and `users.*` and `items.*` where there are attributes.

Columns of events: user, item, and where they mean something timestamp, type, value. Those of users: user and attributes; of items:
item and attributes. A recipe's `columns` gives other names, its `files` other files. Each may also be a folder of parts, at any depth,
read in natural order; a source that is one file, or holds nothing but parts, is events alone. A recipe's `logs` names several tables of
events instead, one a service: `event_logs.py` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.delimited import Dialect
from dist_teracon.data.raw.listing import Layout, Listing, list_source, named_kind, stem
from dist_teracon.data.raw.parquet import read_arrow
from dist_teracon.data.raw.parts import open_parts, read_parts
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.recipe_columns import Columns
from dist_teracon.data.sources.base import (
    Attributes,
    EventData,
    Events,
    SourceFormat,
    attributes_from,
    check_missing,
    event_column_specs,
    event_columns,
    events_from,
    folder_name,
    reads_column,
    wanted_attributes,
)
from dist_teracon.data.sources.event_logs import labelled, together
from dist_teracon.errors import ConfigError, DataError

_OWN = {"user": "user", "item": "item", "timestamp": "timestamp", "type": "type", "value": "value"}
_ROLES = ("events", "users", "items")


def layout(source: str, recipe: Recipe | None = None) -> Layout:
    """Return which files hold events, users and items.

    Raises:
        ConfigError: the recipe's `files` names something that is not there.
        DataError: there are no events, or a table is there in two forms.
    """
    listing = list_source(source)
    roles: dict[str, list[str]] = {}
    if logs := recipe.logs if recipe else {}:
        roles |= {f"logs.{name}": listing.match(log.files, where=f"logs.{name}.files") for name, log in logs.items()}
        _check_apart(roles, listing)
    for role in _ROLES if not logs else _ROLES[1:]:
        patterns = getattr(recipe.files, role) if recipe else None
        roles[role] = listing.match(patterns, where=f"files.{role}") if patterns else _own_files(listing, role)
    if not logs and not roles["events"]:
        roles["events"] = _events_alone(listing, [*roles["users"], *roles["items"]])
    read = [name for names in roles.values() for name in names]
    others = "is in no log that is read (`logs:` in the recipe)"
    listing.leave_others(read, others if logs else "is not named events, users or items (`files:` in the recipe names others)")
    return Layout(listing, roles)


def _own_files(listing: Listing, role: str) -> list[str]:
    if listing.is_file:
        return listing.files if role == "events" else []
    found = [name for name in listing.files if stem(name) == role and (named_kind(name) is not None or "." not in name)]
    folders = [name for name in listing.folders if stem(name) == role]
    parts = [part for folder in folders for part in listing.parts(folder)]
    if len(found) > 1 or len(folders) > 1 or (found and parts):
        raise DataError(f"{listing.source}: {role} are there more than once ({', '.join(found + parts[:1])}); keep one form")
    return found or parts


def _events_alone(listing: Listing, others: Sequence[str]) -> list[str]:
    """Return the parts of a folder that is a table of events itself: named as parts are, or in folders such as `date=2020-01-31`."""
    is_part = [name for name in (*listing.files, *listing.folders) if name.startswith("part-") or "=" in name]
    if is_part and not others:
        return listing.parts("")
    raise DataError(
        f"{listing.source}: no events there, as events.csv or events.parquet or a folder of such parts (has: {listing.shown()}); "
        "`files: {events: NAME}` in the recipe names others"
    )


def read(source: str, recipe: Recipe | None, context: ReadContext) -> EventData:
    """Read a folder of events, users and items."""
    found = layout(source, recipe)
    context.notes["files"] = found.note
    columns = recipe.columns if recipe else Columns()
    logs = _read_logs(found, recipe, context)
    tables: dict[str, Attributes] = {}
    known: list[str] = []
    for kind, key in (("users", columns.user or _OWN["user"]), ("items", columns.item or _OWN["item"])):
        if uris := found.uris(kind):
            tables[kind], header = _read_attributes(uris, kind, key, recipe, context)
            known += [name for name in header if name != key]
    check_missing(recipe, known, context)
    counts = {name: len(events) for name, events in logs.items()} if recipe and recipe.logs else {}
    return EventData(folder_name(source), together(logs), tables.get("users"), tables.get("items"), counts)


def _read_attributes(
    uris: Sequence[str], kind: str, key: str, recipe: Recipe | None, context: ReadContext
) -> tuple[Attributes, Sequence[str]]:  # fmt: skip
    """Return a table of users or items, and its columns' names."""
    parts = open_parts(uris, dialect=_dialect(recipe), context=context, guess=True)
    specs = wanted_attributes(recipe, kind, key, parts[0].header, file=parts[0].uri)
    return attributes_from(read_parts(parts, specs, context), key, recipe=recipe, context=context), parts[0].header


def read_users(source: str, recipe: Recipe, context: ReadContext) -> Attributes | None:
    """Read the attributes of users that a recipe uses from a folder of events; None where it has no table of users.

    Raises:
        ConfigError: the table does not have one.
    """
    uris = layout(source, recipe).uris("users")
    return _read_attributes(uris, "users", recipe.columns.user or _OWN["user"], recipe, context)[0] if uris else None


def _dialect(recipe: Recipe | None) -> Dialect:
    return Dialect(delimiter=",", quote='"', encoding=recipe.encoding if recipe else "utf-8")


def _read_logs(found: Layout, recipe: Recipe | None, context: ReadContext) -> dict[str, Events]:
    """Return the events of each log by name, or of the one table."""
    if recipe is None or not recipe.logs:
        return {"events": _read_table(found.uris("events"), recipe, context)}
    logs = {}
    for name, log in recipe.logs.items():
        rules = recipe.model_copy(update={"columns": log.over(recipe.columns)})
        own = _OWN if log.type is not None else {role: column for role, column in _OWN.items() if role != "type"}
        events = _read_table(found.uris(f"logs.{name}"), rules, context, own=own, part=f"logs.{name}", may_be_empty=True)
        if not len(events):
            context.note("empty_logs", name, "no rows", f"logs.{name}: has no rows; it adds nothing")
        logs[name] = labelled(events, log, type=name if log.type is None and reads_column(recipe, "type") else None)
    if not any(map(len, logs.values())):
        raise DataError(f"logs: no log has rows ({', '.join(logs)})")
    return logs


def _read_table(
    uris: Sequence[str], recipe: Recipe | None, context: ReadContext, *,
    own: Mapping[str, str] = _OWN, part: str = "columns", may_be_empty: bool = False,
) -> Events:  # fmt: skip
    parts = open_parts(uris, dialect=_dialect(recipe), context=context, guess=True)
    columns = recipe.columns if recipe else Columns()
    roles = event_columns(columns, parts[0].header, own, where=parts[0].uri, context=context, part=part)
    return events_from(read_parts(parts, event_column_specs(roles, recipe), context, may_be_empty=may_be_empty), roles)


def _check_apart(roles: Mapping[str, Sequence[str]], listing: Listing) -> None:
    """Raise ConfigError where a file is in two logs, whose events would count twice."""
    owners: dict[str, str] = {}
    for role, names in roles.items():
        for name in names:
            if (other := owners.setdefault(name, role)) != role:
                raise ConfigError(f"{role}.files: '{name}' of {listing.source} is in {other} too, and its events would count twice")


def read_events(source: str, recipe: Recipe, context: ReadContext) -> Events:
    """Read the events of a source, a folder or one file, without attributes of users and items.

    Raises:
        ConfigError: the recipe names a file or column that is not there.
        DataError: a file is missing or malformed.
    """
    found = layout(source, recipe)
    for name, why in found.listing.not_read.items():
        context.log(f"not read: {name}, which {why}")
    return together(_read_logs(found, recipe, context))


def events_of_table(table: Any, recipe: Recipe, context: ReadContext, *, where: str = "events") -> Events:
    """Read an Arrow table of events as a Parquet file of them; raises as `read_events`."""
    roles = event_columns(recipe.columns, table.column_names, _OWN, where=where, context=context)
    return events_from(read_arrow(table, event_column_specs(roles, recipe), where=where, context=context), roles)


FORMAT = SourceFormat(lambda source, recipe: layout(source, recipe).all, read, takes_logs=True)
