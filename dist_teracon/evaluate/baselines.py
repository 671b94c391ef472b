"""Baselines without a network, reported beside every score: popularity or majority, and SVD with logistic regression.

A model that does not beat them has learned nothing from the sequences that could not be had for free.

Shapes: `E` examples (user, label), `U` users, `Y` classes, `N` items of all sequences, `V` vocabulary, `D` dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.schema import Split
from dist_teracon.data.user_svd import UserSvd, need_sklearn, one_thread
from dist_teracon.evaluate.candidates import LeftOut
from dist_teracon.evaluate.metrics import BEYOND_EVERY_CUTOFF, Metric, Outcomes

DIMENSIONS = (16, 32, 64, 128)
# Of a class that training never saw; finite, as weights have to be.
UNSEEN_LOGIT = -1e4


def popularity_score(
    metric: Metric, train_counts: NDArray[np.int64], targets: NDArray[np.int64], users: NDArray[np.int64] | None = None,
    left_out: LeftOut | None = None,
) -> float | None:  # fmt: skip
    """Return the score of ranking all classes by how often training saw them; None where the metric is not defined.

    Equal counts stand in random order, in expectation; a class that training never saw is a miss. For a profile task this is the
    majority class, and class scores are the logarithms of the counts.

    Args:
        metric: One that applies to the task.
        train_counts: int64 [Y], training examples by class.
        targets: integers [E], classes of the examples to score.
        users: int64 [E], number of each example's user, which means over users read.
        left_out: Labels that each user's ranking leaves out, by the user's number.

    Raises:
        ValueError: there is no target.
    """
    _need_targets(targets)
    ascending = np.sort(train_counts)
    greater_Y = len(ascending) - np.searchsorted(ascending, train_counts, side="right")
    equal_Y = len(ascending) - np.searchsorted(ascending, train_counts, side="left") - greater_Y - 1
    greater_Y = np.where(train_counts > 0, greater_Y, BEYOND_EVERY_CUTOFF)
    logits_EY = None
    if not metric.ranks_labels:
        with np.errstate(divide="ignore"):
            logits_EY = np.broadcast_to(np.log(train_counts.astype(np.float64)), (len(targets), len(train_counts)))
    greater_E, equal_E = greater_Y[targets], equal_Y[targets]
    if left_out is not None and users is not None:
        greater_E, equal_E = _without(left_out, train_counts, targets, users, greater_E, equal_E)
    return metric.score(Outcomes(targets.astype(np.int64), greater_E, equal_E, logits_EY), users)


def _without(
    left_out: LeftOut, counts_Y: NDArray[np.int64], targets: NDArray[np.int64], users: NDArray[np.int64], greater_E: Any, equal_E: Any
) -> tuple[Any, Any]:
    """Return the candidates of each example that remain without what its user's ranking leaves out; a target left out is a miss."""
    labels, offsets = ragged.distinct(left_out.labels, left_out.offsets)
    lengths = offsets[users + 1] - offsets[users]
    example = np.repeat(np.arange(len(users)), lengths)
    labels = labels[ragged.positions(offsets[users], lengths)]
    own, other = counts_Y[targets[example]], counts_Y[labels]
    is_target = labels == targets[example]

    def each(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(example[chosen], minlength=len(users))

    missed = (each(is_target) > 0) | (greater_E == BEYOND_EVERY_CUTOFF)
    greater_E = np.where(missed, BEYOND_EVERY_CUTOFF, greater_E - each(other > own))
    return greater_E, np.maximum(0, equal_E - each((other == own) & ~is_target))


@dataclass(frozen=True)
class SvdFeatures:
    """Users as the leading singular directions of the TF-IDF matrix of their items.

    Inverse document frequencies and directions come from the training users' sequences alone, so nothing of a test user enters
    what is fitted; every user is then projected. One fit serves all tasks of a data set, and all smaller dimensions, as the
    directions are ordered by their singular values.

    Attributes:
        projected: float32 [U, D], one row a user, D being at most the dimension asked for (fewer where there are fewer users or items).
    """

    projected: NDArray[np.float32]

    @classmethod
    def fit(
        cls,
        values: NDArray[np.int32],
        offsets: NDArray[np.int64],
        *,
        items: int,
        train_users: NDArray[np.int64],
        dimension: int = max(DIMENSIONS),
        seed: int = 0,
    ) -> SvdFeatures:
        """Fit on the training users' sequences and project all users; the same on one machine for equal arguments.

        Args:
            values: int32 [N], items in 0 … items − 1, user by user.
            offsets: int64 [U + 1].
            items: Size of the vocabulary V.
            train_users: int64, rows of the users of the training split (all users where each task splits its own rows).
            dimension: Largest number of directions.
            seed: Seed of the randomised SVD.

        Raises:
            TeraconError: scikit-learn is not installed.
            ValueError: there is no training user.
        """
        need_sklearn("the SVD baseline")
        if not len(train_users):
            raise ValueError("an SVD needs at least one training user")
        trained = UserSvd.fit(*ragged.take(values, offsets, train_users), items=items, dimension=dimension, seed=seed)
        return cls(trained.project(values, offsets))


@dataclass(frozen=True)
class SvdScore:
    """Scores of SVD with logistic regression on a profile task.

    Attributes:
        score: On all test examples; None where the metric is not defined.
        dimensions: Number of singular directions, chosen on validation.
        validation_score: On validation at that choice; None without validation examples.
    """

    score: float | None
    dimensions: int
    validation_score: float | None


def svd_logistic_regression(
    metric: Metric,
    features: SvdFeatures,
    *,
    classes: int,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    split: NDArray[np.int8],
    dimensions: Sequence[int] = DIMENSIONS,
) -> SvdScore:
    """Fit a multinomial logistic regression on SVD features and score it on the test examples.

    Features are standardised on the training examples; the penalty is L2 with C = 1. The number of directions is the one with the
    best validation score, the smallest of equals; without validation examples the largest is taken.

    Args:
        metric: One of profile tasks.
        features: Of all users of the data set.
        classes: Number of classes Y; one without a training example has probability 0, and as a target is a miss.
        rows: int64 [E], each example's user.
        labels: integers [E], each example's class.
        split: int8 [E], each example's `Split`.
        dimensions: Numbers of directions to try, cut to those there are.

    Raises:
        TeraconError: scikit-learn is not installed.
        ValueError: no training or no test example, or no dimension to try.
    """
    need_sklearn("the SVD baseline")
    train, validation, test = ((features.projected[rows[split == part]], labels[split == part]) for part in Split)
    _need_targets(test[1])
    found = best_classifier(metric, train, validation, classes=classes, dimensions=dimensions)
    return SvdScore(_score(metric, found.model, test[0][:, : found.dimensions], test[1], classes), found.dimensions, found.validation_score)


# Values [E, D] and labels [E] of examples.
Labelled = tuple[NDArray[np.float32], NDArray[Any]]


@dataclass(frozen=True)
class Classifier:
    """A logistic regression on standardised values, as scikit-learn has it.

    Attributes:
        model: Its pipeline.
        dimensions: How many of the values it reads, the first ones; chosen on validation.
        validation_score: At that choice; None without validation examples.
    """

    model: Any
    dimensions: int
    validation_score: float | None

    def weights(self, classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return weight [Y, D] and bias [Y] that give the same probabilities of values as they are; next to none to classes not seen."""
        weight, bias = np.zeros((classes, self.dimensions)), np.full(classes, UNSEEN_LOGIT)
        scaler, model = (step for _, step in self.model.steps)
        bias[model.classes_] = 0.0
        if len(model.classes_) > 1:
            own = model.classes_[1:] if len(model.classes_) == 2 else model.classes_
            weight[own] = model.coef_ / scaler.scale_
            bias[own] = model.intercept_ - weight[own] @ scaler.mean_
        return weight.astype(np.float32), bias.astype(np.float32)


def best_classifier(
    metric: Metric, train: Labelled, validation: Labelled, *, classes: int, dimensions: Sequence[int] = DIMENSIONS
) -> Classifier:  # fmt: skip
    """Fit multinomial logistic regressions on the first so many values, and return the one of best validation score.

    Args:
        metric: One of profile tasks.
        train, validation: Values, ordered by what they tell, and labels; without validation examples the most values are read.
        classes: Number of classes Y.
        dimensions: How many values to try, cut to those there are; of equals the fewest.

    Raises:
        TeraconError: scikit-learn is not installed.
        ValueError: no training example, or no dimension to try.
    """
    need_sklearn("logistic regression")
    if not len(train[1]):
        raise ValueError("logistic regression needs at least one training example")
    tried = sorted({min(size, train[0].shape[1]) for size in dimensions})
    if not tried or tried[0] < 1:
        raise ValueError(f"dimensions: expected positive numbers, got {tuple(dimensions)}")
    best: Classifier | None = None
    for size in tried if len(validation[1]) else tried[-1:]:
        model = _fit_classifier(train[0][:, :size], train[1])
        reached = _score(metric, model, validation[0][:, :size], validation[1], classes) if len(validation[1]) else None
        if best is None or (reached is not None and best.validation_score is not None and reached > best.validation_score):
            best = Classifier(model, size, reached)
    assert best is not None
    return best


def _fit_classifier(values_ED: NDArray[np.float32], labels: NDArray[np.int64]) -> Any:
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn refuses to fit a single class, for which the answer is plain.
    single = labels.min() == labels.max()
    classifier = DummyClassifier(strategy="most_frequent") if single else LogisticRegression(C=1.0, max_iter=1000)
    with one_thread():
        return make_pipeline(StandardScaler(), classifier).fit(values_ED.astype(np.float64), labels)


def _score(metric: Metric, model: Any, values_ED: NDArray[np.float32], labels: NDArray[Any], classes: int) -> float | None:
    logits_EY = np.full((len(labels), classes), -np.inf)
    with one_thread():
        logits_EY[:, model.classes_] = model.predict_log_proba(values_ED.astype(np.float64))
    target_E1 = np.take_along_axis(logits_EY, labels[:, None].astype(np.int64), axis=1)
    greater = np.where(np.isin(labels, model.classes_), (logits_EY > target_E1).sum(axis=1), BEYOND_EVERY_CUTOFF)
    return metric.score(Outcomes(labels.astype(np.int64), greater, (logits_EY == target_E1).sum(axis=1) - 1, logits_EY))


def _need_targets(targets: NDArray[Any]) -> None:
    if not len(targets):
        raise ValueError("there is no example to score")
