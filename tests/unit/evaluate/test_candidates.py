"""Counting candidates: scores that are no numbers, pieces of labels, rows that examples share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dist_teracon.evaluate import candidates
from dist_teracon.evaluate.candidates import count_candidates, no_outcomes, outcomes
from dist_teracon.evaluate.metrics import joined, parse_metric


def score(logits, labels, cutoff):
    found = outcomes(torch.as_tensor(logits, dtype=torch.float64), torch.as_tensor(labels))
    return parse_metric(f"mrr@{cutoff}").function(found)


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


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_labels_are_compared_in_pieces_and_rows_shared_by_examples(monkeypatch, at_once):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (5, 11), generator=generator).double()
    logits[3, 4] = float("nan")
    rows, labels = torch.randint(5, (40,), generator=generator), torch.randint(11, (40,), generator=generator)
    rows[0], labels[0] = 3, 4
    plain = count_candidates(logits[rows], labels)
    monkeypatch.setattr(candidates, "_LABELS_AT_ONCE", at_once)
    for counts in (count_candidates(logits, labels, rows_E=rows), count_candidates(logits[rows], labels)):
        assert [count.tolist() for count in counts] == [count.tolist() for count in plain]
    one_by_one = [count_candidates(logits[row : row + 1], label[None]) for row, label in zip(rows, labels, strict=True)]
    assert [torch.cat(counts).tolist() for counts in zip(*one_by_one, strict=True)] == [count.tolist() for count in plain]


def test_outcomes_hold_each_examples_class_scores_and_miss_what_training_never_saw():
    logits, rows, labels = torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([1, 0, 1]), torch.tensor([1, 0, 0])
    found = outcomes(logits, labels, rows_E=rows, seen_Y=torch.tensor([False, True]), keep_logits=True)
    assert np.array_equal(found.class_scores, logits[rows].numpy())
    assert parse_metric("accuracy").function(found).tolist() == [1, 0, 0]
    assert outcomes(logits, labels, rows_E=rows).logits is None


def test_parts_are_joined_in_their_order():
    logits, labels = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    whole = outcomes(logits, labels, keep_logits=True)
    cut = joined([no_outcomes(3), outcomes(logits[:4], labels[:4], keep_logits=True), outcomes(logits[4:], labels[4:], keep_logits=True)])
    for name in ("labels", "greater", "equal", "logits"):
        assert np.array_equal(getattr(cut, name), getattr(whole, name))
