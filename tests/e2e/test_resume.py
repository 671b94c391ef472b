"""A run killed at any moment goes on with the same command and ends as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import events, run_worlds, settings, timeless, what_lasts

MOMENTS = (
    "step:1:4",
    "half-checkpoint:1:2",
    "pseudo:2:3",
    "checkpoint:2:1",
    "half-stage:2",
    "finished:2",
    "pseudo:3:12",
    "step:3:4",
    "checkpoint:3:2",
)


def _killed_again_and_again(config: dict[str, Any], folder: Path, moments: tuple[str, ...], world: int) -> tuple[Path, Path]:
    whole, killed = folder / "whole", folder / "killed"
    jobs: list[dict[str, Any]] = [{"config": config, "run": str(whole), "world": world}]
    jobs += [{"config": config, "run": str(killed), "world": world, "moment": moment} for moment in moments]
    jobs.append({"config": config, "run": str(killed), "world": world})
    codes = run_worlds(jobs, folder)
    assert all(code[-1] == -9 for code in codes[1:-1])
    return whole, killed


@pytest.fixture(scope="module")
def runs(small: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An undisturbed run and one that was killed nine times."""
    method = {"name": "teracon", "retention": {"refresh_every": 1}}  # rates in use are then those of earlier steps
    config = settings(small, method=method)
    config["model"] = {**config["model"], "dropout": 0.2, "item_init": "svd"}
    for stage in ("first", "later"):
        config["train"][stage] = {**config["train"][stage], "ema_decay": 0.5, "pretrained_lr_scale": 0.5, "probe_steps": 30}
    return _killed_again_and_again(config, tmp_path_factory.mktemp("resume"), MOMENTS, world=1)


def test_a_run_killed_at_nine_moments_ends_bit_for_bit_as_undisturbed(runs: tuple[Path, Path]) -> None:
    whole, killed = (what_lasts(run) for run in runs)
    assert len(whole) == 1 + 3 + 3 * 8
    assert killed.keys() == whole.keys()
    assert [name for name in whole if killed[name] != whole[name]] == []


def test_the_event_log_of_a_killed_run_is_that_of_an_undisturbed_one(runs: tuple[Path, Path]) -> None:
    whole, killed = ([timeless(event) for event in events(run)] for run in runs)
    assert killed == whole


def test_a_resumed_run_leaves_no_checkpoints_behind_and_times_every_stage(runs: tuple[Path, Path]) -> None:
    _, killed = runs
    assert not list(killed.glob("stages/*/progress"))
    timing = json.loads((killed / "timing.json").read_text())
    assert [stage["task"] for stage in timing["stages"]] == ["next", "likes", "age"]


def test_two_processes_of_which_one_is_killed_end_bit_for_bit_as_undisturbed(small: str, tmp_path: Path) -> None:
    config = settings(small, tasks=("next", "likes"), zero=2)
    whole, killed = _killed_again_and_again(config, tmp_path, ("step:2:10",), world=2)
    assert what_lasts(killed) == what_lasts(whole)
    assert [timeless(event) for event in events(killed)] == [timeless(event) for event in events(whole)]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_number_of_processes(small: str, tmp_path: Path) -> None:
    config = settings(small, tasks=("next", "likes"), zero=2)
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    jobs = [{"config": config, "run": str(moved), "world": 2, "moment": "step:2:10"}, {"config": config, "run": str(moved), "world": 3}]
    run_worlds([*jobs, {"config": config, "run": str(whole)}], tmp_path)
    one, other = (events(run, "step") for run in (whole, moved))
    assert [event["step"] for event in one] == [event["step"] for event in other]
    for expected, found in zip(one, other, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)


@pytest.fixture(scope="module")
def sampled(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose heads draw negatives: undisturbed, killed twice, on two processes, and exact."""
    folder = tmp_path_factory.mktemp("sampled")
    stage = {"learning_rate": 0.001, "batch": 16, "epochs": 3}
    config = settings(small, tasks=("next", "likes"), zero=2, first=stage, second=stage)
    config["model"]["heads"] = {"default": "sampled", "sampled": {"negatives": 6}}
    exact = {**config, "model": {**config["model"], "heads": {"default": "auto"}}}
    killed = [{"config": config, "run": str(folder / "killed"), "moment": moment} for moment in ("checkpoint:1:1", "step:2:9")]
    jobs = [{"config": config, "run": str(folder / name), "world": world} for name, world in (("whole", 1), ("two", 2), ("killed", 1))]
    run_worlds([jobs[0], jobs[1], *killed, jobs[2], {"config": exact, "run": str(folder / "exact")}], folder)
    return folder


def test_a_killed_run_with_sampled_heads_ends_bit_for_bit_as_undisturbed(sampled: Path) -> None:
    assert what_lasts(sampled / "killed") == what_lasts(sampled / "whole")
    assert what_lasts(sampled / "exact") != what_lasts(sampled / "whole")


def test_sampled_heads_draw_the_same_on_two_processes(sampled: Path) -> None:
    one, two = (events(sampled / name, "step") for name in ("whole", "two"))
    for expected, found in zip(one, two, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
