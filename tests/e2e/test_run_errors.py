"""What a user can do wrong with a run ends with one message, exit code 2 and no traceback; what was finished stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import events, results, run_worlds, settings, train_here, what_lasts, write_small

from dist_teracon.cli import main
from dist_teracon.continual.teracon_settings import RetentionSettings
from dist_teracon.errors import RunError, TrainingError
from dist_teracon.runtime import process_group
from dist_teracon.train import phase as phase_module
from dist_teracon.train.run_folder import RunFolder

ONE_EPOCH = {"learning_rate": 0.01, "batch": 32, "epochs": 1}
SHORT = {"first": ONE_EPOCH, "second": ONE_EPOCH, "later": ONE_EPOCH}

Fails = Callable[..., str]


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group for one test: the command line makes its own."""
    with process_group():
        yield


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Give tests a `train` on the command line that has to fail; returns the one message."""

    def run(values: dict[str, Any], folder: Path, *overrides: str) -> str:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(values))
        options = [part for override in overrides for part in ("--set", override)]
        capsys.readouterr()  # what was said before
        assert main(["train", str(config), "--run", str(folder), *options]) == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert said.err.count("dist-teracon: error: ") == 1
        assert said.out == ""
        return said.err.split("dist-teracon: error: ")[1].strip()

    return run


@pytest.fixture(scope="module")
def finished(small: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A finished run of one task and its configuration, made through the command line."""
    folder = tmp_path_factory.mktemp("finished")
    values = settings(small, method="sinmo", tasks=("age",), **SHORT)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(folder / "config.yaml"), "--run", str(folder / "run")]) == 0
    return values, folder / "run"


def test_a_backend_that_is_not_there(small: str, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    values = settings(small, method="sinmo", tasks=("age",), **SHORT)
    monkeypatch.setenv("DIST_TERACON_KERNELS", "tritn")
    assert fails(values, tmp_path / "run").startswith("DIST_TERACON_KERNELS=tritn: no such backend; did you mean 'triton'?")
    monkeypatch.setenv("DIST_TERACON_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "expected a GPU for Triton's kernels, got 'cpu'" in fails(values, tmp_path / "run")


def test_a_run_folder_of_another_configuration_names_the_field(finished: tuple[dict[str, Any], Path], fails: Fails) -> None:
    values, run = finished
    before = what_lasts(run)
    said = fails(values, run, "train.first.learning_rate=0.5")
    assert f"{run}: was started with another configuration: train.first.learning_rate was 0.01 and is now 0.5" in said
    assert "method.name was 'sinmo' and is now 'fineall'" in fails({**values, "method": {"name": "fineall"}}, run)
    assert what_lasts(run) == before


def test_the_stored_configuration_holds_every_field_of_the_method(alone: None, small: str, tmp_path: Path) -> None:
    train_here(settings(small, tasks=("age",), **SHORT), tmp_path / "run")
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert stored["method"]["retention"]["alpha"] == RetentionSettings().alpha
    assert stored["train"]["zero"] == 0


def test_a_data_set_changed_under_a_run_is_refused(tmp_path: Path, fails: Fails) -> None:
    values = settings(write_small(tmp_path / "set"), method="sinmo", tasks=("age",), **SHORT)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(tmp_path / "config.yaml"), "--run", str(tmp_path / "run")]) == 0
    shutil.rmtree(tmp_path / "set")
    write_small(tmp_path / "set", users=150)
    assert "has changed since this run began" in fails_cleanly(fails, values, tmp_path / "run")


def fails_cleanly(fails: Fails, values: dict[str, Any], run: Path) -> str:
    """Fail and leave everything as it was."""
    before = what_lasts(run)
    said = fails(values, run)
    assert what_lasts(run) == before
    return said


def test_a_damaged_shard_is_named(tmp_path: Path, fails: Fails) -> None:
    values = settings(write_small(tmp_path / "set"), method="sinmo", tasks=("age",), **SHORT)
    shard = tmp_path / "set/users/shard-00003.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    said = fails(values, tmp_path / "run")
    assert str(shard) in said
    assert "SHA-256" in said


