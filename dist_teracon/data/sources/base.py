"""The common form of event sources: events, attributes of users, attributes of items."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data.raw.bad_rows import column_missing
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.listing import natural_key
from dist_teracon.data.raw.table import ColumnSpec, RawTable
from dist_teracon.data.raw.times import YEARS
from dist_teracon.data.raw.values import truth_names, whole_name
from dist_teracon.data.recipe import ItemTask, ProfileTask, Recipe
from dist_teracon.data.recipe_columns import Columns
from dist_teracon.data.shard_source import ShardSource
from dist_teracon.errors import ConfigError, DataError, nearest

__all__ = ["Attributes", "EventData", "Events", "SourceFormat", "folder_name", "natural_key"]

# Names of a column of times, without what does not count in them.
_TIME_NAMES = (
    "timestamp", "time", "ts", "date", "datetime", "dt", "eventtime", "eventtimestamp", "eventdate", "createdat", "created", "unixtime",
    "epoch", "timems", "timestampms", "timestamps", "timens", "localtime", "servertime", "logtime", "clicktime", "when",
)  # fmt: skip


@dataclass(frozen=True)
class Events:
    """Events in file order.

    Attributes:
        user, item: Who and with what; never −1.
        timestamp: float64 seconds since 1970, or None where the source has none.
        type: What happened, or None.
        value: float64 with NaN for nothing, as a rating; or None.
        nanoseconds: int64, the same times exactly, where the source has them.
    """

    user: Categorical
    item: Categorical
    timestamp: NDArray[np.float64] | None = None
    type: Categorical | None = None
    value: NDArray[np.float64] | None = None
    nanoseconds: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.user.codes)

    @property
    def order(self) -> NDArray[Any] | None:
        """What orders events in time, as exactly as there is; None without times."""
        return self.timestamp if self.nanoseconds is None else self.nanoseconds

    def from_moment(self, seconds: float) -> NDArray[np.bool_]:
        """Return which events are at a moment or after it, bool [E]; there are times."""
        if self.nanoseconds is not None and abs(seconds) < 9e9:
            return self.nanoseconds >= round(seconds * 10**6) * 1000
        assert self.timestamp is not None
        return self.timestamp >= seconds


@dataclass(frozen=True)
class Attributes:
    """Attributes of users or of items.

    Attributes:
        file: Where they come from, for messages.
        rows: Row of each name.
        columns: String arrays by attribute that a recipe uses, null where there is nothing.
        where: From a row to its place in the file.
    """

    file: str
    rows: Mapping[str, int]
    columns: Mapping[str, Any]
    where: Callable[[int], str]


@dataclass(frozen=True)
class EventData:
    """Events, with the attributes of users and items where a source has them.

    Attributes:
        name: Of the data set, where the recipe has none.
        events: Of all logs, one behind the other.
        users, items: Attributes.
        logs: Where the events come from several tables: by name, how many of each, in the order of the events.
    """

    name: str
    events: Events
    users: Attributes | None = None
    items: Attributes | None = None
    logs: Mapping[str, int] = field(default_factory=dict)


def attributes_from(table: RawTable, key: str, *, recipe: Recipe | None, context: ReadContext) -> Attributes:
    """Return a raw table's columns by the names in its `key` column.

    Where a name stands in several rows, its first value of an attribute that is not missing counts; names with several values are noted.
    """
    keys = _coded(table.columns[key])
    _, first = np.unique(keys.codes, return_index=True)
    columns = {}
    for name, column in table.columns.items():
        if name == key:
            continue
        values = _without_missing(name, _coded(column), recipe, context)
        if (truths := truth_names(values)) is not None:
            told = f"{table.file}: column '{name}' has truth values written as {', '.join(values.names)}; they are read in small letters"
            context.note("truth_values", name, list(values.names), told)
            values = truths
        rows, conflicting = _first_values(keys, values)
        if conflicting:
            told = f"{table.file}: {conflicting} names of column '{key}' have several values of '{name}'; the first counts"
            context.note("conflicting", name, conflicting, told)
        texts = pa.array([*values.names, None], pa.string())
        columns[name] = texts.take(pa.array(np.where(rows < 0, len(values.names), values.codes[rows])))
    return Attributes(table.file, {name: row for row, name in enumerate(keys.names)}, columns, lambda row: table.where(int(first[row])))


def _coded(column: Any) -> Categorical:
    return column if isinstance(column, Categorical) else Categorical.from_arrow(column)


def _without_missing(name: str, values: Categorical, recipe: Recipe | None, context: ReadContext) -> Categorical:
    """Return an attribute with nothing where the recipe's codes of unknown stand."""
    written = recipe.missing_in(name) if recipe else frozenset()
    # a column of 1.0, 2.0 is read as 1, 2, and one of 1.0, 2.5 as it stands
    codes_of_unknown = {form for code in written for form in (code, whole_name(code)) if form is not None}
    forms = {form for text in values.names for form in (text, whole_name(text)) if form is not None}
    met = {code for code in written if {code, whole_name(code)} & forms}
    context.met_codes |= met
    if recipe and isinstance(recipe.missing, dict):
        for code in sorted(written - met):
            context.log(f"missing.{name}: no cell of that attribute is '{code}'{nearest(code, values.names)}")
    unknown = np.array([*(bool({text, whole_name(text)} & codes_of_unknown) for text in values.names), False], dtype=bool)
    if not unknown.any():
        return values
    context.note("missing", name, int(unknown[values.codes].sum()))
    return Categorical(np.where(unknown[values.codes], np.int32(-1), values.codes).astype(np.int32), values.names)


