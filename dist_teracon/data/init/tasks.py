"""Proposals of tasks: which events make the history, and which labels may be learned without standing in it."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dist_teracon.data.init.columns import Content, Guess, is_age
from dist_teracon.data.init.samples import Sample

# A task is proposed where so many users of the sample have labels: each part of the split must have some.
_LEAST_USERS = 30
_MINIMUM = 3
_MOST_CLASSES, _MOST_LABELS, _MOST_TYPES = 50, 2000, 20


@dataclass(frozen=True)
class Task:
    """A task of the recipe.

    Attributes:
        name: Its name.
        fields: As the recipe has them.
        why: For a comment.
        is_active: Whether it is written as a task, or as a comment.
    """

    name: str
    fields: dict[str, Any]
    why: str
    is_active: bool = True


@dataclass(frozen=True)
class Proposal:
    """The history's events with the reason, its least length, and the tasks; `left_out` has columns of which no task is made, and why."""

    history: dict[str, Any]
    why: str
    minimum: int
    tasks: list[Task]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Tables:
    """The tables with what their columns hold; `events` are those of all logs together, where there are several tables of them."""

    events: Sample
    roles: dict[str, Guess]
    contents: dict[str, Content]
    users: tuple[Sample, dict[str, Content]] | None
    items: tuple[Sample, dict[str, Content]] | None

    def column(self, role: str) -> list[str | None]:
        """Return the values of a role among the events."""
        return self.events.columns[self.roles[role].column]


def propose(tables: Tables) -> Proposal:
    """Return what a first recipe has."""
    kept, history, why, candidates = _history(tables)
    counts = Counter(user for user, is_kept in zip(tables.column("user"), kept, strict=True) if is_kept and user is not None)
    minimum = _MINIMUM if sum(count >= _MINIMUM for count in counts.values()) >= max(_LEAST_USERS, 0.3 * len(counts)) else 1
    users = {user for user, count in counts.items() if count >= minimum}
    tasks = [_checked(task, tables, rows, users) for task, rows in candidates]
    left_out: dict[str, str] = {}
    first, labelled = next(((task, rows) for task, (_, rows) in zip(tasks, candidates, strict=True) if task.is_active), (None, None))
    tasks += _attribute_labels(tables, first, labelled, users, left_out)
    tasks += _profiles(tables, users, left_out)
    return Proposal(history, why, minimum, _distinctly_named(tasks), left_out)


Candidate = tuple[Task, list[bool]]


def _history(tables: Tables) -> tuple[list[bool], dict[str, Any], str, list[Candidate]]:
    """Return which events of the sample are history, the filter for it, why, and tasks of the other events."""
    everything = [True] * tables.events.rows
    if (found := _by_type(tables)) or (found := _by_value(tables)) or (found := _by_time(tables)):
        return found
    return everything, {}, "all events: nothing tells events of labels from others", []


def _by_type(tables: Tables) -> tuple[list[bool], dict[str, Any], str, list[Candidate]] | None:
    if "type" not in tables.roles:
        return None
    types = Counter(text for text in tables.column("type") if text is not None)
    if not 2 <= len(types) <= _MOST_TYPES:
        return None
    (first, count), *others = types.most_common()
    column = tables.column("type")
    candidates = [
        (
            Task(task_name(name), {"kind": "item", "events": {"type": name}, "targets": 5, "choose": "random"}, f"{number:,} events"),
            [text == name for text in column],
        )
        for name, number in others
    ]
    why = f"the most frequent type ({count:,} of {tables.events.rows:,} events); other types are labels, so no label stands in it"
    return [text == first for text in column], {"type": first}, why, candidates


def _by_value(tables: Tables) -> tuple[list[bool], dict[str, Any], str, list[Candidate]] | None:
    if "value" not in tables.roles:
        return None
    codes = tables.contents[tables.roles["value"].column].unknown
    if any(code.strip().lower() != "nan" for code in codes):  # which `prepare` takes for malformed rows, once a filter reads values
        return None
    column = [None if text is None or text in codes else float(text) for text in tables.column("value")]
    levels = sorted({value for value in column if value is not None})
    if not 3 <= len(levels) <= 20:
        return None
    high = levels[-2:] if len(levels) > 3 else levels[-1:]
    rest = levels[-len(high) - 1]
    candidates = [
        (
            Task(
                f"value-{level:g}",
                {"kind": "item", "events": {"value": f"== {_plain(level)}"}, "targets": 5, "choose": "random"},
                "the highest",
            ),
            [value == level for value in column],
        )
        for level in high
    ]
    why = "events of lower values; those of the highest are labels, so no label stands in it"
    return [value is not None and value <= rest for value in column], {"value": f"<= {_plain(rest)}"}, why, candidates


