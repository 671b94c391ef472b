"""This process's place in the world: a process group of one, or the one that torchrun's variables describe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from dist_teracon.engine.contract import Runtime


@contextmanager
def process_group() -> Iterator[Runtime]:
    """Join the process group and leave it at the end.

    Without a launcher's `RANK` and `WORLD_SIZE` the group is this process alone and opens no port.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    backend = "nccl" if cuda else "gloo"
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield Runtime(rank, world_size, device)
    finally:
        dist.destroy_process_group()
