"""The public TERACON format: one file a task, a row `0,0,5,9,,7,3` being left-padded items, `,,`, one or more targets.

`sequence-csv`: files stand in natural order, the first task's first; its rows have no `,,`. A task's name is the file's without
`taskN_`; a folder of that name holds a task in parts. `ttl`: the six files under their public names. There are no user ids: a user is
the unpadded sequence, and where it comes again within a task, its k-th occurrence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.files import without_compression
from dist_teracon.data.raw.listing import Layout, Listing, list_source, named_kind, natural_key
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.recipe_columns import Columns
from dist_teracon.data.sources.base import SourceFormat, folder_name
from dist_teracon.data.streaming.source import SequenceSource, TaskFiles, spill_rows
from dist_teracon.data.streaming.spill import Partitioning, read_state, write_state
from dist_teracon.data.streaming.staged import spill_on_workers
from dist_teracon.errors import ConfigError, DataError, nearest

TTL_FILES = {
    "original_desen_pretrain.csv": "watching",
    "original_desen_finetune_click_nouserID.csv": "click",
    "original_desen_finetune_like_nouserID.csv": "like",
    "original_desen_age.csv": "age",
    "original_desen_gender.csv": "gender",
    "original_desen_lifestatus.csv": "life-status",
}

_TASK = re.compile(r"^task\d+[_-]?(?=.)", re.IGNORECASE)
_ENDINGS = (".csv", ".txt")


def task_name(name: str) -> str:
    """Return the task that a file holds: its stem without `taskN_`."""
    bare = without_compression(name.rsplit("/", 1)[-1])
    bare = next((bare[: -len(ending)] for ending in _ENDINGS if bare.lower().endswith(ending)), bare)
    return unicodedata.normalize("NFC", _TASK.sub("", bare))  # some systems name files in the decomposed form


@dataclass(frozen=True)
class _Tasks:
    """A source's tasks in their order, and what of its files is read."""

    tasks: list[TaskFiles]
    layout: Layout


def _tasks(source: str) -> _Tasks:
    """Return the source's tasks in natural order.

    Raises:
        DataError: there are none, or two have one name.
    """
    listing = list_source(source)
    found = {name: [name] for name in listing.files if without_compression(name).lower().endswith(_ENDINGS)}
    for folder in listing.folders:
        inside = Listing(source, [], []).parts(folder) if "." not in folder else []
        if parts := [name for name in inside if named_kind(name) != "parquet"]:
            listing.not_read.update(dict.fromkeys(set(listing.parts(folder)) - set(parts), "is no text"))
            found[folder] = parts
    if not found:
        raise DataError(f"{source}: no *.csv file there; expected one a task (has: {listing.shown()})")
    listing.leave_others([name for names in found.values() for name in names], "is no *.csv file, and no folder of such parts")
    return _of(listing, [(task_name(name), found[name]) for name in sorted(found, key=natural_key)])


def _ttl_tasks(source: str) -> _Tasks:
    """Return the tasks of TTL's public files, those that are there.

    Raises:
        DataError: the first task's file or all others are missing.
    """
    listing = list_source(source)
    tasks = []
    for stem, task in TTL_FILES.items():
        found = [name for name in listing.files if without_compression(name).lower() == stem.lower()]
        tasks += [(task, [name]) for name in found]
    if not tasks or tasks[0][0] != "watching":
        raise DataError(f"{source}: no {next(iter(TTL_FILES))} there (has: {listing.shown()})")
    listing.leave_others([name for _, names in tasks for name in names], "is none of the set's public names")
    return _of(listing, tasks)


def _of(listing: Listing, tasks: Sequence[tuple[str, list[str]]]) -> _Tasks:
    names = [name for name, _ in tasks]
    if len(set(names)) != len(names):
        raise DataError(f"{listing.source}: two files hold a task of one name ({', '.join(names)})")
    return _Tasks([TaskFiles(name, [listing.uri(file) for file in files]) for name, files in tasks], Layout(listing, dict(tasks)))


def _read(source: str, found: _Tasks, recipe: Recipe | None, context: ReadContext) -> SequenceSource:
    """Read task files; a recipe may choose tasks, set their kind, name the first one, and split.

    Raises:
        ConfigError: the recipe names a task that has no file, or asks for what this format cannot do.
        DataError: a missing or empty file, or too many malformed rows.
    """
    tasks = found.tasks
    context.notes["files"] = found.layout.note
    names = [task.name for task in tasks]
    kinds = _kinds(recipe, names[1:])
    chosen = [tasks[0], *(task for task in tasks[1:] if task.name in kinds)]
    partitioning = Partitioning.for_size(context.total_bytes, context.shards)
    state = read_state(context.spill)
    spilled = None
    if context.workers is not None:
        fields, spilled = spill_on_workers(context.workers, chosen, context, partitioning)
        state = {"fields": fields, "partitioning": asdict(partitioning)}
    elif state is None:
        fields = spill_rows(chosen, context, partitioning)
        state = {"fields": fields, "partitioning": asdict(partitioning), "bad": context.bad.counts, "sha256": context.sha256}
        write_state(context.spill, state)
    else:
        context.bad.counts, context.sha256 = state["bad"], state["sha256"]
    place = {task.name: number for number, task in enumerate(chosen)}
    length = recipe.history.length if recipe and "length" in recipe.history.model_fields_set else int(state["fields"])
    return SequenceSource(
        name=(recipe.name if recipe else None) or folder_name(source),
        next_task=recipe.first_task if recipe and "first_task" in recipe.model_fields_set else names[0],
        tasks=[(place[name], name, kind) for name, kind in kinds.items()],
        context=context,
        partitioning=Partitioning(**state["partitioning"]),
        length_limit=length,
        min_count=context.min_count or (recipe.history.min_count if recipe else 1),
        spilled=spilled,
    )


def _kinds(recipe: Recipe | None, names: list[str]) -> dict[str, Literal["item", "profile"] | None]:
    """Return the tasks after the first in their order, with the kind that the recipe sets."""
    if recipe is None:
        return dict.fromkeys(names)
    if recipe.columns != Columns():
        raise ConfigError("columns: this format has no columns to name")
    for field in ("files", "encoding", "missing"):
        if field in recipe.model_fields_set and getattr(recipe, field) != Recipe.model_fields[field].default:
            raise ConfigError(f"{field}: this format has a file of numbers a task, named after it; it cannot be set")
    if more := sorted(recipe.history.model_fields_set - {"length", "min_count", "padding"}):
        raise ConfigError(f"history.{more[0]}: this format has its sequences in the file; only length, min_count and padding are allowed")
    if not recipe.tasks:
        return dict.fromkeys(names)
    kinds: dict[str, Literal["item", "profile"] | None] = {}
    for name, task in recipe.tasks.items():
        if name not in names:
            raise ConfigError(f"tasks.{name}: no file holds that task{nearest(name, names)} (there are: {', '.join(names)})")
        if (extra := next(iter(sorted(task.model_fields_set - {"kind"})), None)) is not None:
            raise ConfigError(f"tasks.{name}.{extra}: this format has its targets in the file; only 'kind' is allowed")
        kinds[name] = task.kind
    return kinds


FORMAT = SourceFormat(
    lambda source, _recipe: _tasks(source).layout.all,
    lambda source, recipe, context: _read(source, _tasks(source), recipe, context),
    needs_recipe=False,
    on_cluster=True,
)
TTL = SourceFormat(
    lambda source, _recipe: _ttl_tasks(source).layout.all,
    lambda source, recipe, context: _read(source, _ttl_tasks(source), recipe, context),
    needs_recipe=False,
    on_cluster=True,
)