def _plain(number: float) -> str:
    """Return a number as it is, without the `.0` of whole ones."""
    return repr(int(number) if number.is_integer() else number)


def _by_time(tables: Tables) -> tuple[list[bool], dict[str, Any], str, list[Candidate]] | None:
    if "timestamp" not in tables.roles:
        return None
    moments = seconds_of(tables.column("timestamp"), tables.contents[tables.roles["timestamp"].column].times or "s")
    known = sorted(moment for moment in moments if moment is not None)
    if not known or known[0] == known[-1]:
        return None
    cut = datetime.fromtimestamp(known[int(0.8 * len(known))], UTC).replace(microsecond=0)
    if cut.replace(hour=0, minute=0, second=0).timestamp() > known[0]:
        cut = cut.replace(hour=0, minute=0, second=0)
    if not known[0] < cut.timestamp() <= known[-1]:
        return None
    moment = cut.date() if (cut.hour, cut.minute, cut.second) == (0, 0, 0) else cut.replace(tzinfo=None)
    fields = {"kind": "item", "events": {"from": moment}, "targets": 5, "choose": "next"}
    later = [value is not None and value >= cut.timestamp() for value in moments]
    why = "what was before a day on which about four fifths of the sample had happened; what came after is the labels"
    task = Task("later", fields, "what users took from that day on")
    return [not is_later for is_later in later], {"until": moment}, why, [(task, later)]


