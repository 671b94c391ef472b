"""`train --launcher ray` on a cluster of this machine: the steps of one process, one clear error, and resuming after deaths."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from ray_clusters import Cluster, ray_cluster
from small_runs import events, results, run_worlds, settings, what_lasts, write_small

STAGES = ("next", "likes", "age")
STEPS = 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of three CPUs."""
    with ray_cluster(cpus=3) as cluster:
        yield cluster


def values(dataset: Path, *, zero: int = 0, accumulation: int = 1) -> dict[str, Any]:
    """Return a run of three stages and twenty steps each."""
    method = {"name": "teracon", "mask_regulariser": 0.5, "retention": {"refresh_every": 3}}
    stage = {"learning_rate": 1e-3, "batch": 16, "epochs": 20, "patience": 0}
    return settings(
        str(dataset), method=method, tasks=STAGES, first=stage, second=stage, later=stage,
        max_steps=STEPS, zero=zero, accumulation=accumulation,
    )  # fmt: skip


def train(cluster: Cluster, folder: Path, name: str, config: dict[str, Any], *options: str) -> subprocess.Popen[str]:
    """Start `train --launcher ray` on the cluster."""
    written = folder / f"{name}.yaml"
    written.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "dist_teracon", "train", str(written), "--run", str(folder / name), "--launcher", "ray", "--no-report"]
    return subprocess.Popen(
        [*command, *options], env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command; returns its exit status and what it said."""
    out, said = process.communicate(timeout=240)
    return process.returncode, out + said


def test_two_and_three_workers_take_the_steps_of_one_process_and_score_each_user_once(cluster: Cluster, tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    run_worlds([{"config": values(tmp_path / "set"), "run": str(tmp_path / "alone")}], tmp_path)
    two = values(tmp_path / "set", zero=2, accumulation=2)
    code, said = finished(train(cluster, tmp_path, "two", two, "--set", "launch.workers=2"))
    assert code == 0, said
    assert "2 worker(s), each with 1 CPU, on CPUs (gloo)" in said
    assert "stage 3/3 age · epoch" in said  # the main worker's log
    code, said = finished(train(cluster, tmp_path, "three", values(tmp_path / "set", zero=1), "--set", "launch.workers=3"))
    assert code == 0, said
    for name, workers in (("two", 2), ("three", 3)):
        assert events(tmp_path / name, "run")[0]["world_size"] == workers
        same_steps(tmp_path / "alone", tmp_path / name)
        same_users(tmp_path / "alone", tmp_path / name)


def same_steps(alone: Path, run: Path) -> None:
    """Check that a run took the steps of another, to 1e-5."""
    for stage in range(1, len(STAGES) + 1):
        one, several = ([event for event in events(folder, "step") if event["stage"] == stage] for folder in (alone, run))
        assert len(one) == len(several) == STEPS
        for expected, found in zip(one, several, strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5, rel=0)


def same_users(alone: Path, run: Path) -> None:
    """Check that a run scored the users of another, each once."""
    assert results(run)["test_examples"] == results(alone)["test_examples"]
    for stage in ("01-next", "02-likes", "03-age"):
        one, several = (pq.read_table(folder / "stages" / stage / "scores.parquet").to_pydict() for folder in (alone, run))
        rows = [sorted(zip(scored["split"], scored["task"], scored["user_hash"], strict=True)) for scored in (one, several)]
        assert rows[0] == rows[1]
        assert len(set(rows[0])) == len(rows[0]) > 0


def test_a_mistake_ends_the_run_with_the_workers_own_error_first_and_without_another_attempt(cluster: Cluster, tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    shard = tmp_path / "set/users/shard-00003.parquet"  # of the second worker
    shard.write_bytes(shard.read_bytes()[:-7])
    code, said = finished(train(cluster, tmp_path, "run", values(tmp_path / "set"), "--set", "launch.workers=2"))
    assert code == 2
    errors = [line for line in said.splitlines() if "error" in line.lower()]
    assert errors[0].startswith("dist-teracon: error: rank 1: ")
    assert "shard-00003.parquet" in errors[0]
    assert "Traceback" not in said
    assert "attempt 2" not in said


def test_a_killed_worker_is_replaced_and_the_run_ends_with_the_same_bits(cluster: Cluster, tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    config = values(tmp_path / "set")
    config["train"]["checkpoint_every"] = {"minutes": None, "steps": 3}
    run_worlds([{"config": config, "run": str(tmp_path / "whole"), "world": 2}], tmp_path)
    process = train(cluster, tmp_path, "run", config, "--set", "launch.workers=2")
    kill_a_worker(process, cluster, tmp_path / "run/stages/02-likes/progress")
    code, said = finished(process)
    assert code == 0, said
    assert "attempt 2, 2 worker(s), from the newest checkpoint" in said
    assert what_lasts(tmp_path / "run") == what_lasts(tmp_path / "whole")


def kill_a_worker(process: subprocess.Popen[str], cluster: Cluster, after: Path) -> None:
    """Kill a worker of the cluster's run once a file or folder is there."""
    until = time.monotonic() + 120
    while not after.exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    named = [other for other in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(other.info["cmdline"] or [])]
    token = cluster.environment["RAY_AUTH_TOKEN_PATH"]  # other clusters may run on this machine
    workers = [worker for worker in named if worker.environ().get("RAY_AUTH_TOKEN_PATH") == token]
    workers[-1].send_signal(signal.SIGKILL)


def test_ctrl_c_ends_the_workers_and_the_same_command_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    process = train(cluster, tmp_path, "run", values(tmp_path / "set"), "--set", "launch.workers=2")
    until = time.monotonic() + 120
    while not (tmp_path / "run/stages/01-next/progress").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, said = finished(process)
    assert code == 130, said
    assert "the same command goes on from here" in said
    code, said = finished(train(cluster, tmp_path, "run", values(tmp_path / "set"), "--set", "launch.workers=1"))
    assert code == 0, said
    assert "launch.workers is now 1 (was 2): last digits may differ" in said
