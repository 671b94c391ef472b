"""The tables of a comparison: scores, transfer, costs, and each variant against its baseline and the best other, with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from dist_teracon.compare.comparison import Comparison, Statistic
from dist_teracon.compare.costs import TaskCost, read_costs
from dist_teracon.compare.differences import baseline_tables, best_other_table, direction, task_columns
from dist_teracon.compare.experiments import experiment_tables
from dist_teracon.compare.published import published_tables
from dist_teracon.compare.table import NONE, Table, difference_cell, made, percent_cell, score_cell


@dataclass(frozen=True)
class Tables:
    """The tables of one split.

    Attributes:
        drawn: On what they are, and how intervals are drawn.
        orders: The variants' task orders, where they differ.
        scores: Final scores, and published ones beside them.
        experiment: What the plan's experiment is about.
        transfer: Scores when learned, FWT and BWT.
        differences: From the best other and from the baseline.
        further: Final scores by the metrics that the others are not by.
        missing: Why there are no differences; empty where there are.
    """

    drawn: str
    orders: list[Table]
    scores: list[Table]
    experiment: list[Table]
    transfer: list[Table]
    differences: list[Table]
    further: list[Table]
    missing: str


def tables_of(comparison: Comparison) -> Tables:
    """Make all tables of a comparison; of one task there is nothing to transfer."""
    differences, name = baseline_tables(comparison), comparison.plan.baseline
    missing = ""
    if not differences and not any(comparison.plan.baseline_of(variant) in comparison.variants for variant in comparison.variants):
        missing = f"No differences: the baseline `{name}` has no finished runs of these seeds."
    elif not differences:
        missing = f"No differences: beside the baseline `{name}` nothing has finished on these seeds."
    best = best_other_table(comparison) if comparison.plan.experiment is None else None
    return Tables(
        drawn=f"Scores on the {comparison.split} split, {_drawn(comparison)}; differences are paired.{_learned_together(comparison)}",
        orders=_orders(comparison),
        scores=[score_table(comparison, "Final scores, R(M, i):", comparison.final), *published_tables(comparison)],
        experiment=experiment_tables(comparison),
        transfer=_transfer_tables(comparison) if len(comparison.tasks) > 1 else [],
        differences=[*([] if best is None else [best]), *differences],
        further=_further_tables(comparison),
        missing=missing,
    )


def markdown(comparison: Comparison, tables: Tables | None = None) -> str:
    """Return all tables of a comparison as Markdown."""
    found = tables or tables_of(comparison)
    parts = [
        found.drawn,
        *(table.markdown() for table in found.orders),
        comparison.plan.notes,
        *(table.markdown() for table in (*found.scores, *found.experiment, *found.transfer, *found.differences)),
        found.missing,
        *(table.markdown() for table in found.further),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _transfer_tables(comparison: Comparison) -> list[Table]:
    found = [score_table(comparison, "Scores when learned, R(i, i):", comparison.learned)]
    for absolute in (False, True):
        found += [transfer_table(comparison, absolute=absolute), *_backward_table(comparison, absolute=absolute)]
    return found


def _drawn(comparison: Comparison) -> str:
    seeds, variants = ", ".join(map(str, comparison.seeds)), f"{len(comparison.variants)} variants"
    if comparison.left_out:
        variants += f" (without {', '.join(comparison.left_out)}, not finished on these seeds)"
    if comparison.plan.cross_fitting:
        return f"folds {seeds} pooled; {variants}. [95 % bootstrap interval over users]"
    if len(comparison.seeds) == 1:
        return f"seed {seeds}; {variants}. [95 % bootstrap interval over users]"
    return f"seeds {seeds}; {variants}. Mean ± standard deviation over seeds, [95 % bootstrap interval over users and seeds]"


def _learned_together(comparison: Comparison) -> str:
    """Return why some variants have no transfer; empty where all learn one task after another."""
    names = ", ".join(comparison.joint)
    return f" Learned together: all tasks of {names} but the first, so they have no FWT and no BWT." if names else ""


def _orders(comparison: Comparison) -> list[Table]:
    """Return the variants' task orders where they differ."""
    if not comparison.orders_differ:
        return []
    orders = {variant: comparison.order(variant) for variant in comparison.variants}
    title = "Tasks in the order in which each variant learned them; tables have those that all learn:"
    return [made(title, ["variant", "order"], [[variant, ", ".join(order)] for variant, order in orders.items()])]


def score_table(
    comparison: Comparison, title: str, statistic: Callable[[str, int], Statistic], *, variants: Sequence[str] | None = None
) -> Table:
    """Return a table of scores with a variant a row, and the best of each task marked; of all variants where none are given."""
    tasks, rows_of = range(len(comparison.tasks)), comparison.variants if variants is None else variants
    values = [[comparison.summary(statistic(variant, task)) for task in tasks] for variant in rows_of]
    marks: dict[tuple[int, int], str] = {}
    for task in tasks if len(values) > 1 else ():
        column = [comparison.sign(task) * row[task].value for row in values]
        best = max((value for value in column if not math.isnan(value)), default=math.nan)
        marks |= {(row, task + 1): "best" for row, value in enumerate(column) if value == best}
    rows = [[variant, *map(score_cell, row)] for variant, row in zip(rows_of, values, strict=True)]
    return made(title, ["variant", *task_columns(comparison)], rows, marks)


