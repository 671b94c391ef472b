"""A run killed within an epoch goes on from the middle of it, and ends as if nothing had been."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from small_runs import events, run_worlds, settings, timeless, train_here, what_lasts

from dist_teracon.train import phase as phase_module


def _config(small: str, *, every: dict[str, Any], **train: Any) -> dict[str, Any]:
    """A run with everything that has state in the middle of an epoch: rates (ρ and learning), replayed rows, dropout, averages, a probe."""
    method = {"name": "teracon", "retention": {"refresh_every": 2, "minimum": 5}}
    stage = {"learning_rate": 0.01, "batch": 16, "epochs": 2, "ema_decay": 0.5, "pretrained_lr_scale": 0.5, "probe_steps": 30}
    falling = {**stage, "schedule": "cosine", "warmup_steps": 5}
    config = settings(small, method=method, first=stage, second=falling, later=stage, checkpoint_every=every, **train)
    config["model"] = {**config["model"], "dropout": 0.2}
    return config


class Killed(BaseException):
    """Stands for a kill: nothing on the way catches it."""


def _killed_at_step(config: dict[str, Any], run: Path, step: int, monkeypatch: pytest.MonkeyPatch, *, learned: int = 2) -> int:
    """Train until step `step` of a stage is about to begin; returns how many steps the stage took up to there."""
    real, taken = phase_module.train_step, []

    def dying(engine: Any, method: Any, *arguments: Any, **options: Any) -> Any:
        if len(method.learned) == learned:
            taken.append(0)
            if len(taken) == step:
                raise Killed
        return real(engine, method, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(phase_module, "train_step", dying)
        with suppress(Killed):
            train_here(config, run)
    return len(taken)


@pytest.fixture(scope="module")
def whole(alone: None, small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that saves at the ends of epochs alone."""
    return train_here(_config(small, every={"minutes": None}), tmp_path_factory.mktemp("whole") / "run")


