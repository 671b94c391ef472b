"""`compare --dry-run`: which cells and stages a comparison has yet to train, and how long that takes at least and at most.

A step of each stage is measured once a variant, as `train --dry-run` does, in a network that is thrown away; nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dist_teracon.compare.cells import is_finished
from dist_teracon.compare.checks import check_cells, check_folder
from dist_teracon.compare.plan import Cell, read_plan
from dist_teracon.compare.shared_stages import check_others, donors_of
from dist_teracon.config.train import TrainConfig
from dist_teracon.console import Console
from dist_teracon.runtime import Runtime
from dist_teracon.text import cropped, folded, seconds_text, table_lines

if TYPE_CHECKING:
    from dist_teracon.train.dry_run import PlannedStage


@dataclass(frozen=True)
class PlannedCell:
    """What is left of a cell.

    Attributes:
        variant, seed: The cell.
        stages: How many it has.
        first: The first stage that it trains, from 0: those before are finished, or taken over from another run.
        seconds: Of the training steps of each stage that it trains, at least and at most: it stops as soon as its patience lets it, or
            not before its last epoch.
    """

    variant: str
    seed: int
    stages: int
    first: int
    seconds: tuple[tuple[float, float], ...]

    @property
    def least(self) -> float:
        """Seconds where each stage stops as soon as it may."""
        return sum(least for least, _ in self.seconds)

    @property
    def most(self) -> float:
        """Seconds where no stage stops early."""
        return sum(most for _, most in self.seconds)


@dataclass(frozen=True)
class ComparisonPlan:
    """What is left of a comparison: how many cells it has, and those that are not finished, in the order in which they start."""

    cells: int
    left: tuple[PlannedCell, ...]


def plan_comparison(
    uri: str, out: Path, *, parallel: int | None, console: Console, metrics: Sequence[str] = (), begin_with: Sequence[Path] = ()
) -> list[str]:  # fmt: skip
    """Return what `compare` of the same arguments has yet to do, as lines; raises as it does."""
    from dist_teracon.runtime import process_group

    plan, cells = read_plan(uri, metrics)
    check_folder(cells, out)
    check_cells(plan, cells, out, where=uri, console=console)
    check_others(begin_with)
    with process_group() as runtime:
        left = dry_run_comparison(cells, out, runtime, console=console, begin_with=begin_with)
    return comparison_lines(left, where=uri, parallel=parallel or os.cpu_count() or 1)


def dry_run_comparison(
    cells: Sequence[Cell], out: Path, runtime: Runtime, *, console: Console, begin_with: Sequence[Path] = ()
) -> ComparisonPlan:  # fmt: skip
    """Plan the cells of a comparison that are not finished.

    Args:
        cells: All of its cells, checked.
        out: Its folder, which need not be there.
        runtime: This process alone.
        console: What a person sees meanwhile.
        begin_with: Folders of other comparisons, whose runs cells may begin with.

    Raises:
        TeraconError: as of a run.
    """
    from dist_teracon.train.dry_run import dry_run

    waiting = [cell for cell in cells if not is_finished(cell, out)]
    donors = donors_of(cells, out, begin_with)
    seconds: dict[str, tuple[tuple[float, float], ...]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a cell has
    try:
        for cell in waiting:
            if cell.variant not in seconds:
                console.log(f"{cell.variant}: a few steps of each stage")
                stages = dry_run(cell.config, runtime, where=cell.name, console=Console(active=False)).stages
                seconds[cell.variant] = tuple(_seconds(stage, cell.config.train, place) for place, stage in enumerate(stages))
    finally:
        torch.set_num_threads(threads)
    left, earlier = [], set[Path]()
    for cell in waiting:
        of_stages = seconds[cell.variant]
        if (first := _finished(cell, out)) is None:
            # a cell takes over what another one that starts before it will have trained by then
            first = max((donor.stages if donor.run in earlier else donor.ready() for donor in donors[cell.name]), default=0)
        earlier.add(cell.folder(out).absolute())
        left.append(PlannedCell(cell.variant, cell.seed, len(of_stages), first, of_stages[first:]))
    return ComparisonPlan(len(cells), tuple(left))


def _seconds(stage: PlannedStage, train: TrainConfig, place: int) -> tuple[float, float]:
    """Return how long a stage's steps take at least and at most."""
    training = train.stage(place, stage.task.name)
    most = stage.steps * (stage.seconds or 0.0)
    if not training.patience:
        return most, most
    waits = 1 + (training.plateau_cuts if training.schedule == "plateau" else 0)
    # of a phase's epochs; train.max_steps may end it before patience does
    phases = max(1, round(stage.epochs / max(1, training.epochs)))
    least = min(stage.steps, phases * waits * training.patience * stage.steps_per_epoch)
    return least * (stage.seconds or 0.0), most


def _finished(cell: Cell, out: Path) -> int | None:
    """Return how many stages of a cell are finished; None where it has not begun."""
    from dist_teracon.train.run_folder import RunFolder

    run = RunFolder(cell.folder(out).absolute())
    if not run.exists:
        return None
    tasks = cell.config.tasks or [task["name"] for task in run.dataset_json()["tasks"]]
    return run.finished_stages(tuple(tasks))


def comparison_lines(plan: ComparisonPlan, *, where: str, parallel: int) -> list[str]:
    """Return a plan as lines for a terminal of 80 columns.

    Args:
        plan: The plan.
        where: The comparison's name.
        parallel: Cells at a time.
    """
    head = [*folded(f"dry run of {where}: nothing is written"), f"{plan.cells} cells, {plan.cells - len(plan.left)} of them finished"]
    if not plan.left:
        return [*head, "nothing is left to run"]
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in plan.left):
        own = [cell for cell in plan.left if cell.variant == variant]
        trained = f"{sum(cell.stages - cell.first for cell in own)} of {sum(cell.stages for cell in own)}"
        least, most = sum(cell.least for cell in own), sum(cell.most for cell in own)
        rows.append((cropped(variant, 30), f"{len(own)}", trained, seconds_text(least), seconds_text(most)))
    ends = []
    for seconds in ([cell.least for cell in plan.left], [cell.most for cell in plan.left]):
        ends.append((seconds_text(sum(seconds)), seconds_text(max(*seconds, sum(seconds) / parallel))))
    (first, first_here), (last, last_here) = ends
    return [
        *head,
        "",
        *table_lines(("variant", "cells", "stages to train", "at least", "at most"), rows, names=("variant",)),
        "",
        *folded(f"training steps: {first} to {last}; {first_here} to {last_here} with {parallel} at a time on this machine"),
        *folded(
            "at least: each stage ends as soon as its patience lets it; at most: none stops early. From a few real steps of each stage, "
            "once a variant, with one thread and the machine as busy as it is now. Stages that cells have in common are trained once. Not "
            "in it: pseudo-labels, linear probes, validation, scoring, baselines"
        ),
    ]
