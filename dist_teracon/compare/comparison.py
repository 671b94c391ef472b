"""Finished cells of a comparison with their scores by user, and the statistics of variants that tables are made of.

Variants may learn their tasks in different orders, and some may learn more of them: what is compared are the tasks that all have, by
name. Where a task stands in a variant's order follows from the variant's own runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
    metrics_of_runs,
    p_value,
    pooled,
    read_run_scores,
)
from dist_teracon.config.run import RunConfig
from dist_teracon.data.schema import folder_of
from dist_teracon.errors import RunError
from dist_teracon.evaluate.metrics import parse_metric

Statistic = Callable[[int], Float]


@dataclass(frozen=True)
class Comparison:
    """Finished cells with their scores by user.

    Attributes:
        plan: What was compared.
        variants: Names, in the plan's order, of those that have finished `seeds`.
        left_out: Variants that have not, and why they are in no table.
        seeds: The seeds that every one of `variants` has finished.
        bootstrap: Draws over those seeds and their users.
        tasks: Names of the tasks that all variants have, in the order of the first variant.
        metrics: By which metric each task's scores are; None where it has none that is a mean.
        split: `test` or `validation`.
        further: Final scores by the other metrics: metric -> variant -> seeds -> tasks.
        folders: The runs of each variant, one a seed.
        configs: A configuration of every variant of the plan.
    """

    plan: Plan
    variants: tuple[str, ...]
    left_out: tuple[str, ...]
    seeds: tuple[int, ...]
    bootstrap: Bootstrap
    tasks: tuple[str, ...]
    metrics: tuple[str | None, ...]
    split: str
    further: dict[str, dict[str, list[list[float | None]]]]
    folders: dict[str, list[Path]]
    configs: dict[str, RunConfig]

    @cached_property
    def joint(self) -> tuple[str, ...]:
        """The variants whose method learns later tasks together, so that nothing is transferred from one to the next."""
        from dist_teracon.continual.registry import method_class

        return tuple(name for name in self.variants if not method_class(self.configs[name].method["name"]).stages_stand_alone)

    def sign(self, task: int) -> int:
        """Return 1 for a task of which more is better, −1 for one of which less is."""
        metric = self.metrics[task]
        return 1 if metric is None or parse_metric(metric).higher_is_better else -1

    def order(self, variant: str) -> tuple[str, ...]:
        """Return a variant's tasks in the order in which it learned them."""
        return self.bootstrap.runs[0][self.variants.index(variant)].tasks

    @property
    def orders_differ(self) -> bool:
        """Whether some variants have learned other tasks than others, or in another order."""
        return len({self.order(variant) for variant in self.variants}) > 1

    def place(self, variant: str, task: int) -> int:
        """Return the position of a task in a variant's order, from 0."""
        return self.order(variant).index(self.tasks[task])

    def last(self, variant: str) -> int:
        """Return the position of a variant's last task."""
        return len(self.order(variant)) - 1

    def final(self, variant: str, task: int) -> Statistic:
        """Return the statistic `score of a task after the last stage`, by seed."""
        index, last, place = self.variants.index(variant), self.last(variant), self.place(variant, task)
        return lambda seed: self.bootstrap.score(seed, index, last, place)

    def learned(self, variant: str, task: int) -> Statistic:
        """Return the statistic `score of a task when it was learned`, by seed."""
        index, place = self.variants.index(variant), self.place(variant, task)
        return lambda seed: self.bootstrap.score(seed, index, place, place)

    def has_bwt(self, variant: str, task: int) -> bool:
        """Return whether a variant learns other tasks after this one, one by one."""
        return variant not in self.joint and self.place(variant, task) < self.last(variant)

    def bwt(
        self, variant: str, tasks: Sequence[int] | None = None, *, absolute: bool = False, stage: int | None = None
    ) -> Statistic:  # fmt: skip
        """Return the statistic `mean BWT` of the tasks that have it, in percent unless `absolute`, by seed; above zero is better.

        The task that a variant learns last has none, and no task of a variant that learns them together.

        Args:
            variant: Whose.
            tasks: Of which of the common tasks; None for all.
            absolute: As differences of scores.
            stage: After the task at this place of the variant's order, from 0; None for its last.
        """
        index, last = self.variants.index(variant), self.last(variant) if stage is None else stage
        signs = {
            self.place(variant, task): self.sign(task)
            for task in (range(len(self.tasks)) if tasks is None else tasks)
            if self.has_bwt(variant, task) and self.place(variant, task) < last and self.metrics[task] is not None
        }

        def mean(seed: int) -> Float:
            changes = [
                sign * backward_transfer(self.bootstrap, seed, index, place, last, absolute=absolute) for place, sign in signs.items()
            ]
            return np.mean(changes, axis=0) if changes else np.full(self.bootstrap.draws + 1, np.nan)

        return mean

    def fwt(self, variant: str, task: int, *, absolute: bool = False) -> Statistic | None:
        """Return the statistic `FWT of a task` against the variant that learns it alone, in percent unless `absolute`, by seed.

        Above zero is better. None for the task that a variant learns first, for one that learns its tasks together, and where no variant
        that learns them alone is there.
        """
        single, sign = self.plan.single_task_of(variant), self.sign(task)
        if single not in self.variants or variant in self.joint or self.place(variant, task) == 0:
            return None
        alone, together = self.learned(single, task), self.learned(variant, task)
        if absolute:
            return lambda seed: sign * (together(seed) - alone(seed))
        return lambda seed: sign * change_in_percent(together(seed), alone(seed))

    def mean_fwt(self, variant: str, *, absolute: bool = False) -> Statistic | None:
        """Return the statistic `mean FWT` over the tasks that have one; None where none has."""
        of_tasks = [self.fwt(variant, task, absolute=absolute) for task in range(len(self.tasks)) if self.metrics[task] is not None]
        known = [statistic for statistic in of_tasks if statistic is not None]
        return (lambda seed: np.mean([statistic(seed) for statistic in known], axis=0)) if known else None

    def summary(self, statistic: Statistic) -> Estimate:
        """Return a statistic's mean over seeds, its interval and its deviation over seeds."""
        by_seed = [float(statistic(seed)[0]) for seed in range(len(self.bootstrap.runs))]
        return estimate(self.bootstrap.over_seeds(statistic), by_seed)

    def difference(self, statistic: Statistic, other: Statistic) -> Estimate:
        """Return the paired difference of two statistics."""
        return self.summary(lambda seed: statistic(seed) - other(seed))

    def p_value(self, statistic: Statistic, other: Statistic) -> float:
        """Return the two-sided p-value of the paired difference of two statistics, not corrected."""
        return p_value(self.bootstrap.over_seeds(lambda seed: statistic(seed) - other(seed)))


