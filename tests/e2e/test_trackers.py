"""Curves of a run at TensorBoard, Weights & Biases and MLflow: every step once, also where the run was killed and went on."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from small_runs import events, settings, train_here, weights
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from dist_teracon.errors import ConfigError
from dist_teracon.train import phase as phase_module
from dist_teracon.train.trackers import registry
from dist_teracon.train.trackers.mlflow_run import MlflowRun
from dist_teracon.train.trackers.points import Point
from dist_teracon.train.trackers.wandb_run import WandbRun

STAGE = {"learning_rate": 0.01, "batch": 32, "epochs": 2}
# parts of names of curves that depend on time or machine
TIMED = ("seconds", "users a second", "memory")


class Killed(BaseException):
    """Stands for a kill: nothing on the way catches it."""


def config(small: str, *report_to: str, **train: Any) -> dict[str, Any]:
    """Return a run of two tasks with checkpoints within epochs."""
    every = {"minutes": None, "steps": 2}
    return settings(small, tasks=("next", "likes"), first=STAGE, second=STAGE, checkpoint_every=every, report_to=report_to, **train)


def killed_and_gone_on(values: dict[str, Any], folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with a kill before the step `at` of the run, and the same command again."""
    real, taken = phase_module.train_step, []

    def dying(*arguments: Any, **options: Any) -> Any:
        taken.append(1)
        if len(taken) == at:
            raise Killed
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(phase_module, "train_step", dying)
        train_here(values, folder)
    train_here(values, folder)


def records(path: Path) -> Iterator[Event]:
    """Yield the events of a TensorBoard file, their checksums checked."""

    def masked(content: bytes) -> int:
        value = crc32c(content)
        return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    content, place = path.read_bytes(), 0
    while place < len(content):
        head = content[place : place + 8]
        (length,) = struct.unpack("<Q", head)
        body = content[place + 12 : place + 12 + length]
        assert struct.unpack("<I", content[place + 8 : place + 12]) == (masked(head),)
        assert struct.unpack("<I", content[place + 12 + length : place + 16 + length]) == (masked(body),)
        yield Event.FromString(body)
        place += 16 + length


