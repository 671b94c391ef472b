"""Sampled softmax: an unbiased partition sum, a bias that falls with the number of negatives, draws that follow from the step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dist_teracon.config.model import HeadsConfig
from dist_teracon.models import heads
from dist_teracon.models.heads import Head, cross_entropy_sum
from dist_teracon.models.sampled_softmax import Negatives, log_uniform_draws, sampled_cross_entropy_sum

C, Y, E = 8, 400, 30


@pytest.fixture(scope="module")
def problem():
    """A head with logits of some spread, examples whose labels follow a Zipf law, and that law's counts."""
    generator = torch.Generator().manual_seed(0)
    head = Head(C, Y, generator=generator).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(Y, C, generator=generator) * 0.5)
    counts = (10_000 / (1 + torch.randperm(Y, generator=generator))).long()
    labels = torch.multinomial(counts.double(), E, replacement=True, generator=generator)
    return head, torch.randn(E, C, dtype=torch.float64, generator=generator), labels, counts


def negatives(counts, count, distribution="log_uniform", seed=0):
    return Negatives(count, distribution, counts, seed)


def partition_sums(problem, drawn, log_q, *, examples=E):
    """Ẑ of the first examples, from losses of one example at a time."""
    head, hidden, labels, _ = problem
    own = head(hidden)[torch.arange(E), labels][:examples]
    losses = [sampled_cross_entropy_sum(head, hidden[e : e + 1], labels[e : e + 1], drawn, log_q) for e in range(examples)]
    return (torch.stack(losses) + own).exp().detach()


def test_the_draws_probabilities_are_those_of_their_frequencies():
    ranks, log_q = log_uniform_draws(50, 200_000, torch.Generator().manual_seed(0))
    every = torch.tensor([math.log((k + 2) / (k + 1)) / math.log(51) for k in range(50)], dtype=torch.float64)
    assert every.sum() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(log_q, every.log()[ranks], rtol=1e-12, atol=0)
    share = torch.bincount(ranks, minlength=50) / 200_000
    assert ((share - every).abs() < 5 * (every / 200_000).sqrt()).all()