def gather(plan: Plan, cells: Sequence[Cell], out: Path, *, finished: Callable[[Cell], bool], split: str) -> Comparison | None:
    """Read the scores of all seeds that every variant has finished; None without any.

    Where there is no such seed, the variants that have finished the fewest are left out, so that one that fails does not hide the others.

    Raises:
        RunError: the variants have no task in common, or a task's scores are by different metrics.
    """
    by_place = {(cell.variant, cell.seed): cell for cell in cells}
    done = {variant: {seed for seed in plan.seeds if finished(by_place[variant, seed])} for variant in plan.variants}
    variants = _with_common_seeds(done)
    if not variants:
        return None
    seeds = tuple(seed for seed in plan.seeds if all(seed in done[variant] for variant in variants))
    folders = {variant: [by_place[variant, seed].folder(out) for seed in seeds] for variant in variants}
    known = metrics_of_runs([run for of_variant in folders.values() for run in of_variant])
    runs = [
        [read_run_scores(folders[variant][number], split=split, metrics=plan.metrics, known=known) for variant in variants]
        for number in range(len(seeds))
    ]
    tasks = _common_tasks(runs, out)
    for seed, of_seed in zip(seeds, runs, strict=True):
        _check_paired(dict(zip(variants, of_seed, strict=True)), tasks, where=f"{out}, seed {seed}")
    metrics = dict(zip(runs[0][0].tasks, runs[0][0].metrics, strict=True))
    further = {variant: [_further(run, tasks, metrics, split) for run in of_variant] for variant, of_variant in folders.items()}
    if plan.cross_fitting:
        runs = [[pooled(folds) for folds in zip(*runs, strict=True)]]
    left_out = tuple(variant for variant in plan.variants if variant not in variants)
    by_metric = _by_metric(further)
    return Comparison(
        plan, variants, left_out, seeds, Bootstrap(runs), tasks, tuple(metrics[task] for task in tasks), split, by_metric, folders,
        configs={cell.variant: cell.config for cell in cells},
    )  # fmt: skip


