"""The public TERACON format: one file a task, a row `0,0,5,9,,7,3` being left-padded items, `,,`, one or more targets.

`sequence-csv`: files stand in natural order, the first task's first; its rows have no `,,`. A task's name is the file's without
`taskN_`; a folder of that name holds a task in parts. `ttl`: the six files under their public names. There are no user ids: a user is
the unpadded sequence, and where it comes again within a task, its k-th occurrence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from dist_teracon import io
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.files import COMPRESSIONS, without_compression
from dist_teracon.data.recipe import Columns, Recipe
from dist_teracon.data.sources.base import SourceFormat, folder_name, natural_key
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
_ENDINGS = (".csv", *(f".csv{compression}" for compression in COMPRESSIONS))


def task_name(uri: str) -> str:
    """Return the task that a file holds: its stem without `taskN_`."""
    # some systems name files in Unicode's decomposed form
    return unicodedata.normalize("NFC", _TASK.sub("", without_compression(uri.rsplit("/", 1)[-1]).removesuffix(".csv")))


def _tasks(folder: str) -> list[TaskFiles]:
    """Return the folder's tasks in natural order.

    Raises:
        DataError: there are none, or two have one name.
    """
    names = [name for name in io.list_folder(folder) if not name.startswith(".")]
    found = {name: [io.join(folder, name)] for name in names if name.endswith(_ENDINGS)}
    for name in set(names) - set(found):
        if "." not in name and io.is_folder(io.join(folder, name)):
            parts = sorted((part for part in io.list_folder(io.join(folder, name)) if part.endswith(_ENDINGS)), key=natural_key)
            found |= {name: [io.join(folder, name, part) for part in parts]} if parts else {}
    if not found:
        raise DataError(f"{folder}: no *.csv file there; expected one a task")
    tasks = [TaskFiles(task_name(name), found[name]) for name in sorted(found, key=natural_key)]
    return _unique(folder, tasks)


def _ttl_tasks(folder: str) -> list[TaskFiles]:
    """Return the tasks of TTL's public files, those that are there.

    Raises:
        DataError: the first task's file or all others are missing.
    """
    names = io.list_folder(folder)
    tasks = []
    for stem, task in TTL_FILES.items():
        found = [name for name in names if without_compression(name) == stem]
        tasks += [TaskFiles(task, [io.join(folder, name)]) for name in found]
    if not tasks or tasks[0].name != "watching":
        raise DataError(f"{folder}: no {next(iter(TTL_FILES))} there (has: {', '.join(names[:10]) or 'nothing'})")
    return _unique(folder, tasks)


def _unique(folder: str, tasks: list[TaskFiles]) -> list[TaskFiles]:
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise DataError(f"{folder}: two files hold a task of one name ({', '.join(names)})")
    return tasks


def _files(tasks: Sequence[TaskFiles]) -> list[str]:
    return [uri for task in tasks for uri in task.uris]


def _read(folder: str, tasks: list[TaskFiles], recipe: Recipe | None, context: ReadContext) -> SequenceSource:
    """Read task files; a recipe may choose tasks, set their kind, name the first one, and split.

    Raises:
        ConfigError: the recipe names a task that has no file, or asks for what this format cannot do.
        DataError: a missing or empty file, or too many malformed rows.
    """
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
        name=(recipe.name if recipe else None) or folder_name(folder),
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
    lambda folder: _files(_tasks(folder)),
    lambda folder, recipe, context: _read(folder, _tasks(folder), recipe, context),
    needs_recipe=False,
    on_cluster=True,
)
TTL = SourceFormat(
    lambda folder: _files(_ttl_tasks(folder)),
    lambda folder, recipe, context: _read(folder, _ttl_tasks(folder), recipe, context),
    needs_recipe=False,
    on_cluster=True,
)
