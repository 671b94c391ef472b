"""A run on a store: the same bits as on a disk, from the store alone, through damage, failures and other writers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from small_runs import events, settings, timeless, train_here, what_lasts

from dist_teracon.store.manifest import Manifest, newest_manifests
from dist_teracon.store.objects import Objects
from dist_teracon.train import phase as phase_module
from dist_teracon.train.run_folder import RunFolder


class Killed(BaseException):
    """Stands for a kill: nothing on the way catches it."""


@pytest.fixture(scope="module")
def config(small: str) -> dict[str, Any]:
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 3, "ema_decay": 0.5}
    return settings(small, tasks=("next", "likes"), first=stage, second=stage, checkpoint_every={"minutes": None, "steps": 4})


@pytest.fixture(scope="module")
def whole(alone: None, config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on a disk."""
    return train_here(config, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place on a store, and an empty machine."""
    monkeypatch.setenv("DIST_TERACON_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("DIST_TERACON_LEASE_S", "1")
    place = f"memory://runs/{uuid4().hex}"
    yield place
    fsspec.filesystem("memory").rm(place.removeprefix("memory:/"), recursive=True)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a person was told."""
    lines: list[str] = []
    monkeypatch.setattr("dist_teracon.console.Console.log", lambda _self, text: lines.append(text))
    return lines


def view(uri: str, tmp_path: Path) -> Path:
    """Return the run's newest state as a folder."""
    return RunFolder.open_for_reading(uri, tmp_path / "views").path


def state(uri: str) -> Manifest:
    return newest_manifests(Objects(uri))[0][0]


def dying_at(step: int, monkeypatch: pytest.MonkeyPatch, first: Callable[[], None] = lambda: None) -> None:
    """Have the second stage die before a step, counted from now."""
    real, taken = phase_module.train_step, []

    def dying(engine: Any, method: Any, *arguments: Any, **options: Any) -> Any:
        taken.append(len(method.learned) == 2)
        if sum(taken) == step and taken[-1]:
            first()
            raise Killed
        return real(engine, method, *arguments, **options)

    monkeypatch.setattr(phase_module, "train_step", dying)


def killed(config: dict[str, Any], uri: str, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        dying_at(step, patch)
        train_here(config, uri)


def empty_machine(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "scratch")


def test_a_run_on_a_store_is_that_on_a_disk_and_leaves_two_states_at_most(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path
) -> None:
    train_here(config, uri)
    run = view(uri, tmp_path)
    assert what_lasts(run) == what_lasts(whole)
    assert [timeless(event) for event in events(run)] == [timeless(event) for event in events(whole)]
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names == {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()} - {".lock"}
    objects = Objects(uri)
    assert objects.read("results.json") == (whole / "results.json").read_bytes()
    manifests = newest_manifests(objects)[0]
    assert len(manifests) == 2
    named = set().union(*(manifest.keys() for manifest in manifests))
    assert {f"parts/{name}" for name in objects.names("parts")} == {key for key in named if key.startswith("parts/")}
    before = state(uri)
    train_here(config, uri)  # finished already
    assert state(uri).files == before.files


@pytest.mark.parametrize("other_machine", [True, False], ids=["another machine", "the same machine"])
def test_a_killed_run_goes_on_from_the_store_alone(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path, other_machine: bool
) -> None:
    for step in (6, 3, 9):
        killed(config, uri, step)
        if other_machine:
            empty_machine(tmp_path)
    train_here(config, uri)
    run = view(uri, tmp_path)
    assert what_lasts(run) == what_lasts(whole)
    assert [timeless(event) for event in events(run)] == [timeless(event) for event in events(whole)]
