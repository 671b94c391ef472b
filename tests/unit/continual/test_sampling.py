"""How many rows of a past task are replayed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dist_teracon.continual.sampling import OnItsWay, apply_strategy, divide_budget, rotation, sample_size, sampling_rates


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


@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    rows=st.integers(1, 200),
    offset=st.floats(0, 1, exclude_max=True),
)
@example(rates=[0.0, 1.0, 0.25], rows=3, offset=1 - 2.0**-53)
def test_a_budget_is_divided_without_a_rest_and_each_task_gets_its_share_rounded(rates, rows, offset):
    sizes = divide_budget(rates, rows, offset=offset)
    total = sum(rates)
    assert sum(sizes) == rows
    for size, rate in zip(sizes, rates, strict=True):
        share = rows * (rate / total if total else 1 / len(rates))
        assert math.floor(share - 1e-9) <= size <= math.ceil(share + 1e-9)


def test_tasks_take_turns_where_there_are_more_of_them_than_rows():
    rates = [0.01] * 30 + [0.02] * 10
    steps = [divide_budget(rates, 8, offset=rotation(7, 1, step)) for step in range(1000)]
    assert all(sum(sizes) == 8 for sizes in steps)
    drawn = [sum(sizes) for sizes in zip(*steps, strict=True)]
    assert drawn == [pytest.approx(8000 * rate / 0.5, abs=5) for rate in rates]  # 160 and 320
    for task in range(40):  # none waits long: its share is a sixth of a row, or a third
        here = [step for step, sizes in enumerate(steps) if sizes[task]]
        assert max(after - before for before, after in itertools.pairwise(here)) <= 13


def test_a_step_has_rows_of_no_more_tasks_than_asked_and_each_task_has_its_share_over_steps():
    rates = [0.01, 0.02, 0.03, 0.05, 0.01]
    for parts in (1, 2, 3):
        steps = [divide_budget(rates, 24, offset=rotation(7, 1, step), parts=parts) for step in range(1000)]
        assert all(sum(sizes) == 24 for sizes in steps)
        assert all(size % (24 // parts) == 0 for sizes in steps for size in sizes)
        assert max(sum(size > 0 for size in sizes) for sizes in steps) == parts
        drawn = [sum(sizes) / 1000 for sizes in zip(*steps, strict=True)]
        assert drawn == [pytest.approx(24 * rate / 0.12, rel=0.02) for rate in rates]


def test_the_rotation_follows_from_seed_epoch_and_step_alone():
    assert rotation(1, 2, 3) == rotation(1, 2, 3)
    assert len({rotation(*where) for where in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))}) == 4
    offsets = sorted(rotation(0, 1, step) for step in range(100))
    assert 0 <= offsets[0] <= offsets[-1] < 1
    assert max(after - before for before, after in itertools.pairwise(offsets)) < 0.03


def test_one_task_has_the_whole_budget():
    assert [divide_budget([0.002], 5, offset=rotation(0, 1, step)) for step in range(9)] == [[5]] * 9


def test_a_tensor_on_its_way_is_whole_when_it_is_read() -> None:
    assert OnItsWay(torch.tensor([0.25, 0.5])).tolist() == [0.25, 0.5]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_reading_waits_for_the_device() -> None:
    torch.zeros(3, device="cuda").to("cpu", non_blocking=True)  # the memory that the copy will get
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)  # a quarter of a second
    value = torch.full((3,), 7.0, device="cuda")
    assert OnItsWay(value).tolist() == [7.0, 7.0, 7.0]
