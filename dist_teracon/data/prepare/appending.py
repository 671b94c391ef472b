"""`prepare … --append`: what is added is prepared beside the result, and merged with the old version; refusals come first."""

from __future__ import annotations

from collections.abc import Callable

from dist_teracon import io
from dist_teracon.console import Log
from dist_teracon.data.prepare.append_rules import (
    check_new_logs,
    check_recipe,
    check_without_recipe,
    labels_inside,
    merged_recipe,
    recipe_of,
    resolved_recipe,
)
from dist_teracon.data.prepare.pipeline import check_output
from dist_teracon.data.prepare.versions import append, no_new_task, refuse_fixed_splits
from dist_teracon.data.prepare.workspace import folder_beside
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.schema import DatasetInfo, read_dataset_info
from dist_teracon.errors import ConfigError, DataError


def append_prepared(
    parent: str, out: str, make: Callable[[str], object], *,
    recipe: Recipe | None, min_count: int | None, refresh: bool, synthetic: bool, fingerprint: Callable[[], str | None], log: Log,
) -> DatasetInfo:  # fmt: skip
    """Write a version of a data set, or find that it is there.

    Args:
        parent: The old version.
        out: Folder or URI of the new one.
        make: Prepares what is added in a folder, with the old version's shards and split.
        recipe: The recipe of what is added; None where it has none.
        min_count: Overrides `history.min_count`.
        refresh: Take old users' histories anew.
        synthetic: Whether what is added is drawn, with a split of its own.
        fingerprint: Returns the fingerprint of what would be made; None where only making it tells.
        log: Receives lines.

    Raises:
        ConfigError: the recipe differs from the old version's in what must not change.
        DataError: the two do not fit, or `out` holds something else.
    """
    info, before = read_dataset_info(parent), None
    if "padding" in info.notes or (recipe is not None and recipe.history.padding != "none"):
        raise DataError(f"{parent}: sequences padded by history.padding cannot grow; prepare both without it")
    refuse_fixed_splits(parent, info.split.by, recipe.split.by if recipe is not None else "users")
    now = None if recipe is None else resolved_recipe(recipe, min_count=min_count, split_by=info.split.by)
    if now is not None:
        before = recipe_of(info)
        for line in check_recipe(parent, before, now, info=info, refresh=refresh):
            log(line)
        if refresh and before is not None and (leak := labels_inside(before, now)):
            log(f"warning: {leak}")
        if now["tasks"] and not refresh and not set(now["tasks"]) - {task.name for task in info.tasks}:
            raise no_new_task(recipe.name or "the recipe" if recipe else "", parent, info)
    elif not synthetic:
        check_without_recipe(parent, info, min_count=min_count)
    check_output(out)
    if (there := _existing(out, info, refresh=refresh, fingerprint=fingerprint)) is not None:
        log(f"{out}: is there already, made from the same input and options; nothing to do")
        return there
    with folder_beside(out, "appending") as folder:
        added = str(folder / "added")
        make(added)
        if before is not None and not refresh:
            check_new_logs(parent, before, read_dataset_info(added).notes.get("logs", {}))
        made = append(parent, added, out, refresh=refresh, recipe=merged_recipe(before, now))
    last = made.notes["appended"][-1]
    log(f"{parent} and {last['users']} users, {last['items']} items, tasks: {', '.join(last['tasks']) or 'none'}")
    if last.get("shorter_histories"):
        log(
            f"warning: {last['shorter_histories']} of {last['renewed_histories']} renewed histories are shorter than before; "
            "does SRC hold all events, and not the new ones alone?"
        )
    return made


def _existing(out: str, parent: DatasetInfo, *, refresh: bool, fingerprint: Callable[[], str | None]) -> DatasetInfo | None:
    """Return the version in `out`, None where there is none or where only making it tells whether it is the same.

    Raises:
        DataError: `out` holds something else.
    """
    if not io.exists(io.join(out, "dataset.json")):
        return None
    there = read_dataset_info(out)
    last = (there.notes.get("appended") or [{}])[-1]
    if there.parent == parent.fingerprint and bool(last.get("refreshed")) == refresh:
        made = fingerprint()
        if made is None:
            return None
        if made == last.get("source"):
            return there
    raise DataError(f"{out}: holds a data set made from something else; name a new folder or remove it")


def refuse_shape_options(shards: int | None, split: str | None) -> None:
    """Refuse options that a version takes from the one before it.

    Raises:
        ConfigError: one is given.
    """
    if shards is not None or split is not None:
        raise ConfigError("--append: shards and split are those of the old version; leave --shards and --split out")
