"""From a recipe and a source's events to the tables of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log, no_log
from dist_teracon.data import ragged
from dist_teracon.data.input_features import NO_FEATURES, InputFeatures
from dist_teracon.data.prepare.earlier_items import earlier_items_of
from dist_teracon.data.prepare.equal_times import note_equal_times
from dist_teracon.data.prepare.filters import absent_types, day_text, matching, period, timestamps
from dist_teracon.data.prepare.input_values import input_values, number_of
from dist_teracon.data.prepare.kept_columns import kept_columns
from dist_teracon.data.prepare.matched import MAX_UNMATCHED, Funnel, check_join, join_of
from dist_teracon.data.prepare.overlap import note_overlaps
from dist_teracon.data.prepare.splits import effective
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.prepare.user_rows import UserRows, periods_without, rows_by_time
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.raw.values import with_truth_forms
from dist_teracon.data.recipe import EventFilter, HistoryRule, ItemTask, ProfileTask, Recipe
from dist_teracon.data.recipe_values import bin_names
from dist_teracon.data.sources.base import Attributes, EventData, Events
from dist_teracon.errors import ConfigError, DataError, nearest
from dist_teracon.hashing import mix64, stable_hash


@dataclass(frozen=True)
class _Job:
    """What tables are made from, and `matched`, which grows on the way; see `build_tables`."""

    recipe: Recipe
    source: EventData
    bad: BadRows
    max_unmatched: float
    log: Log
    matched: dict[str, Any]
    keep_earlier: bool

    def note(self, name: str, funnel: Funnel) -> None:
        self.matched[name] = funnel.to_json()


def build_tables(
    recipe: Recipe, source: EventData, *,
    bad: BadRows, min_count: int | None = None, max_unmatched: float = MAX_UNMATCHED, known_inputs: InputFeatures = NO_FEATURES,
    keep_earlier: bool = False, log: Log = no_log,
) -> Tables:  # fmt: skip
    """Make sequences and labels from events.

    Users stand in the order of their names; items and labels in the order of descending count, then name. `notes.matched` of the
    tables says what was left out and why.

    Args:
        recipe: How.
        source: The events, with attributes of users and items.
        bad: Counts attributes that cannot be read.
        min_count: Overrides the recipe's `history.min_count`.
        max_unmatched: Largest share of the fewer ids of two tables that may be without a partner.
        known_inputs, keep_earlier: As of `prepare`.
        log: Receives a line on what nearly matches, and on labels that leak into histories (`notes.overlap`).

    Raises:
        ConfigError: the recipe names something that the source does not have.
        DataError: no user is left, a task has no label or one only, or too many attributes cannot be read or have no user.
    """
    if min_count is not None:
        recipe = recipe.model_copy(update={"history": recipe.history.model_copy(update={"min_count": min_count})})
    job = _Job(recipe, source, bad, max_unmatched, log, {}, keep_earlier or recipe.leaves_out_taken)
    notes: dict[str, Any] = {}
    users, sequences, items, types, earlier_items = _sequences(job, notes)
    _join_attributes(job, users)
    inputs, features, funnels = input_values(recipe, source, users, items, bad=bad, known=known_inputs, log=log)
    sequences = replace(sequences, features=features)
    job.matched.update({name: funnel.to_json() for name, funnel in funnels.items()})
    labels, of_tasks = [], {}
    for name, task in recipe.tasks.items():
        table, funnel = _item_task(name, task, job, users) if isinstance(task, ItemTask) else _profile_task(name, task, job, users)
        of_tasks[name] = funnel.to_json()
        if len(table.values) == 0:
            why = ", ".join(f"{count} {reason}" for reason, count in funnel.left_out.items())
            people = users.names if users.windows is None else users.people  # by time a user is several rows
            raise DataError(
                f"task '{name}': no user of {len(people)} has a label; check its events or attribute in the recipe "
                f"(of {funnel.total} {funnel.unit}: {why or 'none'})"
            )
        if len(np.unique(table.values)) == 1:
            only = table.classes[int(table.values[0])]
            raise DataError(f"task '{name}': expected two labels or more, got '{only}' alone")
        labels.append(table)
    _name_empty_periods(job, users, sequences, labels)
    if users.windows is None:  # else labels are in periods that their histories come before
        everything = len(source.events)
        notes["overlap"] = note_overlaps(
            recipe, source.events, lambda where, rule: matching(where, rule, source.events, Funnel("events", everything)), log=log
        )
    return Tables(
        name=recipe.name or source.name,
        items=items,
        sequences=sequences,
        labels=labels,
        length_limit=recipe.history.length,
        next_task=recipe.first_task,
        notes={**notes, "matched": {**job.matched, "tasks": of_tasks}},
        types=types,
        next_users=users.next_rows,
        splits=users.splits,
        inputs=inputs,
        test_periods=recipe.split.tests if recipe.split.test_periods else (),
        earlier_items=earlier_items,
    )


def _name_empty_periods(job: _Job, users: UserRows, sequences: SequenceTable, labels: Sequence[LabelTable]) -> None:
    """Log which tasks have no example in one of several test periods."""
    if users.splits is None or users.next_rows is None or not job.recipe.split.test_periods:
        return
    next_rows = users.next_rows[sequences.values[sequences.offsets[users.next_rows + 1] - 1] >= 0]
    for name, rows in [(job.recipe.first_task, next_rows), *((table.name, table.users) for table in labels)]:
        for number in periods_without(users.splits, rows, periods=len(job.recipe.split.tests)):
            job.log(f"warning: task '{name}' has no example in test period {number}: a stage that is scored on it has no score of the task")


def _matching(where: str, rule: EventFilter, job: _Job) -> tuple[NDArray[np.bool_], Funnel]:
    """Return which events fit a filter, and what was counted on the way."""
    events, funnel = job.source.events, Funnel("events", len(job.source.events))
    mask = matching(where, rule, events, funnel)
    for line in absent_types(where, rule, events):
        job.log(line)
    return mask, funnel


def _join_attributes(job: _Job, users: UserRows) -> None:
    """Count how events and tables of attributes meet.

    Raises:
        DataError: a task needs the table, and hardly any of its ids are those of events.
    """
    source, tasks = job.source, job.recipe.tasks
    profiles = [f"tasks.{name}.attribute" for name, task in tasks.items() if isinstance(task, ProfileTask)]
    labels = [f"tasks.{name}.label" for name, task in tasks.items() if isinstance(task, ItemTask) and task.label != "item"]
    profiles += ["inputs.user"] if job.recipe.inputs.user else []
    labels += ["inputs.item"] if job.recipe.inputs.item else []
    for noun, table, names, asked in (
        ("users", source.users, source.events.user.names, profiles), ("items", source.items, source.events.item.names, labels),
    ):  # fmt: skip
        if table is None:
            continue
        join, file = join_of(names, table.rows), table.file.rsplit("/", 1)[-1]
        rows = Funnel(f"rows of {file}", join.right)
        rows.drop("no event", join.right - join.both)
        if noun == "users":
            rows.drop("no history", join.both - sum(name in table.rows for name in users.people))
        job.note(f"{noun[:-1]} attributes", rows)
        if asked and (warning := check_join(asked[0], join, noun=noun, left="the events", right=file, limit=job.max_unmatched)):
            job.log(f"warning: {warning}")


def _in_time(rows: NDArray[np.int64], events: Events, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order the chosen events by their rows, then time, then file order."""
    if events.order is None:
        return chosen[np.argsort(rows, kind="stable")]
    return chosen[np.lexsort((events.order[chosen], rows))]


