"""Differences of final scores: from the baseline and from the best other variant, with p-values corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_teracon.compare.axes import axis_of
from dist_teracon.compare.comparison import Comparison
from dist_teracon.compare.plan import Plan
from dist_teracon.compare.statistics import Estimate, holm
from dist_teracon.compare.table import Table, difference_cell, made, p_cell, percent_cell
from dist_teracon.evaluate.metrics import parse_metric

# A corrected p-value below this counts as a difference.
ALPHA = 0.05


def direction(metric: str | None) -> str:
    """Return what a reader has to know of a metric of which less is better; empty for others."""
    return "" if metric is None or parse_metric(metric).higher_is_better else ", lower is better"


def task_columns(comparison: Comparison) -> list[str]:
    """Return each task with its metric."""
    pairs = zip(comparison.tasks, comparison.metrics, strict=True)
    return [f"{task} ({metric or 'no mean'}{direction(metric)})" for task, metric in pairs]


def task_names(comparison: Comparison) -> list[str]:
    """Return each task, with its metric where less of it is better."""
    pairs = zip(comparison.tasks, comparison.metrics, strict=True)
    return [f"{task} ({metric}{direction(metric)})" if direction(metric) else task for task, metric in pairs]


def baseline_tables(comparison: Comparison) -> list[Table]:
    """Return the differences of final scores from the baselines, and their p-values corrected for their number a baseline."""
    several, tasks = len(comparison.tasks) > 1, range(len(comparison.tasks))
    differences: list[list[str]] = []
    marks: dict[tuple[int, int], str] = {}
    found: dict[str, dict[str, list[float]]] = {}
    for variant in comparison.variants:
        baseline = comparison.plan.baseline_of(variant)
        if baseline == variant or baseline not in comparison.variants:
            continue
        pairs = [(comparison.final(variant, task), comparison.final(baseline, task)) for task in tasks]
        values = [comparison.difference(*pair) for pair in pairs]
        marks |= {
            (len(differences), task + 1): word for task, value in enumerate(values) if (word := _beyond(value, comparison.sign(task)))
        }
        cells = [difference_cell(value) for value in values]
        if several:
            both = [task for task in tasks if comparison.has_bwt(variant, task) and comparison.has_bwt(baseline, task)]
            cells.append(percent_cell(comparison.difference(comparison.bwt(variant, both), comparison.bwt(baseline, both))))
        differences.append([variant, *cells])
        found.setdefault(baseline, {})[variant] = [comparison.p_value(*pair) for pair in pairs]
    if not differences:
        return []
    of_both = "; mean BWT over the tasks that neither learns last" if several and comparison.orders_differ else ""
    title = f"Final scores less those of `{comparison.plan.baseline}`{of_both}:"
    columns = ["variant", *task_columns(comparison), *(["mean BWT, %"] if several else [])]
    return [
        made(title, columns, differences, marks),
        *(_corrected(comparison, baseline, of_variants) for baseline, of_variants in found.items()),
    ]


def _beyond(value: Estimate, sign: int) -> str:
    """Return `better` or `worse` where an interval leaves zero out."""
    if math.isnan(value.value) or value.low <= 0 <= value.high:
        return ""
    return "better" if sign * value.value > 0 else "worse"


def _corrected(comparison: Comparison, baseline: str, of_variants: dict[str, list[float]]) -> Table:
    flat = [value for values in of_variants.values() for value in values]
    corrected, width = holm(flat), len(comparison.tasks)
    count = sum(not math.isnan(value) for value in flat)
    title = (
        f"p-values of these differences from `{baseline}`, two-sided, Holm-corrected for {count} comparisons; "
        f"the smallest that {comparison.bootstrap.draws} draws can give is {_least(comparison, count):.2g}:"
    )
    rows = [[variant, *map(p_cell, corrected[row * width : (row + 1) * width])] for row, variant in enumerate(of_variants)]
    return made(title, ["variant", *comparison.tasks], rows, heading=f"p-values against {baseline}")


def _least(comparison: Comparison, count: int) -> float:
    return min(1.0, 2 * count / (comparison.bootstrap.draws + 1))


@dataclass(frozen=True)
class Lead:
    """A variant's final score of a task less that of the best other.

    Attributes:
        other: The best other variant, by its mean.
        difference: Paired, with its interval.
        p: Two-sided, corrected by Holm's method for the tasks.
        word: `better` or `worse` where `p` is below `ALPHA`, else nothing.
    """

    other: str
    difference: Estimate
    p: float
    word: str


def leads(comparison: Comparison, rivals: Mapping[str, Sequence[str]] | None = None) -> dict[str, list[Lead | None]]:
    """Hold each variant against the best of the others, task by task; None where a task has no score.

    Where nobody has two others at least there is no best one, and the result is empty.

    Args:
        comparison: The comparison.
        rivals: By variant the others that it is held against; those of `rivals_of` for all variants where none are given.
    """
    found: dict[str, list[Lead | None]] = {}
    if rivals is None:
        rivals = {variant: rivals_of(comparison.plan, variant, comparison.variants) for variant in comparison.variants}
    if max(map(len, rivals.values()), default=0) < 2:
        return {}
    finals = {
        variant: [comparison.summary(comparison.final(variant, task)).value for task in range(len(comparison.tasks))]
        for variant in {*rivals, *(other for others in rivals.values() for other in others)}
    }
    for variant, others in rivals.items():
        if not others:
            continue
        row: list[tuple[str, Estimate, float] | None] = []
        for task in range(len(comparison.tasks)):
            sign = comparison.sign(task)
            known = [(sign * finals[name][task], name) for name in others if not math.isnan(finals[name][task])]
            if math.isnan(finals[variant][task]) or not known:
                row.append(None)
                continue
            other = max(known)[1]
            pair = comparison.final(variant, task), comparison.final(other, task)
            row.append((other, comparison.difference(*pair), comparison.p_value(*pair)))
        corrected = holm([math.nan if entry is None else entry[2] for entry in row])
        found[variant] = [
            None if entry is None else _lead(entry[0], entry[1], p, comparison.sign(task))
            for task, (entry, p) in enumerate(zip(row, corrected, strict=True))
        ]
    return found


def _lead(other: str, difference: Estimate, p: float, sign: int) -> Lead:
    word = "" if not p < ALPHA else "better" if sign * difference.value > 0 else "worse"
    return Lead(other, difference, p, word)


def is_reference(plan: Plan, variant: str) -> bool:
    """Return whether a variant is a line of reference, against which no other is held."""
    named, point = set(plan.references), plan.points.get(variant)
    return variant in named or (point is not None and not named.isdisjoint(point.labels.values()))


def rivals_of(plan: Plan, variant: str, there: Sequence[str]) -> list[str]:
    """Return the variants that a variant is held against: no references, and like it on all axes but the baseline's."""
    points = plan.points
    others = [name for name in there if name != variant and not is_reference(plan, name)]
    axis = axis_of(points, plan.baseline)
    rest = {name: tuple(label for key, label in point.labels.items() if key != axis) for name, point in points.items()}
    if axis is None or len(set(rest.values())) == 1:
        return others
    return [name for name in others if name in rest and rest[name] == rest.get(variant)]


