"""The sum of cross-entropies whose gradients are made in the forward pass, against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dist_teracon.models import heads


def problem(examples, *, dtype=torch.float64, labels=7, channels=5):
    generator = torch.Generator().manual_seed(0)
    head = heads.Head(channels, labels, generator=generator).to(dtype)
    with torch.no_grad():
        head.weight.mul_(100)
    hidden = torch.randn(examples, channels, generator=generator).to(dtype).requires_grad_()
    return head, hidden, torch.randint(0, labels, (examples,), generator=generator)


def gradients(loss, head, hidden):
    return torch.autograd.grad(3 * loss, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("examples", [0, 1, 9])
def test_equals_torch_in_value_and_every_gradient(examples, rows, monkeypatch):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 7 * rows)
    head, hidden, labels = problem(examples)
    loss = heads.cross_entropy_sum(head, hidden, labels)
    wanted = F.cross_entropy(head(hidden), labels, reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    for got, want in zip(gradients(loss, head, hidden), gradients(wanted, head, hidden), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_smoothed_labels_equal_torch_s(smoothing, monkeypatch):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 7 * 4)
    head, hidden, labels = problem(9)
    loss = heads.cross_entropy_sum(head, hidden, labels, smoothing=smoothing)
    wanted = F.cross_entropy(head(hidden), labels, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(heads.cross_entropy_sum(head, hidden.detach(), labels, smoothing=smoothing).detach(), wanted.detach())
    for got, want in zip(gradients(loss, head, hidden), gradients(wanted, head, hidden), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_bf16_is_summed_in_fp32_over_chunks(monkeypatch):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 7 * 8)
    head, hidden, labels = problem(400, dtype=torch.bfloat16)
    loss = heads.cross_entropy_sum(head, hidden, labels)
    assert loss.dtype == torch.float32
    wide = heads.Head(5, 7, generator=torch.Generator()).double()
    wide.load_state_dict(head.state_dict())
    exact = hidden.detach().double().requires_grad_()
    wanted = F.cross_entropy(wide(exact), labels, reduction="sum")
    for got, want in zip(gradients(loss, head, hidden), gradients(wanted, wide, exact), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_what_is_frozen_gets_no_gradient(frozen):
    head, hidden, labels = problem(6)
    whole = gradients(heads.cross_entropy_sum(head, hidden, labels), head, hidden)
    hidden.requires_grad_(frozen != "hidden")
    head.requires_grad_(frozen != "head")
    heads.cross_entropy_sum(head, hidden, labels).mul(3).backward()
    for leaf, want in zip((hidden, head.weight, head.bias), whole, strict=True):
        assert torch.equal(leaf.grad, want) if leaf.requires_grad else leaf.grad is None


def test_without_gradients_the_same_number_and_no_graph():
    head, hidden, labels = problem(6)
    with torch.no_grad():
        loss = heads.cross_entropy_sum(head, hidden, labels)
    assert not loss.requires_grad
    assert torch.equal(loss, heads.cross_entropy_sum(head, hidden, labels).detach())
