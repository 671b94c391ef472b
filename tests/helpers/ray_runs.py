"""Runs of the command line on a Ray cluster, and what they are held against."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from ray_clusters import Cluster
from small_runs import events, results, settings

STAGES = ("next", "likes", "age")
STEPS = 20
USERS = 480  # of the data set: twenty steps are one or two epochs then, each of which ends with a checkpoint


def values(dataset: Path, *, zero: int = 0, accumulation: int = 1) -> dict[str, Any]:
    """Return a run of three stages and twenty steps each."""
    method = {"name": "teracon", "mask_regulariser": 0.5, "retention": {"refresh_every": 3}}
    stage = {"learning_rate": 1e-3, "batch": 8, "epochs": 20, "patience": 0}
    return settings(
        str(dataset), method=method, tasks=STAGES, first=stage, second=stage, later=stage,
        max_steps=STEPS, zero=zero, accumulation=accumulation,
    )  # fmt: skip


def train(cluster: Cluster, folder: Path, name: str, config: dict[str, Any], *options: str) -> subprocess.Popen[str]:
    """Start `train --launcher ray` on the cluster; the run is `folder/name`."""
    written = folder / f"{name}.yaml"
    written.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "dist_teracon", "train", str(written), "--run", str(folder / name), "--launcher", "ray", "--no-report"]
    # another folder than the checkout: Ray has its workers import from where the driver is
    return subprocess.Popen(
        [*command, *options], env=cluster.environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 150) -> None:
    """Wait until a file or folder of a run is there; what ended or takes too long is killed, with what it said as the error."""
    until = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.05)


class Said:
    """What a command says, line after line, while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._process = process
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.lines)

    def _read(self, stream: Iterable[str]) -> None:
        self.lines.extend(stream)

    def wait_for(self, here: Callable[[str], object], seconds: float = 150) -> None:
        """Wait until a line is here."""
        until = time.monotonic() + seconds
        while not any(here(line) for line in list(self.lines)):
            assert time.monotonic() < until, self.text
            assert self._process.poll() is None, self.text
            time.sleep(0.1)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command; returns its exit status and what it said."""
    out, said = process.communicate(timeout=240)
    return process.returncode, out + said


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
    for number, task in enumerate(STAGES, start=1):
        name = f"stages/{number:02d}-{task}/scores.parquet"
        one, several = (pq.read_table(folder / name).to_pydict() for folder in (alone, run))
        rows = [sorted(zip(scored["split"], scored["task"], scored["user_hash"], strict=True)) for scored in (one, several)]
        assert rows[0] == rows[1]
        assert len(set(rows[0])) == len(rows[0]) > 0