def _with_common_seeds(done: dict[str, set[int]]) -> tuple[str, ...]:
    """Return the variants that are left once those with the fewest finished seeds are gone, until one seed is common to all."""
    left = dict(done)
    while left and not set.intersection(*left.values()):
        fewest = min(map(len, left.values()))
        left = {variant: seeds for variant, seeds in left.items() if len(seeds) > fewest}
    return tuple(left)


def _common_tasks(runs: Sequence[Sequence[RunScores]], out: Path) -> tuple[str, ...]:
    """Return the tasks that all runs have, in the first one's order."""
    everyone = [run for of_seed in runs for run in of_seed]
    first = everyone[0]
    tasks = tuple(task for task in first.tasks if all(task in run.tasks for run in everyone))
    if not tasks:
        raise RunError(f"{out}: the variants have no task in common, so there is nothing to compare")
    if any(any(other.tasks != run.tasks for other in column) for column in zip(*runs, strict=True) for run in column[:1]):
        raise RunError(f"{out}: the seeds of a variant differ in tasks or their order; expected the same in all")
    for task in tasks:
        found = {run.metrics[run.tasks.index(task)] for run in everyone}
        if len(found) > 1:
            raise RunError(f"{out}: the scores of task '{task}' are by different metrics ({', '.join(map(str, found))}); expected one")
    return tasks


def _check_paired(runs: Mapping[str, RunScores], tasks: Sequence[str], *, where: str) -> None:
    """Check that a seed's runs score the same examples of each common task, without which no difference is paired."""
    (first, before), *others = runs.items()
    for variant, run in others:
        for task in tasks:
            for when in ("", " when it was learned"):
                if not all(map(np.array_equal, _examples(before, task, learned=bool(when)), _examples(run, task, learned=bool(when)))):
                    raise RunError(
                        f"{where}: '{first}' and '{variant}' are scored on other examples of task '{task}'{when}, so their differences are "
                        "not paired; expected one data set with one split, one evaluate.max_users and one test period in all variants"
                    )


def _examples(run: RunScores, task: str, *, learned: bool) -> tuple[NDArray[np.uint64], Float]:
    """Return the users that a task's final score is of, or that when it was learned, and how much each counts."""
    place = run.tasks.index(task)
    counts = run.counts[place if learned else len(run.tasks) - 1, place]
    return run.users[counts > 0], counts[counts > 0]


def _further(run: Path, tasks: Sequence[str], metrics: dict[str, str | None], split: str) -> dict[str, list[float | None]]:
    """Read a run's final scores of `tasks` by the metrics that the tables are not by."""
    key = "scores_by_metric" if split == "test" else "validation_scores_by_metric"
    order = io.read_json(str(run / "results.json"))["tasks"]
    state = io.read_json(str(run / "stages" / f"{len(order):02d}-{folder_of(order[-1])}" / "state.json"))
    return {name: [row[order.index(task)] for task in tasks] for name, row in state[key].items() if name not in metrics.values()}


def _by_metric(further: dict[str, list[dict[str, list[float | None]]]]) -> dict[str, dict[str, list[list[float | None]]]]:
    """Return the rows by metric and variant, a row a run: without a value where the run has none, and without metrics that no run has."""
    none: list[float | None] = [None] * next((len(row) for rows in further.values() for of_run in rows for row in of_run.values()), 0)
    names = dict.fromkeys(name for rows in further.values() for of_run in rows for name in of_run)
    found: dict[str, dict[str, list[list[float | None]]]] = {}
    for name in names:
        by_variant = {variant: [of_run.get(name, none) for of_run in rows] for variant, rows in further.items()}
        known = {
            variant: rows for variant, rows in by_variant.items() if any(value is not None for row in rows for value in row)
        }  # fmt: skip
        if known:
            found[name] = known
    return found