def best_other_table(comparison: Comparison, rivals: Mapping[str, Sequence[str]] | None = None) -> Table | None:
    """Return each variant against the best other, task by task; None where there is none. Arguments as of `leads`."""
    found = leads(comparison, rivals)
    if not found:
        return None
    rows: list[list[str]] = []
    marks: dict[tuple[int, int], str] = {}
    for variant, of_tasks in found.items():
        marks |= {(len(rows), task + 1): lead.word for task, lead in enumerate(of_tasks) if lead is not None and lead.word}
        rows.append([variant, *(_lead_cell(lead) for lead in of_tasks)])
    references = f" ({', '.join(comparison.plan.references)}: for reference, and no other)" if comparison.plan.references else ""
    title = (
        f"Final scores less those of the best other variant{references}, p Holm-corrected for the row's {_tasks_with_p(found)} tasks. "
        "The best other is chosen by its mean on the same users, which favours it a little:"
    )
    return made(title, ["variant", *task_columns(comparison)], rows, marks, heading="Against the best other variant")


def _tasks_with_p(found: dict[str, list[Lead | None]]) -> int:
    return max(sum(lead is not None and not math.isnan(lead.p) for lead in of_tasks) for of_tasks in found.values())


def _lead_cell(lead: Lead | None) -> str:
    return "–" if lead is None else f"{difference_cell(lead.difference)} p {p_cell(lead.p)}, {lead.other}"
