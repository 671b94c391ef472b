"""A run on a store by processes that share no disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_store
import pytest
from small_runs import run_worlds, settings, what_lasts

from dist_teracon.train.run_folder import RunFolder


def test_processes_without_a_common_disk_keep_one_run_and_go_on_on_each_others_machines(small: str, tmp_path: Path) -> None:
    config: dict[str, Any] = settings(small, tasks=("next", "likes"), zero=1, checkpoint_every={"minutes": None, "steps": 3})
    machines = [{"DIST_TERACON_SCRATCH": str(tmp_path / name), "DIST_TERACON_LEASE_S": "2"} for name in ("a", "b")]
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
    folder_store.register()
    view = RunFolder.open_for_reading(uri, tmp_path / "views").path
    assert what_lasts(view) == what_lasts(tmp_path / "whole")


@pytest.fixture(autouse=True)
def _settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_teracon.store.objects.SETTLE_S", 0.05)
