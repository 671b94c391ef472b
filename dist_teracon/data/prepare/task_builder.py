"""From a recipe and a source's events to the tables of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.recipe import EventFilter, HistoryRule, ItemTask, ProfileTask, Recipe, parse_comparisons
from dist_teracon.data.sources.base import Attributes, EventData, Events
from dist_teracon.errors import ConfigError, DataError, nearest
from dist_teracon.hashing import mix64, stable_hash


@dataclass(frozen=True)
class _Users:
    """The users who are kept: names in row order, hashes, and the row of each of the events' user codes (−1 for none)."""

    names: Sequence[str]
    hashes: NDArray[np.uint64]
    row_of_code: NDArray[np.int64]


def build_tables(recipe: Recipe, source: EventData, *, bad: BadRows, min_count: int | None = None) -> Tables:
    """Make sequences and labels from events.

    Users stand in the order of their names; items and labels in the order of descending count, then name.

    Raises:
        ConfigError: the recipe names something that the source does not have.
        DataError: no user is left, a task has no label or one only, or too many attributes cannot be read.
    """
    notes: dict[str, Any] = {}
    if min_count is not None:
        recipe = recipe.model_copy(update={"history": recipe.history.model_copy(update={"min_count": min_count})})
    users, sequences, items = _sequences(recipe, source.events, notes)
    labels = []
    for name, task in recipe.tasks.items():
        table = (
            _item_task(name, task, recipe, source, users) if isinstance(task, ItemTask) else _profile_task(name, task, source, users, bad)
        )
        if len(table.values) == 0:
            raise DataError(f"task '{name}': no user of {len(users.names)} has a label; check its events or attribute in the recipe")
        if len(np.unique(table.values)) == 1:
            only = table.classes[int(table.values[0])]
            raise DataError(f"task '{name}': expected two labels or more, got '{only}' alone")
        labels.append(table)
    return Tables(
        name=recipe.name or source.name,
        items=items,
        sequences=sequences,
        labels=labels,
        length_limit=recipe.history.length,
        next_task=recipe.first_task,
        notes=notes,
    )


def _matching(where: str, rule: EventFilter, events: Events) -> NDArray[np.bool_]:
    """Return which events fit a filter, bool [E]."""
    mask = np.ones(len(events), dtype=bool)
    if rule.type is not None:
        if events.type is None:
            raise ConfigError(f"{where}.type: the events have no column of types (columns.type in the recipe names one)")
        for name in rule.type:
            if name not in events.type.names:
                known = list(events.type.names)
                raise ConfigError(f"{where}.type: no event is of type '{name}'{nearest(name, known)} (there are: {', '.join(known[:20])})")
        mask &= np.isin(events.type.codes, [events.type.names.index(name) for name in rule.type])
    if rule.value is not None:
        if events.value is None:
            raise ConfigError(f"{where}.value: the events have no column of values (columns.value in the recipe names one)")
        mask &= ~np.isnan(events.value)
        for compare, number in parse_comparisons(rule.value):
            mask &= compare(events.value, number)
    for bound, name in ((rule.since, "from"), (rule.until, "until")):
        if bound is not None:
            moments = _timestamps(f"{where}.{name}", events)
            mask &= moments >= bound if name == "from" else moments < bound
    return mask


def _timestamps(where: str, events: Events) -> NDArray[np.float64]:
    if events.timestamp is None:
        raise ConfigError(f"{where}: the events have no timestamps (columns.timestamp in the recipe names their column)")
    return events.timestamp


def _period(events: Events) -> str:
    """Return when the events were, for an error's text."""
    if events.timestamp is None:
        return ""
    try:
        first, last = (datetime.fromtimestamp(float(edge), UTC).date() for edge in (events.timestamp.min(), events.timestamp.max()))
    except (ValueError, OverflowError, OSError):
        return "; their timestamps are no seconds since 1970 (columns.timestamp_unit sets another unit)"
    return f"; they run from {first} to {last}"


