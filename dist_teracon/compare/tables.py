"""The tables of a comparison, as Markdown: scores, transfer, and each variant against the baseline with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Comparison:
    """Finished cells with their scores by user.

    Attributes:
        plan: What was compared.
        variants: Names, in the plan's order.
        seeds: The seeds that every variant has finished.
        bootstrap: Draws over those seeds and their users.
        tasks: Names of the tasks; the order in which they were learned is that of the first variant.
        split: `test` or `validation`.
    """

    plan: Plan
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    bootstrap: Bootstrap
    tasks: tuple[str, ...]
    split: str

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
    """Read the scores of all seeds that every variant has finished; None without any."""
    variants = tuple(plan.variants)
    by_place = {(cell.variant, cell.seed): cell for cell in cells}
    seeds = tuple(seed for seed in plan.seeds if all(finished(by_place[variant, seed]) for variant in variants))
    if not seeds:
        return None
    runs: list[list[RunScores]] = [
        [read_run_scores(by_place[variant, seed].folder(out), split=split) for variant in variants] for seed in seeds
    ]
    if plan.cross_fitting:
        runs = [[pooled(folds) for folds in zip(*runs, strict=True)]]
    return Comparison(plan, variants, seeds, Bootstrap(runs), runs[0][0].tasks, split)


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
    return _table(["variant", *comparison.tasks], rows)


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
    return _table(["variant", *comparison.tasks, *(["mean BWT, %"] if len(comparison.tasks) > 1 else [])], rows)


def _score(value: Estimate) -> str:
    deviation = "" if value.deviation is None else f" ± {value.deviation:.4f}"
    return f"{value.value:.4f}{deviation} [{value.low:.4f}, {value.high:.4f}]"


def _signed(value: Estimate) -> str:
    return f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def _percent(value: Estimate) -> str:
    return "–" if math.isnan(value.value) else f"{value.value:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
