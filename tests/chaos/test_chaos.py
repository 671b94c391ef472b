"""A short version of the chaos program: one trial of most kinds of fault, on the small run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("chaos.py")
# of those with one process: a killed rank of two is in `e2e/test_resume.py`, and a killed worker of Ray's in `distributed/test_ray.py`
KINDS = ("kill", "kill-in-upload", "SIGTERM-on-a-store", "damaged-checkpoint", "disk-full", "second-process", "store-away", "damaged-part")


def test_a_run_that_is_broken_in_every_way_ends_with_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    options = ["--small", "--points", str(len(KINDS)), "--seed", "1", "--faults", ",".join(KINDS), "--folder", str(tmp_path)]
    command = [sys.executable, str(PROGRAM), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    *_, total = (line for line in done.stdout.splitlines() if line.startswith("all "))
    assert total.split()[1:3] == [str(len(KINDS))] * 2
