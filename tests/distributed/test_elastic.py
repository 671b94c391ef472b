"""A run whose cluster shrinks and grows: two workers, one, two again, and the steps of one process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray_clusters import ray_cluster
from ray_runs import USERS, Said, same_steps, same_users, train, values, wait_for
from small_runs import run_worlds, write_small

# Put before each optimiser step of the workers: a small run would be over before a node has come or gone.
SLOW = """
import importlib.abc, importlib.util, sys, time

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "dist_teracon.train.step":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_slow_down(module):
            execute(module)
            step = module.train_step

            def slow_step(*arguments, **options):
                time.sleep(0.5)
                return step(*arguments, **options)

            module.train_step = slow_step

        spec.loader.exec_module = execute_and_slow_down
        return spec

sys.meta_path.insert(0, Slow())
"""


@pytest.mark.slow
def test_two_workers_one_and_two_again_take_the_steps_of_one_process(tmp_path: Path) -> None:
    write_small(tmp_path / "set", users=USERS)
    config = values(tmp_path / "set", zero=1)
    config["train"]["checkpoint_every"] = {"minutes": None, "steps": 2}
    run_worlds([{"config": values(tmp_path / "set"), "run": str(tmp_path / "alone")}], tmp_path)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    with ray_cluster(cpus=1, pythonpath=tmp_path / "slow") as cluster:
        node = cluster.add_node(cpus=1)
        cluster.wait_for_nodes(2)
        options = ("launch.workers=2", "launch.min_workers=1", "launch.resize_seconds=4")
        process = train(cluster, tmp_path, "run", config, *(word for option in options for word in ("--set", option)))
        said = Said(process)
        wait_for(tmp_path / "run/stages/01-next/progress", process)
        cluster.remove_node(node)
        said.wait_for(lambda line: re.search(r"started anew .* attempt 2, 1 worker\(s\)", line))
        cluster.add_node(cpus=1)
        said.wait_for(lambda line: re.search(r"started anew .* attempt 3, 2 worker\(s\)", line))
        code = process.wait(240)
    assert code == 0, said.text
    same_steps(tmp_path / "alone", tmp_path / "run")
    same_users(tmp_path / "alone", tmp_path / "run")