def _steps_an_epoch(run: Path, stage: int) -> int:
    return max(event["batch"] for event in events(run, "step") if event["stage"] == stage) + 1


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_killed_within_an_epoch_ends_bit_for_bit_as_undisturbed(
    alone: None, small: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    config = _config(small, every={"minutes": None, "steps": every})
    length = _steps_an_epoch(whole, 2)
    for step in (3, length - 1, 4):  # each counted from where the run before was killed
        _killed_at_step(config, tmp_path / "run", step, monkeypatch)
    train_here(config, tmp_path / "run")
    assert what_lasts(tmp_path / "run") == what_lasts(whole)
    assert [timeless(event) for event in events(tmp_path / "run")] == [timeless(event) for event in events(whole)]
    # every step is logged, so that a step's event has what the one before was followed by
    written = [event["timing"].get("checkpoints") for event in events(tmp_path / "run", "step") if event["stage"] == 3]
    assert [place for place, checkpoint in enumerate(written) if checkpoint] == [
        step for step in range(1, len(written)) if step % every == 0 or step == len(written) // 2
    ]
    assert all(checkpoint["seconds"] > 0 for checkpoint in written if checkpoint)
    assert not list((tmp_path / "run").glob("stages/*/progress"))


def test_no_more_than_the_steps_since_the_checkpoint_are_taken_again(
    alone: None, small: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(small, every={"minutes": None, "steps": 3})
    assert _killed_at_step(config, tmp_path / "run", 6, monkeypatch) == 6  # five steps are taken, three of them saved
    total = 2 * _steps_an_epoch(whole, 2)
    assert _killed_at_step(config, tmp_path / "run", 10_000, monkeypatch) == total - 3


@pytest.mark.parametrize("last", [True, False], ids=["at the last step", "after validation"])
def test_at_an_epochs_boundary_no_epoch_is_skipped_or_trained_twice(
    alone: None, small: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """Killed right after the checkpoint of an epoch's last step, before its validation; and right after that of the epoch."""
    length = _steps_an_epoch(whole, 2)
    config, run = _config(small, every={"minutes": None, "steps": length}), tmp_path / "run"
    save = phase_module.StageFolder.save_checkpoint

    def dying(folder: Any, checkpoint: Any) -> None:
        save(folder, checkpoint)
        if folder.path.name == "02-likes" and bool(checkpoint.step) == last:
            assert checkpoint.step in (0, length)
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(phase_module.StageFolder, "save_checkpoint", dying)
        train_here(config, run)
    steps = _killed_at_step(config, run, 10_000, monkeypatch)
    assert steps == length  # the second epoch's
    assert what_lasts(run) == what_lasts(whole)
    assert [timeless(event) for event in events(run)] == [timeless(event) for event in events(whole)]


def test_the_clock_asks_for_checkpoints_too(alone: None, small: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    save = phase_module.StageFolder.save_checkpoint

    def noted(folder: Any, checkpoint: Any) -> None:
        saved.append(checkpoint.step)
        save(folder, checkpoint)

    monkeypatch.setattr(phase_module.StageFolder, "save_checkpoint", noted)
    run = train_here(_config(small, every={"minutes": 1e-9}), tmp_path / "run")
    assert len(saved) > 3 * sum(step == 0 for step in saved)
    assert what_lasts(run) == what_lasts(whole)


def test_two_processes_go_on_within_an_epoch(small: str, tmp_path: Path) -> None:
    config = _config(small, every={"steps": 2}, zero=2)
    config["tasks"] = ["next", "likes"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    jobs: list[dict[str, Any]] = [{"config": config, "run": str(whole), "world": 2}]
    jobs += [{"config": config, "run": str(killed), "world": 2, "moment": moment} for moment in ("step:2:4", "step:2:9")]
    run_worlds([*jobs, {"config": config, "run": str(killed), "world": 2}], tmp_path)
    assert what_lasts(killed) == what_lasts(whole)
    assert [timeless(event) for event in events(killed)] == [timeless(event) for event in events(whole)]


def test_best_and_average_are_linked_not_written_again(alone: None, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = _config(small, every={"minutes": None, "steps": 1}), tmp_path / "run"
    written = []
    write = phase_module.StageFolder.save_checkpoint.__globals__["save_tensors"]

    def noted(path: Path, tensors: Any) -> None:
        written.append(path.name)
        write(path, tensors)

    monkeypatch.setitem(phase_module.StageFolder.save_checkpoint.__globals__, "save_tensors", noted)
    train_here(config, run)
    epochs = len([event for event in events(run, "epoch") if event["epoch"]])
    assert written.count("average.safetensors") == epochs
    assert written.count("engine.safetensors") > 2 * epochs
    assert json.loads((run / "results.json").read_text())["scores"]


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("whole_ones", [1, 0], ids=["the last one", "all of them"])
def test_killed_again_on_the_way_past_a_damaged_checkpoint(
    alone: None, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_ones: int
) -> None:
    """What is saved on the new way takes nothing from the damaged ones, which are later; and none of them outlives it."""

    def config(every: dict[str, Any]) -> dict[str, Any]:
        made = _config(small, every={"minutes": None, **every})
        made["train"]["second"]["epochs"] = 3
        return {**made, "tasks": ["next", "likes"]}

    undisturbed, run = train_here(config({}), tmp_path / "undisturbed"), tmp_path / "run"
    length = _steps_an_epoch(undisturbed, 2)
    _killed_at_step(config({}), run, 2 * length + 1, monkeypatch)
    progress = run / "stages/02-likes/progress"
    first, second = sorted(folder.name for folder in progress.glob("phase-*"))
    for name in (first, second)[whole_ones:]:
        _damage(progress / name / "engine.safetensors")
    _killed_at_step(config({"steps": 1}), run, 3, monkeypatch)
    step = f"{first if whole_ones else first.replace('00001', '00000')}-step-00000002"
    assert step in (left := {folder.name for folder in progress.glob("phase-*")})
    assert second not in left and len(left) == 2
    train_here(config({}), run)
    assert what_lasts(run) == what_lasts(undisturbed)
