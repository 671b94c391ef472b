"""Histories in raw ids, of any form, turned into what a model reads; nothing that is dropped or unknown goes uncounted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.console import Log
from dist_teracon.data import ragged
from dist_teracon.data.batches import PackedRows
from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns
from dist_teracon.data.input_features import CLOSED, InputFeature
from dist_teracon.data.prepare.padding import PADDING, left_padded, padded_columns
from dist_teracon.data.prepare.task_builder import histories as histories_of
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.parquet import plain
from dist_teracon.data.recipe import EventFilter, HistoryRule, Recipe, parse_recipe
from dist_teracon.data.recipe_columns import Files
from dist_teracon.data.recipe_inputs import InputsPart
from dist_teracon.data.schema import FIRST_ITEM, UNSEEN_ITEM, DatasetInfo
from dist_teracon.data.sources import events as event_files
from dist_teracon.data.sources.base import Attributes, Events
from dist_teracon.data.sources.event_logs import log_of_file
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.inference.event_columns import ITEMS_ALONE, ColumnReader
from dist_teracon.inference.frames import table_of_frame
from dist_teracon.inference.ids import id_text
from dist_teracon.inference.vocabulary import Vocabulary

_SHOWN = 5
# Names, row behind row, and where each row's begin and end.
Names = tuple[NDArray[np.object_], NDArray[np.int64]]
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view, pa.types.is_large_list_view)


@dataclass(frozen=True)
class Histories:
    """Users' histories as a model reads them.

    Attributes:
        rows: Item indices, a row a user, oldest first, cut to the length that the model was trained with.
        seen: The same before it was cut or padded: what `exclude_seen` leaves out.
        users: Names of the users, where they came with the events.
        events: int64 [B], events read a user, at most as many as the length.
        last_time: float64 [B], seconds since 1970 of each user's last event; None where there are no times.
        strange: int64 [B], events among those read whose item the model does not know; they are read as the unseen item.
        strange_types: int64 [B], those among them whose type the model does not know; None where it reads none.
        strange_values: int64 [B], features of the user whose value the model does not know; None where none are given.
        unknown_items: The first few of these items.
        dropped: What was left out, by kind, as users without an event that fits.
        strange_names: Ragged [B], names of items in `seen` that the model does not know, which may be labels all the same; None where
            there are none.
        told: What reading the events had to say, as that they have no times.
        reader: What `HistoryReader.identity` was: for models of another one the rows mean other items.
    """

    rows: PackedRows
    seen: PackedRows
    users: pa.Array | None
    events: NDArray[np.int64]
    strange: NDArray[np.int64]
    last_time: NDArray[np.float64] | None = None
    strange_types: NDArray[np.int64] | None = None
    strange_values: NDArray[np.int64] | None = None
    unknown_items: tuple[str, ...] = ()
    strange_names: Names | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    reader: str = ""

    def __len__(self) -> int:
        return self.rows.rows

    @property
    def unknown(self) -> int:
        """Events among those read whose item the model does not know."""
        return int(self.strange.sum())

    def without_features(self, places: Sequence[int]) -> Histories:
        """Return the same histories with nothing read of some of their users' features."""
        if self.rows.features is None or not places:
            return self
        features = self.rows.features.copy()
        features[:, list(places)] = CLOSED
        return replace(self, rows=replace(self.rows, features=features))

    def between(self, first: int, end: int) -> PackedRows:
        """Return the rows of the users `first … end − 1`."""
        return self.rows.between(first, end)

    def of(self, users: Sequence[int]) -> PackedRows:
        """Return the rows of some users."""
        return self.rows.take(np.asarray(users, dtype=np.int64))

    def take(self, users: Sequence[int]) -> Histories:
        """Return the histories of some users."""
        rows = np.asarray(users, dtype=np.int64)
        return Histories(
            rows=self.of(users),
            seen=self.seen.take(rows),
            users=None if self.users is None else self.users.take(pa.array(rows)),
            events=self.events[rows],
            strange=self.strange[rows],
            last_time=None if self.last_time is None else self.last_time[rows],
            strange_types=None if self.strange_types is None else self.strange_types[rows],
            strange_values=None if self.strange_values is None else self.strange_values[rows],
            strange_names=None if self.strange_names is None else ragged.take(*self.strange_names, rows),
            reader=self.reader,
        )

    def slice(self, first: int, end: int) -> Histories:
        """Return the histories of the users `first … end − 1`."""
        return Histories(
            rows=self.between(first, end),
            seen=self.seen.between(first, end),
            users=None if self.users is None else self.users[first:end],
            events=self.events[first:end],
            strange=self.strange[first:end],
            last_time=None if self.last_time is None else self.last_time[first:end],
            strange_types=None if self.strange_types is None else self.strange_types[first:end],
            strange_values=None if self.strange_values is None else self.strange_values[first:end],
            strange_names=None if self.strange_names is None else ragged.take(*self.strange_names, np.arange(first, end)),
            reader=self.reader,
        )

    def notes(self) -> list[str]:
        """Return what a person should hear: unknown items, and what was left out."""
        lines = [*self.told, *(f"left out: {count} {kind}" for kind, count in self.dropped.items() if count)]
        if self.unknown:
            total = int(self.events.sum())
            few = f" ({', '.join(self.unknown_items)})" if self.unknown_items else ""
            lines.append(f"{self.unknown} of {total} events are of items that the model does not know; it reads them as unseen{few}")
        if self.strange_types is not None and (types := int(self.strange_types.sum())):
            total = int(self.events.sum())
            lines.append(f"{types} of {total} events are of types that the model does not know; it reads them as the unknown type")
        return lines


