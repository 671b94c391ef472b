"""How a method fares as its tasks become many: backward transfer, and what a stage costs, by how many tasks have been learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from dist_teracon.compare.comparison import Comparison
from dist_teracon.compare.paces import batches_of
from dist_teracon.compare.statistics import Estimate
from dist_teracon.compare.table import NONE, Table, made, percent_cell
from dist_teracon.data.schema import folder_of
from dist_teracon.report.events import read_events

_MILESTONES = (2, 6, 12, 20, 40, 80, 160, 320)


def milestones(comparison: Comparison) -> list[int]:
    """Return after how many tasks to look: some, and after the last of the shortest run."""
    shortest = min(len(comparison.order(variant)) for variant in comparison.variants)
    return sorted({*(count for count in _MILESTONES if count <= shortest), shortest})


def transfers(comparison: Comparison) -> dict[str, list[Estimate]]:
    """Return each variant's mean BWT in percent, of all tasks before the last of so many, by milestone; above zero is better."""
    counts = milestones(comparison)
    return {variant: [comparison.summary(comparison.bwt(variant, stage=count - 1)) for count in counts] for variant in comparison.variants}


@dataclass(frozen=True)
class StageCost:
    """What the stage of a task took, over the seeds that have it.

    Attributes:
        milliseconds: Of a training step, the median of those that were logged.
        share: Replayed rows of all past tasks as a share of the batch.
        label_bytes: The pseudo-labels of all past tasks, as the stage keeps them.
    """

    milliseconds: float | None
    share: float | None
    label_bytes: float | None


def stage_costs(comparison: Comparison) -> dict[str, list[StageCost]]:
    """Return what the last stage of each milestone cost, by variant."""
    counts = milestones(comparison)
    found = {}
    for variant in comparison.variants:
        of_runs = [_costs_of(run, comparison.order(variant), counts) for run in comparison.folders[variant]]
        found[variant] = [_mean_cost(costs) for costs in zip(*of_runs, strict=True)]
    return found


def _costs_of(run: Path, order: Sequence[str], counts: Sequence[int]) -> list[StageCost]:
    log, batches = read_events(run / "events.jsonl"), batches_of(run, order)
    found = []
    for count in counts:
        task, steps = order[count - 1], log.steps_of(count)
        seconds = [step.seconds["step"] for step in steps if step.seconds.get("step")]
        batch = batches.get(task)
        folder = run / "stages" / f"{count:02d}-{folder_of(task)}" / "pseudo_labels"
        sizes = [path.stat().st_size for path in folder.rglob("*.arrow")]
        found.append(
            StageCost(
                1000 * median(seconds) if seconds else None,
                fmean(sum(step.rows.values()) / batch for step in steps) if steps and batch else None,
                float(sum(sizes)) if sizes else None,
            )
        )
    return found


def _mean_cost(costs: Sequence[StageCost]) -> StageCost:
    columns = zip(*((cost.milliseconds, cost.share, cost.label_bytes) for cost in costs), strict=True)
    known = [[value for value in column if value is not None] for column in columns]
    return StageCost(*(fmean(values) if values else None for values in known))


def many_tables(comparison: Comparison) -> list[Table]:
    """Return mean BWT and, on the test, costs by the number of tasks."""
    columns = ["variant", *map(str, milestones(comparison))]
    rows = [[variant, *map(percent_cell, values)] for variant, values in transfers(comparison).items()]
    found = [made("Mean BWT of all tasks before, after so many tasks, %:", columns, rows)]
    if comparison.split == "test":
        costs = [[variant, *map(_cost_cell, values)] for variant, values in stage_costs(comparison).items()]
        title = (
            "A training step of the last of so many tasks, ms (replayed rows of all past tasks in percent of its batch; MB of their "
            "pseudo-labels):"
        )
        found.append(made(title, columns, costs, heading="Cost of a step"))
    return found


def _cost_cell(cost: StageCost) -> str:
    if cost.milliseconds is None:
        return NONE
    share = "" if cost.share is None else f"{100 * cost.share:.0f} %"
    kept = "" if cost.label_bytes is None else f"{cost.label_bytes / 1e6:.1f} MB"
    further = "; ".join(part for part in (share, kept) if part)
    return f"{cost.milliseconds:.0f}" + (f" ({further})" if further else "")
