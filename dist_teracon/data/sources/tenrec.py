"""Tenrec's public CSV files: a row an impression, `user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age`.

Every flag that is set is an event of that type, in the order of the rows, as the public files have no times; its value is
`watching_times`. A user's `gender` and `age` and an item's category are those of the first row in which they are not missing. Files of
articles have other flags and columns: those that are there are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.delimited import Dialect
from dist_teracon.data.raw.files import without_compression
from dist_teracon.data.raw.listing import Layout, list_source
from dist_teracon.data.raw.parts import open_parts, read_parts
from dist_teracon.data.raw.table import ColumnSpec, RawTable
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
    folder_name,
)
from dist_teracon.errors import ConfigError, DataError

_TYPES = ("click", "follow", "like", "share", "favorite", "read")
_USER_ATTRIBUTES = ("gender", "age")
_ITEM_ATTRIBUTES = ("video_category", "category_first", "category_second", "item_score1", "item_score2", "item_score3")
_OWN = {"user": "user_id", "item": "item_id", "value": "watching_times"}


def layout(source: str, recipe: Recipe | None = None) -> Layout:
    """Return the folder's CSV files in natural order, or those that the recipe's `files.events` names.

    Raises:
        ConfigError: the recipe's `files` names something that is not there.
        DataError: there are none.
    """
    if recipe is not None and (recipe.files.users or recipe.files.items):
        raise ConfigError("files: format 'tenrec' has users and items in the files of events; only files.events is allowed")
    listing = list_source(source)
    if recipe is not None and recipe.files.events:
        names = listing.match(recipe.files.events, where="files.events")
    else:
        names = [name for name in listing.files if without_compression(name).lower().endswith(".csv")]
    if not names:
        raise DataError(f"{source}: no *.csv file there (has: {listing.shown()})")
    listing.leave_others(names, "is no *.csv file")
    return Layout(listing, {"events": names})


def read(source: str, recipe: Recipe | None, context: ReadContext) -> EventData:
    """Read a folder of impressions, several files one behind the other.

    Raises:
        ConfigError: the recipe names a column that is not there, or one of types.
        DataError: a missing or empty file, files of unequal columns, or too many malformed rows.
    """
    found = layout(source, recipe)
    context.notes["files"] = found.note
    columns = recipe.columns if recipe else Columns()
    if columns.type is not None:
        raise ConfigError("columns.type: format 'tenrec' has a column a type (click, like, …), none can be named")
    dialect = Dialect(delimiter=",", quote='"', encoding=recipe.encoding if recipe else "utf-8")
    parts = open_parts(found.uris("events"), dialect=dialect, context=context)
    header = parts[0].header
    roles = event_columns(columns, header, _OWN, where=parts[0].uri)
    if not (types := [name for name in _TYPES if name in header and name not in roles.values()]):
        raise DataError(f"{parts[0].uri}:1: none of the columns {', '.join(_TYPES)} (there are: {', '.join(header)})")
    specs = event_column_specs(roles, recipe) | {name: ColumnSpec("number") for name in types}
    attributes = [name for name in (*_USER_ATTRIBUTES, *_ITEM_ATTRIBUTES) if name in header and name not in roles.values()]
    specs |= {name: ColumnSpec("name") for name in attributes}
    table = read_parts(parts, specs, context)
    check_missing(recipe, attributes, context)

    def of(key: str, names: tuple[str, ...]) -> Attributes | None:
        chosen = [key, *(name for name in names if name in attributes)]
        part = RawTable({name: table.columns[name] for name in chosen}, table.rows, table.where, table.file)
        return attributes_from(part, key, recipe=recipe, context=context) if len(chosen) > 1 else None

    users, items = of(roles["user"], _USER_ATTRIBUTES), of(roles["item"], _ITEM_ATTRIBUTES)
    return EventData(folder_name(source), _events(table.columns, roles, types), users, items)


def _events(columns: dict[str, Any], roles: dict[str, str], types: list[str]) -> Events:
    """Return an event for each flag of a row that is set."""
    chosen = [np.flatnonzero(np.nan_to_num(columns[name]) > 0) for name in types]
    codes = np.repeat(np.arange(len(types), dtype=np.int32), [len(rows) for rows in chosen])
    rows = np.concatenate(chosen)
    order = np.argsort(rows, kind="stable")
    rows = rows[order]

    def of(role: str) -> NDArray[Any] | None:
        return columns[roles[role]][rows] if roles.get(role) in columns else None

    user, item, exact = columns[roles["user"]], columns[roles["item"]], of("timestamp")
    return Events(
        Categorical(user.codes[rows], user.names),
        Categorical(item.codes[rows], item.names),
        None if exact is None else exact / 1e9,
        Categorical(codes[order], types),
        of("value"),
        exact,
    )


FORMAT = SourceFormat(lambda source, recipe: layout(source, recipe).all, read)