def test_a_rank_that_gives_up_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    values = settings(write_small(tmp_path / "set"), method="sinmo", tasks=("age",), **SHORT)
    (tmp_path / "set/users/shard-00003.parquet").write_bytes(b"")  # read by the second process only
    assert run_worlds([{"config": values, "run": str(tmp_path / "run"), "world": 2, "fails": True}], tmp_path) == [[2, 2]]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tasks", "[next, agee]", r"tasks: data set 'small' has no task 'agee'; did you mean 'age'?"),
        ("train.by_task", "{gendr: {epochs: 3}}", r"train.by_task: data set 'small' has no task 'gendr'; did you mean 'gender'?"),
        ("method.name", "terracon", "method.name: no method 'terracon'; did you mean 'teracon'?"),
        ("method", "{name: teracon, retention: {alfa: 1}}", "method.retention.alfa: unknown field; did you mean 'alpha'?"),
        ("train.precision", "bf16", "set train.zero to 1 or 2"),
        ("train.first.epochz", "3", "train.first.epochz: unknown field; did you mean 'epochs'?"),
        ("dataset", "/nowhere/set", "/nowhere/set: no data set there"),
    ],
)
def test_a_wrong_configuration_names_field_value_and_the_nearest(
    small: str, tmp_path: Path, fails: Fails, field: str, value: str, said: str
) -> None:
    assert said in fails(settings(small, **SHORT), tmp_path / "run", f"{field}={value}")
    assert not (tmp_path / "run").exists()


def test_a_second_process_may_not_write_the_same_run(finished: tuple[dict[str, Any], Path], fails: Fails) -> None:
    values, run = finished
    with RunFolder(run).lock():
        assert "another process is writing this run" in fails(values, run)


def test_a_folder_of_something_else_is_left_alone(small: str, tmp_path: Path, fails: Fails) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("x")
    assert f"{folder}: is no run of this program and not empty (it holds chapter1.tex)" in fails(settings(small), folder)
    assert [entry.name for entry in folder.iterdir()] == ["chapter1.tex"]
    assert "is a file; name a folder" in fails(settings(small), folder / "chapter1.tex")


def test_a_run_killed_while_its_folder_was_made_goes_on(alone: None, small: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / "dataset.json").write_text("{}")
    train_here(settings(small, method="sinmo", tasks=("age",), **SHORT), run)
    assert results(run)["tasks"] == ["age"]


