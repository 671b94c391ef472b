"""Metrics by name: what each computes of scored examples, and which tasks it is for (docs/method.md, Evaluation).

A metric is a function and a line in `METRICS`. The function's first line of documentation is what reports show. Of the functions

- `by_rank` ones map counts of candidates and a cutoff to a number for each example (item tasks),
- `by_example` ones map class scores to a number for each example (profile tasks),
- `by_split` ones map the class scores of all examples of a split to one number (profile tasks).

The score of the first two is a mean, over examples or over users, so ranks add sums and counts. For the third every rank gathers all
examples of the split.

Legend: E examples (user, target), Y labels, k a cutoff.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_teracon.config.run import EvaluateConfig
from dist_teracon.data.schema import Task
from dist_teracon.errors import ConfigError, nearest, shortened
from dist_teracon.extensions import declared_names, load

Float = NDArray[np.floating[Any]]
Int = NDArray[np.int64]

# More than any cutoff: the count of a target whose score is not a number, and of one that training never saw. A task may have fewer
# labels than the cutoff, so their number does not serve.
BEYOND_EVERY_CUTOFF = 1 << 62


@dataclass(frozen=True)
class Outcomes:
    """Scored examples, as metrics read them.

    A target that training never saw is a miss: its `greater` is beyond every cutoff.

    Attributes:
        labels: int64 [E], targets.
        greater, equal: int64 [E], labels that score higher than the target, and others that score the same.
        logits: [E, Y], scores of all classes; profile tasks only.
    """

    labels: Int
    greater: Int
    equal: Int
    logits: Float | None = None

    @property
    def class_scores(self) -> Float:
        """Scores of all classes [E, Y] of a profile task."""
        assert self.logits is not None, "class scores are kept for profile tasks only"
        return self.logits


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Return the examples of several parts, of which there is at least one."""
    kept = all(part.logits is not None for part in parts)
    return Outcomes(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.greater for part in parts]),
        np.concatenate([part.equal for part in parts]),
        np.concatenate([part.class_scores for part in parts]) if kept else None,
    )


def _expected_gain(found: Outcomes, gains_K: Float) -> Float:
    """Return the mean gain of each example over the random order of ties, float64 [E].

    The rank is uniform on `g + 1 … g + e + 1`; ranks beyond the K that have a gain gain nothing.
    """
    total = np.concatenate([[0.0], np.cumsum(gains_K)])
    low, high = np.minimum(found.greater, len(gains_K)), np.minimum(found.greater + found.equal + 1, len(gains_K))
    return np.asarray((total[high] - total[low]) / (found.equal + 1))


def reciprocal_rank(found: Outcomes, k: int) -> Float:
    """1 / rank of the target, 0 beyond rank k; mean over examples."""
    return _expected_gain(found, 1 / np.arange(1, k + 1, dtype=np.float64))


def hit(found: Outcomes, k: int) -> Float:
    """1 where the target is among the first k, else 0; mean over examples."""
    return _expected_gain(found, np.ones(k))


def discounted_gain(found: Outcomes, k: int) -> Float:
    """1 / log2(rank + 1) of the target, which is an example's only relevant item, 0 beyond rank k; mean over examples."""
    return _expected_gain(found, 1 / np.log2(np.arange(2, k + 2, dtype=np.float64)))


def recall(found: Outcomes, k: int) -> Float:
    """Share of a user's targets that are among the first k; mean over users."""
    return hit(found, k)


def accuracy(found: Outcomes) -> Float:
    """1 where the target's class scores highest, else 0; mean over examples."""
    return hit(found, 1)


def log_loss(found: Outcomes) -> Float:
    """Negative logarithm of the target's probability by softmax; mean over examples, lower is better."""
    loss = -np.take_along_axis(_log_softmax(found.class_scores), found.labels[:, None], axis=1)[:, 0]
    return np.where(np.isnan(loss), np.inf, loss)


def macro_f1(found: Outcomes) -> float | None:
    """F1 of each class, mean over the classes that occur among targets or predictions.

    The counts of F1 are expected ones: of m classes that share the highest score, each is predicted with 1 / m.
    """
    logits_EY = found.class_scores
    highest = logits_EY == logits_EY.max(axis=1, keepdims=True)
    predicted_Y = (highest / np.maximum(1, highest.sum(axis=1, keepdims=True))).sum(axis=0)
    classes = logits_EY.shape[1]
    correct_Y = np.bincount(found.labels, weights=accuracy(found), minlength=classes)
    occurring_Y = predicted_Y + np.bincount(found.labels, minlength=classes)
    there = occurring_Y > 0
    return float((2 * correct_Y[there] / occurring_Y[there]).mean())


