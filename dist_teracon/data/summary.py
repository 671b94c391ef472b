"""A data set in a few lines of at most 80 columns, as `dist-teracon prepare` prints it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dist_teracon.data.input_features import InputFeatures
from dist_teracon.data.schema import DatasetInfo
from dist_teracon.text import WIDTH, cells, cropped, folded, table_lines, wrapped

_NAME = 26
_FEW = 30
# What the columns of a table of tasks count.
LEGEND = "  labels: how many there are; then examples, of which a user may have several"


def dataset_lines(info: DatasetInfo) -> list[str]:
    """Return what a data set holds, a line a task, and what was left out of the raw data and why."""
    split = info.split
    lines = [
        f"{cropped(info.name, 28)}: {users_text(info.users, info.notes)}, {info.items - 2:,} items, {info.events:,} events",
        f"  sequences of at most {info.length_limit}, {info.shards} shards; split by {split.by}{shares(info)}, seed {split.seed}",
    ]
    if info.history.names:
        kept = [*(["times"] if info.history.times else []), *([f"{info.history.types - 1:,} types"] if info.history.types else [])]
        lines.append(f"  histories keep {' and '.join(kept)} of events")
    lines += [f"  {line}" for line in wrapped(_features(info.inputs), WIDTH - 2)] if info.inputs.names else []
    width = max(4, min(_NAME, max(cells(task.name) for task in info.tasks)))
    lines.append(f"  {'task':<{width}}  kind    {'labels':>9} {'train':>11} {'valid.':>9} {'test':>9}")
    for task in info.tasks:
        train, validation, test = task.examples
        *above, name = folded(task.name, width)
        lines += [f"  {part}" for part in above]
        lines.append(f"  {name}{' ' * (width - cells(name))}  {task.kind:<7} {task.labels:>9,} {train:>11,} {validation:>9,} {test:>9,}")
    lines += [LEGEND, *_few_lines(info)]
    if appended := info.notes.get("appended"):
        return [*lines, *_appended_lines(appended[-1])]
    return [*lines, *_log_lines(info.notes.get("logs", {})), *matched_lines(info.notes.get("matched", {}))]


def _log_lines(logs: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a line a log: how much it has, and how much of that another log has too."""
    heads = ("log", "events", "in history", "users", "elsewhere too", "items", "elsewhere too ")
    fields = ("events", "in_history", "users", "users_elsewhere", "items", "items_elsewhere")
    rows = [(cropped(name, _NAME), *(f"{facts[field]:,}" for field in fields)) for name, facts in logs.items()]
    return ["events of several logs:", *(f"  {line}" for line in table_lines(heads, rows, names=("log",)))] if len(rows) > 1 else []


def _few_lines(info: DatasetInfo) -> list[str]:
    """Return the tasks of which so few examples are for validation or the test that a score of them is mostly chance."""
    few = [task for task in info.tasks if min(task.examples[1:]) < _FEW]
    if not few:
        return []
    shown = ", ".join(f"{task.name} ({task.examples[1]:,}; {task.examples[2]:,})" for task in few)
    told = f"few for validation, which chooses epochs, or the test: {shown}; `split` in the recipe has their shares"
    return [f"  {line}" for line in folded(told, WIDTH - 2, indent="  ")]


def users_text(rows: int, notes: Mapping[str, Any]) -> str:
    """Return how many users there are; under a split by time, where a user is several rows, of how many users so many rows are."""
    people = notes.get("split_by_time", {}).get("users")
    return f"{rows:,} users" if people is None else f"{rows:,} rows of {people:,} users"


def taken_but_ranked(info: DatasetInfo) -> str | None:
    """Return the line on what users took and rankings do not leave out, as the data set does not know it; None where there is nothing."""
    if info.keeps_earlier:
        return None
    left_out = info.notes.get("matched", {}).get("history", {}).get("left_out", {})
    cut = int(left_out.get(f"before a user's last {info.length_limit}", 0))
    if not cut and not info.notes.get("cut_histories"):
        return None
    if info.labels_of_their_own:
        mend = ""
    elif info.leaves_out_taken:
        mend = "; an earlier program prepared it: to leave them out, prepare it anew in another folder"
    else:
        mend = "; to leave them out, prepare it with `repeats: false` in the recipe's history, or in a task"
    these = f"{cut:,} events" if cut else "events"
    return f"the data set knows a user's last {info.length_limit:,} events alone: the items of {these} before these are ranked{mend}"


def shares(info: DatasetInfo) -> str:
    """Return the shares by which users or rows are cut; under a split by time none where nothing is cut by them."""
    split = info.split
    if split.by == "time" and all(task.ranks_labels for task in info.tasks):
        return ""
    whose = " (attributes of users)" if split.by == "time" else ""
    return f"{whose} {split.train:g}/{split.validation:g}/{split.test:g}"


def _features(inputs: InputFeatures) -> str:
    """Return which side features there are, and what is closed to whom."""
    parts = []
    for kind, features in (("users", inputs.user), ("items", inputs.item)):
        shown = [f"{feature.name} ({feature.values - 1} {'bins' if feature.edges else 'values'})" for feature in features]
        parts += [f"of {kind} {', '.join(shown)}"] if shown else []
    closed = [f"{task} does not read {', '.join(names)}" for task, names in inputs.closed.items()]
    return f"side features: {'; '.join([*parts, *closed])}"


def _appended_lines(appended: dict[str, Any]) -> list[str]:
    """Return what a version added to the one before it, and what it left out of the raw data."""
    head = f"this version: {appended['users']:,} new users, {appended['items']:,} new items, {len(appended['tasks'])} new tasks"
    if appended.get("refreshed"):
        head += f", {appended['renewed_histories']:,} histories of today"
    lines = [f"  {line}" for line in wrapped(head, WIDTH - 2)]
    left_out = appended.get("left_out", {})
    lines += ["  left out of it:", *_reasons(left_out.items())] if left_out else []
    return [*lines, *matched_lines(appended.get("matched", {}))]


def _reasons(reasons: Iterable[tuple[str, int]]) -> list[str]:
    lines = []
    for reason, count in reasons:
        *above, text = folded(reason, 58)
        lines += [f"    {part}" for part in above]
        lines.append(f"    {text}{' ' * (60 - cells(text))}{count:>15,}")
    return lines


def matched_lines(matched: dict[str, Any]) -> list[str]:
    """Return what filters, joins and labels left out, as `notes.matched` counts it; nothing where nothing was."""
    lines: list[str] = []
    for name, funnel in _funnels(matched):
        if not funnel["left_out"]:
            continue
        *above, head = folded(name, 30)
        lines += [f"  {part}" for part in above]
        counted = f"{funnel['kept']:>12,} of {funnel['total']:,} {funnel['unit']}"
        lines.append(cropped(f"  {head}{' ' * (30 - cells(head))} {counted}", WIDTH))
        lines += _reasons(funnel["left_out"].items())
    return ["used of the raw data, and left out:", *lines] if lines else []


def _funnels(matched: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in matched.items():
        if name == "tasks":
            yield from ((f"task {task}", funnel) for task, funnel in value.items())
        else:
            yield name, value
