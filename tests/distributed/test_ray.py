"""`train --launcher ray` on a cluster of this machine: the steps of one process, one clear error, and resuming after deaths."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_clusters import Cluster, ray_cluster
from ray_runs import USERS, finished, same_steps, same_users, train, values, wait_for
from small_runs import events, run_worlds, settings, what_lasts, write_small


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of three CPUs."""
    with ray_cluster(cpus=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `set`, and undisturbed runs of it by one process, `alone`, and by two, `two`."""
    folder = tmp_path_factory.mktemp("small")
    write_small(folder / "set", users=USERS)
    jobs = [{"config": values(folder / "set"), "run": str(folder / "alone")}]
    run_worlds([*jobs, {"config": config_of_two(folder / "set"), "run": str(folder / "two"), "world": 2}], folder)
    return folder


def config_of_two(dataset: Path) -> dict[str, Any]:
    """Return the run of two processes: ZeRO 2, two micro-batches, and checkpoints within epochs."""
    config = values(dataset, zero=2, accumulation=2)
    config["train"]["checkpoint_every"] = {"minutes": None, "steps": 6}
    return config


@pytest.mark.slow
def test_three_workers_take_the_steps_of_one_process_and_score_each_user_once(cluster: Cluster, small: Path, tmp_path: Path) -> None:
    code, said = finished(train(cluster, tmp_path, "three", values(small / "set", zero=1), "--set", "launch.workers=3"))
    assert code == 0, said
    assert "3 worker(s), each with 1 CPU, on CPUs (gloo)" in said
    assert "stage 3/3 age · epoch" in said  # the main worker's log
    assert events(tmp_path / "three", "run")[0]["world_size"] == 3
    same_steps(small / "alone", tmp_path / "three")
    same_users(small / "alone", tmp_path / "three")


def test_doctor_looks_at_every_node(cluster: Cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dist_teracon", "doctor", "--ray", cluster.address, "--json"]
    done = subprocess.run(command, env=cluster.environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    here, node = found
    assert here == "this machine"
    assert re.fullmatch(r"node [0-9a-f]{8} \([0-9.]+\)", node)
    assert found[node][0] == {"name": "offers Ray", "status": "ok", "found": "3 CPU", "mend": ""}
    # the node is this machine, though what is free on it changes meanwhile
    of_node, of_here = ([check for check in checks if check["name"] != "disk"] for checks in (found[node][1:], found[here]))
    assert of_node == of_here
    assert [check["name"] for check in found[node][1:]] == [check["name"] for check in found[here]]
    done = subprocess.run(
        command, env={**cluster.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, cwd=tmp_path, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"--ray={cluster.address}: the cluster wants its token" in done.stderr
    assert "Traceback" not in done.stderr


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


def test_a_killed_worker_is_replaced_and_the_run_ends_with_the_same_bits(cluster: Cluster, small: Path, tmp_path: Path) -> None:
    process = train(cluster, tmp_path, "run", config_of_two(small / "set"), "--set", "launch.workers=2")
    kill_a_worker(process, cluster, tmp_path / "run/stages/02-likes/progress")
    code, said = finished(process)
    assert code == 0, said
    why = r"workers are started anew \(rank [01]: its process is gone \(.*: attempt 2, 2 worker\(s\), from the newest checkpoint"
    assert re.search(why, said), said
    assert "2 worker(s), each with 1 CPU, on CPUs (gloo)" in said
    assert "stage 3/3 age · epoch" in said  # the main worker's log
    assert events(tmp_path / "run", "run")[0]["world_size"] == 2
    assert what_lasts(tmp_path / "run") == what_lasts(small / "two")
    # and these are one process's steps
    same_steps(small / "alone", tmp_path / "run")
    same_users(small / "alone", tmp_path / "run")


def kill_a_worker(process: subprocess.Popen[str], cluster: Cluster, after: Path) -> None:
    """Kill a worker of the cluster's run once a file or folder is there."""
    wait_for(after, process)
    named = [other for other in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(other.info["cmdline"] or [])]
    token = cluster.environment["RAY_AUTH_TOKEN_PATH"]  # other clusters may run on this machine
    workers = [worker for worker in named if worker.environ().get("RAY_AUTH_TOKEN_PATH") == token]
    workers[-1].send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_the_same_command_goes_on_after_ctrl_c_and_after_more_failures_than_are_allowed(
    cluster: Cluster, small: Path, tmp_path: Path
) -> None:
    config = config_of_two(small / "set")
    process = train(cluster, tmp_path, "run", config, "--set", "launch.workers=2")
    wait_for(tmp_path / "run/stages/01-next/progress", process)
    process.send_signal(signal.SIGINT)
    code, said = finished(process)
    assert code == 130, said
    assert "the same command goes on from here" in said
    process = train(cluster, tmp_path, "run", config, "--set", "launch.workers=2", "--set", "launch.max_failures=0")
    kill_a_worker(process, cluster, tmp_path / "run/stages/02-likes/progress")
    code, said = finished(process)
    assert code == 1, said
    errors = [line for line in said.splitlines() if "error" in line.lower()]
    assert re.match(r"dist-teracon: error: rank [01]: its process is gone \(killed, ", errors[0]), said
    assert "\n(raylet) A worker died" in said  # and Ray's own words after it
    code, said = finished(train(cluster, tmp_path, "run", config, "--set", "launch.workers=1"))
    assert code == 0, said
    assert re.search(r"[12] of 3 stages are there, going on with (likes|age)", said), said
    assert "launch.workers is now 1 (was 2): last digits may differ" in said


@pytest.mark.slow
def test_cells_of_a_comparison_are_tasks_and_one_that_fails_leaves_the_others(cluster: Cluster, tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    own = {name: value for name, value in settings("set", method="popularity").items() if name != "method"}  # beside the working directory
    (tmp_path / "run.yaml").write_text(json.dumps(own))
    plan = {
        "config": "run.yaml",
        "seeds": [0],
        "axes": {"method": ["popularity", "fineall"]},
        "baseline": "popularity",
        "set": {"train.max_steps": 2},
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    (tmp_path / "out/cells/fineall").mkdir(parents=True)
    (tmp_path / "out/cells/fineall/seed-0").write_text("in the way")
    command = [sys.executable, "-m", "dist_teracon", "compare", "plan.yaml", "--out", "out", "--launcher", "ray"]

    def compare() -> tuple[int, str]:
        return finished(
            subprocess.Popen(command, env=cluster.environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )

    code, said = compare()
    assert code == 1, said
    assert "1 of 2 cells failed; the same command runs them again\nfineall, seed 0: " in said
    assert "is a file" in said
    (tmp_path / "out/cells/fineall/seed-0").unlink()
    code, said = compare()
    assert code == 0, said
    assert "2 cells, 1 of them finished" in said
    assert "| fineall | 0." in (tmp_path / "out/tables.md").read_text()
