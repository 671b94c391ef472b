"""The figures of a comparison: final scores with intervals, and the picture of its experiment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from dist_teracon.compare.comparison import Comparison
from dist_teracon.compare.experiments import changes, curves, epochs_so_far, groups_of, last_masks
from dist_teracon.compare.many_tasks import milestones, stage_costs, transfers
from dist_teracon.compare.paces import paces
from dist_teracon.compare.statistics import Estimate
from dist_teracon.evaluate.metrics import parse_metric
from dist_teracon.report.axes import MEDIUM, SMALL, cell, line, matrix_axes, name_rows
from dist_teracon.report.plot import (
    ACCENT,
    INK,
    MUTED,
    SOFT,
    Figure,
    Panel,
    Plot,
    drawing,
    series_colour,
    series_dash,
    series_key,
)
from dist_teracon.report.values import percent_text, score_text, short

# Characters of a row's name in a drawing; the tooltip has the whole.
_NAME = 26


def make_figures(comparison: Comparison) -> dict[str, Figure]:
    """Draw the final scores, and what the plan's experiment is about, by name.

    Raises:
        TeraconError: matplotlib is not installed.
    """
    experiment = comparison.plan.experiment
    builders = (final_scores, *(() if experiment is None else _BUILDERS[experiment]))
    with drawing():
        drawn = [builder(comparison) for builder in builders]
    return {figure.name: figure for figure in drawn if figure is not None}


def _tip(task: str, name: str, value: Estimate) -> str:
    return f"{task}, {name}: {score_text(value.value)} [{score_text(value.low)}, {score_text(value.high)}]"


def _row_height(rows: int) -> int:
    return 40 + 21 * rows


def final_scores(comparison: Comparison) -> Figure:
    """Final scores with their intervals, a panel a task, a row a variant."""
    panels = []
    for task, name in enumerate(comparison.tasks):
        values = [comparison.summary(comparison.final(variant, task)) for variant in comparison.variants]
        best = max((comparison.sign(task) * value.value for value in values if not math.isnan(value.value)), default=math.nan)
        with Plot(MEDIUM, _row_height(len(values)), f"Final scores of {name}") as plot:
            for row, (variant, value) in enumerate(zip(comparison.variants, values, strict=True)):
                if math.isnan(value.value):
                    continue
                is_best = comparison.sign(task) * value.value == best
                colour = ACCENT if is_best else MUTED
                plot.axes.plot([value.low, value.high], [row, row], color=colour, linewidth=1.4)
                (mark,) = plot.axes.plot([value.value], [row], "o", markersize=6 if is_best else 5, color=colour)
                plot.tip(mark, _tip(name, variant, value))
            name_rows(plot, [short(variant, _NAME) for variant in comparison.variants])
            plot.axes.locator_params(axis="x", nbins=5)
            plot.axes.grid(visible=True, axis="x")
            panels.append(plot.panel(f"{name} · {comparison.metrics[task] or 'no mean'}"))
    of_seeds = "Mean over seeds with the 95 % interval over users and seeds"
    of = "Folds pooled, with the 95 % interval over users" if comparison.plan.cross_fitting else of_seeds
    caption = f"{of}; the best score of a task has the colour. Intervals of single scores may "
    caption += "overlap where the paired difference leaves zero out: differences are in the tables."
    return Figure("final", "Final scores", caption, tuple(panels), wide=True)


def order_scores(comparison: Comparison) -> Figure | None:
    """Final scores by task order, a panel a task, a row a method, a colour an order."""
    groups = groups_of(comparison.plan, comparison.variants)
    orders = list(dict.fromkeys(order for by_order in groups.values() for order in by_order))
    panels = []
    for task, name in enumerate(comparison.tasks):
        with Plot(MEDIUM, _row_height(len(groups)), f"Final scores of {name} by order") as plot:
            for row, (group, by_order) in enumerate(groups.items()):
                values = {order: comparison.summary(comparison.final(variant, task)) for order, variant in by_order.items()}
                known = [value.value for value in values.values() if not math.isnan(value.value)]
                if known:
                    plot.axes.plot([min(known), max(known)], [row, row], color=SOFT, linewidth=4, solid_capstyle="round")
                for order, value in values.items():
                    (mark,) = plot.axes.plot([value.value], [row], "o", markersize=5.5, color=series_colour(orders.index(order)))
                    plot.tip(mark, _tip(name, f"{group}, {order}", value))
            name_rows(plot, [short(group, _NAME) for group in groups])
            plot.axes.locator_params(axis="x", nbins=5)
            plot.axes.grid(visible=True, axis="x")
            panels.append(plot.panel(f"{name} · {comparison.metrics[task] or 'no mean'}"))
    legend = tuple(series_key(order, index) for index, order in enumerate(orders))
    caption = "A dot an order, mean over seeds; the bar spans the orders. The shorter it is, the less the order matters."
    return Figure("orders", "Final scores by task order", caption, tuple(panels), legend, wide=True)


def changed_scores(comparison: Comparison) -> Figure | None:
    """Changes of final scores from the baseline in percent: a panel a baseline, a row a task, a colour an order; on one scale."""
    found = changes(comparison)
    known = [value for values in found.values() for value in values if not math.isnan(value.value)]
    if not known:
        return None
    reach = 1.08 * max(1.0, *(max(abs(value.low), abs(value.high)) for value in known))
    groups = groups_of(comparison.plan, comparison.variants)
    orders = list(dict.fromkeys(order for by_order in groups.values() for order, variant in by_order.items() if variant in found))
    panels = []
    for group, by_order in groups.items():
        height = max(_row_height(len(comparison.tasks)), 40 + 9 * len(orders) * len(comparison.tasks))
        with Plot(MEDIUM, height, f"Change of final scores, {group}") as plot:
            for order, variant in by_order.items():
                for row, value in enumerate(found.get(variant, [])):
                    place = row + (orders.index(order) - (len(orders) - 1) / 2) * 0.7 / len(orders)
                    _change_mark(plot, place, value, orders.index(order), f"{comparison.tasks[row]}, {order}")
            plot.axes.axvline(0, color=MUTED, linewidth=1)
            plot.axes.set_xlim(-reach, reach)
            name_rows(plot, [short(task, 14) for task in comparison.tasks])
            plot.axes.set_xlabel("%")
            panels.append(plot.panel(group))
    legend = tuple(series_key(order, index) for index, order in enumerate(orders))
    caption = f"Final score against that of {comparison.plan.baseline} and the same method, paired, with its 95 % interval. "
    caption += "One scale for all; pale where the interval holds zero."
    return Figure("changes", "Change of each final score", caption, tuple(panels), legend, wide=True)


def _change_mark(plot: Plot, place: float, value: Estimate, index: int, name: str) -> None:
    if math.isnan(value.value):
        return
    strength = 1.0 if value.low > 0 or value.high < 0 else 0.45
    plot.axes.plot([value.low, value.high], [place, place], color=series_colour(index), linewidth=1.6, alpha=strength)
    (mark,) = plot.axes.plot([value.value], [place], "o", markersize=4.5, color=series_colour(index), alpha=strength)
    plot.tip(mark, f"{name}: {percent_text(value.value)} [{percent_text(value.low)}, {percent_text(value.high)}]")


def sampled_scores(comparison: Comparison) -> Figure | None:
    """What sampling costs and brings: mean change of the final scores against seconds an epoch, a dot a variant."""
    tasks = [task for task in comparison.tasks if all(comparison.order(variant).index(task) > 0 for variant in comparison.variants)]
    pace, changed = paces(comparison), changes(comparison)
    points = []
    for index, variant in enumerate(comparison.variants):
        seconds = [of_task.seconds for task in tasks if (of_task := pace[variant][task]).seconds is not None]
        if not seconds:
            continue
        values = [comparison.sign(task) * value.value for task, value in enumerate(changed.get(variant, [])) if not math.isnan(value.value)]
        if not values and variant in changed:
            continue
        change = fmean(values) if values else 0.0
        shares = [of_task.share for task in tasks if (of_task := pace[variant][task]).share is not None]
        points.append((index, variant, fmean(seconds), change, fmean(shares) if shares else None))
    if not points:
        return None
    with Plot(MEDIUM + 120, 260, "Final scores against seconds an epoch") as plot:
        for index, variant, seconds_mean, change, share in points:
            (mark,) = plot.axes.plot([seconds_mean], [change], "o", markersize=8, color=series_colour(index))
            replayed = "" if share is None else f", {100 * share:.1f} % of a batch replayed"
            plot.tip(mark, f"{variant}: {seconds_mean:.2f} s an epoch{replayed}, {percent_text(change)}")
        plot.axes.axhline(0, color=MUTED, linewidth=1)
        plot.axes.set_xlim(left=0, right=1.1 * max(point[2] for point in points))
        plot.axes.margins(y=0.15)
        plot.axes.set_xlabel("seconds an epoch, mean over the tasks after the first", loc="right")
        plot.axes.set_ylabel("change, %")
        panel = plot.panel("")
    caption = f"Mean change of the final scores from {comparison.plan.baseline} in percent, against time; up and to the left is better."
    legend = tuple(series_key(variant, index) for index, variant, *_ in points)
    return Figure("sampling", "Scores and seconds by sampling", caption, (panel,), legend)


def epoch_seconds(comparison: Comparison) -> Figure | None:
    """Seconds an epoch, a panel a task after the first, a bar a variant."""
    pace, panels = paces(comparison), []
    for task in comparison.tasks:
        known = [(variant, pace[variant][task]) for variant in comparison.variants if pace[variant][task].seconds is not None]
        if not known or any(comparison.order(variant).index(task) == 0 for variant in comparison.variants):
            continue
        longest = max(of_task.seconds or 0.0 for _, of_task in known)
        with Plot(SMALL + 50, 14 + 24 * len(known), f"Seconds an epoch of {task}") as plot:
            for row, (variant, of_task) in enumerate(known):
                seconds = of_task.seconds or 0.0
                (bar,) = plot.axes.barh(row, seconds, 0.66, color=series_colour(comparison.variants.index(variant)))
                share = "" if of_task.share is None else f"\n{100 * of_task.share:.1f} % of a batch replayed"
                plot.tip(bar, f"{task}, {variant}: {seconds:.2f} s{share}")
                plot.axes.text(seconds + 0.02 * longest, row, f"{seconds:.2f}", ha="left", va="center", size=9.5, color=INK)
            plot.axes.set_xlim(0, 1.2 * longest)
            name_rows(plot, [short(variant, 18) for variant, _ in known])
            plot.axes.set_xticks([])
            plot.axes.spines["bottom"].set_visible(False)
            panels.append(plot.panel(task))
    return Figure("seconds", "Seconds an epoch", "Training and validation, mean over seeds.", tuple(panels), wide=True) if panels else None


def learning_curves(comparison: Comparison) -> Figure | None:
    """Validation score from epoch 0 on, a panel a task after the first, a line a variant."""
    panels: list[Panel] = []
    shown: set[int] = set()
    for task, by_variant in curves(comparison).items():
        metric = next((epoch.metric for epochs in by_variant.values() for epoch in epochs if epoch.metric), "score")
        with Plot(MEDIUM, 220, f"Validation score of {task} by epoch") as plot:
            for variant, epochs in by_variant.items():
                index = comparison.variants.index(variant)
                shown.add(index)
                points = [
                    (float(x), epoch.validation)
                    for x, epoch in zip(epochs_so_far(epochs), epochs, strict=True)
                    if epoch.validation is not None
                ]
                drawn = line(plot.axes, points, series_colour(index), series_dash(index))
                best = max(value for _, value in points) if parse_metric(metric).higher_is_better else min(value for _, value in points)
                plot.tip(drawn, f"{variant}: {score_text(points[0][1])} before training, best {score_text(best)}")
            plot.axes.locator_params(axis="both", nbins=5)
            plot.axes.set_xlabel("epoch", loc="right")
            panels.append(plot.panel(f"{task} · {metric}"))
    legend = tuple(series_key(comparison.variants[index], index) for index in sorted(shown))
    caption = (
        f"Epoch 0 is before training; seed {comparison.seeds[0]}. A method of two phases counts through both; the second one's start "
        "stands above the first one's last epoch."
    )
    return Figure("adaptation", "Learning a new task", caption, tuple(panels), legend, wide=True) if panels else None


def mask_similarity(comparison: Comparison) -> Figure | None:
    """Heat map of the cosines of the tasks' masks, a panel a variant, all of one shade."""
    found = last_masks(comparison)
    apart = [
        value
        for masks in found.values()
        for j, row in enumerate(masks.similarity)
        for i, value in enumerate(row)
        if i != j and value is not None
    ]
    if not apart:
        return None
    low, high = min(apart), max(apart)
    span, panels = max(high - low, 1e-3), []
    for variant, masks in found.items():
        count = len(masks.tasks)
        with Plot(96 + 54 * count, 34 + 36 * count, f"Similarity of masks, {variant}") as plot:
            matrix_axes(plot, [short(task, 14) for task in masks.tasks], [short(task, 8) for task in masks.tasks])
            for j, row in enumerate(masks.similarity):
                for i, value in enumerate(row):
                    if value is None:
                        continue
                    tip = f"{masks.tasks[j]} and {masks.tasks[i]}: {value:.4f}"
                    cell(plot, j, i, colour=ACCENT, shade=0 if i == j else 0.06 + 0.94 * (value - low) / span, tip=tip, outlined=i == j)
                    plot.axes.text(i, j, f"{value:.3f}", ha="center", va="center", size=10, color=MUTED if i == j else INK)
            panels.append(plot.panel(variant))
    caption = f"Mean cosine over the masked layers after the last stage, seed {comparison.seeds[0]}. "
    caption += f"Shade, the same in all panels: {low:.3f} to {high:.3f}."
    return Figure("similarity", "Similarity of task masks", caption, tuple(panels), wide=True)


