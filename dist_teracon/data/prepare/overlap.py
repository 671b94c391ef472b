"""Whether labels leak into histories: a task's events that are history too, or that happened before a user's history ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log
from dist_teracon.data.recipe import EventFilter, ItemTask, Recipe
from dist_teracon.data.sources.base import Events

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """Events of an item task against the histories of the same users.

    Attributes:
        events: Events that fit the task's filter, of users with a history.
        in_history: Those of them that fit the history's filter too.
        before_end: Those before the last event of their user's history; None without times.
    """

    events: int
    in_history: int
    before_end: int | None


def count_overlap(history: Mask, labels: Mask, events: Events) -> Overlap:
    """Count how a task's events overlap histories.

    Args:
        history: bool [E], which events fit the history's filter.
        labels: bool [E], which events fit the task's.
        events: The events.
    """
    users = len(events.user.names)
    has_history = np.zeros(users, dtype=bool)
    has_history[events.user.codes[history]] = True
    chosen = np.flatnonzero(labels & has_history[events.user.codes])
    before = None
    if events.timestamp is not None:
        end = np.full(users, -np.inf)
        np.maximum.at(end, events.user.codes[history], events.timestamp[history])
        before = int(np.count_nonzero(events.timestamp[chosen] < end[events.user.codes[chosen]]))
    return Overlap(len(chosen), int(np.count_nonzero(history[chosen])), before)


def note_overlaps(recipe: Recipe, events: Events, fits: Callable[[str, EventFilter], Mask], *, log: Log) -> dict[str, Any]:
    """Return the overlap of every item task as JSON values, and log a warning for each that leaks.

    Args:
        recipe: The recipe.
        events: Its source's events.
        fits: Returns which events fit a filter; the first argument names it.
        log: Takes the warnings.
    """
    tasks = {name: task for name, task in recipe.tasks.items() if isinstance(task, ItemTask)}
    if not tasks:
        return {}
    history, found = fits("history.events", recipe.history.events), {}
    for name, task in tasks.items():
        overlap = found[name] = count_overlap(history, fits(f"tasks.{name}.events", task.events), events)
        if (warning := _warning(name, task, recipe, overlap)) is not None:
            log(f"warning: {warning}")
    return {name: asdict(overlap) for name, overlap in found.items()}


def _warning(name: str, task: ItemTask, recipe: Recipe, overlap: Overlap) -> str | None:
    of = f"of {overlap.events:,} events of task '{name}'"
    if overlap.in_history:
        return (
            f"{overlap.in_history:,} {of} are in the history too: its labels stand in the sequences that predict them. Give history.events "
            f"and tasks.{name}.events types, values or dates that exclude one another"
        )
    rules = (recipe.history.events, task.events)
    has_dates = any(rule.since is not None or rule.until is not None for rule in rules)
    # a recipe without dates means no future: what a user likes is told from what they did at any time
    if has_dates and overlap.before_end:
        return (
            f"{overlap.before_end:,} {of} happened before the end of their user's history, which then holds what came after a label. "
            f"Let tasks.{name}.events begin (from) where history.events ends (until)"
        )
    return None
