"""What a plan's experiment is about, as tables: changes with a task order, their spread, costs of sampling, learning curves, similarity.

The figures of the same numbers are in `compare/experiment_figures.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from dist_teracon.compare.axes import ORDER
from dist_teracon.compare.comparison import Comparison, Statistic
from dist_teracon.compare.differences import task_names
from dist_teracon.compare.many_tasks import many_tables
from dist_teracon.compare.paces import Pace, paces
from dist_teracon.compare.plan import Plan
from dist_teracon.compare.statistics import Estimate, change_in_percent
from dist_teracon.compare.table import NONE, Table, made, percent_cell
from dist_teracon.evaluate.metrics import parse_metric
from dist_teracon.report.events import Epoch, Events, Masks, read_events


def experiment_tables(comparison: Comparison) -> list[Table]:
    """Return the tables of a comparison's experiment; empty where its plan names none."""
    experiment = comparison.plan.experiment
    return [] if experiment is None else _TABLES[experiment](comparison)


def groups_of(plan: Plan, variants: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return the variants that differ in their task order alone: a group's name to its orders' labels and variants.

    A group's name has the labels of all other axes on which there are several.
    """
    points = plan.points
    labels = {axis: {point.labels[axis] for point in points.values()} for axis in next(iter(points.values())).labels}
    naming = [axis for axis, known in labels.items() if axis != ORDER and len(known) > 1] or [axis for axis in labels if axis != ORDER][:1]
    groups: dict[str, dict[str, str]] = {}
    for variant in variants:
        if variant in points:
            own = points[variant].labels
            groups.setdefault("+".join(own[axis] for axis in naming) or "all", {})[own[ORDER]] = variant
    return groups


def changes(comparison: Comparison) -> dict[str, list[Estimate]]:
    """Return the change of each final score from the variant's baseline in percent, paired, task by task."""
    found = {}
    for variant in comparison.variants:
        baseline = comparison.plan.baseline_of(variant)
        if baseline is not None and baseline != variant and baseline in comparison.variants:
            tasks = range(len(comparison.tasks))
            found[variant] = [
                comparison.summary(_percent(comparison.final(variant, task), comparison.final(baseline, task))) for task in tasks
            ]
    return found


def _percent(value: Statistic, before: Statistic) -> Statistic:
    return lambda seed: change_in_percent(value(seed), before(seed))


def _change_tables(comparison: Comparison) -> list[Table]:
    rows = [[variant, *map(percent_cell, values)] for variant, values in changes(comparison).items()]
    title = f"Change of each final score from that of `{comparison.plan.baseline}` and the same method, %, paired:"
    return [made(title, ["variant", *task_names(comparison)], rows)] if rows else []


def _order_tables(comparison: Comparison) -> list[Table]:
    return [*_change_tables(comparison), *_spread_table(comparison)]


def spreads(comparison: Comparison) -> dict[str, list[tuple[float, float]]]:
    """Return how far final scores lie apart over task orders, a group and task: their range and their deviation in percent of the mean."""
    found = {}
    for group, by_order in groups_of(comparison.plan, comparison.variants).items():
        if len(by_order) > 1:
            found[group] = [_spread(comparison, list(by_order.values()), task) for task in range(len(comparison.tasks))]
    return found


def _spread(comparison: Comparison, variants: list[str], task: int) -> tuple[float, float]:
    scores = [comparison.summary(comparison.final(variant, task)).value for variant in variants]
    mean = fmean(scores)
    if not mean > 0:
        return math.nan, math.nan
    return 100 * (max(scores) - min(scores)) / mean, 100 * stdev(scores) / mean


def _spread_table(comparison: Comparison) -> list[Table]:
    rows = []
    for group, of_tasks in spreads(comparison).items():
        known = [pair for pair in of_tasks if not math.isnan(pair[0])]
        mean = tuple(map(fmean, zip(*known, strict=True))) if known else (math.nan, math.nan)
        rows.append([group, *(_spread_cell(*pair) for pair in (*of_tasks, (mean[0], mean[1])))])
    orders = max(map(len, groups_of(comparison.plan, comparison.variants).values()), default=0)
    title = f"Spread of final scores over {orders} orders, in percent of their mean: range (standard deviation):"
    return [made(title, ["variants", *comparison.tasks, "mean"], rows)] if rows else []


def _spread_cell(width: float, deviation: float) -> str:
    return NONE if math.isnan(width) else f"{width:.1f} ({deviation:.1f})"


def _sampling_tables(comparison: Comparison) -> list[Table]:
    found = _change_tables(comparison)
    if comparison.split != "test":
        return found
    pace = paces(comparison)
    cells = {
        variant: [_pace_cell(of_tasks[task]) for task in comparison.tasks] for variant, of_tasks in pace.items()
    }  # fmt: skip
    title = "Seconds an epoch (with its validation), and replayed rows of all past tasks in percent of the batch:"
    return [*found, made(title, ["variant", *comparison.tasks], [[variant, *row] for variant, row in cells.items()])]


def _pace_cell(pace: Pace) -> str:
    if pace.seconds is None:
        return NONE
    return f"{pace.seconds:.2f} s" + ("" if pace.share is None else f" ({100 * pace.share:.1f} %)")


def curves(comparison: Comparison) -> dict[str, dict[str, list[Epoch]]]:
    """Return validation scores epoch by epoch of each task behind the first: task to variant to the epochs of the first seed's run."""
    logs = {variant: read_events(comparison.folders[variant][0] / "events.jsonl") for variant in comparison.variants}
    found: dict[str, dict[str, list[Epoch]]] = {}
    for task in comparison.tasks:
        for variant, log in logs.items():
            if comparison.order(variant).index(task) > 0 and (epochs := _of_task(log, task)):
                found.setdefault(task, {})[variant] = epochs
    return found


def _of_task(log: Events, task: str) -> list[Epoch]:
    stage = next((number for number, name in log.stages.items() if name == task), None)
    return [] if stage is None else [epoch for epoch in log.epochs_of(stage) if epoch.validation is not None]


def epochs_so_far(epochs: Sequence[Epoch]) -> list[int]:
    """Return how many epochs a task has been trained at each of a stage's scores; a later phase's start adds none."""
    counts, before = [], 0
    for place, epoch in enumerate(epochs):
        if place and epoch.phase != epochs[place - 1].phase:
            before += epochs[place - 1].epoch
        counts.append(before + epoch.epoch)
    return counts


def _adaptation_tables(comparison: Comparison) -> list[Table]:
    if comparison.split != "test":
        return []
    known = curves(comparison)
    rows = [
        [variant, *(_curve_cell(known[task].get(variant, [])) for task in known)]
        for variant in comparison.variants
        if any(variant in of_task for of_task in known.values())
    ]
    title = f"Validation score before training, after epoch 1, and at its best (epoch), seed {comparison.seeds[0]}:"
    return [made(title, ["variant", *known], rows)] if rows else []


def _curve_cell(epochs: list[Epoch]) -> str:
    scores = [epoch.validation for epoch in epochs if epoch.validation is not None]
    if not scores:
        return NONE
    counts = epochs_so_far(epochs)
    first = f"{scores[1]:.4f}" if len(scores) > 1 else NONE
    metric = next((epoch.metric for epoch in epochs if epoch.metric), None)
    sign = 1 if metric is None or parse_metric(metric).higher_is_better else -1
    place = max(range(len(scores)), key=lambda epoch: sign * scores[epoch])
    return f"{scores[0]:.4f}, {first}, {scores[place]:.4f} ({counts[place]})"


def last_masks(comparison: Comparison) -> dict[str, Masks]:
    """Return the masks of each variant's first seed after its last stage; variants without masks have none."""
    found = {variant: read_events(comparison.folders[variant][0] / "events.jsonl").masks for variant in comparison.variants}
    return {variant: masks[-1] for variant, masks in found.items() if masks and len(masks[-1].tasks) > 1}


def _similarity_tables(comparison: Comparison) -> list[Table]:
    if comparison.split != "test":
        return []
    return [
        made(
            f"Cosine of the tasks' masks, mean over masked layers, `{variant}`, seed {comparison.seeds[0]}:",
            ["task", *masks.tasks],
            [
                [task, *(NONE if value is None else f"{value:.4f}" for value in row)]
                for task, row in zip(masks.tasks, masks.similarity, strict=True)
            ],
        )
        for variant, masks in last_masks(comparison).items()
    ]


_TABLES: dict[str, Callable[[Comparison], list[Table]]] = {
    "reversed": _order_tables,
    "orders": _order_tables,
    "noisy": _change_tables,
    "sampling": _sampling_tables,
    "adaptation": _adaptation_tables,
    "many": many_tables,
    "similarity": _similarity_tables,
}
