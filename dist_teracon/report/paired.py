"""Standard errors of a run's scores and of their changes, over users: `scores.parquet` of each stage, read user by user.

A score is Σ s / Σ n over users, with s the sum over a user's examples and n their number (1 where the metric is a mean over users).
The change of a task's score from one stage to another is Σ d / Σ n with d = s' − s of the same users, so its error is paired: what makes
a user easy or hard in both stages cancels. Error: √(Σ (d − mean·n)² · U / (U − 1)) / Σ n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon.evaluate.metrics import is_metric, parse_metric

Column = tuple[float | None, ...]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class UserTable:
    """A task's scores by user after one stage: hashes in ascending order, sums and counts [U]."""

    users: NDArray[np.uint64]
    sums: Float
    counts: Float


@dataclass(frozen=True)
class Errors:
    """Standard errors over users; None where they are not known.

    Attributes:
        scores: Of R: a row a finished stage, a column a task.
        changes: Paired, of each entry of R less the task's first score.
        forward: Paired, of each task's first score less that of the task learned alone.
        unreadable: Files of scores by user that could not be read.
    """

    scores: tuple[Column, ...] = ()
    changes: tuple[Column, ...] = ()
    forward: Column = ()
    unreadable: tuple[str, ...] = ()


def read_errors(folder: Path, *, tasks: Sequence[str], metrics: Sequence[str | None], stages: int) -> Errors:
    """Read the standard errors of a run's scores.

    Args:
        folder: The run's folder.
        tasks, metrics: Names, and the metric that selects of each.
        stages: How many are finished.
    """
    weights = [_weight(metric) for metric in metrics]
    first: dict[str, UserTable] = {}
    scores: list[Column] = []
    changes: list[Column] = []
    unreadable: list[str] = []
    for stage in range(1, stages + 1):
        tables = _read_stage(folder, stage, tasks, weights, unreadable)
        scores.append(tuple(_error_of(tables.get(task)) for task in tasks))
        changes.append(tuple(_change_error(first.get(task), tables.get(task)) for task in tasks))
        for task, table in tables.items():
            first.setdefault(task, table)
    alone: dict[str, UserTable] = {}
    for stage in range(1, stages + 1):
        for task, table in _read_stage(folder / "single-task", stage, tasks, weights, unreadable).items():
            alone.setdefault(task, table)
    forward = tuple(_change_error(alone.get(task), first.get(task)) for task in tasks)
    return Errors(tuple(scores), tuple(changes), forward, tuple(unreadable))


def _weight(metric: str | None) -> str | None:
    """Return over what a metric is a mean; None for one that is none, or is not known."""
    if metric is None or not is_metric(metric) or not parse_metric(metric).is_mean:
        return None
    return parse_metric(metric).over


def _read_stage(
    folder: Path, stage: int, tasks: Sequence[str], weights: Sequence[str | None], unreadable: list[str]
) -> dict[str, UserTable]:  # fmt: skip
    """Return the test scores of one stage by task; a file that is missing has none, one that cannot be read is noted."""
    paths = sorted((folder / "stages").glob(f"{stage:02d}-*/scores.parquet"))
    if not paths:
        return {}
    try:
        table = pq.read_table(paths[0], columns=["task", "user_hash", "score", "examples"], filters=[("split", "=", "test")])
        return dict(_by_task(table, tasks, weights))
    except (pa.ArrowException, OSError, KeyError):
        unreadable.append(str(paths[0].relative_to(folder.parent if folder.name == "single-task" else folder)))
        return {}


def _by_task(table: Any, tasks: Sequence[str], weights: Sequence[str | None]) -> Iterator[tuple[str, UserTable]]:
    """Yield the scores by user of every task whose metric is a mean."""
    encoded = table["task"].combine_chunks().dictionary_encode()
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    for task, over in zip(tasks, weights, strict=True):
        if over is None or task not in names:
            continue
        mine = codes == names.index(task)
        users, sums, examples = (table[name].to_numpy()[mine] for name in ("user_hash", "score", "examples"))
        order = np.argsort(users, kind="stable")
        counts = np.minimum(examples, 1) if over == "users" else examples
        kept = np.isfinite(sums[order])
        yield task, UserTable(users[order][kept], sums[order][kept].astype(np.float64), counts[order][kept].astype(np.float64))


def _error_of(table: UserTable | None) -> float | None:
    return None if table is None else _standard_error(table.sums, table.counts)


def _change_error(before: UserTable | None, after: UserTable | None) -> float | None:
    """Return the paired error of a change; None where the two are not of the same users, or not of as many examples of each."""
    if before is None or after is None:
        return None
    if not np.array_equal(before.users, after.users) or not np.array_equal(before.counts, after.counts):
        return None
    return _standard_error(after.sums - before.sums, after.counts)


def _standard_error(sums: Float, counts: Float) -> float | None:
    users, total = int((counts > 0).sum()), float(counts.sum())
    if users < 2:
        return None
    spread = sums - sums.sum() / total * counts
    return math.sqrt(float(spread @ spread) * users / (users - 1)) / total