def _in_histories(kept: NDArray[np.int64], events: Events, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Return the kept users' codes in the order of their names, the row of each code, and the chosen events of these users in order."""
    kept = np.array(sorted(kept.tolist(), key=events.user.names.__getitem__), dtype=np.int64)
    row_of_code = np.full(len(events.user.names), -1, dtype=np.int64)
    row_of_code[kept] = np.arange(len(kept))
    chosen = chosen[row_of_code[events.user.codes[chosen]] >= 0]
    return kept, row_of_code, _in_time(row_of_code[events.user.codes[chosen]], events, chosen)


def histories(rule: HistoryRule, events: Events) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return whole histories of all users who have an event that fits a rule, as sequences are made of them: uncut.

    Returns:
        Codes of the users in the order of their names [U]; rows of `events`, user by user, oldest first; where each user's begin [U + 1].

    Raises:
        ConfigError: the rule reads a column that the events do not have.
        DataError: no event fits.
    """
    chosen = np.flatnonzero(matching("history.events", rule.events, events, Funnel("events", len(events))))
    if len(chosen) == 0:
        raise DataError(f"history: none of {len(events)} events fits history.events of the recipe{period(events)}")
    counts = np.bincount(events.user.codes[chosen], minlength=len(events.user.names))
    kept, _, ordered = _in_histories(np.flatnonzero(counts), events, chosen)
    return kept, ordered, ragged.offsets_of(counts[kept])


def _sequences(job: _Job, notes: dict[str, Any]) -> tuple[UserRows, SequenceTable, list[str], list[str], list[str]]:
    """Return users and their histories, with the names of items, of types, and of items that stand before the histories alone."""
    rule, events = job.recipe.history, job.source.events
    fits, funnel = _matching("history.events", rule.events, job)
    chosen = np.flatnonzero(fits)
    counts = np.bincount(events.user.codes[chosen], minlength=len(events.user.names))
    kept = np.flatnonzero(counts >= rule.minimum)
    if len(kept) == 0:
        raise DataError(
            f"history: no user has {rule.minimum} or more events; {len(chosen)} of {len(events)} events fit history.events{period(events)}"
        )
    notes["users_with_too_short_history"] = len(events.user.names) - len(kept)
    few = f"fewer than {rule.minimum} events"
    of_users = Funnel("users", len(events.user.names))
    of_users.drop("no event that fits", np.count_nonzero(counts == 0))
    of_users.drop(few, np.count_nonzero((counts > 0) & (counts < rule.minimum)))
    kept, row_of_code, ordered = _in_histories(kept, events, chosen)
    funnel.drop(f"of users with {few}", len(chosen) - len(ordered))
    candidates = ordered
    notes |= note_equal_times(events, ordered, logs=job.source.logs, log=job.log)
    if job.recipe.split.by == "time":
        users, ordered, offsets, ahead = _by_time(job, kept, ordered, counts[kept], funnel, notes)
        before = f"with {rule.minimum} events or more" if rule.minimum > 1 else "with an event"
        of_users.drop(f"no history {before} ahead of a period of the split", len(kept) - len(users.people))
    else:
        users = UserRows.one_each([events.user.names[code] for code in kept.tolist()], row_of_code)
        ahead = ragged.offsets_of(counts[kept])[:-1], np.maximum(counts[kept] - rule.length, 0)
        ordered, offsets = _last_events(ordered, counts[kept], rule.length, funnel)
    job.note("users", of_users)
    job.note("history", funnel)

    codes, counted = events.item.codes[ordered], np.repeat(users.trains(np.arange(len(users.names))), np.diff(offsets))
    # an event may be in several rows of a user
    once = codes if users.splits is None else events.item.codes[np.unique(ordered[counted])]
    position, items = _catalogue(once, events.item.names, min_count=rule.min_count)
    if not items:
        raise DataError(f"history.min_count: no item occurs {rule.min_count} times or more")
    of_items = Funnel("items", len(np.unique(codes)))
    of_items.drop("after validation_from alone: unseen", of_items.total - len(np.unique(codes[counted])))
    of_items.drop(f"fewer than {rule.min_count} times: unseen", of_items.kept - len(items))
    job.note("items", of_items)
    if users.splits is not None:
        notes["split_by_time"]["tests"] = _test_periods(job, candidates, position)
    columns, types = kept_columns(rule, events, ordered, counted=counted, log=job.log, years=job.recipe.event_years)
    cut = int(np.count_nonzero(ahead[1]))
    if cut and (job.keep_earlier or job.recipe.split.by == "time"):
        notes["cut_histories"] = cut
    kept_beside = earlier_items_of(events.item, candidates, ahead, (ordered, offsets), position) if job.keep_earlier else None
    earlier, earlier_items = kept_beside or (None, [])
    if earlier is not None:
        what = "rows of users" if job.recipe.split.by == "time" else "users"
        job.log(
            f"repeats: rankings leave out what a user has taken; {cut:,} of {len(ahead[1]):,} {what} have more than the last "
            f"{rule.length:,} events (history.length); {len(earlier[0]):,} items that they took before, or that are too rare for the "
            "catalogue, are kept for that"
        )
    table = SequenceTable(users.names, users.hashes, position[codes], offsets, columns, earlier=earlier)
    return users, table, items, types, earlier_items


def _last_events(
    ordered: NDArray[np.int64], lengths: NDArray[np.int64], length: int, funnel: Funnel
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Return each user's last `length` events, and where each user's begin."""
    age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(ordered))  # 0 for a user's last event
    funnel.drop(f"before a user's last {length}", int((age >= length).sum()))
    return ordered[age < length], ragged.offsets_of(np.minimum(lengths, length))


