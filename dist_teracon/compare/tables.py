"""The tables of a comparison, as Markdown: scores, transfer, and each variant against the baseline with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dist_teracon import io
from dist_teracon.compare.plan import Cell, Plan
from dist_teracon.compare.statistics import (
    Bootstrap,
    Estimate,
    Float,
    RunScores,
    backward_transfer,
    change_in_percent,
    estimate,
    pooled,
    read_run_scores,
)
from dist_teracon.errors import RunError
from dist_teracon.evaluate.metrics import parse_metric


@dataclass(frozen=True)
class Comparison:
    """Finished cells with their scores by user.

    Attributes:
        plan: What was compared.
        variants: Names, in the plan's order.
        seeds: The seeds that every variant has finished.
        bootstrap: Draws over those seeds and their users.
        tasks: Names of the tasks, in the order in which they were learned.
        metrics: By which metric each task's scores are; None where it has none that is a mean.
        split: `test` or `validation`.
        further: Final scores by the other metrics: metric -> variant -> seeds -> tasks.
    """

    plan: Plan
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    bootstrap: Bootstrap
    tasks: tuple[str, ...]
    metrics: tuple[str | None, ...]
    split: str
    further: dict[str, dict[str, list[list[float | None]]]]

    @property
    def columns(self) -> list[str]:
        """Each task with its metric."""
        return [f"{task} ({metric or 'no mean'}{_direction(metric)})" for task, metric in zip(self.tasks, self.metrics, strict=True)]

    def final(self, variant: str, task: int) -> Callable[[int], Float]:
        """Return the statistic `score of a task after the last stage`, by seed."""
        index = self.variants.index(variant)
        return lambda seed: self.bootstrap.score(seed, index, len(self.tasks) - 1, task)

    def learned(self, variant: str, task: int) -> Callable[[int], Float]:
        """Return the statistic `score of a task when it was learned`, by seed."""
        index = self.variants.index(variant)
        return lambda seed: self.bootstrap.score(seed, index, task, task)

    def bwt(self, variant: str, tasks: Sequence[int] | None = None) -> Callable[[int], Float]:
        """Return the statistic `mean BWT in percent`, by seed."""
        index, last = self.variants.index(variant), len(self.tasks) - 1
        chosen = range(last) if tasks is None else tasks
        return lambda seed: backward_transfer(self.bootstrap, seed, index, list(chosen), last)

    def fwt(self, variant: str, task: int) -> Callable[[int], Float]:
        """Return the statistic `FWT of a task in percent` against the plan's single-task variant, by seed."""
        assert self.plan.single_task is not None
        alone, together = self.learned(self.plan.single_task, task), self.learned(variant, task)
        return lambda seed: change_in_percent(together(seed), alone(seed))

    def summary(self, statistic: Callable[[int], Float]) -> Estimate:
        """Return a statistic's mean over seeds, its interval and its deviation over seeds."""
        by_seed = [float(statistic(seed)[0]) for seed in range(len(self.bootstrap.runs))]
        return estimate(self.bootstrap.over_seeds(statistic), by_seed)

    def difference(self, statistic: Callable[[int], Float], other: Callable[[int], Float]) -> Estimate:
        """Return the paired difference of two statistics."""
        return self.summary(lambda seed: statistic(seed) - other(seed))


def gather(plan: Plan, cells: Sequence[Cell], out: Path, *, finished: Callable[[Cell], bool], split: str) -> Comparison | None:
    """Read the scores of all seeds that every variant has finished; None without any.

    Raises:
        RunError: the variants differ in tasks, their order, or metrics, so their scores do not compare.
    """
    variants = tuple(plan.variants)
    by_place = {(cell.variant, cell.seed): cell for cell in cells}
    seeds = tuple(seed for seed in plan.seeds if all(finished(by_place[variant, seed]) for variant in variants))
    if not seeds:
        return None
    runs: list[list[RunScores]] = [
        [read_run_scores(by_place[variant, seed].folder(out), split=split, metrics=plan.metrics) for variant in variants] for seed in seeds
    ]
    first = runs[0][0]
    if any((run.tasks, run.metrics) != (first.tasks, first.metrics) for of_seed in runs for run in of_seed):
        raise RunError(f"{out}: the variants differ in tasks, their order, or metrics; expected the same in all")
    folders = {variant: [by_place[variant, seed].folder(out) for seed in seeds] for variant in variants}
    further = _further(folders, first, split)
    if plan.cross_fitting:
        runs = [[pooled(folds) for folds in zip(*runs, strict=True)]]
    return Comparison(plan, variants, seeds, Bootstrap(runs), first.tasks, first.metrics, split, further)


