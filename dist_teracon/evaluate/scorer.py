"""Scores of a method on a task: full ranking over the task's labels, in chunks, by the task's metrics (docs/method.md, Evaluation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.console import NoProgress, Progress
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import evaluation_batches
from dist_teracon.data.schema import DatasetInfo, Split
from dist_teracon.evaluate.candidates import items_left_out, no_outcomes, score_rows
from dist_teracon.evaluate.metrics import Metric, Outcomes, finite, joined, user_means
from dist_teracon.models.heads import Head
from dist_teracon.runtime import Runtime


class Encoder(Protocol):
    """What is scored: representations and heads by task name."""

    def mask_index(self, task: str) -> int: ...

    def encode(self, batch: PackedBatch, task: str) -> Tensor: ...

    def head(self, task: str) -> Head: ...


@dataclass(frozen=True)
class UserScores:
    """Scores by user, from which intervals over users are drawn.

    Attributes:
        user_hash: uint64 [B].
        score: float64 [B], by the metric that selects: the sum over the user's examples, or the user's own value of a mean over users.
        examples: int64 [B].
        others: The same as `score` by each further metric that is a mean.
    """

    user_hash: NDArray[np.uint64]
    score: NDArray[np.float64]
    examples: NDArray[np.int64]
    others: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """A task's score by each of its metrics.

    Attributes:
        values: By metric, the one that selects first; None where there is no example, or a metric is not defined or not finite.
        examples: How many there were.
        unseen: Targets that training never saw; each is a miss.
        by_user: This rank's users, for intervals over users.
        error: Standard error of `value` over users; None where it is no mean, or of fewer than two users.
        seen_Y: bool [Y], the labels that training saw.
    """

    values: dict[str, float | None]
    examples: int
    unseen: int
    by_user: UserScores
    error: float | None = None
    seen_Y: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    @property
    def value(self) -> float | None:
        """The score by the metric that selects."""
        return next(iter(self.values.values()))


@torch.no_grad()
def score_task(
    encoder: Encoder, dataset: Dataset, task: str, split: Split, *,
    metrics: Sequence[Metric], runtime: Runtime, batch: int, max_users: int | None, seed: int, exclude_seen: bool | None = None,
    period: int | None = None, progress: Progress | None = None, seen_Y: NDArray[np.bool_] | None = None,
) -> Score:  # fmt: skip
    """Score a task on a split by its metrics, the first of which selects; every rank scores its shards and all get the whole.

    Metrics of a whole split (`by_split`) gather its examples on every rank, 4·Y + 24 bytes each in fp32. `exclude_seen` is
    `evaluate.exclude_seen` of the configuration: a target that is in the sequence itself, or was taken before it, is a miss then, as it
    would not be offered. Of a test of several periods `period` scores one, counted from 0. `seen_Y` are the labels that the task's training
    saw, where that was on another version of the data set than this one.
    """
    info = dataset.info.task(task)
    label_of_item = dataset.label_of_item(task) if excludes_seen(dataset.info, task, exclude_seen) else None
    seen = train_counts(dataset, task, runtime) > 0 if seen_Y is None else torch.from_numpy(seen_Y)
    tally = _Tally(metrics, None if info.ranks_labels else info.labels)
    batches = evaluation_batches(
        dataset, info, split, mask_index=encoder.mask_index(task), batch=batch, rank=runtime.rank, world_size=runtime.world_size,
        max_users=max_users, seed=seed, gather=runtime.gather, period=period, with_earlier=label_of_item is not None,
    )  # fmt: skip
    for packed in (progress or NoProgress()).track(iter(batches), len(batches), f"scores of {task}, {split.name.lower()}"):
        (examples,) = packed.examples
        hidden = encoder.encode(packed.to(runtime.device), task)
        left_out = None
        if label_of_item is not None:
            left_out = items_left_out(packed.values.numpy(), packed.row_offsets.numpy(), label_of_item, earlier=packed.earlier)
        found = score_rows(
            encoder.head(task), hidden, examples.index, examples.labels, seen_Y=seen, keep_logits=not info.ranks_labels, left_out=left_out,
        )  # fmt: skip
        assert packed.user_hash is not None
        tally.add(found, examples.index.numpy(), packed.user_hash, unseen=int((~seen[examples.labels]).sum()))
    return replace(tally.score(runtime), seen_Y=seen.numpy())


def excludes_seen(info: DatasetInfo, task: str, setting: bool | None) -> bool:
    """Return whether a task is ranked without the items of a user's own sequence; see `DatasetInfo.excludes_seen`."""
    return info.excludes_seen(task, setting)


