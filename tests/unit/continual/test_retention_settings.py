"""Rows of past tasks: a budget for all of them, as shipped, or a number for each."""

from __future__ import annotations

from typing import Any

import pytest

from dist_teracon.config_io import make_config, read_yaml
from dist_teracon.continual.teracon_settings import RetentionSettings, TeraconSettings
from dist_teracon.train.run_setup import resolve


@pytest.mark.parametrize(
    ("given", "share", "floor", "tasks"),
    [
        ({}, 0.125, 0, 2),
        ({"budget": 0.25}, 0.25, 0, 2),
        ({"tasks_per_step": 1}, 0.125, 0, 1),
        ({"tasks_per_step": None}, 0.125, 0, 32),
        ({"tasks_per_step": 50}, 0.125, 0, 32),  # no more tasks than rows
        ({"budget": None}, None, 64, None),
        ({"minimum": 8}, None, 8, None),  # whoever gives a floor means one
        ({"minimum": 8, "budget": 0.5}, 0.5, 0, 2),
        ({"minimum": 64, "budget": None, "tasks_per_step": None}, None, 64, None),  # as older runs hold the default of their day
        ({"sampling": "all"}, None, 64, None),  # everybody is not an eighth
        ({"sampling": "minimum"}, None, 64, None),
        ({"sampling": "all", "budget": 0.5}, 0.5, 0, 2),
    ],
)
def test_a_budget_unless_a_floor_or_other_rates_are_given(
    given: dict[str, Any], share: float | None, floor: int, tasks: int | None
) -> None:
    # as a configuration has it: given fields over the group's defaults
    retention = TeraconSettings.model_validate({"retention": given}).retention
    assert (retention.share, retention.floor) == (share, floor)
    if tasks is not None:
        assert retention.tasks_in(32) == tasks


def test_few_rows_are_of_few_tasks():
    assert [RetentionSettings().tasks_in(rows) for rows in (1, 2, 3)] == [1, 2, 2]


def test_the_published_recipe_keeps_its_floor_of_one_row():
    values = {"dataset": "d", "method": {"name": "teracon"}, "preset": "paper"}
    assert read_yaml("configs/presets/paper.yaml")["method"]["retention"]["budget"] is None
    method = resolve(make_config(values, where="test"), where="test")[0].method
    retention = TeraconSettings.model_validate({name: value for name, value in method.items() if name != "name"}).retention
    assert (retention.share, retention.floor) == (None, 1)
