"""What `init` writes: a recipe's lines of YAML, with comments on what was guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dist_teracon.data.init.columns import Guess
from dist_teracon.data.init.logs import Log
from dist_teracon.data.init.tasks import Proposal, Tables
from dist_teracon.data.raw.listing import stem

_FEW_NUMBERS, _MOST_VALUES = 12, 300

_SPLIT = "split: {by: users, train: 0.8, validation: 0.05, test: 0.15}    # users are cut once for all tasks"


def recipe_lines(
    name: str, tables: Tables, proposal: Proposal, *, own: Mapping[str, str], logs: Sequence[Log], names_files: bool
) -> list[str]:  # fmt: skip
    """Return a recipe.

    Args:
        name: Of the data set.
        tables: What was sampled.
        proposal: What it may be used for.
        own: The format's names of columns.
        logs: The tables of events, where there are several.
        names_files: Whether files of other names than the format's own are named.
    """
    head = [f"name: {scalar(name)}", "seed: 0", *_table_lines(tables, own, logs, names_files=names_files)]
    return [*head, *_history_lines(tables, proposal), *_task_lines(proposal), *_input_lines(tables), _SPLIT]


def _table_lines(tables: Tables, own: Mapping[str, str], logs: Sequence[Log], *, names_files: bool) -> list[str]:
    """Return files, columns and codes of unknown."""
    lines: list[str] = []
    files = {"events": tables.events} if not logs else {}
    files |= {what: pair[0] for what, pair in (("users", tables.users), ("items", tables.items)) if pair}
    renamed = {what: sample for what, sample in files.items() if names_files and stem(sample.name) != what}
    if renamed:
        lines += ["files:", *(f"  {what}: {scalar(sample.name)}" for what, sample in renamed.items())]
    times = tables.contents[tables.roles["timestamp"].column].times if "timestamp" in tables.roles else None
    if logs:
        named = {role: tables.roles[role].column for role in ("user", "item") if tables.roles[role].column != own[role]}
        lines += ["columns:    # of all logs and tables that do not say otherwise"] if named else []
        lines += [f"  {role}: {scalar(name)}" for role, name in named.items()]
        lines += ["logs:    # a table of events each; without a column of types a log's name is the type of its events"]
        for log in logs:
            lines += _log_lines(log, {**own, **named}, others=[other for other in logs if other is not log])
    else:
        named_here = {role: guess for role, guess in tables.roles.items() if guess.column != own[role]}
        if named_here or times not in (None, "iso", "s"):
            lines.append("columns:")
            lines += [f"  {role}: {scalar(guess.column)}    # {_comment(guess)}" for role, guess in named_here.items()]
            if times not in (None, "iso", "s"):
                lines.append(f"  timestamp_unit: {times}    # {tables.roles['timestamp'].why}")
    if times == "iso" or any(log.times == "iso" for log in logs):
        lines.append("# dates without a zone are read as UTC; local times: `columns: {timezone: Asia/Seoul}`")
    if times is None:
        lines.append("# no column of times was found: a user's events stand in the order of the rows")
    encoding = logs[0].sample.encoding if logs else tables.events.encoding
    if encoding != "utf-8":
        lines.append(f"encoding: {encoding}")
    if missing := {
        name: list(content.unknown)
        for pair, key in ((tables.users, "user"), (tables.items, "item"))
        for name, content in (pair[1].items() if pair else ())
        if content.unknown and name != tables.roles[key].column
    }:
        lines += ["missing:    # codes of unknown", *(f"  {scalar(name)}: {scalar(codes)}" for name, codes in missing.items())]
    return lines


def _log_lines(log: Log, named: Mapping[str, str], *, others: Sequence[Log]) -> list[str]:
    """Return a log's part of the recipe; `named` has the columns' names where it does not say."""
    lines = [f"  {scalar(log.name)}:", f"    files: {scalar(log.sample.name)}"]
    for role, guess in log.roles.items():
        if guess.column != named[role] or role == "type":
            lines.append(f"    {role}: {scalar(guess.column)}    # {_comment(guess)}")
    if log.times not in (None, "iso", "s"):
        lines.append(f"    timestamp_unit: {log.times}    # {log.roles['timestamp'].why}")
    items, elsewhere = set(log.column("item")) - {None}, {item for other in others for item in other.column("item")}
    if both := len(items & elsewhere):
        why = f"{both:,} of its {len(items):,} items have names of another log's; for other things of the same names"
        lines.append(f"    # prefix: {scalar(log.name + ':')}    # {why}")
    return lines


def _comment(guess: Guess) -> str:
    return f"{guess.confidence}: {re.sub(r'[^ -~가-힣]', '?', guess.why)}"


def _history_lines(tables: Tables, proposal: Proposal) -> list[str]:
    lines = ["history:    # the first task: predict the next item", f"  # {_one_line(proposal.why)}"]
    if proposal.history:
        lines.append(f"  events: {scalar(proposal.history)}")
    items = tables.contents[tables.roles["item"].column]
    lines += ["  length: 100    # the last so many", f"  minimum: {proposal.minimum}    # users with fewer are left out"]
    if items.distinct > 0.2 * items.filled:
        lines.append("  # min_count: 2    # many items are rare: those of fewer occurrences count as unseen")
    return [*lines, *_kept_lines(tables, proposal), "first_task: next"]


def _kept_lines(tables: Tables, proposal: Proposal) -> list[str]:
    """Return what of events is kept beside their items: the times that there are, and the types where a history has several."""
    kept = [name for name, role in (("time", "timestamp"), ("type", "type")) if role in tables.roles]
    if "type" in kept and ("type" in proposal.history or tables.contents[tables.roles["type"].column].distinct < 2):
        kept.remove("type")
    return [f"  keep: {scalar(kept)}    # beside the items, for model.event_features"] if kept else []


def _task_lines(proposal: Proposal) -> list[str]:
    lines = ["tasks:    # learned in this order"] if any(task.is_active for task in proposal.tasks) else ["# no task is sure enough"]
    for task in proposal.tasks:
        mark = "" if task.is_active else "# "
        lines += [f"  # {_one_line(task.why)}", f"  {mark}{scalar(task.name)}: {scalar(task.fields)}"]
    return lines


def _input_lines(tables: Tables) -> list[str]:
    """Return which attributes may be inputs, as a comment: few values as they are, many numbers by bins."""
    found: dict[str, list[Any]] = {}
    seen: set[str] = set()
    for kind, pair in (("user", tables.users), ("item", tables.items)):
        for column, content in pair[1].items() if pair else ():
            values = content.distinct - len(content.unknown)
            if column == tables.roles[kind].column or column in seen or content.times is not None or values < 2:
                continue
            seen.add(column)
            if content.is_number and values > _FEW_NUMBERS:
                found.setdefault(kind, []).append({"name": column, "bins": 10})
            elif values <= min(_MOST_VALUES, 0.5 * content.filled):
                found.setdefault(kind, []).append(column)
    if not found:
        return []
    return [
        "# attributes that a model may read (model.input_features); no profile task reads its own:",
        f"# inputs: {_one_line(scalar(found))}",
    ]


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", "".join(letter if letter.isprintable() else "?" for letter in text))


def scalar(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 30, sort_keys=False)
    return text.strip().removesuffix("...").strip()