def _further(folders: dict[str, list[Path]], scores: RunScores, split: str) -> dict[str, dict[str, list[list[float | None]]]]:
    """Read the final scores by the metrics that the tables are not by."""
    key = "scores_by_metric" if split == "test" else "validation_scores_by_metric"
    last = f"{len(scores.tasks):02d}-{scores.tasks[-1]}"
    found: dict[str, dict[str, list[list[float | None]]]] = {}
    for variant, runs in folders.items():
        for run in runs:
            for name, row in io.read_json(str(run / "stages" / last / "state.json"))[key].items():
                if name not in scores.metrics and any(score is not None for score in row):
                    found.setdefault(name, {}).setdefault(variant, []).append(row)
    return found


def markdown(comparison: Comparison) -> str:
    """Return all tables of a comparison; of one task there is nothing to transfer."""
    of_several = (
        [
            "Scores when learned, R(i, i):\n\n" + _score_table(comparison, comparison.learned),
            "Transfer, %:\n\n" + _transfer_table(comparison),
            "BWT, %:\n\n" + _backward_table(comparison),
        ]
        if len(comparison.tasks) > 1
        else []
    )
    parts = [
        f"Scores on the {comparison.split} split, {_drawn(comparison)}; differences are paired.",
        comparison.plan.notes,
        "Final scores, R(M, i):\n\n" + _score_table(comparison, comparison.final),
        *of_several,
        f"Final scores less those of `{comparison.plan.baseline}`:\n\n" + _difference_table(comparison),
        _further_tables(comparison),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _drawn(comparison: Comparison) -> str:
    seeds, variants = ", ".join(map(str, comparison.seeds)), f"{len(comparison.variants)} variants"
    if comparison.plan.cross_fitting:
        return f"folds {seeds} pooled; {variants}. [95 % bootstrap interval over users]"
    return f"seeds {seeds}; {variants}. Mean ± standard deviation over seeds, [95 % bootstrap interval over users and seeds]"


def _score_table(comparison: Comparison, statistic: Callable[[str, int], Callable[[int], Float]]) -> str:
    rows = [
        [variant, *(_score(comparison.summary(statistic(variant, task))) for task in range(len(comparison.tasks)))]
        for variant in comparison.variants
    ]
    return _table(["variant", *comparison.columns], rows)


def _transfer_table(comparison: Comparison) -> str:
    columns = ["variant", "mean BWT"]
    forward = range(1, len(comparison.tasks)) if comparison.plan.single_task else range(0)
    columns += [f"FWT {comparison.tasks[task]}" for task in forward]
    rows = []
    for variant in comparison.variants:
        values = [comparison.bwt(variant), *(comparison.fwt(variant, task) for task in forward)]
        rows.append([variant, *(_percent(comparison.summary(value)) for value in values)])
    return _table(columns, rows)


def _backward_table(comparison: Comparison) -> str:
    tasks = range(len(comparison.tasks) - 1)
    rows = [
        [variant, *(_percent(comparison.summary(comparison.bwt(variant, [task]))) for task in tasks)] for variant in comparison.variants
    ]
    return _table(["variant", *(comparison.tasks[task] for task in tasks)], rows)


def _difference_table(comparison: Comparison) -> str:
    baseline = comparison.plan.baseline
    rows = []
    for variant in comparison.variants:
        if variant == baseline:
            continue
        cells = [
            _signed(comparison.difference(comparison.final(variant, task), comparison.final(baseline, task)))
            for task in range(len(comparison.tasks))
        ]
        if len(comparison.tasks) > 1:
            cells.append(_percent(comparison.difference(comparison.bwt(variant), comparison.bwt(baseline))))
        rows.append([variant, *cells])
    return _table(["variant", *comparison.columns, *(["mean BWT, %"] if len(comparison.tasks) > 1 else [])], rows)


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


def _percent(value: Estimate) -> str:
    return "–" if math.isnan(value.value) else f"{value.value:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
