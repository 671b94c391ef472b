"""A data set in a few lines of at most 80 columns, as `dist-teracon prepare` prints it."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from dist_teracon.data.schema import DatasetInfo

_WIDTH = 80
_NAME = 26


def dataset_lines(info: DatasetInfo) -> list[str]:
    """Return what a data set holds, a line a task, and what was left out of the raw data and why."""
    split = info.split
    lines = [
        f"{_cut(info.name, 28)}: {info.users:,} users, {info.items - 2:,} items, {info.events:,} events",
        f"  sequences of at most {info.length_limit}, {info.shards} shards; "
        f"split by {split.by} {split.train:g}/{split.validation:g}/{split.test:g}, seed {split.seed}",
    ]
    width = max(4, min(_NAME, max(_columns(task.name) for task in info.tasks)))
    lines.append(f"  {'task':<{width}}  kind    {'labels':>9} {'train':>11} {'valid.':>9} {'test':>9}")
    for task in info.tasks:
        train, validation, test = task.examples
        *above, name = _folded(task.name, width)
        lines += [f"  {part}" for part in above]
        lines.append(f"  {name}{' ' * (width - _columns(name))}  {task.kind:<7} {task.labels:>9,} {train:>11,} {validation:>9,} {test:>9,}")
    if appended := info.notes.get("appended"):
        return [*lines, *_appended_lines(appended[-1])]
    return [*lines, *matched_lines(info.notes.get("matched", {}))]


def _appended_lines(appended: dict[str, Any]) -> list[str]:
    """Return what a version added to the one before it, and what it left out of the raw data."""
    head = f"this version: {appended['users']:,} new users, {appended['items']:,} new items, {len(appended['tasks'])} new tasks"
    if appended.get("refreshed"):
        head += f", {appended['renewed_histories']:,} histories of today"
    lines = [f"  {line}" for line in textwrap.wrap(head, _WIDTH - 2)]
    left_out = appended.get("left_out", {})
    lines += ["  left out of it:", *_reasons(left_out.items())] if left_out else []
    return [*lines, *matched_lines(appended.get("matched", {}))]


def _reasons(reasons: Iterable[tuple[str, int]]) -> list[str]:
    lines = []
    for reason, count in reasons:
        *above, text = _folded(reason, 58)
        lines += [f"    {part}" for part in above]
        lines.append(f"    {text}{' ' * (60 - _columns(text))}{count:>15,}")
    return lines


def matched_lines(matched: dict[str, Any]) -> list[str]:
    """Return what filters, joins and labels left out, as `notes.matched` counts it; nothing where nothing was."""
    lines: list[str] = []
    for name, funnel in _funnels(matched):
        if not funnel["left_out"]:
            continue
        *above, head = _folded(name, 30)
        lines += [f"  {part}" for part in above]
        counted = f"{funnel['kept']:>12,} of {funnel['total']:,} {funnel['unit']}"
        lines.append(_cut(f"  {head}{' ' * (30 - _columns(head))} {counted}", _WIDTH))
        lines += _reasons(funnel["left_out"].items())
    return ["used of the raw data, and left out:", *lines] if lines else []


def _funnels(matched: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in matched.items():
        if name == "tasks":
            yield from ((f"task {task}", funnel) for task, funnel in value.items())
        else:
            yield name, value


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for a character of East Asia, none for a mark above another."""
    return sum(0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _cut(text: str, columns: int) -> str:
    """Return as much of a text as fits, with an ellipsis where something is left out."""
    if _columns(text) <= columns:
        return text
    while text and _columns(text) > columns - 1:
        text = text[:-1]
    return f"{text}…"


def _folded(text: str, columns: int) -> list[str]:
    """Return a text in pieces that fit, one at least."""
    pieces = [""]
    for character in text:
        if _columns(pieces[-1] + character) > columns:
            pieces.append("")
        pieces[-1] += character
    return pieces
