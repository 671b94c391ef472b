"""Scores of many runs as arrays, and paired bootstrap intervals over users and seeds.

Legend: V variants, S seeds, U users, M tasks, D draws of the bootstrap.

A draw resamples the seeds and the users; the same users for all tasks, stages and variants, so differences are paired. A user has one
weight in all seeds that score it: where the split stays the same over seeds, more seeds say no more of its users. A score is a mean over
examples, Σ w·sum / Σ w·count with the users' weights w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.schema import folder_of
from dist_teracon.errors import RunError
from dist_teracon.evaluate.metrics import Metric, parse_metric
from dist_teracon.train.stage_folder import check_file

Float = NDArray[np.float64]

DRAWS = 2000

# Draws that are multiplied at a time: weights lie in bytes, and only so many rows of them are numbers of eight.
_DRAWS_AT_ONCE = 64
# Decimals of a statistic that do not depend on the order of its sums.
_DECIMALS = 11


@dataclass(frozen=True)
class RunScores:
    """One run's scores by user.

    Attributes:
        users: uint64 [U], hashes in ascending order, each once.
        sums, counts: (stage, task) -> [U], a user's share of the sum and of the count whose quotient is the score; zeros for a user
            without examples, and sums are NaN of a task whose metrics are all of a whole split.
        tasks: Names.
        metrics: By which metric each task's scores are.
    """

    users: NDArray[np.uint64]
    sums: dict[tuple[int, int], Float]
    counts: dict[tuple[int, int], Float]
    tasks: tuple[str, ...]
    metrics: tuple[str | None, ...]


def metrics_of_runs(runs: Sequence[Path]) -> dict[str, set[str]]:
    """Return by which metrics each task has a score in any of some runs: one that diverged has none, and is judged as the others are."""
    known: dict[str, set[str]] = {}
    for run in runs:
        results = io.read_json(str(run / "results.json"))
        for place, task in enumerate(results["tasks"]):
            rows = results["scores_by_metric"].items()
            known.setdefault(task, {results["metrics"][place]}).update(name for name, values in rows if values[-1][place] is not None)
    return known


def read_run_scores(
    run: Path, *, split: str = "test", metrics: Sequence[str] = (), known: Mapping[str, set[str]] | None = None
) -> RunScores:
    """Read a finished run's scores by user; those that are not finite are none.

    Args:
        run: The run's folder.
        split: `test` or `validation`.
        metrics: Names; of each task the first that it has is read, else the first of its own that is a mean.
        known: Which metrics each task has, from `metrics_of_runs`; those of this run where None.

    Raises:
        RunError: a file is missing, or not as the run wrote it.
    """
    results, known = io.read_json(str(run / "results.json")), metrics_of_runs([run]) if known is None else known
    tasks = tuple(results["tasks"])
    chosen = [judging_metric([name for name in results["scores_by_metric"] if name in known[task]], metrics) for task in tasks]
    tables = [_scores_of_stage(run / "stages" / f"{i + 1:02d}-{folder_of(task)}") for i, task in enumerate(tasks)]
    tables = [table.filter(np.asarray(table["split"].to_pylist()) == split) for table in tables]
    users = np.unique(np.concatenate([table["user_hash"].to_numpy() for table in tables]))
    sums: dict[tuple[int, int], Float] = {}
    counts: dict[tuple[int, int], Float] = {}
    for stage, table in enumerate(tables):
        names = np.asarray(table["task"].to_pylist())
        place = np.searchsorted(users, table["user_hash"].to_numpy())
        for task, name in enumerate(tasks[: stage + 1]):
            mine, metric = names == name, chosen[task]
            column = "score" if metric is None or metric.name == results["metrics"][task] else metric.name
            score = table[column].to_numpy()[mine] if column in table.column_names else np.full(mine.sum(), np.nan)
            score, examples = np.where(np.isfinite(score), score, np.nan), table["examples"].to_numpy()[mine]
            if metric is not None and metric.over == "users":
                examples = examples > 0
            sums[stage, task] = np.bincount(place[mine], weights=score, minlength=users.size).astype(np.float64)
            counts[stage, task] = np.bincount(place[mine], weights=examples, minlength=users.size).astype(np.float64)
    return RunScores(users, sums, counts, tasks, tuple(None if metric is None else metric.name for metric in chosen))


def _scores_of_stage(stage: Path) -> pa.Table:
    """Read a stage's scores by user, checked against what the run noted of the file."""
    state, path = stage / "state.json", stage / "scores.parquet"
    check_file(path, (io.read_json(str(state)) if state.is_file() else {}).get("files", {}).get(path.name))
    try:
        return pq.read_table(path)
    except pa.ArrowException as error:
        raise RunError(f"{path}: cannot be read ({str(error)[:200]}); remove the stage's folder to train it again") from None


def judging_metric(has: Sequence[str], asked: Sequence[str]) -> Metric | None:
    """Return by which metric tables have a task's scores: the first that is asked for, else the first of its own, that is a mean."""
    names = [*(name for name in asked if name in has), *has]
    return next((metric for metric in map(parse_metric, names) if metric.is_mean), None)


