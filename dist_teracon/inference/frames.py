"""A pandas DataFrame of events as an Arrow table."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from dist_teracon.data.recipe_columns import Columns
from dist_teracon.errors import DataError
from dist_teracon.inference.ids import id_text

_ROLES = ("user", "item", "timestamp", "type", "value")


def table_of_frame(frame: Any, columns: Columns) -> pa.Table:
    """Return a DataFrame's columns, the index left out; ids that are texts in some rows and numbers in others become texts.

    Columns that Arrow has no type for are left out where the recipe does not use them.

    Raises:
        DataError: a column's name stands there twice, or a column that is used holds values of several kinds that are no ids.
    """
    names = [str(name) for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"events: column '{twice[0]}' stands there more than once")
    used = {getattr(columns, role) or role for role in _ROLES}
    found: dict[str, pa.Array] = {}
    for place, name in enumerate(names):
        series = frame.iloc[:, place]
        try:
            column = pa.array(series, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            if name not in used:
                continue
            column = _texts(name, series)
        found[name] = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.table(found)


def _texts(name: str, series: Any) -> pa.Array:
    missing = series.isna().tolist()
    try:
        return pa.array([None if gone else id_text(value) for value, gone in zip(series.tolist(), missing, strict=True)], pa.string())
    except DataError as error:
        raise DataError(f"events: column '{name}': {error}") from None
