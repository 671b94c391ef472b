"""Whether a recipe may append to a data set: what made its old users, tasks and items must not change, field by field."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from dist_teracon.data.prepare.splits import effective
from dist_teracon.data.recipe import Recipe, parse_recipe
from dist_teracon.data.recipe_columns import Columns, LogRule
from dist_teracon.data.schema import DatasetInfo
from dist_teracon.errors import ConfigError

# They say where text lies and how it is written, not what it means.
_FREE = ("name", "files", "encoding")
# A refreshed version takes all histories anew, so its window moves on.
_WINDOW = ("history.events.from", "history.events.until")


def resolved_recipe(recipe: Recipe, *, min_count: int | None, split_by: str | None) -> dict[str, Any]:
    """Return a recipe as JSON values, with what the command line overrides."""
    value = copy.deepcopy(recipe.to_json())
    if min_count is not None:
        value["history"]["min_count"] = min_count
    rule = effective(recipe.split_rule())
    value["split"] |= {"by": split_by or rule.by, "seed": rule.seed, "test": rule.test, "train": rule.train}
    return value


def recipe_of(info: DatasetInfo) -> dict[str, Any] | None:
    """Return the recipe that made a data set, as `resolved_recipe` does; None where it was not recorded or another program wrote it."""
    source = info.source
    if not isinstance(source.get("recipe"), dict):
        return None
    try:
        recipe = parse_recipe(source["recipe"])
    except ConfigError:
        return None
    return resolved_recipe(recipe, min_count=source.get("min_count"), split_by=source.get("split"))


def check_recipe(parent: str, before: dict[str, Any] | None, now: dict[str, Any], *, info: DatasetInfo, refresh: bool) -> list[str]:
    """Compare the recipe of what is added with the old version's.

    Args:
        parent: The old version, for messages.
        before: Its recipe, None where it is not known.
        now: The recipe of what is added.
        info: The old version's description.
        refresh: Whether old users' histories are taken anew.

    Returns:
        Lines on what changes and may.

    Raises:
        ConfigError: a field differs that must not; names each, old and new.
    """
    lines: list[str] = []
    problems: list[str] = []
    if before is None:
        before = {"split": {name: getattr(info.split, name) for name in ("by", "seed", "train", "validation", "test", "folds", "fold")}}
        before["history"] = {"length": info.length_limit}
        now = {**now, "history": {"length": now["history"]["length"]}, "tasks": {}}
        now = {name: now[name] for name in before}
        lines.append(f"{parent}: its recipe was not recorded; only history.length and split are compared")
    told, wrong = _compare_logs(before, now, info=info, refresh=refresh)
    lines, problems = lines + told, problems + wrong
    old, new = (_flat({name: value for name, value in recipe.items() if name not in ("tasks", "logs")}) for recipe in (before, now))
    for name in sorted({*old, *new}):
        if old.get(name) == new.get(name) or name.partition(".")[0] in _FREE:
            continue
        if refresh and name in _WINDOW:
            lines.append(f"{name} is now {new.get(name)!r} (was {old.get(name)!r}), for all users' histories")
        else:
            problems.append(f"  {name}: {old.get(name)!r} -> {new.get(name)!r}")
    tasks = before.get("tasks", {})
    for task in (task for task in now.get("tasks", {}) if task in tasks):
        was, is_now = _flat(tasks[task]), _flat(now["tasks"][task])
        for name in sorted({*was, *is_now}):
            if was.get(name) != is_now.get(name):
                problems.append(f"  tasks.{task}.{name}: {was.get(name)!r} -> {is_now.get(name)!r}")
    _refuse(parent, problems)
    return lines


def _compare_logs(before: dict[str, Any], now: dict[str, Any], *, info: DatasetInfo, refresh: bool) -> tuple[list[str], list[str]]:
    """Return what changes in the logs and may, and what must not: what old histories were read from, unless they are read anew."""
    old, new = _logs_of(before), _logs_of(now)
    if bool(old) != bool(new):
        what = "events are read from logs now" if new else "events are read from one table now"
        return ([f"{what}, and all histories with them"], []) if refresh else ([], [f"  logs: {what}: --refresh reads all histories anew"])
    lines, problems = [], []
    for name in (name for name in old if name in new):
        for field in old[name]:
            if old[name][field] != new[name][field]:
                problems.append(f"  logs.{name}.{field}: {old[name][field]!r} -> {new[name][field]!r}")
    orders = [[name for name in logs if name in old and name in new] for logs in (old, new)]
    if orders[0] != orders[1]:  # in which events of one moment stand
        problems.append(f"  logs: in the order {', '.join(orders[0])} -> {', '.join(orders[1])}")
    for name in sorted({*old} - {*new}):
        if _may_be_in_history(name, before) and info.notes.get("logs", {}).get(name, {}).get("in_history", 1):
            problems.append(f"  logs.{name}: no longer there, and histories are of its events: name it, with the files that there are")
        else:
            lines.append(f"logs.{name} is no longer there; no history is of its events")
    for name in sorted({*new} - {*old}):
        types = now["history"]["events"].get("type")
        if refresh and _may_be_in_history(name, now):
            lines.append(f"logs.{name} is new; all histories are read anew, with those of its events that fit history.events")
        elif types is None or name in types:
            problems.append(f"  logs.{name}: new, and histories are of its events: --refresh reads them anew")
        else:
            lines.append(f"logs.{name} is new; its events are labels alone")
    return lines, problems


def _logs_of(recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each log of a recipe reads, in which `columns` has its part, without the files."""
    columns = Columns.model_validate({name: value for name, value in (recipe.get("columns") or {}).items() if value is not None})
    found = {}
    for name, written in recipe.get("logs", {}).items():
        log = LogRule.model_validate(written)
        own = log.over(columns)
        untimed = own.timestamp is None and "timestamp" in own.model_fields_set
        found[name] = {**own.model_dump(), "timestamp": "null" if untimed else own.timestamp, "prefix": log.prefix}
    return found