def pooled(folds: Sequence[RunScores]) -> RunScores:
    """Lay the users of a cross-fitted variant's folds behind one another, as one run's; each was tested once."""
    sums = {key: np.concatenate([fold.sums[key] for fold in folds]) for key in folds[0].sums}
    counts = {key: np.concatenate([fold.counts[key] for fold in folds]) for key in folds[0].counts}
    return RunScores(np.concatenate([fold.users for fold in folds]), sums, counts, folds[0].tasks, folds[0].metrics)


class Bootstrap:
    """Draws of seeds and users, shared by all variants of a comparison.

    Attributes:
        users: How many users there are in all runs, each counted once.

    Args:
        runs: A seed's runs, one a variant.
        draws: D.
        seed: Of the draws.
    """

    def __init__(self, runs: Sequence[Sequence[RunScores]], *, draws: int = DRAWS, seed: int = 0) -> None:
        self.runs, self.draws = runs, draws
        self._scores: dict[tuple[int, int], dict[tuple[int, int], Float]] = {}
        generator = np.random.Generator(np.random.PCG64(seed))
        seeds = len(runs)
        # how often each seed is drawn: [D, S]; row 0 is the data as they are
        picked = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) if seeds > 1 else np.ones((draws, 1))
        self.seed_weight = np.concatenate([np.ones((1, seeds)), picked]) / seeds
        self._every = np.unique(np.concatenate([run.users for of_seed in runs for run in of_seed]))
        self.users = self._every.size
        # how often each user is drawn: [D, U], at most a few times
        self._user_weight = np.zeros((draws, self.users), np.uint8)
        for first in range(0, draws if self.users else 0, _DRAWS_AT_ONCE):
            rows = self._user_weight[first : first + _DRAWS_AT_ONCE]
            rows[:] = generator.multinomial(self.users, np.full(self.users, 1 / self.users), size=len(rows))

    def score(self, seed: int, variant: int, stage: int, task: int) -> Float:
        """Return R(stage, task) of a run in every draw, [D + 1].

        Entry 0 is the score itself; NaN where there is no example, or none was drawn.
        """
        run, known = self.runs[seed][variant], self._scores.setdefault((seed, variant), {})
        if not known:  # many tables are made of these
            known |= self._scores_of(run, [key for key in run.sums if key[0] in (key[1], len(run.tasks) - 1)])
        if (stage, task) not in known:
            known |= self._scores_of(run, [key for key in run.sums if key[0] == stage])
        return known[stage, task]

    def _scores_of(self, run: RunScores, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Float]:
        columns = np.stack([part[key] for part in (run.sums, run.counts) for key in keys], axis=1)
        place = np.searchsorted(self._every, run.users)
        drawn = [np.array([[math.fsum(column) for column in columns.T]])]
        for first in range(0, self.draws, _DRAWS_AT_ONCE):
            weight = self._user_weight[first : first + _DRAWS_AT_ONCE, place]
            drawn.append(weight.astype(np.float64) @ columns)
        sums, counts = np.split(np.concatenate(drawn), 2, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.where(counts > 0, sums / counts, np.nan)
        return dict(zip(keys, scores.T, strict=True))

    def over_seeds(self, statistic: Callable[[int], Float]) -> Float:
        """Return the mean over seeds of a statistic of each seed, in every draw; NaN where it is not defined.

        What adding up in another order would change is rounded off, so that equal scores differ by nothing, on every machine.
        """
        values = np.stack([statistic(seed) for seed in range(len(self.runs))], axis=1)
        mean = np.where(self.seed_weight > 0, values * self.seed_weight, 0).sum(axis=1)
        return np.round(mean, _DECIMALS) + 0.0


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and the deviation over seeds where there are several."""

    value: float
    low: float
    high: float
    deviation: float | None = None


def estimate(draws: Float, by_seed: Sequence[float] = ()) -> Estimate:
    """Summarise draws whose entry 0 is the value itself (percentile interval); draws in which it is not defined are left out."""
    if np.isnan(draws[0]):
        return Estimate(math.nan, math.nan, math.nan, None)
    low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
    deviation = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
    return Estimate(float(draws[0]), float(low), float(high), deviation)


def p_value(draws: Float) -> float:
    """Return the two-sided p-value of the hypothesis that a difference is nothing, from its draws; NaN where it is not defined.

    Twice the share of draws on the other side of zero, counted so that it is never below 2 / (D + 1), as D draws cannot tell more.
    It inverts the percentile interval: but for a single draw, p is below 0.05 where the 95 % interval leaves zero out.
    """
    drawn = draws[1:][~np.isnan(draws[1:])]
    if np.isnan(draws[0]) or not drawn.size:
        return math.nan
    other = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (other + 1) / (drawn.size + 1))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (Holm, 1979); NaN are no comparisons and stay."""
    order = sorted((place for place, value in enumerate(values) if not math.isnan(value)), key=lambda place: values[place])
    corrected, largest = [math.nan] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def backward_transfer(bootstrap: Bootstrap, seed: int, variant: int, task: int, last: int, *, absolute: bool = False) -> Float:
    """BWT of a task of one run, in percent unless `absolute`, in every draw."""
    learned, kept = bootstrap.score(seed, variant, task, task), bootstrap.score(seed, variant, last, task)
    return kept - learned if absolute else change_in_percent(kept, learned)


def change_in_percent(value: Float, before: Float) -> Float:
    """Return 100 · (value − before) / before; NaN where nothing was there before, as in a draw of users without a hit."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(before > 0, (value - before) / before * 100, np.nan)
