"""`dist-teracon pseudo-label RUN --stage N`: the stage finds what the job made; what cannot be made is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import ALONE, checked, events, run_worlds, settings, timeless, train_here, what_lasts

from dist_teracon import cli
from dist_teracon.console import Console
from dist_teracon.continual import pseudo_labels
from dist_teracon.errors import ConfigError
from dist_teracon.train import label_job
from dist_teracon.train.run import train

pytestmark = pytest.mark.usefixtures("alone")


def _values(small: str) -> dict[str, Any]:
    return settings(small, max_steps=3)


@pytest.fixture(scope="module")
def whole(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages in one piece."""
    return train_here(_values(small), tmp_path_factory.mktemp("label-job") / "whole")


@pytest.fixture(scope="module")
def two_stages(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped when its second stage was finished."""
    return train_here(_values(small), tmp_path_factory.mktemp("label-job") / "run", until_stage=2)


def _labels(run: Path, stage: int, said: list[str] | None = None) -> None:
    console = Console(active=False)
    if said is not None:
        console.log = said.append  # type: ignore[method-assign]
    label_job.make_pseudo_labels(label_job.config_of_run(run), ALONE, run, stage=stage, where=str(run), console=console)


def test_a_run_stops_when_a_stage_is_finished(two_stages: Path, whole: Path) -> None:
    assert sorted(path.name for path in (two_stages / "stages").iterdir()) == ["01-next", "02-likes"]
    assert not (two_stages / "baselines.json").exists()
    model = "stages/02-likes/model.safetensors"
    assert (two_stages / model).read_bytes() == (whole / model).read_bytes()


def test_a_stage_that_there_is_not_cannot_be_stopped_after(small: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--until-stage 4: the run has 3 stages \(next, likes, age\)"):
        train_here(_values(small), tmp_path / "run", until_stage=4)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_training_uses_what_the_job_made_and_ends_with_the_same_bits(
    two_stages: Path, whole: Path, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = tmp_path / "run", []
    shutil.copytree(two_stages, run)
    before = events(run)
    _labels(run, 3, said)
    made = sorted(run.glob("stages/03-age/pseudo_labels/*/*.arrow"))
    assert len(made) == 2 * 8
    assert "pseudo-labels (next" in said[-1] and "16 shard(s) of them made now" in said[-1]
    assert events(run) == before  # the stage logs its passes itself
    _labels(run, 3, said)
    assert "are there already" in said[-1] and "nothing to do" in said[-1]
    # the stage has no pass of its own: a teacher that is asked fails
    monkeypatch.setattr(pseudo_labels, "_answers", lambda *_, **__: pytest.fail("the teacher was asked"))
    train(checked(_values(small)), ALONE, run, where="test", console=Console(active=False))
    assert what_lasts(run) == what_lasts(whole)
    assert [timeless(event) for event in events(run)] == [timeless(event) for event in events(whole)]
    _labels(run, 3, said)
    assert said[-1] == "stage 3 (age) is finished and needs no pseudo-labels any more; nothing to do"


def test_processes_of_any_number_make_them_and_one_that_is_killed_is_gone_on_with(small: str, whole: Path, tmp_path: Path) -> None:
    job = {"config": _values(small), "run": str(tmp_path / "run")}
    codes = run_worlds(
        [
            {**job, "until_stage": 1},
            {**job, "world": 3, "labels_of": 2, "moment": "pseudo:2:2", "rank": 1},
            {**job, "world": 2, "labels_of": 2},
            {**job, "until_stage": 2},
        ],
        tmp_path,
    )
    assert codes[1][1] == -9
    labels = "stages/02-likes/pseudo_labels/next"
    assert sorted(path.name for path in (tmp_path / "run" / labels).iterdir()) == sorted(path.name for path in (whole / labels).iterdir())
    kept = what_lasts(tmp_path / "run")
    del kept["results.json"]
    assert kept and all(whole.joinpath(name).read_bytes() == content for name, content in kept.items())


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["pseudo-label", *arguments]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_made_is_told(two_stages: Path, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(two_stages)
    assert "is no run yet (config.yaml is missing)" in _refused(capsys, str(tmp_path / "none"), "--stage", "2")
    assert not (tmp_path / "none").exists()
    assert "--stage 9: the run has 3 stages (next, likes, age)" in _refused(capsys, run, "--stage", "9")
    assert "--stage 1: 'next' is the first task" in _refused(capsys, run, "--stage", "1")
    assert "was started with another configuration: seed was 0 and is now 7" in _refused(capsys, run, "--stage", "3", "--set", "seed=7")
    first = train_here(_values(small), tmp_path / "first", until_stage=1)
    said = _refused(capsys, str(first), "--stage", "3")
    assert "the teacher of stage 3 (age) is what stage 2 (likes) ends with, and 1 stage(s) are finished" in said
    assert "--until-stage 2" in said
    online = {"name": "teracon", "retention": {"teacher": "online"}}
    other = train_here({**_values(small), "method": online}, tmp_path / "online", until_stage=1)
    assert "method 'teracon' makes no pseudo-labels with these settings" in _refused(capsys, str(other), "--stage", "2")


def test_the_job_of_another_data_set_is_refused(two_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from small_runs import write_small

    write_small(tmp_path / "other", users=90)
    said = _refused(capsys, str(two_stages), "--stage", "3", "--set", f"dataset={tmp_path / 'other'}")
    assert "has changed since this run began" in said


def test_labels_of_another_teacher_are_refused_and_made_anew(two_stages: Path, whole: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", []
    shutil.copytree(two_stages, run)
    _labels(run, 3)
    sound = {path: path.read_bytes() for path in run.glob("stages/03-age/pseudo_labels/*/*.arrow")}
    foreign = whole / "stages/02-likes/pseudo_labels/next"  # what an earlier teacher said of the same task
    shutil.copytree(foreign, run / "stages/03-age/pseudo_labels/next", dirs_exist_ok=True)
    _labels(run, 3, said)
    assert sum("another teacher has made it; these pseudo-labels are made anew" in line for line in said) == 8
    assert {path: path.read_bytes() for path in sound} == sound


def test_the_resolved_configuration_of_a_run_is_taken(two_stages: Path) -> None:
    config = label_job.config_of_run(two_stages, ["launch.workers=3"])
    kept = yaml.safe_load((two_stages / "config.yaml").read_text())
    assert config.launch.workers == 3
    assert {**config.model_dump(mode="json"), "launch": kept["launch"]} == kept
