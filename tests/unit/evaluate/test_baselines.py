"""Baselines: ties, misses and degenerate inputs; SVD with logistic regression finds what is planted in the sequences."""

from __future__ import annotations

import sys
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dist_teracon.errors import TeraconError
from dist_teracon.evaluate.baselines import SvdFeatures, popularity_score, svd_logistic_regression
from dist_teracon.evaluate.metrics import parse_metric

ITEMS = 60
MRR, ACCURACY = parse_metric("mrr@5"), parse_metric("accuracy")
USERS = 600


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def planted(seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """Sequences of 5 to 12 items, three in four from the third of the catalogue that is the user's class; a split by user."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, USERS)
    lengths = generator.integers(5, 13, USERS)
    owner = np.repeat(classes, lengths)
    own = owner * 20 + generator.integers(0, 20, len(owner))
    values = np.where(generator.random(len(owner)) < 0.75, own, generator.integers(0, ITEMS, len(owner)))
    split = generator.choice([0, 1, 2], USERS, p=[0.7, 0.1, 0.2])
    return values.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]), classes, split.astype(np.int8)


def fit(values: NDArray[np.int32], offsets: NDArray[np.int64], split: NDArray[np.int8], dimension: int = 16) -> SvdFeatures:
    return SvdFeatures.fit(values, offsets, items=ITEMS, train_users=np.flatnonzero(split == 0), dimension=dimension, seed=3)


def test_popularity_scores_reciprocal_ranks_cut_at_five() -> None:
    counts = integers(9, 8, 7, 6, 5, 4, 3)
    assert popularity_score(MRR, counts, integers(0, 1, 4)) == pytest.approx((1 + 1 / 2 + 1 / 5) / 3)
    assert popularity_score(MRR, counts, integers(5, 6)) == 0.0


def test_popularity_of_equal_counts_is_chance() -> None:
    chance = (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 100
    assert popularity_score(MRR, np.full(100, 7), np.arange(100)) == pytest.approx(chance)


def test_popularity_counts_classes_that_training_never_saw_as_misses() -> None:
    assert popularity_score(MRR, integers(2, 0, 0), integers(0, 1, 2)) == pytest.approx(1 / 3)
    assert popularity_score(MRR, integers(0, 0), integers(0, 1)) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=6, max_size=7), st.integers(0, 5))
def test_popularity_is_the_mean_over_all_orders_of_equal_counts(counts: list[int], target: int) -> None:
    found = []
    for order in permutations(range(len(counts))):
        ranked = sorted(range(len(counts)), key=lambda label: (-counts[label], order[label]))
        rank = 1 + ranked.index(target)
        found.append(1 / rank if rank <= 5 else 0.0)
    assert popularity_score(MRR, integers(*counts), integers(target)) == pytest.approx(np.mean(found))


def test_majority_is_the_share_of_the_most_frequent_training_class() -> None:
    assert popularity_score(ACCURACY, integers(1, 5, 2), integers(0, 1, 1, 2)) == 0.5


def test_majority_of_equal_classes_is_in_expectation() -> None:
    assert popularity_score(ACCURACY, integers(4, 4, 1), integers(0, 0, 1, 2)) == pytest.approx((2 + 1) / 4 / 2)
    assert popularity_score(ACCURACY, integers(0, 0), integers(0, 1)) == 0.0


def test_nothing_to_score_is_an_error() -> None:
    for metric in (MRR, ACCURACY):
        with pytest.raises(ValueError, match="no example"):
            popularity_score(metric, integers(1, 2), integers())


def test_svd_finds_a_planted_profile() -> None:
    values, offsets, classes, split = planted()
    found = svd_logistic_regression(
        ACCURACY, fit(values, offsets, split), classes=3, rows=np.arange(USERS), labels=classes, split=split, dimensions=(2, 4, 16)
    )
    majority = popularity_score(ACCURACY, np.bincount(classes[split == 0]), classes[split == 2])
    assert found.score > 0.9 > majority + 0.4
    assert found.dimensions in (2, 4, 16)
    assert found.validation_score is not None and found.validation_score > 0.8


def test_svd_of_unrelated_labels_is_near_chance() -> None:
    values, offsets, _, split = planted()
    labels = np.random.default_rng(1).integers(0, 3, USERS)
    found = svd_logistic_regression(ACCURACY, fit(values, offsets, split), classes=3, rows=np.arange(USERS), labels=labels, split=split)
    assert 0.2 < found.score < 0.47


def test_svd_is_deterministic_and_leaves_the_sequences_alone() -> None:
    values, offsets, _, split = planted()
    before = values.copy(), offsets.copy()
    first, second = fit(values, offsets, split), fit(values, offsets, split)
    assert np.array_equal(values, before[0]) and np.array_equal(offsets, before[1])
    assert np.array_equal(first.projected, second.projected)
    assert first.projected.dtype == np.float32


@pytest.mark.parametrize("seed", [2**32, 2**63, 2**64 + 1])
def test_svd_takes_every_seed(seed: int) -> None:
    values, offsets, _, split = planted()
    options: dict[str, Any] = {"items": ITEMS, "train_users": np.flatnonzero(split == 0), "dimension": 4}
    found = SvdFeatures.fit(values, offsets, **options, seed=seed)
    assert np.array_equal(found.projected, SvdFeatures.fit(values, offsets, **options, seed=seed % 2**32).projected)


def test_nothing_of_a_test_user_enters_the_fit() -> None:
    values, offsets, _, split = planted()
    other = values.copy()
    for user in np.flatnonzero(split == 2):
        other[offsets[user] : offsets[user + 1]] = user % ITEMS
    train = split == 0
    assert np.array_equal(fit(values, offsets, split).projected[train], fit(other, offsets, split).projected[train])


def test_smaller_dimensions_are_the_leading_directions() -> None:
    values, offsets, _, split = planted()
    small, large = fit(values, offsets, split, 3).projected, fit(values, offsets, split, 16).projected
    assert np.allclose(small, large[:, :3], atol=1e-3)


def test_dimensions_are_cut_to_those_there_are() -> None:
    values, offsets, classes, split = planted()
    features = fit(values, offsets, split, 128)
    assert features.projected.shape == (USERS, ITEMS)
    found = svd_logistic_regression(ACCURACY, features, classes=3, rows=np.arange(USERS), labels=classes, split=split, dimensions=(128,))
    assert found.dimensions == ITEMS


def test_users_without_items_and_several_examples_a_user_are_taken() -> None:
    values, offsets, classes, split = planted()
    offsets = np.concatenate([offsets, offsets[-1:]])
    features = SvdFeatures.fit(values, offsets, items=ITEMS, train_users=np.flatnonzero(split == 0), dimension=4)
    assert not features.projected[-1].any()
    rows = np.concatenate([np.arange(USERS), np.arange(USERS)])
    twice = svd_logistic_regression(ACCURACY, features, classes=3, rows=rows, labels=np.tile(classes, 2), split=np.tile(split, 2))
    assert twice.score > 0.9


def test_without_validation_the_largest_dimension_is_taken() -> None:
    values, offsets, classes, split = planted()
    split = np.where(split == 1, 0, split).astype(np.int8)
    found = svd_logistic_regression(
        ACCURACY, fit(values, offsets, split), classes=3, rows=np.arange(USERS), labels=classes, split=split, dimensions=(2, 8)
    )
    assert (found.dimensions, found.validation_score) == (8, None)


def test_a_single_training_class_is_answered_always() -> None:
    values, offsets, classes, split = planted()
    labels = np.where(split == 2, classes, 1)
    found = svd_logistic_regression(ACCURACY, fit(values, offsets, split), classes=3, rows=np.arange(USERS), labels=labels, split=split)
    assert found.score == pytest.approx((classes[split == 2] == 1).mean())


def test_missing_scikit_learn_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    values, offsets, _, split = planted()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(TeraconError, match=r"pip install 'dist-teracon\[baselines\]'"):
        fit(values, offsets, split)
