"""`dist-teracon pseudo-label RUN --launcher ray` on a cluster of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray_clusters import ray_cluster
from ray_runs import values
from small_runs import run_worlds, what_lasts, write_small


@pytest.mark.slow
def test_workers_of_ray_make_the_labels_that_training_uses(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    config, run = values(tmp_path / "set"), tmp_path / "run"
    run_worlds([{"config": config, "run": str(tmp_path / "whole")}, {"config": config, "run": str(run), "until_stage": 1}], tmp_path)
    with ray_cluster(cpus=2) as cluster:
        command = [sys.executable, "-m", "dist_teracon", "pseudo-label", str(run), "--stage", "2", "--launcher", "ray"]

        def ask(*options: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *options], env=cluster.environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
            )

        done = ask("--set", "launch.workers=2")
        assert done.returncode == 0, done.stderr
        assert "by 2 process(es)" in done.stderr
        made = {path: path.stat().st_mtime_ns for path in run.glob("stages/02-likes/pseudo_labels/*/*.arrow")}
        assert len(made) == 8
        again = ask("--set", "launch.workers=1")
        assert again.returncode == 0 and "nothing to do" in again.stderr, again.stderr
        refused = ask("--set", "model.channels=16")
        assert refused.returncode == 2 and "was started with another configuration: model.channels" in refused.stderr, refused.stderr
    assert yaml.safe_load((run / "config.yaml").read_text())["launch"]["workers"] == 1  # as it was begun
    run_worlds([{"config": config, "run": str(run)}], tmp_path)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert what_lasts(run) == what_lasts(tmp_path / "whole")
