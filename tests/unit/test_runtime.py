"""The process group: made of one process, joined, or adopted from a launcher that has made it."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from dist_teracon.errors import ConfigError, RunError
from dist_teracon.runtime import process_group


@pytest.fixture(autouse=True)
def no_group(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not dist.is_initialized()
    yield
    assert not dist.is_initialized()


def test_without_a_launcher_the_group_is_this_process_and_ends_with_the_block():
    with process_group() as runtime:
        assert dist.is_initialized()
        assert (runtime.rank, runtime.world_size, runtime.is_main) == (0, 1, True)
        assert runtime.gather("x") == ["x"]
        values = torch.tensor([1.0, 2.0])
        assert runtime.all_reduce_sum(values) is values
        runtime.barrier()


def test_a_launchers_group_and_device_are_adopted_and_left_standing():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for _ in range(2):
            with process_group(torch.device("cpu")) as runtime:
                assert runtime.device == torch.device("cpu")
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_a_rank_without_the_variables_that_go_with_it_is_a_users_mistake(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="RANK is set"), process_group():
        pass


def test_the_main_processs_problem_is_raised():
    with process_group() as runtime:
        runtime.raise_on_all_ranks("")
        with pytest.raises(RunError, match="the folder is taken"):
            runtime.raise_on_all_ranks("the folder is taken")