def _may_be_in_history(name: str, recipe: dict[str, Any]) -> bool:
    """Return whether events of a log can be of histories; which types a log of several has, the recipe does not tell."""
    types = recipe.get("history", {}).get("events", {}).get("type")
    return types is None or name in types or recipe["logs"][name].get("type") is not None


def check_new_logs(parent: str, before: dict[str, Any], logs: dict[str, dict[str, int]]) -> None:
    """Check that no event of a new log fits the histories, which old users would have without it.

    Args:
        parent: The old version.
        before: Its recipe.
        logs: What `notes.logs` counts of what is added.

    Raises:
        ConfigError: one does.
    """
    new = {name: facts["in_history"] for name, facts in logs.items() if name not in before.get("logs", {})}
    mend = "--refresh reads all histories anew"
    _refuse(parent, [f"  logs.{name}: new, and {count} of its events fit history.events: {mend}" for name, count in new.items() if count])


def labels_inside(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return a warning where refreshed histories end later than those that old labels were told from; empty where they do not.

    Args:
        before: The old version's recipe.
        now: That of what is added.
    """
    was, until = (_flat(recipe.get("history", {})).get("events.until") for recipe in (before, now))
    old = [name for name, task in before.get("tasks", {}).items() if task.get("kind") == "item"]
    if was is None or not old or (until is not None and until <= was):
        return ""
    ended, ends = (
        f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M}" if moment is not None else "with the last event" for moment in (was, until)
    )
    return (
        f"histories ended {ended} UTC when the labels of {', '.join(old)} were told from them, and end {ends} now; labels of old tasks "
        "stay, so histories may hold what came after them: scores of these tasks no longer tell of the future (prepare the data set anew "
        "for that)"
    )


def check_without_recipe(parent: str, info: DatasetInfo, *, min_count: int | None) -> None:
    """Compare what is added without a recipe, as by a format that needs none, with the old version: its split and `--min-count`.

    Raises:
        ConfigError: they differ.
    """
    rule = effective(Recipe().split_rule())
    fields = ("train", "validation", "test", "seed", "folds", "fold")
    problems = [
        f"  split.{name}: {getattr(info.split, name)!r} -> {getattr(rule, name)!r}"
        for name in fields
        if getattr(info.split, name) != getattr(rule, name)
    ]
    before = info.source.get("min_count")
    if info.source.get("format") != "append" and before != min_count:
        problems.append(f"  history.min_count (--min-count): {before!r} -> {min_count!r}")
    _refuse(parent, problems)


def _refuse(parent: str, problems: list[str]) -> None:
    if problems:
        head = f"--append: the recipe differs from the one that made {parent} (old -> new), and a version has one recipe:"
        tail = "use the old values, name a task of another definition otherwise, or prepare the data set anew"
        raise ConfigError("\n".join([head, *problems, tail]))


def merged_recipe(before: dict[str, Any] | None, now: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the recipe of a version: what is added, with the old tasks in front."""
    if now is None:
        return before
    return {**now, "tasks": {**(before or {}).get("tasks", {}), **now["tasks"]}}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted name."""
    if isinstance(value, dict):
        return {name: leaf for key, entry in value.items() for name, leaf in _flat(entry, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