def _first_values(keys: Categorical, values: Categorical) -> tuple[NDArray[np.int64], int]:
    """Return the row of each key's first value, −1 for none, and how many keys have several values."""
    valid = np.flatnonzero(values.codes >= 0)
    found, first = np.unique(keys.codes[valid], return_index=True)
    rows = np.full(len(keys.names), -1, dtype=np.int64)
    rows[found] = valid[first]
    others = valid[values.codes[valid] != values.codes[rows[keys.codes[valid]]]]
    return rows, len(np.unique(keys.codes[others]))


def check_missing(recipe: Recipe | None, known: Sequence[str], context: ReadContext) -> None:
    """Raise ConfigError where `missing` names an attribute that no table has; print its codes that no attribute has."""
    if recipe and not isinstance(recipe.missing, dict):
        for code in recipe.missing:
            if code not in context.met_codes:
                context.log(f"missing: no cell of an attribute that is read is '{code}'")
    for name in recipe.missing if recipe and isinstance(recipe.missing, dict) else ():
        if name not in known:
            raise ConfigError(
                f"missing.{name}: no table has that attribute{nearest(name, known)} (there are: {', '.join(known) or 'none'})"
            )


def wanted_attributes(recipe: Recipe | None, kind: str, key: str, header: Sequence[str], *, file: str) -> dict[str, ColumnSpec]:
    """Return how the columns of a table of users or items are read: its key, and the attributes that the recipe uses.

    Raises:
        ConfigError: the recipe uses an attribute that is not there.
        DataError: there is no column of the key.
    """
    if key not in header:
        raise column_missing(f"{file}:1", key, header)
    known = [name for name in header if name != key]
    wanted = known if recipe is None else []
    for rule in getattr(recipe.inputs, kind[:-1]) if recipe else ():
        if rule.name not in known:
            is_key = "; it names them, and a column has one role" if rule.name == key else nearest(rule.name, known)
            raise ConfigError(
                f"inputs.{kind[:-1]}: {file} has no attribute '{rule.name}' of {kind}{is_key} (there are: {', '.join(known) or 'none'})"
            )
        wanted.append(rule.name)
    for name, task in recipe.tasks.items() if recipe else ():
        if kind == "users" and isinstance(task, ProfileTask):
            field, column = "attribute", task.attribute or name
        elif kind == "items" and isinstance(task, ItemTask) and task.label != "item":
            field, column = "label", task.label
        else:
            continue
        if column not in known:
            raise ConfigError(
                f"tasks.{name}.{field}: {file} has no column '{column}'{nearest(column, known)} (there are: {', '.join(known)})"
            )
        wanted.append(column)
    return {key: ColumnSpec("token", required=True), **{name: ColumnSpec("token") for name in wanted}}


@dataclass(frozen=True)
class SourceFormat:
    """A reader of one raw format.

    Attributes:
        files: From a source and the recipe to the URIs of the files that are read, in a fixed order; raises DataError where they are not
            there.
        read: From a folder, the recipe and the context to events, or to shards where the format has its own tasks.
        needs_recipe: Whether nothing can be made without a recipe.
        takes_logs: Whether a recipe may name several tables of events (`logs`).
        on_cluster: Whether `read` can leave its work to `ReadContext.workers`.
    """

    files: Callable[[str, Recipe | None], list[str]]
    read: Callable[[str, Recipe | None, ReadContext], EventData | ShardSource]
    needs_recipe: bool = True
    takes_logs: bool = False
    on_cluster: bool = False


