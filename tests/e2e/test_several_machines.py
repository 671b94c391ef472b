"""A run on a store by processes that share no disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_store
import pytest
from small_runs import run_worlds, settings, small_tables, what_lasts

from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.schema import SplitRule
from dist_teracon.store.manifest import newest_manifests
from dist_teracon.store.objects import Objects
from dist_teracon.train.run_folder import RunFolder


def machines_of(folder: Path) -> list[dict[str, str]]:
    """The variables of two processes that have a disk each."""
    return [{"DIST_TERACON_SCRATCH": str(folder / name), "DIST_TERACON_LEASE_S": "2"} for name in ("a", "b")]


def view_of(uri: str, folder: Path) -> Path:
    folder_store.register()
    return RunFolder.open_for_reading(uri, folder / "views").path


def test_processes_without_a_common_disk_keep_one_run_and_go_on_on_each_others_machines(small: str, tmp_path: Path) -> None:
    config: dict[str, Any] = settings(small, tasks=("next", "likes"), zero=1, checkpoint_every={"minutes": None, "steps": 3})
    machines = machines_of(tmp_path)
    uri = f"folder://{tmp_path}/store/run"
    run: dict[str, Any] = {"config": config, "run": uri, "world": 2, "environment": machines}
    fresh = [{**machine, "DIST_TERACON_SCRATCH": f"{machine['DIST_TERACON_SCRATCH']}-fresh"} for machine in machines]
    jobs = [
        {"config": config, "run": str(tmp_path / "whole"), "world": 2},
        {**run, "moment": "step:2:4", "rank": 0},
        {**run, "moment": "step:2:4", "environment": machines[::-1]},
        {**run, "environment": fresh},
    ]
    run_worlds(jobs, tmp_path)
    assert what_lasts(view_of(uri, tmp_path)) == what_lasts(tmp_path / "whole")


def test_what_the_main_machine_had_not_sent_is_where_all_go_on(small: str, tmp_path: Path) -> None:
    config: dict[str, Any] = settings(small, tasks=("next", "likes"), checkpoint_every={"minutes": None, "steps": 3})
    uri = f"folder://{tmp_path}/store/run"
    run: dict[str, Any] = {"config": config, "run": uri, "world": 2, "environment": machines_of(tmp_path)}
    unsent = {**run, "moment": "unsent:2:5", "rank": 0}
    run_worlds([{"config": config, "run": str(tmp_path / "whole"), "world": 2}, unsent, run], tmp_path)
    assert what_lasts(view_of(uri, tmp_path)) == what_lasts(tmp_path / "whole")


def test_processes_that_find_different_states_do_not_go_on(small: str, tmp_path: Path) -> None:
    config: dict[str, Any] = settings(small, tasks=("next", "likes"), checkpoint_every={"minutes": None, "steps": 3})
    uri = f"folder://{tmp_path}/store/run"
    run: dict[str, Any] = {"config": config, "run": uri, "world": 2, "environment": machines_of(tmp_path)}
    run_worlds([{**run, "moment": "SIGTERM:2:5", "rank": 0}], tmp_path)
    folder_store.register()
    objects = Objects(uri)
    manifest = newest_manifests(objects)[0][0]
    newest = max(path for path in manifest.files if path.endswith("engine.safetensors"))
    objects.delete([manifest.files[newest].key])  # the main process's machine still has the file
    assert run_worlds([{**run, "fails": True}], tmp_path) == [[2, 2]]


def test_an_added_task_gives_every_machine_the_new_items(tmp_path: Path) -> None:
    tables, rule = small_tables(), SplitRule(train=0.6, validation=0.2, test=0.2)
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    write_dataset(replace(tables, labels=tables.labels[:1]), old, rule, shards=8)
    write_dataset(small_tables(users=220, items=47), str(tmp_path / "added"), rule, shards=8)
    append(old, str(tmp_path / "added"), new)
    uri = f"folder://{tmp_path}/store/run"
    begun: dict[str, Any] = {"config": settings(old, tasks=("next",)), "world": 2}
    added: dict[str, Any] = {**begun, "config": settings(new, tasks=("next",)), "added": ["gender", "neighbours"]}
    places: list[dict[str, Any]] = [{"run": str(tmp_path / "whole")}, {"run": uri, "environment": machines_of(tmp_path)}]
    run_worlds([{**job, **place} for place in places for job in (begun, added)], tmp_path)
    assert what_lasts(view_of(uri, tmp_path)) == what_lasts(tmp_path / "whole")


@pytest.fixture(autouse=True)
def _settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_teracon.store.objects.SETTLE_S", 0.05)
