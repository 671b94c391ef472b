"""A run as a job of a cluster with token authentication: followed, stopped, submitted again, and refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from ray_clusters import Cluster, ray_cluster
from ray_runs import USERS, Said, finished, values, wait_for
from s3_server import client, environment, s3_server
from small_runs import results, run_worlds, what_lasts, write_small

from dist_teracon.train.run_folder import RunFolder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster that takes jobs and knows nothing of this checkout."""
    with ray_cluster(cpus=2, dashboard=True, bare=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `set`, `config.yaml`, and the undisturbed run of two processes, `whole`."""
    folder = tmp_path_factory.mktemp("whole")
    write_small(folder / "set", users=USERS)
    config = values(folder / "set")
    config["train"]["checkpoint_every"] = {"minutes": None, "steps": 3}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run_worlds([{"config": config, "run": str(folder / "whole"), "world": 2}], folder)
    return folder


def submit(cluster: Cluster, folder: Path, run: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start a submission of `folder/config.yaml`."""
    command = [sys.executable, "-m", "dist_teracon.launch.submit", "--address", cluster.dashboard, str(folder / "config.yaml")]
    of_cluster = {name: value for name, value in cluster.environment.items() if name.startswith("RAY_")}
    return subprocess.Popen(
        [*command, "--run", run if "://" in run else str(folder / run), "--set", "launch.workers=2", *options], cwd=folder,
        env={**os.environ, "DIST_TERACON_CACHE": str(folder / "cache"), **of_cluster, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_a_job_trains_is_stopped_goes_on_and_returns_its_status(cluster: Cluster, whole: Path) -> None:
    # stopped in the middle
    process = submit(cluster, whole, "run", "--stop-on-interrupt", "--no-report")
    wait_for(whole / "run/stages/02-likes/progress", process, 200)
    process.send_signal(signal.SIGINT)
    code, said = finished(process)
    assert code == 130, said
    assert "STOPPED; the same command goes on from the newest checkpoint" in said
    # the same command again goes on, and its log is followed
    code, said = finished(submit(cluster, whole, "run", "--no-report", "--env", "A_SECRET", A_SECRET="hunter2"))
    assert code == 0, said
    assert re.search(r"[12] of 3 stages are there, going on with (likes|age)", said), said
    assert "stage 3/3 age · epoch" in said
    assert "variables: A_SECRET" in said
    assert "hunter2" not in said
    assert len(results(whole / "run")["scores"]) == 3
    assert what_lasts(whole / "run") == what_lasts(whole / "whole")
    # a mistake's status is the command line's
    code, said = finished(submit(cluster, whole, "other", "--set", "dataset=/nowhere/set"))
    assert code == 2, said
    assert "/nowhere/set: no data set there" in said
    # another token
    (whole / "token").write_text("0" * 32)
    code, said = finished(submit(cluster, whole, "run", RAY_AUTH_TOKEN_PATH=str(whole / "token")))
    assert code == 2, said
    assert "the cluster wants its token" in said
    assert "RAY_AUTH_TOKEN_PATH=<file>" in said


@pytest.mark.slow
def test_a_job_on_s3_whose_driver_is_killed_goes_on_from_the_store_alone(
    cluster: Cluster, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as port:
        store, variables = client(port), environment(port)
        store.mkdir("runs")
        store.put(str(whole / "set"), "runs/set", recursive=True)
        variables["DIST_TERACON_LEASE_S"] = "3"
        names = [word for name in (*variables, "DIST_TERACON_SCRATCH") for word in ("--env", name)]
        options = ["--set", "dataset=s3://runs/set", "--no-report", *names]
        process = submit(cluster, whole, "s3://runs/run", *options, **variables, DIST_TERACON_SCRATCH=str(tmp_path / "one"))
        said = Said(process)
        said.wait_for(lambda line: "stage 2/3 likes · epoch 1" in line, 200)
        driver_of_job(cluster).kill()
        code = process.wait(120)
        assert code not in (0, 2), said.text
        assert "stage 3/3" not in said.text
        # another working folder: what the first job's machine had is not there any more
        again = submit(cluster, whole, "s3://runs/run", *options, **variables, DIST_TERACON_SCRATCH=str(tmp_path / "two"))
        code, text = finished(again)
        assert code == 0, text
        # the second stage may have ended between its line and the kill
        assert re.search(r"[12] of 3 stages are there, going on with (likes|age)", text), text
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        view = RunFolder.open_for_reading("s3://runs/run", tmp_path / "views").path
        assert what_lasts(view) == what_lasts(whole / "whole")


def driver_of_job(cluster: Cluster) -> psutil.Process:
    """Return the process of the cluster that runs a job's command."""
    token = cluster.environment["RAY_AUTH_TOKEN_PATH"]  # other clusters may run on this machine
    named = [process for process in psutil.process_iter(["cmdline"]) if "--launcher" in (process.info["cmdline"] or [])]
    (driver,) = [process for process in named if process.environ().get("RAY_AUTH_TOKEN_PATH") == token]
    return driver
