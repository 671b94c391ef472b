"""This process's place in the world: a process group of one, or the one that torchrun's variables describe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from dist_teracon.engine.contract import Runtime
from dist_teracon.errors import ConfigError, TeraconError
from dist_teracon.memory import raise_malloc_thresholds

_FAILURE = "dist-teracon/failure"


@contextmanager
def process_group() -> Iterator[Runtime]:
    """Join the process group and leave it at the end.

    Without a launcher's `RANK` the group is this process alone and opens no port. A process that gives up says why to the others,
    whose collectives break then. Working memory is kept from here on (`raise_malloc_thresholds`): a step's arrays are the last one's.

    Raises:
        ConfigError: there is a `RANK` without the variables that go with it.
        TeraconError: another process of the group has given up with that message.
    """
    raise_malloc_thresholds()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    backend = "nccl" if cuda else "gloo"
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        try:
            dist.init_process_group(backend)
        except ValueError as error:
            raise ConfigError(f"RANK is set, so the variables that torchrun sets are expected: {error}") from None
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    store = dist.distributed_c10d._get_default_store()
    try:
        yield Runtime(dist.get_rank(), dist.get_world_size(), device)
    except TeraconError as error:
        store.set(_FAILURE, str(error))
        raise
    except RuntimeError:
        if store.check([_FAILURE]):
            raise TeraconError(f"another process has given up: {store.get(_FAILURE).decode()}") from None
        raise
    finally:
        _leave()


def _leave() -> None:
    """Leave the group; DeepSpeed, where it was used, remembers it and has to forget it, or the next run in this process would fail."""
    if (deepspeed := sys.modules.get("deepspeed")) is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        dist.destroy_process_group()