class _Tally:
    """What is summed and kept over the batches of a split.

    Args:
        metrics: Of the task.
        classes: Of a profile task, whose class scores are kept where a metric reads all of a split's; None for an item task.
    """

    def __init__(self, metrics: Sequence[Metric], classes: int | None) -> None:
        self._means = [metric for metric in metrics if metric.is_mean]
        self._metrics, self._classes = metrics, classes
        self._examples, self._users, self._unseen = 0, 0, 0
        self._sums = np.zeros(len(self._means))
        self._squares = np.zeros(3)  # Σ s², Σ s·n, Σ n² over users, of the metric that selects
        self._by_user: list[tuple[NDArray[np.uint64], NDArray[np.int64], list[NDArray[np.float64]]]] = []
        self._kept: list[Outcomes] = []

    def add(self, found: Outcomes, users_E: NDArray[np.int64], user_hash_B: NDArray[np.uint64], *, unseen: int) -> None:
        """Add a batch's examples; `users_E` is the row of each among the batch's users."""
        counts = np.bincount(users_E, minlength=len(user_hash_B)).astype(np.int64)
        self._examples += len(found.labels)
        self._users += int((counts > 0).sum())
        self._unseen += unseen
        columns: list[NDArray[np.float64]] = []
        for place, metric in enumerate(self._means):
            values = metric.function(found)
            if metric.over == "users":
                columns.append(np.nan_to_num(user_means(values, users_E, len(counts))).astype(np.float64))
                values = columns[-1]
            else:
                columns.append(np.bincount(users_E, weights=values, minlength=len(counts)).astype(np.float64))
            self._sums[place] += float(torch.from_numpy(values).sum())
        if self._metrics[0].is_mean:
            sums = columns[0]
            weights = (counts > 0).astype(np.float64) if self._metrics[0].over == "users" else counts.astype(np.float64)
            self._squares += [sums @ sums, sums @ weights, weights @ weights]
        self._by_user.append((user_hash_B, counts, columns))
        if len(self._means) < len(self._metrics):
            self._kept.append(found)

    def score(self, runtime: Runtime) -> Score:
        """Return the score over all ranks; all call it."""
        own = torch.tensor([*self._sums, self._examples, self._users, self._unseen, *self._squares], dtype=torch.float64)
        *sums, examples, users, unseen, square, cross, weight = runtime.all_reduce_sum(own).tolist()
        values: dict[str, float | None] = dict.fromkeys(metric.name for metric in self._metrics)
        if examples:
            for metric, total in zip(self._means, sums, strict=True):
                values[metric.name] = finite(total / (users if metric.over == "users" else examples))
        if len(self._means) < len(self._metrics):
            whole = joined([part for of_rank in runtime.gather(self._kept) for part in of_rank] or [no_outcomes(self._classes)])
            values.update({metric.name: metric.score(whole) for metric in self._metrics if not metric.is_mean})
        first, error = self._metrics[0], None
        if first.is_mean and users > 1:
            total = users if first.over == "users" else examples
            error = standard_error(sums[0] / total, total, users, square, cross, weight)
        return Score(values, int(examples), int(unseen), self._user_scores(), error)

    def _user_scores(self) -> UserScores:
        parts = self._by_user or [(np.zeros(0, np.uint64), np.zeros(0, np.int64), [np.zeros(0)] * len(self._means))]
        hashes, counts = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
        columns = {metric.name: np.concatenate([part[2][place] for part in parts]) for place, metric in enumerate(self._means)}
        first = columns.pop(self._metrics[0].name, np.full(len(hashes), np.nan))
        return UserScores(hashes, first, counts, columns)


def standard_error(mean: float, total: float, users: float, square: float, cross: float, weight: float) -> float:
    """Return the standard error of Σ s / Σ n over users: `√(Σ (s − mean·n)² · U / (U − 1)) / Σ n`.

    Args:
        mean: Σ s / Σ n.
        total: Σ n.
        users: U, at least two.
        square, cross, weight: Σ s², Σ s·n, Σ n².
    """
    spread = max(0.0, square - 2 * mean * cross + mean**2 * weight)
    return math.sqrt(spread * users / (users - 1)) / total


def train_counts(dataset: Dataset, task: str, runtime: Runtime) -> Tensor:
    """How often each label is a training target, int64 [Y] on the CPU; every rank counts in its own shards, all get the sum."""
    own = own_shards(dataset.info.shards, runtime.rank, runtime.world_size)
    return runtime.all_reduce_sum(torch.from_numpy(dataset.train_counts(task, own)))