def test_a_loss_that_is_no_number_stops_with_step_task_and_advice_and_the_run_can_go_on(
    alone: None, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = settings(small, method="sinmo", tasks=("age", "gender"))
    real, seen = phase_module.train_step, []

    def poisoned(engine: Any, method: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(len(method.learned) == 2)
        if sum(seen) == 5:
            method.head("gender").bias.data.fill_(torch.nan)
        return real(engine, method, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(phase_module, "train_step", poisoned)
        with pytest.raises(TrainingError) as told:
            train_here(values, tmp_path / "run")
    for part in ("task 'gender'", "phase 'train'", "step 5", "class/gender", "learning rate (now 0.01)", "gradient_clipping", "--run"):
        assert part in str(told.value)
    assert len(results(tmp_path / "run")["scores"]) == 1
    train_here(values, tmp_path / "run")
    train_here(values, tmp_path / "whole")
    assert what_lasts(tmp_path / "run") == what_lasts(tmp_path / "whole")


@pytest.mark.parametrize("train", [{}, {"precision": "bf16", "zero": 1}, {"checkpoint_every": {"minutes": None, "steps": 6}}])
def test_weights_that_a_last_step_has_broken_are_never_saved(
    alone: None, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any]
) -> None:
    values = settings(small, method="sinmo", tasks=("age", "gender"), **train)
    real, seen = phase_module.train_step, []

    def poisoned(engine: Any, method: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(len(method.learned) == 2)
        if sum(seen) == 6:  # the stage's last: its own loss is finite, and no other follows
            method.head("gender").bias.register_hook(lambda gradient: gradient * torch.nan)
        return real(engine, method, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(phase_module, "train_step", poisoned)
        with pytest.raises(TrainingError, match=r"task 'gender'.*step 6: after it, .*heads.gender.bias.* is not a finite number"):
            train_here(values, tmp_path / "run")
    assert sum(seen) == 6
    assert len(results(tmp_path / "run")["scores"]) == 1
    (checkpoint,) = (tmp_path / "run/stages/02-gender/progress").iterdir()
    assert checkpoint.name == "phase-0-epoch-00001"
    train_here(values, tmp_path / "run")
    train_here(values, tmp_path / "whole")
    assert what_lasts(tmp_path / "run") == what_lasts(tmp_path / "whole")


# -- what may change while a run goes on


def test_what_no_result_depends_on_may_change(finished: tuple[dict[str, Any], Path], tmp_path: Path, capsys: Any) -> None:
    values, run = finished
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    overrides = ("train.log_every=7", "evaluate.batch=33", "train.checkpoint_every.steps=4")
    options = [part for override in overrides for part in ("--set", override)]
    assert main(["train", str(tmp_path / "config.yaml"), "--run", str(tmp_path / "run"), *options]) == 0
    assert "train.log_every is now 7 (was 1): no result depends on it" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"]["log_every"] == 7
    assert what_lasts(tmp_path / "run") == what_lasts(run)


def test_a_seed_beyond_32_bits_trains_to_the_end(alone: None, small: str, tmp_path: Path) -> None:
    run = train_here({**settings(small, method="sinmo", tasks=("age",), **SHORT), "seed": 2**32}, tmp_path / "run")
    assert json.loads((run / "baselines.json").read_text())["svd_logistic_regression"][0]["score"] > 0


def test_a_data_set_that_moved_is_the_same_data_set(small: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(small, tmp_path / "A")
    values = settings("A", method="sinmo", tasks=("age",), **SHORT)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "config.yaml", "--run", "run"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["dataset"] == str(tmp_path / "A")
    before = what_lasts(tmp_path / "run")
    Path("A").rename("B")
    for place in ("B", "B/", str(tmp_path / "B")):
        assert main(["train", "config.yaml", "--run", "run", "--set", f"dataset={place}"]) == 0
    assert what_lasts(tmp_path / "run") == before


def test_a_data_set_that_is_not_where_it_was_is_told_with_the_way_on(small: str, tmp_path: Path, fails: Fails) -> None:
    shutil.copytree(small, tmp_path / "set")
    values = settings(str(tmp_path / "set"), tasks=("next",), **SHORT)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    command = ["train", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run"), "--no-report"]
    assert main(command) == 0
    (tmp_path / "set").rename(tmp_path / "moved")
    assert "set: no data set there" in (said := fails(values, tmp_path / "run"))
    assert "; if it was moved, name its place with --set dataset=DIR" in said
    assert main([*command, "--set", f"dataset={tmp_path / 'moved'}"]) == 0
    made = settings("synthetic:six-tasks-v1?users=40", tasks=("next",), **SHORT)
    assert "it was moved" not in fails(made, tmp_path / "other")


def test_a_run_whose_folder_is_moved_ends_and_goes_on_where_it_is(
    alone: None, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, run, moved = settings(small, tasks=("next", "likes"), **SHORT), tmp_path / "run", tmp_path / "moved"
    save = phase_module.PhaseTrainer._save

    def save_after_the_move(trainer: Any, *arguments: Any, **options: Any) -> None:
        if trainer.folder.path.name.startswith("02-"):
            run.rename(moved)
        save(trainer, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(phase_module.PhaseTrainer, "_save", save_after_the_move)
        with pytest.raises(RunError, match="run: the run's folder was moved or removed while it was trained; with --run and its new name"):
            train_here(values, run)
    assert not run.exists()
    train_here(values, moved)
    assert len(results(moved)["scores"]) == 2


def test_a_stage_that_is_not_finished_may_be_given_more_epochs(
    finished: tuple[dict[str, Any], Path], small: str, tmp_path: Path, fails: Fails, capsys: Any
) -> None:
    values = settings(small, method="sinmo", tasks=("age", "gender"), **SHORT)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "config.yaml"), "--run", str(run)]) == 0
    shutil.rmtree(run / "stages" / "02-gender")
    assert "train.first.epochs was 1 and is now 3 (stage 1, task 'age')" in fails(values, run, "train.first.epochs=3")
    assert "train.second.epochs was 1 and is now 0" in fails(values, run, "train.second.epochs=0")
    capsys.readouterr()
    options = ["--set", "train.second.epochs=3", "--set", "train.later.batch=7"]  # no task is learned in a third stage
    assert main(["train", str(tmp_path / "config.yaml"), "--run", str(run), *options]) == 0
    assert "stage 2 (gender) trains at most 3 epochs instead of 1" in capsys.readouterr().err
    assert [line.get("epoch") for line in events(run, "epoch") if line["stage"] == 2] == [0, 1, 2, 3]


def test_a_seed_of_any_size_trains_and_reports(small: str, tmp_path: Path) -> None:
    values = settings(small, method="sinmo", tasks=("age",), **SHORT)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**values, "seed": 1 << 32}))
    assert main(["train", str(tmp_path / "config.yaml"), "--run", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/report.html").exists()


def test_more_epochs_for_one_stage_of_a_group_with_finished_ones(small: str, tmp_path: Path, fails: Fails) -> None:
    values = settings(small, method="sinmo", tasks=("age", "gender", "likes", "next"), **SHORT)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "config.yaml"), "--run", str(run)]) == 0
    shutil.rmtree(run / "stages" / "04-next")
    said = fails(values, run, "train.later.epochs=2")
    assert "(stage 3, task 'likes'), which is finished; more epochs for a stage to come: train.by_task.<its task>.epochs" in said
    assert main(["train", str(tmp_path / "config.yaml"), "--run", str(run), "--set", "train.by_task.next.epochs=2"]) == 0
    assert [line["epoch"] for line in events(run, "epoch") if line["stage"] == 4] == [0, 1, 2]
