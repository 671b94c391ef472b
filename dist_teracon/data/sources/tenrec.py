"""Tenrec's public CSV files: a row an impression, `user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age`.

Every flag that is set is an event of that type, in the order of the rows, as the public files have no times; its value is
`watching_times`. A user's `gender` and `age` and an item's category are those of the first row that names them. Files of articles
have other flags and columns: those that are there are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.raw.bad_rows import column_missing
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.files import COMPRESSIONS
from dist_teracon.data.raw.table import ColumnSpec, Dialect, read_delimited, read_header
from dist_teracon.data.recipe import Columns, Recipe
from dist_teracon.data.sources.base import Attributes, EventData, Events, SourceFormat, concatenated, folder_name, natural_key
from dist_teracon.errors import ConfigError, DataError

_DIALECT = Dialect(delimiter=",", quote='"')
_ENDINGS = (".csv", *(f".csv{compression}" for compression in COMPRESSIONS))
_TYPES = ("click", "follow", "like", "share", "favorite", "read")
_USER_ATTRIBUTES = ("gender", "age")
_ITEM_ATTRIBUTES = ("video_category", "category_first", "category_second", "item_score1", "item_score2", "item_score3")
_VALUE = "watching_times"


def files(folder: str) -> list[str]:
    """Return the folder's CSV files in natural order.

    Raises:
        DataError: there are none.
    """
    names = [name for name in io.list_folder(folder) if name.endswith(_ENDINGS) and not name.startswith(".")]
    if not names:
        raise DataError(f"{folder}: no *.csv file there (has: {', '.join(io.list_folder(folder)[:10]) or 'nothing'})")
    return [io.join(folder, name) for name in sorted(names, key=natural_key)]


def read(folder: str, recipe: Recipe | None, context: ReadContext) -> EventData:
    """Read a folder of impressions, several files one behind the other.

    Raises:
        ConfigError: the recipe names columns, which this format fixes.
        DataError: a missing or empty file, files of unequal columns, or too many malformed rows.
    """
    if recipe is not None and recipe.columns != Columns():
        raise ConfigError("columns: format 'tenrec' has its own columns, none can be named")
    uris = files(folder)
    header = read_header(uris[0], _DIALECT)
    for name in ("user_id", "item_id"):
        if name not in header:
            raise column_missing(f"{uris[0]}:1", name, header)
    if not (types := [name for name in _TYPES if name in header]):
        raise DataError(f"{uris[0]}:1: none of the columns {', '.join(_TYPES)} (there are: {', '.join(header)})")
    specs = {"user_id": ColumnSpec("name", required=True), "item_id": ColumnSpec("name", required=True)}
    specs |= {name: ColumnSpec("number") for name in (*types, _VALUE) if name in header}
    specs |= {name: ColumnSpec("name") for name in (*_USER_ATTRIBUTES, *_ITEM_ATTRIBUTES) if name in header}
    tables = [read_delimited(uri, specs, dialect=_DIALECT, context=context) for uri in uris]
    columns = {name: concatenated([table.columns[name] for table in tables]) for name in specs}
    user, item = columns["user_id"], columns["item_id"]
    return EventData(
        folder_name(folder),
        _events(columns, types),
        _attributes(user, {name: columns[name] for name in _USER_ATTRIBUTES if name in columns}, uris),
        _attributes(item, {name: columns[name] for name in _ITEM_ATTRIBUTES if name in columns}, uris),
    )


def _events(columns: dict[str, Any], types: list[str]) -> Events:
    """Return an event for each flag of a row that is set."""
    chosen = [np.flatnonzero(np.nan_to_num(columns[name]) > 0) for name in types]
    codes = np.repeat(np.arange(len(types), dtype=np.int32), [len(rows) for rows in chosen])
    rows = np.concatenate(chosen)
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    value: NDArray[np.float64] | None = columns[_VALUE][rows] if _VALUE in columns else None
    user, item = columns["user_id"], columns["item_id"]
    return Events(
        Categorical(user.codes[rows], user.names), Categorical(item.codes[rows], item.names), None, Categorical(codes[order], types), value
    )


def _attributes(key: Categorical, columns: dict[str, Categorical], uris: list[str]) -> Attributes | None:
    """Return the attributes of each name's first row."""
    if not columns:
        return None
    codes, first = np.unique(key.codes, return_index=True)
    found = {}
    for name, column in columns.items():
        values = pa.array([*column.names, None], pa.string())
        found[name] = values.take(pa.array(np.where(column.codes[first] < 0, len(column.names), column.codes[first])))
    file = uris[0] if len(uris) == 1 else f"{uris[0].rsplit('/', 1)[0]}/*.csv"
    return Attributes(file, {key.names[code]: row for row, code in enumerate(codes.tolist())}, found, lambda _row: file)


FORMAT = SourceFormat(files, read)