def auroc(found: Outcomes) -> float | None:
    """Share of pairs of a positive and a negative example that the class score orders rightly, ties one half.

    Of two classes: the second's, by the difference of logits. Of several: each class against the others by its log-probability (in
    float64), mean over the classes that have positive and negative examples; None without any.
    """
    logits_EY = found.class_scores.astype(np.float64)
    binary = logits_EY.shape[1] == 2
    scores_EY = np.stack([logits_EY[:, 0] - logits_EY[:, 1], logits_EY[:, 1] - logits_EY[:, 0]], 1) if binary else _log_softmax(logits_EY)
    areas = [_area(scores_EY[:, c], found.labels == c) for c in range(1 if binary else 0, logits_EY.shape[1])]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None


def _area(scores_E: Float, positive_E: NDArray[np.bool_]) -> float | None:
    """Return U / (positives · negatives) of Mann and Whitney, from twice the mean ranks, which are whole numbers."""
    positives = int(positive_E.sum())
    negatives = len(positive_E) - positives
    if not positives or not negatives:
        return None
    # a score that is not a number is never on the right side
    scores_E = np.where(np.isnan(scores_E), np.where(positive_E, -np.inf, np.inf), scores_E)
    _, place, counts = np.unique(scores_E, return_inverse=True, return_counts=True)
    twice_rank = 2 * np.cumsum(counts) - counts + 1
    return float((int(twice_rank[place][positive_E].sum()) - positives * (positives + 1)) / (2 * positives * negatives))


def _log_softmax(logits_EY: Float) -> Float:
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = logits_EY.astype(np.float64) - logits_EY.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


@dataclass(frozen=True)
class Metric:
    """A metric: an entry of `METRICS`, or one under a name as the configuration gives it.

    Attributes:
        function: Of `Outcomes` (and a cutoff, in the registry): a number for each example, or one for all where `over` is `split`.
        over: What the score is the mean over, or `split` where it is computed of all examples at once.
        ranks_labels: Whether it is for tasks that rank labels (items) or for those that choose one (profiles).
        takes_cutoff: Whether its name ends in a cutoff, as in `ndcg@10`.
        higher_is_better: Only such a metric may select.
        name: As the configuration gives it.
    """

    function: Callable[..., Any]
    over: Literal["examples", "users", "split"]
    ranks_labels: bool
    takes_cutoff: bool = False
    higher_is_better: bool = True
    name: str = ""

    @property
    def is_mean(self) -> bool:
        """Whether the score is a mean of numbers of examples or users, of which intervals can be drawn."""
        return self.over != "split"

    @property
    def description(self) -> str:
        """What it computes, in a sentence."""
        function = self.function.func if isinstance(self.function, partial) else self.function
        return (function.__doc__ or "").splitlines()[0].rstrip(".")

    def applies_to(self, task: Task) -> bool:
        """Whether the metric is for tasks of that kind."""
        return self.ranks_labels == task.ranks_labels

    def score(self, found: Outcomes, users: Int | None = None) -> float | None:
        """Return the score of examples that are all there is; None without any, or where it is not finite.

        Args:
            found: The examples.
            users: [E], number of each example's user; each example a user of its own where None.
        """
        if not found.labels.size:
            return None
        value = self.function(found)
        if self.over == "users" and users is not None:
            value = user_means(value, users, int(users.max()) + 1)
            value = value[~np.isnan(value)]
        return finite(np.mean(value) if self.is_mean else value)


def user_means(values_E: Float, users_E: Int, users: int) -> Float:
    """Return the mean of each user's values [users], NaN for a user without any."""
    counts = np.bincount(users_E, minlength=users)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.bincount(users_E, weights=values_E, minlength=users) / counts)


def finite(value: Any) -> float | None:
    """Return a number as a score, None for one that is not finite."""
    return float(value) if value is not None and np.isfinite(value) else None


by_rank = partial(Metric, ranks_labels=True, takes_cutoff=True)
by_example = partial(Metric, over="examples", ranks_labels=False)
by_split = partial(Metric, over="split", ranks_labels=False)