def test_the_partition_sum_is_unbiased(problem):
    """Exactly: the mean over all possible single draws, weighted by their probability, is Z for every example."""
    head, hidden, _, counts = problem
    order = negatives(counts, 1).by_frequency
    total = torch.zeros(E, dtype=torch.float64)
    for k in range(Y):
        q = math.log((k + 2) / (k + 1)) / math.log(Y + 1)
        total += q * partition_sums(problem, order[k : k + 1], torch.tensor([math.log(q)], dtype=torch.float64))
    torch.testing.assert_close(total, head(hidden).exp().sum(1).detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("count", [5, 40])
def test_the_partition_sum_of_several_draws_is_unbiased_too(problem, count):
    head, hidden, _, counts = problem
    order, generator = negatives(counts, 1).by_frequency, torch.Generator().manual_seed(1)
    sums = []
    for _ in range(500):
        ranks, log_q = log_uniform_draws(Y, count, generator)
        sums.append(partition_sums(problem, order[ranks], log_q, examples=6))
    sums = torch.stack(sums)
    wanted = head(hidden[:6]).exp().sum(1).detach()
    assert ((sums.mean(0) - wanted).abs() < 5 * sums.std(0) / 500**0.5).all()


def value_and_gradients(problem, loss):
    head, hidden, labels, _ = problem
    head.zero_grad()
    hidden = hidden.clone().requires_grad_()
    value = loss(head, hidden, labels)
    value.backward()
    return value.detach(), torch.cat([hidden.grad.flatten(), head.weight.grad.flatten(), head.bias.grad])


def test_bias_of_loss_and_gradient_falls_with_the_number_of_negatives(problem):
    exact, exact_gradient = value_and_gradients(problem, cross_entropy_sum)
    bias = []
    for count in (64, 256, 1024):
        of_draws = negatives(problem[3], count)
        found = [
            value_and_gradients(problem, lambda head, hidden, labels, s=step: of_draws.loss(head, hidden, labels, epoch=1, step=s))  # noqa: B023
            for step in range(150)
        ]
        value = torch.stack([loss for loss, _ in found]).mean()
        gradient = torch.stack([each for _, each in found]).mean(0)
        bias.append((float(exact - value), float((gradient - exact_gradient).norm() / exact_gradient.norm())))
    (loss64, grad64), (loss256, grad256), (loss1024, grad1024) = bias
    assert loss64 > 2 * loss256 > 4 * loss1024 > 0  # from below (Jensen), about as 1/m
    assert grad64 > 1.5 * grad256 > 2.25 * grad1024
    assert loss1024 / float(exact) < 0.01


def test_all_labels_drawn_at_their_probability_give_the_exact_loss(problem):
    """With every label drawn once at q = 1/Y the estimate has no error but that of leaving the target itself out."""
    head, hidden, labels, _ = problem
    log_q = torch.full((Y,), -math.log(Y), dtype=torch.float64)
    sampled = sampled_cross_entropy_sum(head, hidden, labels, torch.arange(Y), log_q)
    torch.testing.assert_close(sampled, cross_entropy_sum(head, hidden, labels), rtol=1e-12, atol=0)


def test_in_batch_negatives_leave_an_examples_own_label_out(problem):
    head, hidden, labels, counts = problem
    value = negatives(counts, 1000, "in_batch").loss(head, hidden, labels, epoch=1, step=0)
    logits, q = head(hidden), counts.double() / counts.sum()
    wanted = 0.0
    for e in range(E):
        terms = [logits[e, labels[o]].exp() / q[labels[o]] / (E - 1) for o in range(E) if labels[o] != labels[e]]
        wanted += torch.log(logits[e, labels[e]].exp() + sum(terms)) - logits[e, labels[e]]
    torch.testing.assert_close(value, wanted, rtol=1e-10, atol=0)


def test_in_batch_negatives_are_at_most_so_many(problem, monkeypatch):
    head, hidden, labels, counts = problem
    seen = []
    monkeypatch.setattr(F, "linear", lambda h, w, b, linear=F.linear: seen.append(w.shape[0]) or linear(h, w, b))
    negatives(counts, 7, "in_batch").loss(head, hidden, labels, epoch=1, step=0)
    assert seen == [7]


@pytest.mark.parametrize("distribution", ["log_uniform", "in_batch"])
def test_what_is_drawn_follows_from_seed_epoch_and_step(problem, distribution):
    head, hidden, labels, counts = problem

    def loss(seed=0, epoch=1, step=0):
        return negatives(counts, 10, distribution, seed).loss(head, hidden, labels, epoch=epoch, step=step).item()

    torch.rand(3)  # the global generator is of no account
    assert loss() == loss()
    assert len({loss(), loss(seed=1), loss(epoch=2), loss(step=1), loss(epoch=0, step=1)}) == 5


def test_shares_of_a_batch_add_up(problem):
    """One draw a step for all ranks and micro-batches."""
    head, hidden, labels, counts = problem
    whole = negatives(counts, 50).loss(head, hidden, labels, epoch=3, step=7)
    parts = [negatives(counts, 50).loss(head, hidden[p], labels[p], epoch=3, step=7) for p in (slice(0, 11), slice(11, 11), slice(11, E))]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("distribution", ["log_uniform", "in_batch"])
def test_no_examples_give_zero_and_gradients_of_zero(problem, distribution):
    head, hidden, labels, counts = problem
    value, gradients = value_and_gradients(
        (head, hidden[:0], labels[:0], counts), lambda *given: negatives(counts, 5, distribution).loss(*given, epoch=1, step=0)
    )
    assert value == 0
    assert not gradients.any()


def test_chunks_change_neither_value_nor_gradients(problem, monkeypatch):
    def loss(*given):
        return negatives(problem[3], 20).loss(*given, epoch=1, step=0)

    value, gradients = value_and_gradients(problem, loss)
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 20 * 4)
    cut, cut_gradients = value_and_gradients(problem, loss)
    torch.testing.assert_close(cut, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cut_gradients, gradients, rtol=1e-12, atol=1e-12)


def test_auto_takes_the_exact_loss_while_the_head_fits():
    chosen = HeadsConfig(by_task={"next": "sampled", "likes": "full"})
    sizes = {"labels": 645_974, "output_dim": 256}
    assert chosen.loss_of("other", **sizes) == "full"
    assert chosen.loss_of("other", labels=5_000_000, output_dim=256) == "sampled"
    assert chosen.loss_of("next", labels=10, output_dim=4) == "sampled"
    assert chosen.loss_of("likes", labels=5_000_000, output_dim=256) == "full"