def _by_time(
    job: _Job, kept: NDArray[np.int64], ordered: NDArray[np.int64], counts: NDArray[np.int64], funnel: Funnel, notes: dict[str, Any]
) -> tuple[UserRows, NDArray[np.int64], NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:  # fmt: skip
    """Return the rows of a split by time, the events of their histories, where each row's begin, and what lies before these."""
    recipe, events = job.recipe, job.source.events
    moments = timestamps("split.by", events)
    dates = [(name, getattr(recipe.split, name)) for name in ("labels_from", "validation_from", "test_from")]
    for name, date in [*dates, *(("test_periods", date) for date in recipe.split.test_periods)]:
        if date is not None and not float(moments.min()) < date <= float(moments.max()):
            raise ConfigError(f"split.{name}: lies outside of the events{period(events)}")
    rule = effective(recipe.split_rule())
    users, chosen, offsets, before = rows_by_time(
        recipe.split, rule, events, kept, ordered, counts, length=recipe.history.length, minimum=recipe.history.minimum
    )
    funnel.drop("in no row's history", len(ordered) - len(np.unique(chosen)))
    notes["split_by_time"] = {"users": len(users.people), "rows": len(users.names)}
    return users, chosen, offsets, before


def _test_periods(job: _Job, ordered: NDArray[np.int64], position: NDArray[np.int32]) -> list[dict[str, Any]]:
    """Count the histories' events of each test period, and those of items outside of the catalogue of training; logs a line a period."""
    events, found = job.source.events, []
    begins = job.recipe.split.tests
    after = [events.from_moment(begin)[ordered] for begin in begins]
    for number, begin in enumerate(begins):
        inside = ordered[after[number] & ~after[number + 1]] if number + 1 < len(begins) else ordered[after[number]]
        new = int((position[events.item.codes[inside]] < 0).sum())
        day = day_text(begin)
        found.append({"from": begin, "events": len(inside), "of_new_items": new})
        job.log(
            f"test period {number + 1}, from {day} on: {len(inside):,} events of histories, {new / max(1, len(inside)):.1%} of items that "
            "the catalogue of training does not have"
        )
    return found


def _catalogue(codes: NDArray[np.integer[Any]], names: Sequence[str], *, min_count: int = 1) -> tuple[NDArray[np.int32], list[str]]:
    """Order what occurs by descending count, then name: the position of each code (−1 for none) and the names."""
    counts = np.bincount(codes, minlength=len(names))
    used = np.flatnonzero(counts >= max(1, min_count)).tolist()
    used.sort(key=lambda code: (-int(counts[code]), names[code]))
    position = np.full(len(names), -1, dtype=np.int32)
    position[used] = np.arange(len(used), dtype=np.int32)
    return position, [names[code] for code in used]


def _item_task(name: str, task: ItemTask, job: _Job, users: UserRows) -> tuple[LabelTable, Funnel]:
    where, events = f"tasks.{name}", job.source.events
    label_of, no_label = _labels_of_items(f"{where}.label", task.label, job.source)
    fits, funnel = _matching(f"{where}.events", task.events, job)
    chosen = np.flatnonzero(fits)
    chosen = _dropping(funnel, chosen, "before split.labels_from", users.window_of(events, chosen) >= 0)
    chosen = _dropping(funnel, chosen, "of users without a history", users.of_events(events, chosen) >= 0)
    for reason, of_item in no_label.items():
        chosen = _dropping(funnel, chosen, reason, ~of_item[events.item.codes[chosen]])
    if task.choose != "random":
        timestamps(f"{where}.choose", events)
    ordered = _in_time(users.of_events(events, chosen), events, chosen)
    rows, labels = users.of_events(events, ordered), label_of.codes[events.item.codes[ordered]].astype(np.int64)

    _, first = np.unique(rows * len(label_of.names) + labels, return_index=True)
    first.sort()  # a user's label once, where it came first
    funnel.drop("a user's label once more", len(rows) - len(first))
    rows, labels = rows[first], labels[first]
    if task.min_count > 1:
        common = np.bincount(labels[users.trains(rows)], minlength=len(label_of.names))[labels] >= task.min_count
        funnel.drop(f"labels of fewer than {task.min_count} users", np.count_nonzero(~common))
        rows, labels = rows[common], labels[common]
    if users.splits is not None:  # no label that only later periods have
        known = np.isin(labels, labels[users.trains(rows)])
        funnel.drop("labels after validation_from alone", np.count_nonzero(~known))
        rows, labels = rows[known], labels[known]
    if task.choose == "random":
        rows, labels = _shuffled(rows, labels, label_of.names, users, key=f"{job.recipe.seed}/{name}")
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    within = rank < (task.targets or len(rows))
    funnel.drop(f"beyond a user's {task.targets} targets", np.count_nonzero(~within))
    rows, labels = rows[within], labels[within]

    position, classes = _catalogue(labels[users.trains(rows)], label_of.names)
    known = position[labels] >= 0  # a label whose training examples were beyond the targets is drawn by nobody
    funnel.drop("labels that no training example has", np.count_nonzero(~known))
    rows, labels = rows[known], labels[known]
    values = position[labels]
    if task.choose == "random":  # a draw has no order
        values = values[np.lexsort((values, rows))]
    present, counts = np.unique(rows, return_counts=True)
    return LabelTable(name, "item", classes, present, values, ragged.offsets_of(counts)), funnel


def _dropping(funnel: Funnel, chosen: NDArray[np.int64], reason: str, fits: NDArray[np.bool_]) -> NDArray[np.int64]:
    funnel.drop(reason, np.count_nonzero(~fits))
    return chosen[fits]


def _shuffled(
    rows: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str], users: UserRows, *, key: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order each user's labels by a keyed hash of (user, label): a draw that no other user or label changes."""
    used, index = np.unique(labels, return_inverse=True)
    hashes = np.array([stable_hash(names[code]) for code in used], dtype=np.uint64)
    order = np.lexsort((mix64(hashes[index] ^ mix64(users.hashes[rows], key=1), key=stable_hash(key)), rows))
    return rows[order], labels[order]


def _labels_of_items(where: str, label: str, source: EventData) -> tuple[Categorical, dict[str, NDArray[np.bool_]]]:
    """Return the label of each of the events' item codes, the item itself or an attribute of it; and by reason which items have none."""
    names = source.events.item.names
    if label == "item":
        return Categorical(np.arange(len(names), dtype=np.int32), names), {}
    if source.items is None:
        raise ConfigError(f"{where}: the source has no attributes of items, so expected 'item', got '{label}'")
    column = Categorical.from_arrow(_attribute(where, label, source.items))
    rows = np.array([source.items.rows.get(name, -1) for name in names], dtype=np.int64)
    codes = np.where(rows >= 0, column.codes[rows], np.int32(-1)).astype(np.int32)
    file = source.items.file.rsplit("/", 1)[-1]
    return Categorical(codes, column.names), {
        f"items without a row in {file}": rows < 0,
        f"items without {label}": (rows >= 0) & (codes < 0),
    }


def _attribute(where: str, name: str, attributes: Attributes) -> Any:
    if name not in attributes.columns:
        known = list(attributes.columns)
        raise ConfigError(f"{where}: {attributes.file} has no column '{name}'{nearest(name, known)} (there are: {', '.join(known)})")
    return attributes.columns[name]


def _profile_task(name: str, task: ProfileTask, job: _Job, users: UserRows) -> tuple[LabelTable, Funnel]:
    where, table, bad = f"tasks.{name}.attribute", job.source.users, job.bad
    if table is None:
        raise ConfigError(f"{where}: the source has no attributes of users, so it cannot have a profile task")
    attribute = task.attribute or name
    column = _attribute(where, attribute, table)
    found = np.array([table.rows.get(user, -1) for user in users.people], dtype=np.int64)
    funnel = Funnel("users", len(found))
    funnel.drop("no history before split.validation_from", np.count_nonzero(users.person_row < 0))
    found = found[users.person_row >= 0]
    rows = np.flatnonzero(found >= 0)
    funnel.drop(f"no row in {table.file.rsplit('/', 1)[-1]}", len(found) - len(rows))
    texts = column.take(found[rows]).to_pylist()

    labels = np.full(len(rows), -1, dtype=np.int32)
    # under a split by time no class that only users have who are not trained on
    trained = users.trains(users.person_row[users.person_row >= 0][rows]).tolist()
    known = _sorted_values([text for text, trains in zip(texts, trained, strict=True) if trains])
    classes = bin_names(task.bins) if task.bins else list(task.classes) if task.classes else known
    index = with_truth_forms({label: position for position, label in enumerate(classes)})
    wrong = "not a number" if task.bins else "none of the recipe's classes"
    for row, text in enumerate(texts):
        if text is None:
            funnel.drop(f"no {attribute}", 1)
            continue
        label = _bin(text, task.bins) if task.bins else index.get(text)
        if label is None and not (task.bins or task.classes):
            funnel.drop("classes that no user has who is trained on", 1)
        elif label is None:
            bad.add(f"{attribute} is {wrong}", table.where(int(found[rows[row]])), text=text)
            funnel.drop(wrong, 1)
        else:
            labels[row] = label
    bad.check(table.file, len(table.rows))
    people, labels = np.flatnonzero(users.person_row >= 0)[rows[labels >= 0]], labels[labels >= 0]
    rows = users.person_row[people]
    if users.later_rows is not None and users.later_rows.shape[1]:  # a user's attribute is told anew in every test period
        every = np.column_stack([rows, users.later_rows[people]])
        rows, labels = every[every >= 0], np.repeat(labels, (every >= 0).sum(axis=1))
    return LabelTable(name, "profile", classes, rows, labels, np.arange(len(rows) + 1, dtype=np.int64)), funnel


def _bin(text: str, bins: Sequence[float]) -> int | None:
    value = number_of(text)
    return int(np.searchsorted(bins, value, side="right")) if np.isfinite(value) else None


def _sorted_values(texts: Sequence[str | None]) -> list[str]:
    """Order an attribute's values: as numbers where all of them are whole numbers, else as text."""
    values = sorted({text for text in texts if text is not None})
    if all(value.removeprefix("-").isdecimal() for value in values):
        values.sort(key=int)
    return values
