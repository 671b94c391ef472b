"""The tables of a comparison, as Markdown: scores, transfer, costs, and each variant against its baseline with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from dist_teracon.compare.comparison import Comparison, Statistic
from dist_teracon.compare.costs import TaskCost, read_costs
from dist_teracon.compare.statistics import Estimate, holm
from dist_teracon.evaluate.metrics import parse_metric


def markdown(comparison: Comparison) -> str:
    """Return all tables of a comparison; of one task there is nothing to transfer."""
    parts = [
        f"Scores on the {comparison.split} split, {_drawn(comparison)}; differences are paired.",
        _orders(comparison),
        comparison.plan.notes,
        "Final scores, R(M, i):\n\n" + _score_table(comparison, comparison.final),
        *(_tables_of_several(comparison) if len(comparison.tasks) > 1 else []),
        _difference_tables(comparison),
        _further_tables(comparison),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tables_of_several(comparison: Comparison) -> list[str]:
    parts = ["Scores when learned, R(i, i):\n\n" + _score_table(comparison, comparison.learned)]
    for unit, absolute in (("%", False), ("absolute", True)):
        parts += [
            f"Transfer, {unit}:\n\n" + _transfer_table(comparison, absolute=absolute),
            f"BWT, {unit}:\n\n" + _backward_table(comparison, absolute=absolute),
        ]
    return parts


def _columns(comparison: Comparison) -> list[str]:
    """Return each task with its metric."""
    pairs = zip(comparison.tasks, comparison.metrics, strict=True)
    return [f"{task} ({metric or 'no mean'}{_direction(metric)})" for task, metric in pairs]


def _drawn(comparison: Comparison) -> str:
    seeds, variants = ", ".join(map(str, comparison.seeds)), f"{len(comparison.variants)} variants"
    if comparison.left_out:
        variants += f" (without {', '.join(comparison.left_out)}, not finished on these seeds)"
    if comparison.plan.cross_fitting:
        return f"folds {seeds} pooled; {variants}. [95 % bootstrap interval over users]"
    return f"seeds {seeds}; {variants}. Mean ± standard deviation over seeds, [95 % bootstrap interval over users and seeds]"


def _orders(comparison: Comparison) -> str:
    """Return the variants' task orders where they differ."""
    orders = {variant: comparison.order(variant) for variant in comparison.variants}
    if len(set(orders.values())) == 1:
        return ""
    title = "Tasks in the order in which each variant learned them; tables have those that all learn:"
    return f"{title}\n\n" + _table(["variant", "order"], [[variant, ", ".join(order)] for variant, order in orders.items()])


def _score_table(comparison: Comparison, statistic: Callable[[str, int], Statistic]) -> str:
    rows = [
        [variant, *(_score(comparison.summary(statistic(variant, task))) for task in range(len(comparison.tasks)))]
        for variant in comparison.variants
    ]
    return _table(["variant", *_columns(comparison)], rows)


def _transfer_table(comparison: Comparison, *, absolute: bool) -> str:
    tasks = range(len(comparison.tasks))
    of_variants = {variant: [comparison.fwt(variant, task, absolute=absolute) for task in tasks] for variant in comparison.variants}
    forward = [task for task in tasks if any(statistics[task] is not None for statistics in of_variants.values())]
    columns = ["variant", "mean BWT", *(["mean FWT"] if forward else []), *(f"FWT {comparison.tasks[task]}" for task in forward)]
    rows = []
    for variant, statistics in of_variants.items():
        values: list[Statistic | None] = [comparison.bwt(variant, absolute=absolute)]
        if forward:
            values += [comparison.mean_fwt(variant, absolute=absolute), *(statistics[task] for task in forward)]
        rows.append([variant, *(_change(comparison, value, absolute=absolute) for value in values)])
    return _table(columns, rows)


def _backward_table(comparison: Comparison, *, absolute: bool) -> str:
    places = range(len(comparison.tasks))
    # a task that every variant learns last has no BWT
    tasks = [task for task in places if any(comparison.place(variant, task) < comparison.last(variant) for variant in comparison.variants)]
    rows = [
        [variant, *(_change(comparison, comparison.bwt(variant, [task], absolute=absolute), absolute=absolute) for task in tasks)]
        for variant in comparison.variants
    ]
    return _table(["variant", *(comparison.tasks[task] for task in tasks)], rows)


