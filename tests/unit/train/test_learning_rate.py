"""How the learning rate goes over a phase's steps."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dist_teracon.config.train import StageTraining
from dist_teracon.train.learning_rate import rate_factor


def _factors(total: int, *, cuts: int = 0, **settings: Any) -> list[float]:
    training = StageTraining.model_validate(settings)
    return [rate_factor(training, step, total=total, cuts=cuts) for step in range(total)]


def test_linear_and_cosine_fall_from_the_whole_rate_towards_zero() -> None:
    assert _factors(4, schedule="linear") == [1, 0.75, 0.5, 0.25]
    assert _factors(4, schedule="cosine") == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert _factors(4) == [1, 1, 1, 1]


def test_a_warmup_rises_to_the_whole_rate_and_the_fall_begins_behind_it() -> None:
    assert _factors(6, schedule="linear", warmup_steps=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert _factors(4, warmup_steps=4) == [0.25, 0.5, 0.75, 1]


def test_a_warmup_longer_than_the_phase_never_ends() -> None:
    assert _factors(2, schedule="cosine", warmup_steps=4) == [0.25, 0.5]


def test_a_phase_that_gets_more_steps_than_foretold_stands_still() -> None:
    training = StageTraining(schedule="linear")
    assert rate_factor(training, 9, total=4, cuts=0) == 0


def test_a_cut_counts_within_the_warmup_too() -> None:
    assert _factors(4, cuts=1, schedule="plateau", plateau_factor=0.5, warmup_steps=2) == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("cuts", [0, 1, 2])
def test_each_cut_at_a_plateau_multiplies_once_more(cuts: int) -> None:
    assert _factors(3, cuts=cuts, schedule="plateau", plateau_factor=0.1) == pytest.approx([0.1**cuts] * 3)
