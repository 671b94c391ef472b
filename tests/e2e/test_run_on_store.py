"""A run on a store: the same bits as on a disk, from the store alone, through damage, failures and other writers."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch
import yaml
from small_runs import events, settings, timeless, train_here, what_lasts

from dist_teracon.cli import main
from dist_teracon.errors import DataError, RunError
from dist_teracon.store import mirror as mirror_module
from dist_teracon.store.manifest import Manifest, newest_manifests
from dist_teracon.store.mirror import Patience
from dist_teracon.store.objects import Objects
from dist_teracon.train import phase as phase_module
from dist_teracon.train.restore import restore_method
from dist_teracon.train.run_folder import RunFolder
from dist_teracon.train.run_store import scratch_folder
from dist_teracon.train.verify import verify


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
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path / "cache"))
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
    names, on_disk = ({path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} for folder in (run, whole))
    assert names == {name for name in on_disk if name != ".lock" and not name.startswith("tensorboard/")}
    objects = Objects(uri)
    assert objects.read("results.json") == (whole / "results.json").read_bytes()
    manifests = newest_manifests(objects)[0]
    assert len(manifests) == 2
    named = set().union(*(manifest.keys() for manifest in manifests))
    assert {f"parts/{name}" for name in objects.names("parts")} == {key for key in named if key.startswith("parts/")}
    before = state(uri)
    train_here(config, uri)  # finished already
    assert state(uri).files == before.files
    restored, kept = (restore_method(place).state_dict() for place in (uri, whole))
    assert restored.keys() == kept.keys()
    assert all(torch.equal(restored[name], kept[name]) for name in kept)


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


def flip(uri: str, key: str) -> None:
    content = bytearray(Objects(uri).read(key))
    content[len(content) * 3 // 4] ^= 0x10
    Objects(uri).write(key, bytes(content))


def test_the_checkpoint_before_a_damaged_one_is_used_with_a_warning(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path, said: list[str]
) -> None:
    killed(config, uri, 14)
    empty_machine(tmp_path)
    engines = sorted(path for path in state(uri).files if path.endswith("/engine.safetensors"))
    assert len(engines) == 2
    flip(uri, state(uri).files[engines[1]].key)
    damaged = [problem for name, problem in verify(uri) if problem]
    assert damaged == ["was damaged since it was written"]
    said.clear()
    train_here(config, uri)
    warnings = [line for line in said if line.startswith("warning: ")]
    assert f"the part was damaged since it was written; it held {engines[1]}" in warnings[0]
    assert "the file is missing; the checkpoint before it is used" in warnings[1]
    assert what_lasts(view(uri, tmp_path)) == what_lasts(whole)
    assert [problem for _, problem in verify(uri) if problem] == []


def test_a_lost_part_of_a_finished_stage_is_refused_by_name(alone: None, config: dict[str, Any], uri: str, tmp_path: Path) -> None:
    killed(config, uri, 14)
    empty_machine(tmp_path)
    part = state(uri).files["stages/01-next/model.safetensors"]
    Objects(uri).delete([part.key])
    with pytest.raises(RunError, match=rf"{part.key}: the part is missing; it held stages/01-next/model\.safetensors"):
        train_here(config, uri)


def test_the_state_before_a_damaged_one_is_used(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = RunFolder.commit

    def dying(self: RunFolder, *, wait: bool = False) -> None:
        commit(self, wait=wait)
        if wait and (self.path / "stages/01-next/state.json").exists():
            raise Killed

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(RunFolder, "commit", dying)
        train_here(config, uri)
    empty_machine(tmp_path)
    flip(uri, state(uri).files["stages/01-next/model.safetensors"].key)
    train_here(config, uri)
    assert any(line.endswith("it held stages/01-next/model.safetensors; the state before it is used") for line in said)
    assert what_lasts(view(uri, tmp_path)) == what_lasts(whole)


def test_damage_of_a_machines_own_copy_is_not_sent_to_the_store(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path
) -> None:
    killed(config, uri, 14)
    own = scratch_folder(uri) / "stages/01-next/model.safetensors"
    content = bytearray(own.read_bytes())
    content[-5] ^= 0xFF
    own.write_bytes(bytes(content))
    with pytest.raises(
        RunError, match=r"01-next/model\.safetensors: this machine's copy .* is not sent to memory://.*; remove .*01-next, which"
    ):
        train_here(config, uri)
    assert [problem for _, problem in verify(uri) if problem] == []
    shutil.rmtree(own.parent)
    train_here(config, uri)
    assert what_lasts(view(uri, tmp_path)) == what_lasts(whole)


def test_a_second_process_is_refused_and_the_first_goes_on(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def second() -> None:
        try:
            train_here(config, uri)
        except RunError as error:
            refused.append(str(error))

    real, taken = phase_module.train_step, []

    def with_a_second(*arguments: Any, **options: Any) -> Any:
        taken.append(0)
        if len(taken) == 7:
            second()
        return real(*arguments, **options)

    monkeypatch.setattr(phase_module, "train_step", with_a_second)
    train_here(config, uri)
    assert len(refused) == 1 and "on this machine, since" in refused[0] and "is writing this run" in refused[0]
    assert what_lasts(view(uri, tmp_path)) == what_lasts(whole)


def test_a_writer_that_was_taken_over_stops_before_it_commits_again(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path
) -> None:
    """The lease ran out while the process stood still; another one took the run and went on."""
    objects, seen = Objects(uri), []

    def taken_over() -> None:
        newest = max(objects.names("lease"))
        record = json.loads(objects.read(f"lease/{newest}"))
        record["holder"]["machine"] = "elsewhere"
        objects.write(f"lease/{int(newest[:8]) + 1:08d}.json", json.dumps(record).encode())
        seen.append(state(uri).checksum)

    with pytest.MonkeyPatch.context() as patch:
        real, taken = phase_module.train_step, []

        def stood_still(engine: Any, method: Any, *arguments: Any, **options: Any) -> Any:
            taken.append(len(method.learned) == 2)
            if sum(taken) == 6 and taken[-1]:
                time.sleep(0.3)  # what was asked for before is there by now
                taken_over()
            return real(engine, method, *arguments, **options)

        patch.setattr(phase_module, "train_step", stood_still)
        with pytest.raises(RunError, match=r"was taken over by process .* on machine elsewhere"):
            train_here(config, uri)
    assert seen == [state(uri).checksum]
    empty_machine(tmp_path)
    train_here(config, uri)  # the other one's lease runs out
    assert what_lasts(view(uri, tmp_path)) == what_lasts(whole)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, nothing can be written to the store."""
    event, pipe, put = threading.Event(), Objects._pipe, Objects.upload

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any, **options: Any) -> Any:
            if event.is_set():
                raise DataError("the store is away")
            return real(*arguments, **options)

        return attempt

    monkeypatch.setattr(Objects, "_pipe", failing(pipe))
    monkeypatch.setattr(Objects, "upload", failing(put))
    monkeypatch.setattr(mirror_module, "_BACKOFF_S", (0.1,))
    return event