def _difference_tables(comparison: Comparison) -> str:
    """Return the differences of final scores from the baselines, and their p-values corrected for their number a baseline."""
    several, tasks = len(comparison.tasks) > 1, range(len(comparison.tasks))
    name = comparison.plan.baseline
    differences: list[list[str]] = []
    found: dict[str, dict[str, list[float]]] = {}
    for variant in comparison.variants:
        baseline = comparison.plan.baseline_of(variant)
        if baseline == variant or baseline not in comparison.variants:
            continue
        pairs = [(comparison.final(variant, task), comparison.final(baseline, task)) for task in tasks]
        cells = [_signed(comparison.difference(*pair)) for pair in pairs]
        if several:
            cells.append(_percent(comparison.difference(comparison.bwt(variant), comparison.bwt(baseline))))
        differences.append([variant, *cells])
        found.setdefault(baseline, {})[variant] = [comparison.p_value(*pair) for pair in pairs]
    if not differences:
        return "" if name in comparison.variants else f"No differences: the baseline `{name}` has no finished runs of these seeds."
    parts = [
        f"Final scores less those of `{name}`:\n\n"
        + _table(["variant", *_columns(comparison), *(["mean BWT, %"] if several else [])], differences)
    ]
    for baseline, of_variants in found.items():
        parts.append(_corrected_table(comparison, baseline, of_variants))
    return "\n\n".join(parts)


def _corrected_table(comparison: Comparison, baseline: str, of_variants: dict[str, list[float]]) -> str:
    flat = [value for values in of_variants.values() for value in values]
    corrected, width = holm(flat), len(comparison.tasks)
    count = sum(not math.isnan(value) for value in flat)
    least = min(1.0, 2 * count / (comparison.bootstrap.draws + 1))
    title = (
        f"p-values of these differences from `{baseline}`, two-sided, Holm-corrected for {count} comparisons; "
        f"{comparison.bootstrap.draws} draws "
        f"tell none below {least:.2g} for the smallest:"
    )
    rows = [[variant, *map(_p, corrected[row * width : (row + 1) * width])] for row, variant in enumerate(of_variants)]
    return f"{title}\n\n" + _table(["variant", *comparison.tasks], rows)


def costs_markdown(comparison: Comparison) -> str:
    """Return the table of what each task costs each variant; empty where no run has such figures."""
    rows, known = [], False
    for variant in comparison.variants:
        of_seeds = [read_costs(run) for run in comparison.folders[variant]]
        by_task = [[costs.get(task) for costs in of_seeds] for task in comparison.order(variant)]
        known |= any(cost is not None for of_task in by_task for cost in of_task)
        cells = {task: _cost(of_task) for task, of_task in zip(comparison.order(variant), by_task, strict=True)}
        total = [_total(costs, comparison.order(variant)) for costs in of_seeds]
        rows.append([variant, *(cells[task] for task in comparison.tasks), _cost(total)])
    if not known:
        return ""
    title = (
        "Seconds of a task's stage (mean over seeds, beside other runs), parameters and bytes of weights that it adds, "
        "frozen ones and kept masks included:"
    )
    return f"{title}\n\n" + _table(["variant", *comparison.tasks, "all its tasks"], rows) + "\n"


def _total(costs: dict[str, TaskCost], order: Sequence[str]) -> TaskCost | None:
    if any(task not in costs for task in order):
        return None
    parts = [costs[task] for task in order]
    return TaskCost(sum(part.seconds for part in parts), sum(part.parameters for part in parts), sum(part.bytes for part in parts))


def _cost(of_seeds: Sequence[TaskCost | None]) -> str:
    known = [cost for cost in of_seeds if cost is not None]
    if not known:
        return "–"
    return f"{fmean(cost.seconds for cost in known):.1f} s, {known[0].parameters:,} ({_size(known[0].bytes)})"


def _size(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _further_tables(comparison: Comparison) -> str:
    """Return a table of final scores by each further metric, of the tasks that have it; without intervals."""
    parts = []
    for name, by_variant in comparison.further.items():
        of = "folds" if comparison.plan.cross_fitting else "seeds"
        tasks = [
            task for task in range(len(comparison.tasks)) if any(row[task] is not None for rows in by_variant.values() for row in rows)
        ]
        rows = [[variant, *(_mean([row[task] for row in of_variant]) for task in tasks)] for variant, of_variant in by_variant.items()]
        title = f"Further metrics, final scores, {name}{_direction(name)}, mean ± standard deviation over {of}:"
        parts.append(f"{title}\n\n" + _table(["variant", *(comparison.tasks[task] for task in tasks)], rows))
    return "\n\n".join(parts)


def _direction(metric: str | None) -> str:
    return "" if metric is None or parse_metric(metric).higher_is_better else ", lower is better"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    return f"{fmean(known):.4f}" + (f" ± {stdev(known):.4f}" if len(known) > 1 else "")


def _score(value: Estimate) -> str:
    if math.isnan(value.value):
        return "–"
    deviation = "" if value.deviation is None else f" ± {value.deviation:.4f}"
    return f"{value.value:.4f}{deviation} [{value.low:.4f}, {value.high:.4f}]"


def _signed(value: Estimate) -> str:
    return "–" if math.isnan(value.value) else f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def _change(comparison: Comparison, statistic: Statistic | None, *, absolute: bool) -> str:
    if statistic is None:
        return "–"
    return (_signed if absolute else _percent)(comparison.summary(statistic))


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _percent(value: Estimate) -> str:
    return "–" if math.isnan(value.value) else f"{value.value:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
