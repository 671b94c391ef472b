"""A run as a job of a cluster with token authentication: followed, stopped, submitted again, and refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray_clusters import Cluster, ray_cluster
from ray_runs import finished, values, wait_for
from small_runs import results, run_worlds, what_lasts, write_small


def submit(cluster: Cluster, folder: Path, run: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start a submission of `folder/config.yaml`."""
    command = [sys.executable, "-m", "dist_teracon.launch.submit", "--address", cluster.dashboard, str(folder / "config.yaml")]
    of_cluster = {name: value for name, value in cluster.environment.items() if name.startswith("RAY_")}
    return subprocess.Popen(
        [*command, "--run", str(folder / run), "--set", "launch.workers=2", *options], cwd=folder,
        env={**os.environ, "DIST_TERACON_CACHE": str(folder / "cache"), **of_cluster, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_a_job_trains_is_stopped_goes_on_and_returns_its_status(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    config = values(tmp_path / "set")
    config["train"]["checkpoint_every"] = {"minutes": None, "steps": 3}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run_worlds([{"config": config, "run": str(tmp_path / "whole"), "world": 2}], tmp_path)
    with ray_cluster(cpus=2, dashboard=True, bare=True) as cluster:
        # stopped in the middle
        process = submit(cluster, tmp_path, "run", "--stop-on-interrupt", "--no-report")
        wait_for(tmp_path / "run/stages/02-likes/progress", process, 200)
        process.send_signal(signal.SIGINT)
        code, said = finished(process)
        assert code == 130, said
        assert "STOPPED; the same command goes on from the newest checkpoint" in said
        # the same command again goes on, and its log is followed
        code, said = finished(submit(cluster, tmp_path, "run", "--no-report", "--env", "A_SECRET", A_SECRET="hunter2"))
        assert code == 0, said
        assert re.search(r"[12] of 3 stages are there, going on with (likes|age)", said), said
        assert "stage 3/3 age · epoch" in said
        assert "variables: A_SECRET" in said
        assert "hunter2" not in said
        assert len(results(tmp_path / "run")["scores"]) == 3
        assert what_lasts(tmp_path / "run") == what_lasts(tmp_path / "whole")
        # a mistake's status is the command line's
        code, said = finished(submit(cluster, tmp_path, "other", "--set", "dataset=/nowhere/set"))
        assert code == 2, said
        assert "/nowhere/set: no data set there" in said
        # another token
        (tmp_path / "token").write_text("0" * 32)
        code, said = finished(submit(cluster, tmp_path, "run", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token")))
        assert code == 2, said
        assert "the cluster wants its token" in said
        assert "RAY_AUTH_TOKEN_PATH=<file>" in said
