"""Ranking metrics against an independent implementation, and ties against every order they could stand in."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalMRR

from dist_teracon.evaluate import metrics
from dist_teracon.evaluate.metrics import METRIC_CUTOFF, count_candidates, reciprocal_rank
from dist_teracon.evaluate.transfer import backward_transfer, forward_transfer


def score(logits, labels, cutoff):
    logits = torch.as_tensor(logits, dtype=torch.float64)
    return reciprocal_rank(*count_candidates(logits, torch.as_tensor(labels)), cutoff=cutoff)


def test_cutoffs():
    assert METRIC_CUTOFF == {"mrr@5": 5, "accuracy": 1}


@pytest.mark.parametrize("labels", [2, 7, 50])
def test_without_ties_they_are_those_of_torchmetrics(labels):
    generator = torch.Generator().manual_seed(labels)
    # the oracle takes a score of zero or less for none
    logits, targets = 0.1 + torch.rand(200, labels, generator=generator), torch.randint(labels, (200,), generator=generator)
    relevant = torch.nn.functional.one_hot(targets, labels).flatten()
    query = torch.repeat_interleave(torch.arange(200), labels)
    oracle = RetrievalMRR(top_k=min(5, labels))(logits.flatten(), relevant, indexes=query)
    assert score(logits, targets, 5).mean().item() == pytest.approx(oracle.item(), rel=1e-6)
    accuracy = torchmetrics.functional.accuracy(logits, targets, task="multiclass", num_classes=labels, average="micro")
    assert score(logits, targets, 1).mean().item() == pytest.approx(accuracy.item(), rel=1e-6)


@given(data=st.lists(st.integers(0, 3), min_size=1, max_size=6), target=st.integers(0, 5), cutoff=st.sampled_from([1, 2, 5]))
def test_ties_score_the_mean_over_every_order(data, target, cutoff):
    target %= len(data)
    ranks = []
    for order in itertools.permutations(range(len(data))):
        standing = sorted(range(len(data)), key=lambda label, order=order: (-data[label], order[label]))
        ranks.append(standing.index(target) + 1)
    mean = sum(Fraction(1, rank) if rank <= cutoff else Fraction(0) for rank in ranks) / len(ranks)
    assert score([data], [target], cutoff).item() == pytest.approx(float(mean), rel=1e-12)


@pytest.mark.parametrize("labels", [2, 5, 40])
def test_a_constant_model_gets_the_score_of_chance(labels):
    constant = score(torch.full((labels, labels), 0.7), range(labels), 5)
    chance = sum(1 / rank for rank in range(1, min(5, labels) + 1)) / labels
    assert constant.tolist() == pytest.approx([chance] * labels)
    assert score(torch.zeros(3, labels), [0, 1, 1], 1).tolist() == pytest.approx([1 / labels] * 3)


@pytest.mark.parametrize("cutoff", [1, 5])
@pytest.mark.parametrize("labels", [2, 4, 30])
def test_a_score_that_is_not_a_number_never_wins(labels, cutoff):
    """Also where there are fewer labels than the cutoff."""
    logits = torch.randn(labels, labels, generator=torch.Generator().manual_seed(0))
    broken = logits.clone()
    broken[torch.arange(labels), torch.arange(labels)] = torch.nan
    assert score(broken, range(labels), cutoff).sum() == 0
    assert score(torch.full((1, labels), torch.nan), [0], cutoff).sum() == 0
    others = torch.full((1, labels), torch.nan)
    others[0, 0] = 100.0
    assert score(others, [0], cutoff).item() == pytest.approx(1 / labels if labels <= cutoff else 0)


def test_infinite_scores():
    inf = torch.inf
    assert score([[inf, 0, 1], [inf, inf, 0], [-inf, 0, 1]], [0, 0, 0], 5).tolist() == pytest.approx([1, 0.75, 1 / 3])


def test_beyond_the_cutoff_counts_nothing():
    assert score([list(range(10, 0, -1))] * 3, [0, 4, 5], 5).tolist() == pytest.approx([1, 0.2, 0])


def test_transfer():
    scores = [[0.5], [0.4, 0.2], [0.6, 0.1, 0.0]]
    back = backward_transfer(scores)
    assert back.percent[:2] == pytest.approx([20.0, -50.0])
    assert back.absolute[:2] == pytest.approx([0.1, -0.1])
    assert (back.percent[2], back.absolute[2]) == (None, None)
    forward = forward_transfer(scores, [0.5, 0.1, 0.0])
    assert forward.percent == [None, pytest.approx(100.0), None]  # a zero denominator gives none
    assert forward.absolute == [None, pytest.approx(0.1), 0.0]
    assert backward_transfer([[0.3]]).percent == [None]
    missing = forward_transfer([[0.5], [0.4, None]], [0.5, 0.2])
    assert (missing.percent, missing.absolute) == ([None, None], [None, None])
    assert np.isfinite([value for value in back.percent if value is not None]).all()


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_labels_are_compared_in_pieces_and_rows_shared_by_examples(monkeypatch, at_once):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (5, 11), generator=generator).double()
    logits[3, 4] = float("nan")
    rows, labels = torch.randint(5, (40,), generator=generator), torch.randint(11, (40,), generator=generator)
    rows[0], labels[0] = 3, 4
    plain = count_candidates(logits[rows], labels)
    monkeypatch.setattr(metrics, "_LABELS_AT_ONCE", at_once)
    for counts in (count_candidates(logits, labels, rows_E=rows), count_candidates(logits[rows], labels)):
        assert [count.tolist() for count in counts] == [count.tolist() for count in plain]
    one_by_one = [count_candidates(logits[row : row + 1], label[None]) for row, label in zip(rows, labels, strict=True)]
    assert [torch.cat(counts).tolist() for counts in zip(*one_by_one, strict=True)] == [count.tolist() for count in plain]