def folder_name(uri: str) -> str:
    """Return the last part of a folder's URI, a name for its data set."""
    return uri.rstrip("/").rsplit("/", 1)[-1] or "data"


def event_columns(
    columns: Columns, header: Sequence[str], own: Mapping[str, str], *,
    where: str, context: ReadContext | None = None, part: str = "columns",
) -> dict[str, str]:  # fmt: skip
    """Return the file's column for each of user, item, timestamp, type, value that it has.

    Args:
        columns: The recipe's `columns`.
        header: The file's columns.
        own: The format's own names.
        where: The file, for messages.
        context: Where it is noted that there are no times; None for a format that has none.
        part: The part of the recipe that names them, for messages.

    Raises:
        ConfigError: the recipe names a column that is not there, or one column twice.
        DataError: there is no column of users or items, or one of times under another name.
    """
    found: dict[str, str] = {}
    for role in ("user", "item", "timestamp", "type", "value"):
        named: str | None = getattr(columns, role)
        if named is not None and named not in header:
            raise ConfigError(f"{part}.{role}: {where} has no column '{named}'{nearest(named, header)} (there are: {', '.join(header)})")
        left_out = role == "timestamp" and named is None and "timestamp" in columns.model_fields_set
        name = named or own.get(role, "")
        if name in header and not left_out:
            if (other := next((role for role, column in found.items() if column == name), None)) is not None:
                raise ConfigError(
                    f"{part}.{role} and {part}.{other} are both '{name}'; a column has one role (there are: {', '.join(header)})"
                )
            found[role] = name
        elif role in ("user", "item"):
            raise column_missing(f"{where}:1", name, header)
    if "timestamp" not in found and context is not None:
        _without_times(columns, header, found, own.get("timestamp", ""), where, context, part)
    return found


def _without_times(
    columns: Columns, header: Sequence[str], found: Mapping[str, str], own: str, where: str, context: ReadContext, part: str
) -> None:  # fmt: skip
    """Note that a table has no times; raises DataError where a column looks like times."""
    left_out = "timestamp" in columns.model_fields_set
    for name in header if not left_out else ():
        if name not in found.values() and _bare(name) in (*_TIME_NAMES, _bare(own)):
            raise DataError(
                f"{where}:1: no column '{own}', but '{name}', which looks like times: set {part}.timestamp: {name} in the recipe, "
                f"or {part}.timestamp: null to take the order of the file"
            )
    near = nearest(own, [name for name in header if name not in found.values()]) if own and not left_out else ""
    told = f"{where}: no column of times; the order of the file is taken ({part}.timestamp in the recipe names one{near})"
    context.note("times", "column", "none", told)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def event_column_specs(found: Mapping[str, str], recipe: Recipe | None) -> dict[str, ColumnSpec]:
    """Return how the columns of events are read; types and values that the recipe has no use for are not."""
    rules = recipe or Recipe()
    filters, columns = rules.filters(), rules.columns
    dated = any(rule.since is not None or rule.until is not None for rule in filters)
    specs = {
        "user": ColumnSpec("name", required=True),
        "item": ColumnSpec("name", required=True),
        "timestamp": ColumnSpec(
            "time",
            required=True,
            unit=columns.timestamp_unit,
            zone=ZoneInfo(columns.timezone) if columns.timezone else None,
            dates_matter=dated or rules.split.by == "time" or rules.history.keeps("time"),
            years=columns.timestamp_years or YEARS,
        ),
        "type": ColumnSpec("name"),
        "value": ColumnSpec("number"),
    }
    unused = {role for role in ("type", "value") if recipe and not reads_column(recipe, role)}
    return {name: specs[role] for role, name in found.items() if role not in unused}


def reads_column(recipe: Recipe, role: str) -> bool:
    """Return whether a recipe has a use for the types (`type`) or values (`value`) of events."""
    return any(getattr(rule, role) is not None for rule in recipe.filters()) or (role == "type" and recipe.history.keeps("type"))


def events_from(table: RawTable, found: Mapping[str, str]) -> Events:
    """Return a raw table of events in the common form."""
    column = {role: table.columns[name] for role, name in found.items() if name in table.columns}
    exact: NDArray[np.int64] | None = column.get("timestamp")
    seconds = None if exact is None else exact / 1e9
    return Events(column["user"], column["item"], seconds, column.get("type"), column.get("value"), exact)
