"""Generalised binary cross-entropy: its value by hand, its calibration, draws that follow from the step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dist_teracon.config.model import HeadsConfig
from dist_teracon.models.gbce import BinaryNegatives, gbce_sum
from dist_teracon.models.heads import Head

C, Y, E = 8, 50, 12


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    head = Head(C, Y, generator=generator).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(Y, C, generator=generator))
    return head, torch.randn(E, C, dtype=torch.float64, generator=generator), torch.randint(Y, (E,), generator=generator)


def sigma(value):
    return 1 / (1 + math.exp(-value))


def test_the_sum_is_that_of_its_formula(problem):
    head, hidden, labels = problem
    drawn, power = torch.tensor([int(labels[0]), 3, 7, 11]), 0.4
    logits = head(hidden).tolist()
    wanted = 0.0
    for e, y in enumerate(labels.tolist()):
        negatives = sum(math.log(1 - sigma(logits[e][j])) for j in drawn.tolist() if j != y)
        wanted -= (power * math.log(sigma(logits[e][y])) + negatives) / 5
    assert gbce_sum(head, hidden, labels, drawn, power).item() == pytest.approx(wanted, rel=1e-12)


def test_power_goes_from_plain_cross_entropy_to_the_share_that_is_drawn():
    assert BinaryNegatives(256, 0.0, 3417, 0).power == pytest.approx(1)
    assert BinaryNegatives(256, 1.0, 3417, 0).power == pytest.approx(256 / 3416)
    alpha = 256 / 3416
    assert BinaryNegatives(256, 0.75, 3417, 0).power == pytest.approx(alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha))
    assert BinaryNegatives(256, 0.75, 20, 0).power == pytest.approx(1)  # all labels are drawn: nothing to undo


def test_with_all_labels_and_full_calibration_the_best_probabilities_are_the_true_ones():
    """One user type whose labels come 6 : 3 : 1; without an input the head's biases alone learn."""
    head = Head(1, 3, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    hidden = torch.zeros(10, 1, dtype=torch.float64)
    optimiser = torch.optim.LBFGS([head.bias], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = gbce_sum(head, hidden, labels, torch.arange(3), BinaryNegatives(2, 1.0, 3, 0).power)
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(torch.sigmoid(head.bias.detach()), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [300, 100_000])
def test_draws_are_different_labels_drawn_evenly_that_follow_from_seed_epoch_and_step(labels, monkeypatch):
    seen = []
    monkeypatch.setattr("dist_teracon.models.gbce.gbce_sum", lambda head, hidden, targets, drawn, power: seen.append(drawn))

    def draw(seed=0, epoch=1, step=0):
        seen.clear()
        BinaryNegatives(100, 0.75, labels, seed).loss(None, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), epoch=epoch, step=step)
        return seen[0].tolist()

    assert len(set(draw())) == 100
    assert min(draw()) >= 0
    assert max(draw()) < labels
    torch.rand(3)  # the global generator is of no account
    assert draw() == draw()
    assert len({tuple(draw()), tuple(draw(seed=1)), tuple(draw(epoch=2)), tuple(draw(step=1))}) == 4
    means = torch.tensor([sum(draw(step=step)) / 100 for step in range(200)])
    assert abs(means.mean() / ((labels - 1) / 2) - 1) < 5 / math.sqrt(3 * 100 * 200)


def test_shares_of_a_batch_add_up_and_rows_alone_get_gradients(problem):
    head, hidden, labels = problem
    negatives = BinaryNegatives(4, 0.75, Y, 0)
    whole = negatives.loss(head, hidden, labels, epoch=3, step=7)
    parts = [negatives.loss(head, hidden[p], labels[p], epoch=3, step=7) for p in (slice(0, 5), slice(5, 5), slice(5, E))]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)
    head.sparse = True
    whole = negatives.loss(head, hidden, labels, epoch=3, step=7)
    whole.backward()
    assert head.weight.grad.is_sparse
    assert len(head.weight.grad.coalesce().indices()[0]) <= 4 + len(set(labels.tolist()))


def test_a_task_may_have_it_alone():
    chosen = HeadsConfig(by_task={"next": "gbce"})
    assert chosen.loss_of("next", labels=10, output_dim=4) == "gbce"
    assert chosen.loss_of("other", labels=10, output_dim=4) == "full"


@pytest.mark.parametrize(("count", "calibration"), [(2, 0.75), (1, 0.0), (3, 1.0)])
def test_a_head_starts_at_the_biases_that_no_input_can_better(count: int, calibration: float) -> None:
    """The expected gradient is zero there: over all targets of a training set and all draws."""
    counts, labels = torch.tensor([6000, 3000, 900, 100]), 4
    against = BinaryNegatives(count, calibration, labels, 0)
    head = Head(1, labels, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        head.bias.copy_(against.start(counts))
    hidden, every = torch.zeros(labels, 1, dtype=torch.float64), torch.arange(labels)

    def steepest() -> float:
        loss = sum(
            share * gbce_sum(head, hidden[:1], every[label : label + 1], torch.tensor(drawn), against.power)
            for drawn in itertools.combinations(range(labels), against.drawn)
            for label, share in enumerate((counts / counts.sum()).tolist())
        )
        return float(torch.autograd.grad(loss, head.bias)[0].abs().max())

    at_start = steepest()
    with torch.no_grad():
        head.bias.fill_(0.1)
    assert at_start < 1e-3 * steepest()


def test_a_label_that_training_has_not_starts_lowest() -> None:
    found = BinaryNegatives(256, 0.75, 1000, 0).start(torch.tensor([0, 5, 0, 1000] + [1] * 996))
    assert found.isfinite().all()
    assert found[0] == found[2] == found.min()
    assert found.argmax() == 3
