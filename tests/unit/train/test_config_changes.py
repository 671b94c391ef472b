"""A run goes on under code whose method has got a field since, as long as that is at its default."""

from __future__ import annotations

from typing import Any

import pytest

from dist_teracon.config_io import make_config
from dist_teracon.train.config_changes import compare_configs
from dist_teracon.train.run_setup import resolve


def _resolved(**method: Any) -> Any:
    return resolve(make_config({"dataset": "d", "method": {"name": "teracon", **method}}, where="test"), where="test")[0]


def _older(config: Any) -> Any:
    method = {**config.method, "retention": {name: value for name, value in config.method["retention"].items() if name != "budget"}}
    return config.model_copy(update={"method": method})


def test_a_field_that_is_new_is_at_its_default_in_older_runs() -> None:
    now = _resolved()
    assert now.method["retention"]["budget"] is None
    assert compare_configs(_older(now), now, tasks=("a", "b"), finished=1).problem == ""


@pytest.mark.parametrize("method", [{"retention": {"budget": 0.5}}, {"s_max": 20.0}])
def test_other_values_are_still_refused(method: dict[str, Any]) -> None:
    change = compare_configs(_older(_resolved()), _resolved(**method), tasks=("a", "b"), finished=1)
    assert change.problem.startswith("method.")


def _scheduled(epochs: int, schedule: str) -> Any:
    return _resolved_with(train={name: {"epochs": epochs, "schedule": schedule} for name in ("first", "second", "later")})


def _resolved_with(**groups: Any) -> Any:
    return resolve(make_config({"dataset": "d", "method": {"name": "teracon"}, **groups}, where="test"), where="test")[0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_rate_that_falls_over_all_epochs_gets_no_more_of_them_in_a_stage_that_may_have_begun(schedule: str) -> None:
    tasks = ("a", "b", "c")
    change = compare_configs(_scheduled(5, schedule), _scheduled(7, schedule), tasks=tasks, finished=0)
    assert "train.first.epochs was 5 and is now 7" in change.problem
    assert f"over which its {schedule} schedule lowers the learning rate" in change.problem


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_other_rates_go_on_for_more_epochs(schedule: str) -> None:
    change = compare_configs(_scheduled(5, schedule), _scheduled(7, schedule), tasks=("a", "b"), finished=0)
    assert change.problem == ""
    assert len(change.notes) == 2
