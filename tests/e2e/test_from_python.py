"""Training from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import checked, results, settings

import dist_teracon
from dist_teracon.errors import RunError


def test_tasks_are_trained_and_the_same_call_finds_the_run_finished(small: str, tmp_path: Path) -> None:
    config = checked(settings(small, method="sinmo", tasks=("age",)))
    first = dist_teracon.train_tasks(config, tmp_path / "run")
    assert first == results(tmp_path / "run") == dist_teracon.train_tasks(config, str(tmp_path / "run"))
    with pytest.raises(RunError, match="seed was 0 and is now 1"):
        dist_teracon.train_tasks(config.model_copy(update={"seed": 1}), tmp_path / "run")