class HistoryReader:
    """Reads histories by the rule that a model's data set was prepared with.

    Args:
        info: The description of the data set.
        items: Names of the items.
        known: Rows of the model's item table; items behind it came later and count as unknown.
        reads: What the model reads of events beside their items.
        features: The features of users that it reads.

    Attributes:
        padding: Index of the item that fills histories up to the length; None where they are not filled up.
        reads: As given.
        identity: Equal for readers of whose histories the rows mean the same.
    """

    def __init__(
        self, info: DatasetInfo, items: Vocabulary, *,
        known: int, reads: ColumnReader = ITEMS_ALONE, features: Sequence[InputFeature] = (),
    ) -> None:  # fmt: skip
        self._items, self._known, self.recipe = items, known, _recipe_of(info)
        zone = self.recipe.columns.timezone
        self.reads = replace(reads, zone=ZoneInfo(zone)) if zone else reads
        self.length = info.length_limit
        self.rule: HistoryRule = self.recipe.history
        self.padding = items.index(PADDING) if info.notes.get("padding") == "token" else None
        self.identity = repr((info.fingerprint, known, self.length, reads.names, reads.known, tuple(features)))

    def read(self, histories: Any, *, dates: bool = True) -> Histories:
        """Read histories.

        Args:
            histories: Lists of raw ids, a list a user, oldest first; an Arrow array or a pandas Series of lists; or events, to which the
                recipe's filters and order in time apply: an Arrow table or pandas DataFrame with the columns user, item and, where there
                are any, timestamp, type, value; the path or URI of a file or folder of such events. A model that reads times or types
                of events takes, beside events, lists of `{"item": …, "time": …, "type": …}`, times in seconds since 1970 or datetimes.
            dates: Whether the recipe's `from` and `until` apply to events.

        Raises:
            DataError: a history is empty or no list, an id is neither a text nor a whole number, or the model reads times or types of
                events that are not there.
            ConfigError: the rule reads a column that the events do not have; `histories` were read for another model.
        """
        if isinstance(histories, Histories):
            if histories.reader != self.identity:
                raise ConfigError(
                    "histories: were read for a model of other items, columns or length, whose numbers mean something else here; read them "
                    "with this model's `histories`"
                )
            return histories
        if isinstance(histories, Events):
            return self._from_events(histories, dates=dates, bad={})
        if isinstance(histories, str | Path):
            return self._from_uri(str(histories), dates=dates)
        if _is_pandas(histories, "DataFrame"):
            histories = table_of_frame(histories, self.recipe.columns)
        if isinstance(histories, pa.RecordBatch):
            histories = pa.Table.from_batches([histories])
        if isinstance(histories, pa.Table):
            lines: list[str] = []
            with _context(log=lines.append) as context:
                events = event_files.events_of_table(histories, self._reading, context)
                return replace(self._from_events(events, dates=dates, bad=context.bad.counts), told=tuple(lines))
        return self._from_python(histories) if _is_python(histories) else self._from_arrow(histories)

    def of_indices(
        self,
        values: NDArray[np.int32],
        offsets: NDArray[np.int64],
        *,
        users: pa.Array | None = None,
        columns: EventColumns = NO_COLUMNS,
        features: NDArray[np.int32] | None = None,
    ) -> Histories:
        """Return histories of item indices of the model's own numbering, as a data set's shard holds them, padded or not."""
        own = np.where(values < self._known, values, np.int32(UNSEEN_ITEM)).astype(np.int32)
        if self.padding is not None:
            columns = columns[own != self.padding]
            own, offsets = ragged.keep(own, offsets, own != self.padding)
        cut, cut_offsets = ragged.last(own, offsets, limit=self.length)
        strange = _count_true(cut == UNSEEN_ITEM, cut_offsets)
        rows = replace(self._padded(cut, cut_offsets, columns.last(offsets, limit=self.length)), features=features)
        return Histories(rows, PackedRows(own, offsets), users, np.diff(cut_offsets), strange, reader=self.identity)

    def _padded(self, values: NDArray[np.int32], offsets: NDArray[np.int64], columns: EventColumns) -> PackedRows:
        if self.padding is not None:
            columns = padded_columns(columns, offsets, length=self.length)
            values, offsets = left_padded(values, offsets, length=self.length, padding=self.padding)
        return PackedRows(values, offsets, columns)

    @property
    def _reading(self) -> Recipe:
        """The recipe without tasks and logs that are not needed, and with the columns of events that the model reads."""
        history = self.rule.model_copy(update={"keep": self.reads.keep})
        return self.recipe.model_copy(update={"tasks": {}, "logs": self.recipe.logs_of_history(), "history": history})

    def _from_uri(self, uri: str, *, dates: bool) -> Histories:
        recipe = self._reading
        if not io.is_folder(uri):  # the recipe's names of files are those of a folder
            recipe = recipe.model_copy(update={"files": Files(), "logs": log_of_file(self.recipe, uri)})
        lines: list[str] = []
        with _context(uri, log=lines.append) as context:
            events = event_files.read_events(uri, recipe, context)
            return replace(self._from_events(events, dates=dates, bad=context.bad.counts), told=tuple(lines))

    def users_of(self, uri: str, names: Sequence[str]) -> tuple[Attributes | None, tuple[str, ...]]:
        """Return the table of users in a folder of events, with some attributes, and what reading it had to say; None for no table.

        Raises:
            ConfigError: it does not have one of them.
        """
        if not io.is_folder(uri):
            return None, ()
        chosen = [rule for rule in self.recipe.inputs.user if rule.name in names]
        recipe = self._reading.model_copy(update={"inputs": InputsPart(user=tuple(chosen))})
        lines: list[str] = []
        with _context(uri, log=lines.append) as context:
            table = event_files.read_users(uri, recipe, context)
            bad = [f"left out of the table of users: {count} malformed rows: {kind}" for kind, count in context.bad.counts.items()]
            return table, (*lines, *bad)

    def _from_events(self, events: Events, *, dates: bool, bad: dict[str, int]) -> Histories:
        events = _with_known_types(events, self.rule.events)
        undated = self.rule.events.model_copy(update={"since": None, "until": None})
        any_time = self.rule.model_copy(update={"events": undated})
        users, ordered, offsets = histories_of(self.rule if dates else any_time, events)
        beyond = len(histories_of(any_time, events)[1]) - len(ordered) if dates and undated != self.rule.events else 0
        codes = self._items.indices(pa.array(events.item.names, pa.string()))
        chosen = events.item.codes[ordered]
        columns = self.reads.of_events(events, ordered)
        typed = None if events.type is None else self.reads.strange(columns.types, events.type.codes[ordered] >= 0)
        made = self._made(codes[chosen], offsets, columns, lambda places: [events.item.names[code] for code in chosen[places]], typed)
        times = None if events.timestamp is None else events.timestamp[ordered[offsets[1:] - 1]]
        dropped = {
            "users without an event that fits the recipe's history": len(events.user.names) - len(users),
            "events that do not fit the recipe's history": len(events) - len(ordered) - beyond,
            "events outside of the dates of the recipe's history (dates=False, --no-dates reads them)": beyond,
            **{f"malformed rows: {kind}": count for kind, count in bad.items()},
        }
        names = pa.array([events.user.names[code] for code in users.tolist()], pa.string())
        return replace(made, users=names, last_time=times, dropped=dropped)

    def _from_python(self, histories: Any) -> Histories:
        # not through Arrow, which imports pandas for Python's lists: one user's history is read in microseconds
        lists = _python_lists(histories)
        offsets = _filled(ragged.offsets_of([len(history) for history in lists]))
        flat, codes, columns, typed = self._events_from_python([event for history in lists for event in history])
        made = self._made(codes, offsets, columns, lambda places: [flat[place] for place in places.tolist()], typed)
        if columns.times is None or not (turned := _out_of_order(columns.times, offsets)):
            return made
        return replace(made, told=(f"{turned} of {len(lists)} histories are not in the order of their times; they are read as given",))

    def _events_from_python(self, events: Sequence[Any]) -> tuple[list[str], NDArray[np.int64], EventColumns, NDArray[np.bool_] | None]:
        """Return events' item ids, the items' indices, further columns, and which types are strange, as `ColumnReader.strange`."""
        columns = self.reads.of_mappings(events)
        items = [event.get("item") if isinstance(event, Mapping) else event for event in events]
        flat = [value.strip() if isinstance(value, str) else id_text(value) for value in items]
        codes = np.fromiter((self._items.index(value) for value in flat), np.int64, len(flat))
        # a model that reads types has refused events that are not mappings
        named = [] if columns.types is None else [bool((event["type"] or "").strip()) for event in events]
        return flat, codes, columns, self.reads.strange(columns.types, np.array(named, dtype=bool))

    def strange_among(self, events: Sequence[Any]) -> dict[str, int]:
        """Return how many events have an item that the model does not know, and, where it reads types, such a type.

        Args:
            events: Ids or mappings, as in histories given as lists.

        Raises:
            DataError: an event lacks what the model reads.
        """
        _, codes, _, typed = self._events_from_python(events)
        return {"unknown": int(self._is_strange(codes).sum()), **({} if typed is None else {"unknown_types": int(typed.sum())})}

    def _is_strange(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        return (codes < FIRST_ITEM) | (codes >= self._known)

    def _from_arrow(self, lists: Any) -> Histories:
        flat, offsets = _arrow_lists(lists)
        columns = self.reads.of_mappings([None] * min(1, len(flat)))
        return self._made(self._items.indices(flat), _filled(offsets), columns, lambda places: flat.take(pa.array(places)).to_pylist())

    def _made(
        self, codes: NDArray[np.int64], offsets: NDArray[np.int64], columns: EventColumns, names: Any,
        strange_types: NDArray[np.bool_] | None = None,
    ) -> Histories:  # fmt: skip
        """Return histories of item indices, −1 for unknown ones; `names` gives the names at some places of `codes`."""
        strange = self._is_strange(codes)
        values = np.where(strange, UNSEEN_ITEM, codes).astype(np.int32)
        cut, cut_offsets = ragged.last(values, offsets, limit=self.length)
        strange_cut, _ = ragged.last(strange, offsets, limit=self.length)
        unknown = names(np.flatnonzero(strange)) if strange.any() else []
        few = tuple(dict.fromkeys(unknown[: 20 * _SHOWN]))[:_SHOWN]
        rows = self._padded(cut, cut_offsets, columns.last(offsets, limit=self.length))
        counts = _count_true(strange_cut, cut_offsets)
        typed = None if strange_types is None else _count_true(ragged.last(strange_types, offsets, limit=self.length)[0], cut_offsets)
        seen = PackedRows(values, offsets)
        return Histories(
            rows, seen, None, np.diff(cut_offsets), counts, strange_types=typed, unknown_items=few,
            strange_names=(np.array(unknown, dtype=object), ragged.offsets_of(strange)[offsets]) if unknown else None, reader=self.identity,
        )  # fmt: skip


def _recipe_of(info: DatasetInfo) -> Recipe:
    """Return the recipe that a data set was prepared by, as it is stored."""
    recipe = info.source.get("recipe")
    if not isinstance(recipe, dict):
        return Recipe()
    columns = recipe.get("columns") or {}
    # stored with all fields; a column of times that is null by intent, and not by default, is among the notes
    in_file_order = (info.notes.get("times") or {}).get("column") == "none"
    kept = {name: value for name, value in columns.items() if value is not None or (name == "timestamp" and in_file_order)}
    return parse_recipe({**recipe, "columns": kept}, where="dataset.json: source.recipe")


def _count_true(flags: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many flags each row of a ragged column has set, int64 [B]."""
    return np.diff(ragged.offsets_of(flags)[offsets])


def _out_of_order(times: NDArray[np.int64], offsets: NDArray[np.int64]) -> int:
    """Return how many rows have an event that was before the one in front of it."""
    earlier = np.zeros(len(times), dtype=bool)
    earlier[1:] = np.diff(times) < 0
    earlier[offsets[:-1]] = False  # the first one of a row has none in front
    return int((_count_true(earlier, offsets) > 0).sum())


def _filled(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Check that no row of a ragged column is empty."""
    if (empty := np.flatnonzero(np.diff(offsets) == 0)).size:
        first = ", ".join(map(str, empty[:_SHOWN].tolist()))
        raise DataError(
            f"{len(empty)} of {len(offsets) - 1} histories are empty (numbers {first}, counted from 0); expected at least one item each: "
            "leave these users out"
        )
    return offsets


def _is_python(histories: Any) -> bool:
    return _is_pandas(histories, "Series") or not isinstance(histories, pa.Array | pa.ChunkedArray)


def _python_lists(histories: Any) -> list[Sequence[Any]]:
    """Return a list of ids a user, checked."""
    if _is_pandas(histories, "Series"):
        histories = histories.tolist()
    if not isinstance(histories, Sequence | np.ndarray) or isinstance(histories, bytes):
        raise DataError(
            f"histories: expected lists of item ids, an Arrow list array, a table of events or its path, got {type(histories).__name__}"
        )
    lists = [history.tolist() if isinstance(history, np.ndarray) else history for history in histories]
    for number, history in enumerate(lists):
        if isinstance(history, str | bytes) or not isinstance(history, Sequence):
            raise DataError(
                f"history {number}: expected a list of item ids, oldest first, got {type(history).__name__}: histories are a list a user, "
                "as [['a', 'b'], ['c']]"
            )
    return lists


def _arrow_lists(histories: Any) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return an Arrow array of lists as texts, end to end, and where each user's begin."""
    found = histories.combine_chunks() if isinstance(histories, pa.ChunkedArray) else histories
    if not any(is_kind(found.type) for is_kind in _LISTS):
        raise DataError(f"histories: expected a list of item ids for each user, as [['a', 'b'], ['c']], got {found.type} for each")
    if found.null_count:
        raise DataError(f"histories: {found.null_count} of {len(found)} are null; expected at least one item each: leave these users out")
    return _texts(found.flatten()), ragged.offsets_of(pc.list_value_length(found).to_numpy(zero_copy_only=False))


def _texts(values: pa.Array) -> pa.Array:
    """Return ids as strings, by the rule of preparation."""
    if values.null_count:
        raise DataError(f"histories: {values.null_count} of {len(values)} item ids are null; leave such events out")
    values = plain(values)
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
        return pc.utf8_trim_whitespace(values.cast(pa.string()))
    if pa.types.is_floating(kind):
        return pa.array([id_text(value) for value in values.to_numpy(zero_copy_only=False)], pa.string())  # of their own width
    raise DataError(f"histories: expected ids that are texts or whole numbers, got {kind}")


def _with_known_types(events: Events, rule: EventFilter) -> Events:
    """Let a filter name types that do not occur in these events, though they did in those that the model was trained on."""
    if rule.type is None or events.type is None:
        return events
    missing = [name for name in rule.type if name not in events.type.names]
    return replace(events, type=Categorical(events.type.codes, [*events.type.names, *missing]))


def _is_pandas(value: Any, name: str) -> bool:
    return type(value).__name__ == name and type(value).__module__.split(".")[0] == "pandas"


@contextmanager
def _context(root: str = "", *, log: Log) -> Iterator[ReadContext]:
    with TemporaryDirectory() as folder:
        yield ReadContext(BadRows(root=root, adjustable=False), Path(folder), log=log)