def _in_time(rows: NDArray[np.int64], events: Events, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order the chosen events by user row, then time, then file order."""
    if events.timestamp is None:
        return chosen[np.argsort(rows[events.user.codes[chosen]], kind="stable")]
    return chosen[np.lexsort((events.timestamp[chosen], rows[events.user.codes[chosen]]))]


def histories(rule: HistoryRule, events: Events) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return users' histories as a rule has them.

    Returns:
        Codes of the users in the order of their names [U]; rows of `events`, user by user, oldest first; where each user's begin [U + 1].

    Raises:
        ConfigError: the rule reads a column that the events do not have.
        DataError: no user is left.
    """
    chosen = np.flatnonzero(_matching("history.events", rule.events, events))
    counts = np.bincount(events.user.codes[chosen], minlength=len(events.user.names))
    kept = np.flatnonzero(counts >= rule.minimum)
    if len(kept) == 0:
        raise DataError(
            f"history: no user has {rule.minimum} or more events; {len(chosen)} of {len(events)} events fit history.events{_period(events)}"
        )
    kept = np.array(sorted(kept.tolist(), key=events.user.names.__getitem__), dtype=np.int64)
    row_of_code = _row_of_code(kept, events)
    ordered = _in_time(row_of_code, events, chosen[row_of_code[events.user.codes[chosen]] >= 0])
    lengths = counts[kept]
    age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(ordered))  # 0 for a user's last event
    return kept, ordered[age < rule.length], ragged.offsets_of(np.minimum(lengths, rule.length))


def _row_of_code(kept: NDArray[np.int64], events: Events) -> NDArray[np.int64]:
    row_of_code = np.full(len(events.user.names), -1, dtype=np.int64)
    row_of_code[kept] = np.arange(len(kept))
    return row_of_code


def _sequences(recipe: Recipe, events: Events, notes: dict[str, Any]) -> tuple[_Users, SequenceTable, list[str]]:
    rule = recipe.history
    kept, ordered, offsets = histories(rule, events)
    notes["users_with_too_short_history"] = len(events.user.names) - len(kept)
    names = [events.user.names[code] for code in kept.tolist()]
    users = _Users(names, np.array([stable_hash(name) for name in names], dtype=np.uint64), _row_of_code(kept, events))

    codes = events.item.codes[ordered]
    position, items = _catalogue(codes, events.item.names, min_count=rule.min_count)
    if not items:
        raise DataError(f"history.min_count: no item occurs {rule.min_count} times or more")
    return users, SequenceTable(names, users.hashes, position[codes], offsets), items


def _catalogue(codes: NDArray[np.integer[Any]], names: Sequence[str], *, min_count: int = 1) -> tuple[NDArray[np.int32], list[str]]:
    """Order what occurs by descending count, then name: the position of each code (−1 for none) and the names."""
    counts = np.bincount(codes, minlength=len(names))
    used = np.flatnonzero(counts >= max(1, min_count)).tolist()
    used.sort(key=lambda code: (-int(counts[code]), names[code]))
    position = np.full(len(names), -1, dtype=np.int32)
    position[used] = np.arange(len(used), dtype=np.int32)
    return position, [names[code] for code in used]


def _item_task(name: str, task: ItemTask, recipe: Recipe, source: EventData, users: _Users) -> LabelTable:
    where, events = f"tasks.{name}", source.events
    label_of = _labels_of_items(f"{where}.label", task.label, source)
    chosen = np.flatnonzero(_matching(f"{where}.events", task.events, events))
    chosen = chosen[(users.row_of_code[events.user.codes[chosen]] >= 0) & (label_of.codes[events.item.codes[chosen]] >= 0)]
    if task.choose != "random":
        _timestamps(f"{where}.choose", events)
    ordered = _in_time(users.row_of_code, events, chosen)
    rows, labels = users.row_of_code[events.user.codes[ordered]], label_of.codes[events.item.codes[ordered]].astype(np.int64)

    _, first = np.unique(rows * len(label_of.names) + labels, return_index=True)
    first.sort()  # a user's label once, where it came first
    rows, labels = rows[first], labels[first]
    if task.min_count > 1:
        common = np.bincount(labels, minlength=len(label_of.names))[labels] >= task.min_count
        rows, labels = rows[common], labels[common]
    if task.choose == "random":
        rows, labels = _shuffled(rows, labels, label_of.names, users, key=f"{recipe.seed}/{name}")
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    within = rank < (task.targets or len(rows))
    rows, labels = rows[within], labels[within]

    position, classes = _catalogue(labels, label_of.names)
    values = position[labels]
    if task.choose == "random":  # a draw has no order
        values = values[np.lexsort((values, rows))]
    present, counts = np.unique(rows, return_counts=True)
    return LabelTable(name, "item", classes, present, values, ragged.offsets_of(counts))