def by_number_of_tasks(comparison: Comparison) -> Figure | None:
    """Mean BWT, and the time of a step, against the number of tasks that were learned; a line a variant."""
    counts, costs = milestones(comparison), stage_costs(comparison)
    bwt = {
        variant: [(count, value.value) for count, value in zip(counts, values, strict=True) if not math.isnan(value.value)]
        for variant, values in transfers(comparison).items()
    }
    steps = {
        variant: [(count, cost.milliseconds) for count, cost in zip(counts, of_variant, strict=True) if cost.milliseconds is not None]
        for variant, of_variant in costs.items()
    }
    panels = []
    for title, unit, by_variant in (("mean BWT, %", "%", bwt), ("a training step, ms", "ms", steps)):
        if not any(by_variant.values()):
            continue
        with Plot(MEDIUM, 220, f"{title} by the number of tasks") as plot:
            for index, (variant, points) in enumerate(by_variant.items()):
                if points:
                    drawn = line(plot.axes, points, series_colour(index), series_dash(index))
                    plot.tip(drawn, f"{variant}: " + ", ".join(f"{value:.1f} {unit} after {count}" for count, value in points))
            plot.axes.locator_params(axis="both", nbins=5)
            plot.axes.set_xlabel("tasks", loc="right")
            panels.append(plot.panel(title))
    legend = tuple(series_key(variant, index) for index, variant in enumerate(comparison.variants))
    caption = "BWT is the mean of all tasks before, paired with when they were learned; a step is one of the last task's stage."
    return Figure("many", "By the number of tasks", caption, tuple(panels), legend, wide=True) if panels else None


Builder = Callable[[Comparison], Figure | None]

_BUILDERS: dict[str, Sequence[Builder]] = {
    "reversed": (changed_scores, order_scores),
    "orders": (order_scores, changed_scores),
    "noisy": (changed_scores,),
    "sampling": (sampled_scores, epoch_seconds),
    "adaptation": (learning_curves,),
    "similarity": (mask_similarity,),
    "many": (by_number_of_tasks,),
}
