"""A comparison that is killed: its cells end by themselves with a checkpoint, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_runs import events, settings

from dist_teracon import cli
from dist_teracon.train.stopping import end_with_input

LIMIT_S = 120


def wait_until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_cells_end_with_the_command_that_was_killed_and_go_on_with_the_next(small: str, tmp_path: Path) -> None:
    stage = {"learning_rate": 0.001, "batch": 32, "epochs": 30, "patience": 30}
    own = settings(small, method="sinmo", tasks=("next",), first=stage, checkpoint_every={"minutes": None, "steps": None})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(own))
    plan = {"config": str(tmp_path / "run.yaml"), "seeds": [0], "variants": {"only": {}}, "baseline": "only"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    out = tmp_path / "out"
    command = ["compare", str(tmp_path / "plan.yaml"), "--out", str(out), "--parallel", "1"]
    run, log = out / "cells/only/seed-0", out / "logs/only-seed-0.log"
    with subprocess.Popen([sys.executable, "-m", "dist_teracon.cli", *command], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: log.exists() and "epoch 2:" in log.read_text())
        process.kill()
    # at once, while the cell may write its checkpoint yet
    assert cli.main([*command, "--quiet"]) == 0
    told = log.read_text()
    assert "SIGTERM: stopping after this step and its checkpoint" in told
    assert (run / "results.json").exists()
    epochs = [event["epoch"] for event in events(run, "epoch")]
    assert epochs == list(range(31)), "each epoch once: the run went on from its checkpoint"


def test_a_process_stops_when_its_input_ends() -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    reading, writing = os.pipe()
    kept = os.dup(0)
    try:
        os.dup2(reading, 0)
        end_with_input()
        os.write(writing, b"what is written is not read")
        time.sleep(0.2)
        assert not asked
        os.close(writing)
        wait_until(lambda: bool(asked))
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)
        signal.signal(signal.SIGTERM, before)