def _shuffled(
    rows: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str], users: _Users, *, key: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order each user's labels by a keyed hash of (user, label): a draw that no other user or label changes."""
    used, index = np.unique(labels, return_inverse=True)
    hashes = np.array([stable_hash(names[code]) for code in used], dtype=np.uint64)
    order = np.lexsort((mix64(hashes[index] ^ mix64(users.hashes[rows], key=1), key=stable_hash(key)), rows))
    return rows[order], labels[order]


def _labels_of_items(where: str, label: str, source: EventData) -> Categorical:
    """Return the label of each of the events' item codes: the item itself, or an attribute of it."""
    names = source.events.item.names
    if label == "item":
        return Categorical(np.arange(len(names), dtype=np.int32), names)
    if source.items is None:
        raise ConfigError(f"{where}: the source has no attributes of items, so expected 'item', got '{label}'")
    column = Categorical.from_arrow(_attribute(where, label, source.items))
    rows = np.array([source.items.rows.get(name, -1) for name in names], dtype=np.int64)
    return Categorical(np.where(rows >= 0, column.codes[rows], np.int32(-1)).astype(np.int32), column.names)


def _attribute(where: str, name: str, attributes: Attributes) -> Any:
    if name not in attributes.columns:
        known = list(attributes.columns)
        raise ConfigError(f"{where}: {attributes.file} has no column '{name}'{nearest(name, known)} (there are: {', '.join(known)})")
    return attributes.columns[name]


def _profile_task(name: str, task: ProfileTask, source: EventData, users: _Users, bad: BadRows) -> LabelTable:
    where = f"tasks.{name}.attribute"
    if source.users is None:
        raise ConfigError(f"{where}: the source has no attributes of users, so it cannot have a profile task")
    column = _attribute(where, task.attribute or name, source.users)
    found = np.array([source.users.rows.get(user, -1) for user in users.names], dtype=np.int64)
    rows = np.flatnonzero(found >= 0)
    texts = column.take(found[rows]).to_pylist()

    labels = np.full(len(rows), -1, dtype=np.int32)
    classes = bin_names(task.bins) if task.bins else list(task.classes) if task.classes else _sorted_values(texts)
    index = {label: position for position, label in enumerate(classes)}
    for row, text in enumerate(texts):
        if text is None:
            continue
        label = _bin(text, task.bins) if task.bins else index.get(text)
        if label is None:
            kind = f"{task.attribute or name} is not a number" if task.bins else f"{task.attribute or name} is none of the recipe's classes"
            bad.add(kind, source.users.where(int(found[rows[row]])), text=text)
        else:
            labels[row] = label
    bad.check(source.users.file, len(source.users.rows))
    rows, labels = rows[labels >= 0], labels[labels >= 0]
    return LabelTable(name, "profile", classes, rows, labels, np.arange(len(rows) + 1, dtype=np.int64))


def _bin(text: str, bins: Sequence[float]) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(np.searchsorted(bins, value, side="right")) if np.isfinite(value) else None


def _sorted_values(texts: Sequence[str | None]) -> list[str]:
    """Order an attribute's values: as numbers where all of them are whole numbers, else as text."""
    values = sorted({text for text in texts if text is not None})
    if all(value.removeprefix("-").isdecimal() for value in values):
        values.sort(key=int)
    return values


def bin_names(edges: Sequence[float]) -> list[str]:
    """Name the classes between edges: `<18`, `18-24`, …, `56+`, as intervals where the edges are not whole numbers."""
    if all(float(edge).is_integer() for edge in edges):
        whole = [int(edge) for edge in edges]
        between = [f"{low}-{high - 1}" if high - low > 1 else f"{low}" for low, high in pairwise(whole)]
        return [f"<{whole[0]}", *between, f"{whole[-1]}+"]
    between = [f"[{low:g}, {high:g})" for low, high in pairwise(edges)]
    return [f"<{edges[0]:g}", *between, f"{edges[-1]:g}+"]
