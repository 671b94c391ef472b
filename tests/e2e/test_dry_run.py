"""`train --dry-run` against the run that it plans."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_runs import ALONE, checked, events, settings, train_here, weights

from dist_teracon.cli import main
from dist_teracon.console import Console
from dist_teracon.errors import ConfigError
from dist_teracon.train.dry_run import DryRun, dry_run, dry_run_lines

TASKS = ("next", "likes", "age")
STAGE = {"learning_rate": 0.01, "batch": 32, "epochs": 2, "patience": 0}
STAGES = {"first": {**STAGE, "epochs": 3}, "second": STAGE, "later": STAGE}


def planned(values: dict[str, object]) -> DryRun:
    return dry_run(checked(values), ALONE, where="run.yaml", console=Console(active=False))


@pytest.mark.usefixtures("alone")
def test_the_plan_is_what_the_run_does(small: str, tmp_path: Path) -> None:
    values = settings(small, tasks=TASKS, **STAGES)
    plan = planned(values)
    run = train_here(values, tmp_path / "run")
    for number, (stage, task) in enumerate(zip(plan.stages, TASKS, strict=True), 1):
        steps = [event for event in events(run, "step") if event["task"] == task]
        assert stage.steps == len(steps)
        rows = [sum(event["rows"].values()) for event in steps if "rows" in event]
        assert len(rows) == (len(steps) if number > 1 else 0)
        assert not rows or stage.replayed[0] <= min(rows) <= max(rows) <= stage.replayed[1]
        assert (stage.replayed[1] > 0) == (number > 1)
    assert sum(plan.parameters.values()) == sum(value.numel() for value in weights(run, "03-age").values())
    # 42 items of 8 numbers; 12 + 3 labels and the next item's 40 of twice as many, with their biases
    assert (plan.parameters["item table"], plan.parameters["heads"]) == (42 * 8, (40 + 12 + 3) * 17)
    assert plan.stages[2].trained == sum(plan.parameters.values())
    assert all(stage.seconds > 0 and stage.memory["activations for the backward pass"] > 0 for stage in plan.stages)
    assert plan.stages[2].memory["Adam's two moments"] == 8 * plan.stages[2].trained


@pytest.mark.usefixtures("alone")
def test_the_last_stage_of_the_command_is_that_of_the_plan(small: str) -> None:
    config, console = checked(settings(small, tasks=TASKS, **STAGES)), Console(active=False)
    plan = dry_run(config, ALONE, where="run.yaml", console=console, until_stage=1)
    assert [stage.task.name for stage in plan.stages] == ["next"]
    with pytest.raises(ConfigError, match=r"--until-stage 4: the run has 3 stages \(next, likes, age\)"):
        dry_run(config, ALONE, where="run.yaml", console=console, until_stage=4)


@pytest.mark.usefixtures("alone")
def test_a_limit_of_steps_counts_by_stage(small: str) -> None:
    plan = planned(settings(small, tasks=TASKS[:2], **STAGES, max_steps=4))
    assert [stage.steps for stage in plan.stages] == [4, 4]
    assert all(stage.steps_per_epoch * stage.epochs > 4 for stage in plan.stages)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("method", ["sinmo", "fineall", "popularity"])
def test_methods_that_replay_nothing(method: str, small: str) -> None:
    plan = planned(settings(small, method=method, tasks=TASKS[:2], **STAGES))
    assert [stage.replayed for stage in plan.stages] == [(0, 0), (0, 0)]
    text = "\n".join(dry_run_lines(plan))
    assert ("time: nothing is trained" in text) == (method == "popularity")
    assert "replayed in all" not in text


def test_the_command_fits_a_terminal_and_writes_nothing(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings(small, tasks=TASKS[:2], **STAGES)))
    assert main(["train", "run.yaml", "--run", "runs/x", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "dry run of run.yaml: no run folder is read or written"
    assert [line for line in lines if line.startswith("1  next")]
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_run_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "configs/demo.yaml"]) == 2
    assert "expected the folder of the run, as --run runs/first (or --dry-run" in capsys.readouterr().err
