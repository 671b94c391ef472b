"""How many rows of a past task are replayed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_teracon.continual.sampling import apply_strategy, sample_size, sampling_rates


def test_rates_as_the_formula_is_written():
    generator = torch.Generator().manual_seed(0)
    mask, past = (torch.rand(*shape, dtype=torch.float64, generator=generator) for shape in ((4, 5), (3, 4, 5)))
    for rate, other in zip(sampling_rates(mask, past, constant=6.0).tolist(), past, strict=True):
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(mask, other, strict=True)]
        assert rate == pytest.approx(1 - sum(1 / (1 + math.exp(-6 * cosine)) for cosine in cosines) / 4, rel=1e-12)


def test_similar_tasks_are_sampled_less():
    mask = torch.eye(2, dtype=torch.float64)
    equal, apart = sampling_rates(mask, torch.stack([mask, mask.flip(0)]), constant=6.0).tolist()
    assert equal == pytest.approx(1 - 1 / (1 + math.exp(-6)))
    assert apart == pytest.approx(0.5)


def test_a_mask_of_zeros_gives_a_number():
    assert sampling_rates(torch.zeros(2, 3), torch.ones(1, 2, 3), constant=6.0).tolist() == [0.5]


def test_strategies():
    rates = [0.03, 0.01, 0.2]
    assert apply_strategy(rates, "formula") == rates
    assert apply_strategy(rates, "minimum") == [0.01] * 3
    assert apply_strategy(rates, "all") == [1.0] * 3
    assert apply_strategy([], "minimum") == []


@given(rate=st.floats(0, 1), batch=st.integers(1, 10_000), minimum=st.integers(1, 50))
def test_sample_size_is_the_rounded_share_and_never_empty(rate, batch, minimum):
    size = sample_size(rate, batch, minimum=minimum)
    assert size == max(minimum, round(rate * batch)) >= 1
    assert size == minimum or abs(size - rate * batch) <= 0.5