def seconds_of(values: Sequence[str | None], times: str) -> list[float | None]:
    """Return seconds since 1970 of times that are dates (`iso`, `date`) or numbers in a unit; None for none."""
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}.get(times)
    found: list[float | None] = []
    for text in values:
        try:
            if text is None:
                found.append(None)
            elif scale is not None:
                found.append(float(text) / scale)
            elif times == "date":
                found.append(datetime.strptime(text, "%Y%m%d" if len(text) == 8 else "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp())
            else:
                moment = datetime.fromisoformat(re.sub(r"\s*UTC$", "+00:00", text).replace(",", "."))
                found.append((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
        except ValueError:
            found.append(None)
    return found


def _checked(task: Task, tables: Tables, rows: Sequence[bool], users: set[str]) -> Task:
    """Return a task, as a comment where too few users of the sample would have labels."""
    labels: dict[str, set[str]] = defaultdict(set)
    for user, item, is_label in zip(tables.column("user"), tables.column("item"), rows, strict=True):
        if is_label and user in users and item is not None:
            labels[user or ""].add(item)
    distinct = len(set().union(*labels.values())) if labels else 0
    return _with_counts(task, users=len(labels), labels=distinct, of=len(users))


def _with_counts(task: Task, *, users: int, labels: int, of: int) -> Task:
    why = f"{task.why}; {users:,} of {of:,} users of the sample, {labels:,} labels"
    if users >= _LEAST_USERS and labels >= 2:
        return Task(task.name, task.fields, why)
    return Task(task.name, task.fields, f"{why}: too few", is_active=False)


def _attribute_labels(
    tables: Tables, first: Task | None, rows: list[bool] | None, users: set[str], left_out: dict[str, str]
) -> Iterator[Task]:
    """Yield tasks whose labels are an attribute of the items of the first item task."""
    if tables.items is None:
        return
    sample, contents = tables.items
    key = tables.roles["item"].column
    for column, content in contents.items():
        if column == key:
            continue
        if reason := _no_label(content):
            left_out[f"{sample.name}: {column}"] = reason
            continue
        if first is None or rows is None:
            left_out[f"{sample.name}: {column}"] = "labels of items need events that are not in the history"
            continue
        label_of = dict(zip(sample.columns[key], sample.columns[column], strict=True))
        found: dict[str, set[str]] = defaultdict(set)
        for user, item, is_label in zip(tables.column("user"), tables.column("item"), rows, strict=True):
            if is_label and user in users and (label := label_of.get(item)) is not None:
                found[user or ""].add(label)
        fields = {**first.fields, "label": column}
        task = Task(task_name(column), fields, f"the {column} of the items of {first.name}")
        yield _with_counts(task, users=len(found), labels=len(set().union(*found.values())) if found else 0, of=len(users))


def _no_label(content: Content) -> str:
    if content.times is not None:
        return "times"
    if content.distinct - len(content.unknown) < 2:
        return "fewer than two values"
    if content.is_number and content.distinct > _MOST_CLASSES:
        return "numbers"
    if content.distinct > min(_MOST_LABELS, 0.5 * content.filled):
        return "nearly every item has its own"
    return ""


def _profiles(tables: Tables, users: set[str], left_out: dict[str, str]) -> Iterator[Task]:
    """Yield tasks of users' attributes: few values as classes, many numbers by bins."""
    if tables.users is None:
        return
    sample, contents = tables.users
    key = tables.roles["user"].column
    known = set(sample.columns[key]) & users if sample.whole and tables.events.whole else None
    for column, content in contents.items():
        if column == key:
            continue
        classes = content.distinct - len(content.unknown)
        fields: dict[str, Any] = {"kind": "profile", "attribute": column}
        if content.times is not None:
            left_out[f"{sample.name}: {column}"] = "times"
            continue
        if classes < 2:
            left_out[f"{sample.name}: {column}"] = "fewer than two values"
            continue
        if content.is_number and classes > 12:
            fields["bins"] = bins_of([float(text) for text in content.counts.elements() if text not in content.unknown], column)
            why = f"{classes:,} numbers by bins; edges belong to the class above"
        elif classes <= _MOST_CLASSES and classes <= 0.5 * content.filled:
            shown = [text for text, _ in content.counts.most_common(8) if text not in content.unknown]
            why = f"{classes} classes: {', '.join(shown)}{' …' if classes > len(shown) else ''}"
        else:
            left_out[f"{sample.name}: {column}"] = f"{classes:,} different texts, too many to be classes"
            continue
        values = zip(sample.columns[key], sample.columns[column], strict=True)
        labelled = {user for user, text in values if text is not None and text not in content.unknown}
        number = len(labelled if known is None else labelled & known)
        task = Task(task_name(column), fields, why)
        yield task if number >= _LEAST_USERS else Task(task.name, fields, f"{why}; {number} users of the sample: too few", is_active=False)


def bins_of(numbers: Sequence[float], column: str) -> list[float]:
    """Return edges of about six classes: decades for ages and years, else round numbers near the sixths of the sample."""
    ordered = sorted(numbers)
    low, high = ordered[0], ordered[-1]
    if is_age(column) and low >= 0 and high <= 130:
        edges = [float(edge) for edge in (20, 30, 40, 50, 60) if low < edge <= high]
    elif all(1900 <= number <= 2030 for number in (low, high)):
        edges = [float(edge) for edge in range(1940, 2021, 10) if low < edge <= high]
    else:
        sixths = [ordered[len(ordered) * part // 6] for part in range(1, 6)]
        edges = sorted({edge for edge in map(_rounded, sixths) if low < edge <= high})
    edges = edges or [ordered[len(ordered) // 2] if ordered[len(ordered) // 2] > low else high]
    return [int(edge) if edge.is_integer() else edge for edge in edges]


def _rounded(number: float) -> float:
    """Return a number to two digits that count."""
    if not number:
        return 0.0
    return float(round(number, 1 - math.floor(math.log10(abs(number)))))


def task_name(text: str) -> str:
    """Return a name for a task: letters and digits of any script, `-` for the rest."""
    name = re.sub(r"[^\w.]+", "-", text).strip("-._")
    return name or "task"


def _distinctly_named(tasks: Sequence[Task]) -> list[Task]:
    """Return tasks with names of their own; `next` is the first task's, `items` is taken."""
    taken, named = {"next", "items"}, []
    for task in tasks:
        name, number = task.name, 2
        while name in taken:
            name, number = f"{task.name}-{number}", number + 1
        taken.add(name)
        named.append(Task(name, task.fields, task.why, task.is_active))
    return named
