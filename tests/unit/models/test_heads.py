"""Heads: cut into chunks or not, with examples or none, the losses and gradients are the same sums."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from dist_teracon.models import heads
from dist_teracon.models.heads import Head, cross_entropy_sum, gram_of, squared_distance_sum, squared_error_sum

E, C, Y = 23, 4, 9


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    head, teacher = (Head(C, Y, generator=generator).double() for _ in range(2))
    with torch.no_grad():
        head.weight.mul_(100), teacher.weight.mul_(100)
    hidden, taught = (torch.randn(E, C, dtype=torch.float64, generator=generator) for _ in range(2))
    return head, teacher.requires_grad_(False), hidden, taught, torch.randint(Y, (E,), generator=generator)


def losses(parts):
    head, teacher, _hidden, taught, labels = parts
    yield lambda h: cross_entropy_sum(head, h, labels[: len(h)])
    yield lambda h: squared_error_sum(head, h, teacher(taught[: len(h)]), None)
    yield lambda h: squared_error_sum(head, h, taught[: len(h)], teacher)


def value_and_gradients(loss, head, hidden):
    head.zero_grad()
    hidden = hidden.clone().requires_grad_()
    value = loss(hidden)
    value.backward()
    return value.detach(), hidden.grad, head.weight.grad.clone(), head.bias.grad.clone()


@pytest.mark.parametrize("at_once", [1, Y, 2 * Y + 1, 5 * Y, E * Y - 1])
def test_chunks_change_neither_value_nor_gradients(parts, monkeypatch, at_once):
    whole = [value_and_gradients(loss, parts[0], parts[2]) for loss in losses(parts)]
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", at_once)
    assert heads.rows_at_once(Y) < E
    for loss, wanted in zip(losses(parts), whole, strict=True):
        for got, want in zip(value_and_gradients(loss, parts[0], parts[2]), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_no_more_logits_than_allowed_are_made_at_once(parts, monkeypatch):
    made = []
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 4 * Y + 3)
    linear, answers = F.linear, parts[1](parts[3])

    def counted(*arguments):
        logits = linear(*arguments)
        made.append(logits.numel())
        return logits

    monkeypatch.setattr(heads.F, "linear", counted)
    cross, _, stored = losses(parts)
    for loss in (cross, lambda h: squared_error_sum(parts[0], h, answers, None), stored):
        made.clear()
        value_and_gradients(loss, parts[0], parts[2])
        assert max(made) == 4 * Y


def test_sums_are_those_of_the_formulas(parts):
    head, teacher, hidden, taught, labels = parts
    cross, square, stored = (loss(hidden) for loss in losses(parts))
    logits = hidden @ head.weight.t() + head.bias
    torch.testing.assert_close(cross, -F.log_softmax(logits, 1)[torch.arange(E), labels].sum(), rtol=1e-12, atol=0)
    wanted = taught @ teacher.weight.t() + teacher.bias
    torch.testing.assert_close(square, ((logits - wanted) ** 2).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(stored, square, rtol=1e-12, atol=0)


def test_no_examples_give_zero_and_gradients_of_zero(parts):
    for loss in losses(parts):
        value, *gradients = value_and_gradients(loss, parts[0], parts[2][:0])
        assert value == 0
        assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_the_teachers_head_gets_no_gradient_and_stored_fp32_fits_any_head(parts):
    head, teacher, hidden, taught, _ = parts
    squared_error_sum(head, hidden, taught.float(), teacher).backward()
    assert teacher.weight.grad is None
    torch.testing.assert_close(
        squared_error_sum(head, hidden, taught.float(), teacher), squared_error_sum(head, hidden, taught, teacher), rtol=1e-5, atol=0
    )


def test_bf16_sums_in_fp32(parts):
    head, _, hidden, _, labels = parts
    low = copy.deepcopy(head).bfloat16()
    value = cross_entropy_sum(low, hidden.bfloat16(), labels)
    assert value.dtype == torch.float32
    logits = F.linear(hidden.bfloat16(), low.weight, low.bias).double()
    torch.testing.assert_close(value.double(), F.cross_entropy(logits, labels, reduction="sum"), rtol=1e-5, atol=0)


def test_initial_values():
    head = Head(64, 1000, generator=torch.Generator().manual_seed(0))
    assert head.labels == 1000
    assert 0.0095 < head.weight.std() < 0.0105
    assert (head.bias == 0.1).all()


def test_differences_by_rounding_alone_leave_no_gradient():
    generator = torch.Generator().manual_seed(3)
    head = Head(8, 50, generator=generator)
    hidden = torch.randn(4, 8, generator=generator)
    wanted = head(hidden).detach()
    nearly = wanted * (1 + 4 * torch.finfo(torch.float32).eps)
    squared_error_sum(head, hidden, nearly, None).backward()
    assert not head.weight.grad.any()
    squared_error_sum(head, hidden, wanted * 1.001, None).backward()
    assert head.weight.grad.any()


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_the_gram_matrix_gives_the_squared_error_of_a_frozen_head_and_its_gradient(stored: torch.dtype) -> None:
    head = Head(6, 40, generator=torch.Generator().manual_seed(1)).requires_grad_(False)
    head.weight.data.mul_(30)
    hidden = torch.randn(9, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    teacher = torch.randn(9, 6, generator=torch.Generator().manual_seed(3)).to(stored)
    difference = (hidden - teacher).detach().double() @ head.weight.double().T
    total = squared_distance_sum(gram_of(head), hidden, teacher)
    total.backward()
    assert total.item() == pytest.approx(difference.square().sum().item(), rel=1e-5)
    torch.testing.assert_close(hidden.grad.double(), 2 * difference @ head.weight.double(), rtol=1e-5, atol=1e-4)
    if stored == torch.float32:
        assert squared_error_sum(head, hidden, teacher, head).item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize(("stored", "step"), [(torch.float32, 1e-6), (torch.float16, 4e-4)])
def test_differences_at_the_level_of_rounding_give_no_loss_and_no_gradient(stored: torch.dtype, step: float) -> None:
    head = Head(4, 12, generator=torch.Generator().manual_seed(1)).requires_grad_(False)
    teacher = torch.tensor([[1.0, -0.5, 0.25, 0.125]]).to(stored)
    near, far = (teacher.float() + shift for shift in (step, 20 * step))
    for value, is_none in ((near, True), (far, False)):
        hidden = value.clone().requires_grad_()
        total = squared_distance_sum(gram_of(head), hidden, teacher)
        total.backward()
        assert (total.item() == 0 and hidden.grad.abs().max().item() == 0) == is_none


def test_no_examples_have_a_distance_of_zero_and_stay_in_the_graph() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    total = squared_distance_sum(torch.eye(4), hidden, torch.zeros(0, 4))
    total.backward()
    assert total.item() == 0 and hidden.grad is not None
