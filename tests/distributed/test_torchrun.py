"""`torchrun … -m dist_teracon.launch.torchrun`: whole runs of two processes, and whose error is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from small_runs import events, results, run_worlds, settings, what_lasts, write_small

SHORT = {"first": {"learning_rate": 1e-2, "batch": 16, "epochs": 2}, "second": {"learning_rate": 1e-2, "batch": 16, "epochs": 2}}


def torchrun(folder: Path, config: dict[str, Any], *options: str) -> subprocess.Popen[str]:
    """Start two processes of a run in `folder/run`."""
    written = folder / "config.yaml"
    written.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dist_teracon.launch.torchrun"]
    return subprocess.Popen(
        [*command, "--", str(written), "--run", str(folder / "run"), *options],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_two_processes_train_as_two_of_any_launcher(tmp_path: Path) -> None:
    config = settings(write_small(tmp_path / "set"), tasks=("next", "likes"), zero=2, max_steps=4)
    process = torchrun(tmp_path, config)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "2 process(es) on cpu" in said
    assert said.count("stage 2/2 likes · epoch 1") == said.count("after likes") == 1  # one process speaks
    run_worlds([{"config": config, "run": str(tmp_path / "other"), "world": 2}], tmp_path)
    assert events(tmp_path / "run", "run")[0]["world_size"] == 2
    assert what_lasts(tmp_path / "run") == what_lasts(tmp_path / "other")
    assert results(tmp_path / "run")["tasks"] == ["next", "likes"]
    assert (tmp_path / "run/report.html").exists()
    assert json.loads((tmp_path / "run/timing.json").read_text())["machine"]["world_size"] == 2


def test_a_failing_ranks_own_error_is_the_first(tmp_path: Path) -> None:
    config = settings(write_small(tmp_path / "set"), method="sinmo", tasks=("age",), **SHORT)
    (tmp_path / "set/users/shard-00003.parquet").write_bytes(b"")  # read by the second process only
    process = torchrun(tmp_path, config, "--no-report")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1  # torchrun's own
    errors = [line for line in said.splitlines() if line.startswith("dist-teracon: error: ")]
    assert errors[0].startswith("dist-teracon: error: rank 1: ")
    assert "shard-00003.parquet" in errors[0]
    assert all("another process has given up: rank 1: " in line for line in errors[1:])
    assert "Traceback (most recent call last)" not in said.partition("torch/distributed/elastic")[0]  # torchrun's own


@pytest.mark.slow
def test_a_killed_process_is_spoken_of(tmp_path: Path) -> None:
    config = settings(write_small(tmp_path / "set"), method="sinmo", tasks=("age",), **SHORT)
    config["train"]["first"]["epochs"] = 5000
    process = torchrun(tmp_path, config, "--no-report")
    until = time.monotonic() + 120
    while not (tmp_path / "run/stages/01-age/progress").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    ranks = {
        child.environ().get("RANK"): child for child in psutil.Process(process.pid).children(recursive=True) if child.environ().get("RANK")
    }
    ranks["1"].send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "Signal 9 (SIGKILL) received by PID" in said  # torchrun's own words
    assert "RuntimeError" not in said.partition("torch/distributed/elastic")[0]  # torchrun's own