def curves(folder: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return what TensorBoard draws: run and tag to steps and values, from the one file of each run."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for run in sorted(folder.iterdir()):
        (file,) = run.iterdir()
        first, *points = records(file)
        assert first.file_version == "brain.Event:2"
        for point in points:
            for value in point.summary.value:
                found.setdefault((run.name, value.tag), []).append((point.step, value.simple_value))
    return found


@pytest.mark.usefixtures("alone")
def test_tensorboard_by_default_has_every_step_once_after_a_kill(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = config(small)
    del values["train"]["report_to"]
    whole = train_here(values, tmp_path / "whole")
    killed_and_gone_on(values, tmp_path / "run", 12, monkeypatch)
    drawn, expected = curves(tmp_path / "run/tensorboard"), curves(whole / "tensorboard")
    assert drawn.keys() == expected.keys()
    for name, points in expected.items():
        if name[1].startswith(TIMED):
            assert [step for step, _ in drawn[name]] == [step for step, _ in points]
        else:
            assert drawn[name] == points, name
    logged = [event for event in events(whole, "step") if event["stage"] == 2]
    assert [step for step, _ in drawn["02-likes", "loss/total"]] == [event["step"] for event in logged] == list(range(1, len(logged) + 1))
    assert drawn["02-likes", "gradient norm"] == [(event["step"], pytest.approx(event["gradient_norm"])) for event in logged]
    assert {tag for run, tag in drawn if run == "02-likes"} > {"loss/retention/next", "rho/next", "seconds a step/backward"}
    assert [step for step, _ in drawn["scores", "score/next"]] == [1, 2]
    # and nothing of the run depends on it
    without = train_here(config(small), tmp_path / "without")
    assert not (without / "tensorboard").exists()
    for stage in ("01-next", "02-likes"):
        one, other = weights(whole, stage), weights(without, stage)
        assert all((one[name] == value).all() for name, value in other.items())


@pytest.mark.usefixtures("alone")
def test_a_run_on_a_store_has_them_there(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TERACON_SCRATCH", str(tmp_path / "one"))
    monkeypatch.setenv("DIST_TERACON_LEASE_S", "1")
    uri = f"memory://runs/{uuid4().hex}"
    train_here(config(small, "tensorboard"), uri)  # type: ignore[arg-type]
    monkeypatch.setenv("DIST_TERACON_SCRATCH", str(tmp_path / "two"))
    train_here(config(small, "tensorboard"), uri)  # type: ignore[arg-type]
    store, place = fsspec.filesystem("memory"), uri.removeprefix("memory:/")
    store.get(f"{place}/tensorboard", str(tmp_path / "there"), recursive=True)
    assert curves(tmp_path / "there") == curves(next((tmp_path / "one").iterdir()) / "tensorboard")
    store.rm(place, recursive=True)


def stub_of_wandb(told: list[Any], *, offline: bool = False) -> ModuleType:
    """Return a module with what is used of wandb: as the real one, it refuses steps that lie behind, and offline remembers no run."""
    module, steps = ModuleType("wandb"), dict[str, int]()

    def init(**options: Any) -> Any:
        name = options["id"]
        if offline:
            steps.pop(name, None)
        told.append(("init", name, options["resume"], options["project"], options["config"]["seed"]))

        def log(values: dict[str, float], step: int) -> None:
            assert step >= steps.get(name, 0)
            steps[name] = step
            told.append((step, values["loss/total"]) if "loss/total" in values else ("other", step))

        return SimpleNamespace(
            step=steps.get(name, -1) + 1, offline=offline, log=log, finish=lambda exit_code: told.append(("finish", exit_code))
        )

    module.init = init  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    return module


def stub_of_mlflow(told: list[Any]) -> dict[str, ModuleType]:
    """Return modules with what is used of mlflow."""
    metrics: dict[str, list[Any]] = {}

    class Client:
        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            metrics["a run"] = []
            return SimpleNamespace(info=SimpleNamespace(run_id="a run"))

        def log_dict(self, run: str, value: dict[str, Any], name: str) -> None:
            told.append((name, value["seed"]))

        def log_param(self, run: str, name: str, value: Any) -> None:
            told.append((name, value))

        def update_run(self, run: str, status: str) -> None:
            told.append(status)

        def get_metric_history(self, run: str, name: str) -> list[Any]:
            return [metric for metric in metrics[run] if metric.key == name]

        def log_batch(self, run: str, metrics: list[Any], _all: dict[str, list[Any]] = metrics) -> None:
            _all[run] += metrics

        def set_terminated(self, run: str, status: str) -> None:
            told.append(status)

    main, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    main.MlflowClient = Client  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)  # type: ignore[attr-defined]
    main.metrics = metrics  # type: ignore[attr-defined]
    main.__spec__ = importlib.util.spec_from_loader("mlflow", None)
    return {"mlflow": main, "mlflow.entities": entities}


@pytest.mark.usefixtures("alone")
def test_services_get_every_step_once_under_one_name(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_wandb: list[Any] = []
    of_mlflow: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", stub_of_wandb(of_wandb))
    modules = stub_of_mlflow(of_mlflow)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    run = tmp_path / "run"
    killed_and_gone_on(config(small, "wandb", "mlflow"), run, 12, monkeypatch)
    logged = events(run, "step")
    expected = [(place, pytest.approx(sum(event["loss"].values()))) for place, event in enumerate(logged, start=1)]
    steps = [told for told in of_wandb if isinstance(told[0], int)]
    assert steps == expected
    first, second = (told for told in of_wandb if told[0] == "init")
    assert first == second
    assert first[2:] == ("allow", "dist-teracon", 0)
    assert [told for told in of_wandb if told[0] == "finish"] == [("finish", 1), ("finish", 0)]
    losses = [(metric.step, metric.value) for metric in modules["mlflow"].metrics["a run"] if metric.key == "loss/total"]
    assert losses == expected
    assert of_mlflow == [("config.json", 0), ("method", "teracon"), ("seed", 0), "RUNNING", "FAILED", "RUNNING", "FINISHED"]


def test_offline_too_no_step_comes_twice_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", stub_of_wandb(told, offline=True))
    config = {"method": {"name": "teracon"}, "seed": 0}

    def goes_on(*steps: int) -> WandbRun:
        tracker = WandbRun(tmp_path, "run", config)
        for step in steps:
            tracker.take(Point(1, "next", step, step, 0.0, {"loss/total": float(step)}))
        return tracker

    goes_on(1, 2, 3)  # killed, with a checkpoint after the first step
    goes_on(2)  # and again, before it has logged anything new
    last = goes_on(2, 3, 4)
    last.take(Point(1, "next", 4, 4, 0.0, {"score/next": 0.5}))
    last.close(failed=False)
    assert [entry for entry in told if entry[0] not in ("init", "finish")] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), ("other", 4)]


def test_scores_behind_the_last_step_that_is_known_there_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = stub_of_mlflow([])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    config = {"method": {"name": "teracon"}, "seed": 0}
    step, scores = (Point(1, "next", 5, 5, 0.0, values) for values in ({"loss/total": 2.0}, {"score/next": 0.5}))
    before = MlflowRun(tmp_path, "run", config)
    before.take(step)
    before.close(failed=True)
    after = MlflowRun(tmp_path, "run", config)
    for point in (step, scores):
        after.take(point)
    after.close(failed=False)
    logged = [metric.key for metric in modules["mlflow"].metrics["a run"] if metric.key != "stage"]
    assert logged == ["loss/total", "score/next"]
    told: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", stub_of_wandb(told))
    WandbRun(tmp_path, "run", config).take(step)
    after_it = WandbRun(tmp_path, "run", config)
    for point in (step, scores):
        after_it.take(point)
    assert [entry for entry in told if entry[0] != "init"] == [(5, 2.0), ("other", 6)]


@pytest.mark.usefixtures("alone")
def test_a_service_that_fails_does_not_end_the_run(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise ConnectionError("no route to the service")

    module, said = ModuleType("wandb"), list[str]()
    module.init = fails  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("dist_teracon.console.Console.log", lambda _self, text: said.append(text))
    train_here(config(small, "wandb", max_steps=1), tmp_path / "run")
    assert "warning: train.report_to: wandb fails (no route to the service); the run goes on without it" in said


def test_a_missing_package_is_told_before_the_work(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(ConfigError, match=r"train\.report_to: wandb needs the package wandb.*pip install 'dist-teracon\[wandb\]'"):
        train_here(config(small, "tensorboard", "wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("alone")
def test_the_real_packages_offline(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = tmp_path / "run"
    killed_and_gone_on(config(small, "wandb", "mlflow"), run, 12, monkeypatch)
    (known,) = mlflow.search_runs(experiment_names=["dist-teracon"], output_format="list")
    assert known.info.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(known.info.run_id, "loss/total")
    assert sorted(metric.step for metric in history) == list(range(1, len(events(run, "step")) + 1))
    offline = list((run / ".wandb").rglob("*.wandb"))
    assert len(offline) == 2
    assert len({path.name for path in offline}) == 1  # one run, twice
