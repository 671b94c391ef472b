"""What a cell of a comparison reserves on a Ray cluster."""

from __future__ import annotations

import pytest

from dist_teracon.launch.ray_cells import task_options


def test_a_cells_memory_is_asked_for_as_ray_takes_it() -> None:
    ray = pytest.importorskip("ray")
    options = task_options({"CPU": 2.0, "GPU": 1.0, "memory": 8.0e9, "fast": 0.5})
    assert options == {"num_cpus": 2.0, "num_gpus": 1.0, "memory": 8.0e9, "resources": {"fast": 0.5}}
    ray.remote(task_options).options(**options)
    assert task_options({"CPU": 1.0}) == {"num_cpus": 1.0, "resources": {}}