def transfer_table(comparison: Comparison, *, absolute: bool = False, variants: Sequence[str] | None = None) -> Table:
    """Return mean BWT and FWT with a variant a row, and FWT of each task; of all variants where none are given."""
    tasks, rows_of = range(len(comparison.tasks)), comparison.variants if variants is None else variants
    of_variants = {variant: [comparison.fwt(variant, task, absolute=absolute) for task in tasks] for variant in rows_of}
    forward = [task for task in tasks if any(statistics[task] is not None for statistics in of_variants.values())]
    columns = ["variant", "mean BWT", *(["mean FWT"] if forward else []), *(f"FWT {comparison.tasks[task]}" for task in forward)]
    rows = []
    for variant, statistics in of_variants.items():
        values: list[Statistic | None] = [comparison.bwt(variant, absolute=absolute)]
        if forward:
            values += [comparison.mean_fwt(variant, absolute=absolute), *(statistics[task] for task in forward)]
        rows.append([variant, *(_change(comparison, value, absolute=absolute) for value in values)])
    own = "; means are of a variant's own tasks, BWT of all but its last, FWT of all but its first" if comparison.orders_differ else ""
    if split := [task for task, metric in zip(comparison.tasks, comparison.metrics, strict=True) if metric is None]:
        own += f"; without {', '.join(split)}, which no metric judges that is a mean"
    return made(f"Transfer, {_unit(comparison, absolute=absolute)}{own}:", columns, rows)


def _backward_table(comparison: Comparison, *, absolute: bool) -> list[Table]:
    places = range(len(comparison.tasks))
    # a task that every variant learns last has no BWT
    tasks = [task for task in places if any(comparison.has_bwt(variant, task) for variant in comparison.variants)]
    rows = [
        [variant, *(_change(comparison, comparison.bwt(variant, [task], absolute=absolute), absolute=absolute) for task in tasks)]
        for variant in comparison.variants
    ]
    title = f"BWT, {_unit(comparison, absolute=absolute)}:"
    return [made(title, ["variant", *(comparison.tasks[task] for task in tasks)], rows)] if tasks else []


def _unit(comparison: Comparison, *, absolute: bool) -> str:
    lower = dict.fromkeys(metric for metric in comparison.metrics if direction(metric))
    turned = f", above zero is better, of {', '.join(map(str, lower))} too" if lower else ""
    return f"{'absolute' if absolute else '%'}{turned}"


def _change(comparison: Comparison, statistic: Statistic | None, *, absolute: bool) -> str:
    if statistic is None:
        return NONE
    return (difference_cell if absolute else percent_cell)(comparison.summary(statistic))


def costs_table(comparison: Comparison) -> Table | None:
    """Return what each task costs each variant; None where no run has such figures."""
    rows: list[list[str]] = []
    found = {variant: [read_costs(run) for run in comparison.folders[variant]] for variant in comparison.variants}
    for variant, of_seeds in found.items():
        cells = {task: _cost([costs.get(task) for costs in of_seeds]) for task in comparison.order(variant)}
        total = [_total(costs, comparison.order(variant)) for costs in of_seeds]
        rows.append([variant, *(cells[task] for task in comparison.tasks), _cost(total)])
    if not any(cost for of_seeds in found.values() for cost in of_seeds):
        return None
    of = "folds" if comparison.plan.cross_fitting else "seeds"
    title = (
        f"Seconds of a task's stage (mean over {of}, beside other runs), parameters and bytes of weights that it adds, "
        f"frozen ones and kept masks included{_shared(found)}{_trained_at_once(comparison)}:"
    )
    return made(title, ["variant", *comparison.tasks, "all its tasks"], rows, heading="Time and weights of each task")


def _shared(found: dict[str, list[dict[str, TaskCost]]]) -> str:
    """Return how many stages were not trained by their own cells, which copies of their measured time tell."""
    measured = [
        (cost.taken_over, (number, place, task, cost.stage_time))
        for of_seeds in found.values()
        for number, costs in enumerate(of_seeds)
        for place, (task, cost) in enumerate(costs.items())
    ]
    own = {stage for taken, stage in measured if not taken}  # each once: runs of before did not note what they took over
    copies = len(measured) - len(own)
    return f". {copies} of {len(measured)} stages were taken over from another run, and have the seconds that it took" if copies else ""


def _trained_at_once(comparison: Comparison) -> str:
    names = ", ".join(f"`{name}`" for name in comparison.joint)
    return f". {names}: all tasks but the first are trained in the second's stage" if names else ""


def _total(costs: dict[str, TaskCost], order: Sequence[str]) -> TaskCost | None:
    if any(task not in costs for task in order):
        return None
    parts = [costs[task] for task in order]
    return TaskCost(sum(part.seconds for part in parts), sum(part.parameters for part in parts), sum(part.bytes for part in parts))


def _cost(of_seeds: Sequence[TaskCost | None]) -> str:
    known = [cost for cost in of_seeds if cost is not None]
    if not known:
        return NONE
    part = f", of {len(known)} of {len(of_seeds)} runs" if len(known) < len(of_seeds) else ""
    return f"{fmean(cost.seconds for cost in known):.1f} s, {known[0].parameters:,} ({_size(known[0].bytes)}){part}"


def _size(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _further_tables(comparison: Comparison) -> list[Table]:
    """Return a table of final scores by each further metric, of the tasks that have it; without intervals."""
    found = []
    for name, by_variant in comparison.further.items():
        of = "folds" if comparison.plan.cross_fitting else "seeds"
        tasks = [
            task for task in range(len(comparison.tasks)) if any(row[task] is not None for rows in by_variant.values() for row in rows)
        ]
        rows = [[variant, *(_mean([row[task] for row in of_variant]) for task in tasks)] for variant, of_variant in by_variant.items()]
        title = f"Further metrics, final scores, {name}{direction(name)}, mean ± standard deviation over {of}:"
        found.append(made(title, ["variant", *(comparison.tasks[task] for task in tasks)], rows))
    return found


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return NONE
    return f"{fmean(known):.4f}" + (f" ± {stdev(known):.4f}" if len(known) > 1 else "")
