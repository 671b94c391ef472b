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