METRICS: dict[str, Metric] = {
    "mrr": by_rank(reciprocal_rank, over="examples"),
    "hr": by_rank(hit, over="examples"),
    "ndcg": by_rank(discounted_gain, over="examples"),
    "recall": by_rank(recall, over="users"),
    "accuracy": by_example(accuracy),
    "macro-f1": by_split(macro_f1),
    "auroc": by_split(auroc),
    "log-loss": by_example(log_loss, higher_is_better=False),
}


def metric_names(*, ranks_labels: bool | None = None) -> list[str]:
    """Return the names there are, `mrr@k` with k for any cutoff; of one kind of tasks where asked."""
    return [f"{name}@k" if entry.takes_cutoff else name for name, entry in METRICS.items() if ranks_labels in (None, entry.ranks_labels)]


def parse_metric(name: str) -> Metric:
    """Return the metric of a name such as `ndcg@10` or `auroc`.

    Raises:
        ValueError: no such metric; names the nearest one and all there are.
    """
    family, at, cutoff = name.partition("@")
    entry = METRICS.get(family) or _of_a_package(family)
    if entry is None:
        items, profiles = (", ".join(metric_names(ranks_labels=kind)) for kind in (True, False))
        others = f"; of other packages: {', '.join(found)}" if (found := declared_names("metrics")) else ""
        hint = nearest(family.lower(), [*METRICS, *found])
        raise ValueError(f"no metric {shortened(name)}{hint} (item tasks: {items}; profile tasks: {profiles}{others})")
    if not entry.takes_cutoff:
        if at:
            raise ValueError(f"{shortened(name)}: {family} takes no cutoff, expected '{family}'")
        return replace(entry, name=name)
    if not re.fullmatch(r"[1-9][0-9]{0,5}", cutoff):
        raise ValueError(f"expected a cutoff of 1 to 999999 as in '{family}@10', got {shortened(name)}")
    return replace(entry, name=name, function=partial(entry.function, k=int(cutoff)))


@functools.cache
def _of_a_package(family: str) -> Metric | None:
    try:
        return load("metrics", family, Metric)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def is_metric(name: str) -> bool:
    """Whether there is a metric of that name."""
    try:
        parse_metric(name)
    except ValueError:
        return False
    return True


def metrics_of(task: Task, names: Iterable[str]) -> tuple[Metric, ...]:
    """Return those of the named metrics that a task has; the first selects, and is what R, FWT and BWT hold."""
    return tuple(metric for metric in map(parse_metric, names) if metric.applies_to(task))


def check_metrics(names: Sequence[str], *, where: str, tasks: Sequence[Task] | None = None) -> None:
    """Check a configuration's `evaluate.metrics`, against a run's tasks where they are known.

    Raises:
        ConfigError: a name that is unknown or stands there twice, a metric that no task has, a task without a metric, or a first one
            that is lower for better models.
    """
    try:
        metrics = [parse_metric(name) for name in names]
    except ValueError as error:
        raise ConfigError(f"{where}: evaluate.metrics: {error}") from None
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise ConfigError(f"{where}: evaluate.metrics: expected each metric once, got '{twice[0]}' again")
    for kind in (True, False):
        first = next((metric for metric in metrics if metric.ranks_labels == kind), None)
        if first is not None and not first.higher_is_better:
            others = [name for name in metric_names(ranks_labels=kind) if name != first.name]
            raise ConfigError(
                f"{where}: evaluate.metrics: '{first.name}' is lower for better models and cannot select; put one of "
                f"{', '.join(others)} before it"
            )
    if tasks is not None:
        _check_tasks(names, metrics, tasks, where)


def _check_tasks(names: Sequence[str], metrics: Sequence[Metric], tasks: Sequence[Task], where: str) -> None:
    where = f"{where}: evaluate.metrics"
    for task in tasks:
        if not any(metric.applies_to(task) for metric in metrics):
            known = ", ".join(metric_names(ranks_labels=task.ranks_labels))
            raise ConfigError(f"{where}: expected a metric of task '{task.name}' ({known}), got {', '.join(names)}")
    if tuple(names) == EvaluateConfig().metrics:
        return  # the default serves runs of any tasks
    for metric in metrics:
        if not any(metric.applies_to(task) for task in tasks):
            kind = "item" if metric.ranks_labels else "profile"
            has = ", ".join(task.name for task in tasks)
            raise ConfigError(f"{where}: '{metric.name}' is for {kind} tasks, and none of this run's is ({has})")
