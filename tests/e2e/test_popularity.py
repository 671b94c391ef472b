"""Popularity as a method gives the baseline's own score."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import TASKS, results, settings, train_here

from dist_teracon import io


def test_it_scores_as_the_baselines_beside_a_run_do(alone: None, small: str, tmp_path: Path) -> None:
    run = train_here(settings(small, method="popularity", tasks=TASKS), tmp_path / "run")
    found, baselines = results(run), io.read_json(str(run / "baselines.json"))
    expected = [a if a is not None else b for a, b in zip(baselines["popularity"], baselines["majority"], strict=True)]
    assert found["scores"][-1] == pytest.approx(expected)
    assert found["bwt"][:-1] == [0] * (len(TASKS) - 1)