def test_a_store_that_fails_for_a_while_does_not_stop_a_run(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path, said: list[str], away: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real, taken = phase_module.train_step, []

    def stepping(*arguments: Any, **options: Any) -> Any:
        taken.append(0)
        if len(taken) == 5:
            away.set()
            threading.Timer(2.0, away.clear).start()
        return real(*arguments, **options)

    monkeypatch.setattr(phase_module, "train_step", stepping)
    train_here(config, uri)
    assert any("the run goes on, and uploads are tried again" in line for line in said)
    assert any(line.endswith("answers again") for line in said)
    assert what_lasts(view(uri, tmp_path)) == what_lasts(whole)


def test_a_store_that_fails_for_long_ends_the_run_and_nothing_is_trained_twice(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path, away: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = phase_module.train_step, []

    def stepping(*arguments: Any, **options: Any) -> Any:
        taken.append(0)
        if len(taken) == 5:
            away.set()
        return real(*arguments, **options)

    monkeypatch.setattr(phase_module, "train_step", stepping)
    monkeypatch.setattr(Patience, "from_environment", classmethod(lambda cls: cls(lease_s=1.0, store_s=0.5)))
    with pytest.raises(RunError, match=r"take the run's state within 0\.5 s: .*the store is away.*the same command on this machine"):
        train_here(config, uri)
    away.clear()
    train_here(config, uri)
    run = view(uri, tmp_path)
    assert what_lasts(run) == what_lasts(whole)
    assert len(taken) == len(events(run, "step"))  # each step once, though the first stage's end was never uploaded by its process


def test_a_run_that_was_removed_from_the_store_is_begun_anew_and_nothing_is_deleted_here(
    alone: None, config: dict[str, Any], whole: Path, uri: str, tmp_path: Path, said: list[str]
) -> None:
    killed(config, uri, 3)
    store = fsspec.filesystem("memory")
    store.rm(uri.removeprefix("memory:/"), recursive=True)
    train_here(config, uri)
    assert what_lasts(view(uri, tmp_path)) == what_lasts(whole)
    (aside,) = [path for path in (tmp_path / "scratch").iterdir() if ".aside-" in path.name]
    assert (aside / "stages/01-next/state.json").exists()
    assert any(str(aside) in line for line in said)


def test_tasks_alone_go_with_their_run(alone: None, small: str, uri: str, tmp_path: Path) -> None:
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 1}
    config = settings(small, tasks=("next", "age"), first=stage, second=stage)
    local = train_here(config, tmp_path / "local", with_single_task=True)
    train_here(config, uri, with_single_task=True)
    empty_machine(tmp_path)
    before = state(uri)
    train_here(config, uri, with_single_task=True)
    assert state(uri).files == before.files and state(uri).logs == before.logs
    run = view(uri, tmp_path)
    assert what_lasts(run) == what_lasts(local)
    assert what_lasts(run / "single-task") == what_lasts(local / "single-task")
    assert [timeless(event) for event in events(run / "single-task")] == [timeless(event) for event in events(local / "single-task")]


@pytest.mark.usefixtures("undrawn")
def test_report_and_verify_read_the_store(alone: None, config: dict[str, Any], uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    killed(config, uri, 14)
    assert main(["verify", uri]) == 0
    assert f"{uri}: " in capsys.readouterr().out
    assert main(["report", uri]) == 0
    assert f"report: {uri}/report.html" in capsys.readouterr().out
    assert b"<html" in Objects(uri).read("report.html")
    newest = state(uri)
    log = newest.logs["events.jsonl"][0]
    flip(uri, log.key)
    Objects(uri).write(newest.key, Objects(uri).read(newest.key)[:-9])
    assert main(["verify", uri]) == 1
    assert f"{uri}/{newest.key}: was damaged" in capsys.readouterr().out
    assert main(["verify", f"{uri}-other"]) == 2


def test_the_command_line_trains_on_a_store(small: str, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(small, method="sinmo", tasks=("age",), first=stage)))
    options = ["train", str(tmp_path / "config.yaml"), "--run", uri, "--scratch", str(tmp_path / "elsewhere")]
    assert main(options) == 0
    said = capsys.readouterr()
    assert f"is written in {tmp_path / 'elsewhere'}" in said.err
    assert f"report: {uri}/report.html" in said.out
    assert main(["train", str(tmp_path / "config.yaml"), "--run", "nosuch://x/run"]) == 2
    assert "nosuch://x/run: this store cannot be reached" in capsys.readouterr().err
