"""This process's place in a run: its rank, its device, and what the ranks exchange.

The process group is joined where torchrun's variables describe one, adopted where a launcher has made one already, and made of this
process alone otherwise.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_teracon.errors import ConfigError, PeerError, RunError, TeraconError
from dist_teracon.memory import raise_malloc_thresholds

# A process whose peer has given up waits so long before it says so: the peer's own message is to stand first.
_PEER_FIRST_S = 0.5
# What a collective's error says where a peer's process is gone: of gloo, and of the store.
_LOST_PEER = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "connection was likely closed")


@dataclass(frozen=True)
class Runtime:
    """What a launcher hands to training.

    Attributes:
        rank, world_size: Of the process group.
        device: Where this process computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks; all ranks call it."""
        gathered: list[Any] = [value]
        if self.world_size > 1:
            gathered = [None] * self.world_size
            dist.all_gather_object(gathered, value)
        return gathered

    def ranks_of_machine(self) -> list[int]:
        """Return the ranks on this process's machine, itself among them; all ranks call it."""
        return [rank for rank, machine in enumerate(self.gather(_machine())) if machine == _machine()]

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks, where `values` lies; all ranks call it. The argument stays as it is."""
        if self.world_size == 1:
            return values
        summed = values.to(self.device, copy=True)
        dist.all_reduce(summed)
        return summed.to(values.device)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def raise_on_all_ranks(self, problem: str) -> None:
        """Raise the main process's problem on every rank, so that none waits for a peer that has given up.

        Args:
            problem: What is wrong, for a person; empty for nothing. The other ranks' is not read.

        Raises:
            RunError: the main process has a problem; on the others it is a PeerError.
        """
        problems = [problem]
        if self.world_size > 1:
            dist.broadcast_object_list(problems, src=0)
        if problems[0]:
            raise RunError(problems[0]) if self.is_main else PeerError(problems[0])


def _machine() -> str:
    """Return what this machine, or this container on it, differs by from others."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        booted = ""
    return f"{socket.gethostname()}/{booted}"


@contextmanager
def process_group(device: torch.device | None = None) -> Iterator[Runtime]:
    """Join the process group and leave it at the end; one that exists already is adopted, and stays.

    Without a launcher's `RANK` the group is this process alone and opens no port. A process that gives up leaves its reason to the
    others, whose collectives break then. From here on the C library keeps freed memory (`raise_malloc_thresholds`): a step's arrays have
    the sizes of the last one's.

    Args:
        device: Where this process computes, as its launcher assigned it; by default the GPU of its `LOCAL_RANK`, or the CPU.

    Raises:
        ConfigError: there is a `RANK` without the variables that go with it.
        PeerError: another process of the group has given up, with that message, or is gone.
    """
    raise_malloc_thresholds()
    device = device or _default_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    adopted = dist.is_initialized()
    if not adopted:
        _join("nccl" if device.type == "cuda" else "gloo")
    reason = _FailureReason()
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), device)
    try:
        yield runtime
    except RuntimeError as error:
        _raise_peers(reason, runtime, error)
        reason.leave(runtime.rank, f"{type(error).__name__}: {error}")
        raise
    except Exception as error:
        reason.leave(runtime.rank, str(error) if isinstance(error, TeraconError | OSError) else f"{type(error).__name__}: {error}")
        raise
    finally:
        if not adopted:
            _leave()


def _raise_peers(reason: _FailureReason, runtime: Runtime, error: RuntimeError) -> None:
    """Raise the reason of the process that gave up first, where a collective broke because of it; else do nothing.

    Raises:
        PeerError: another process has given up, or its connection is gone.
    """
    if (text := reason.of_another()) is not None:
        time.sleep(_PEER_FIRST_S)
        raise PeerError(f"another process has given up: {text}") from error
    lost = isinstance(error, dist.DistError) or any(part in str(error).lower() for part in _LOST_PEER)
    if runtime.world_size > 1 and lost:
        raise PeerError(
            "another process of this run is gone and left no message (killed, or out of memory, or its machine is off); "
            "the same command goes on from the newest checkpoint"
        ) from error


class _FailureReason:
    """Why a process of the group gave up first, for the others, in the group's store; under a name that runs in a process count up."""

    _runs = 0

    def __init__(self) -> None:
        type(self)._runs += 1
        self._key = f"dist-teracon/failure/{self._runs}"
        self._store = dist.distributed_c10d._get_default_store()

    def leave(self, rank: int, text: str) -> None:
        with suppress(RuntimeError):  # the store may have gone with the process that held it
            self._store.compare_set(self._key, "", f"rank {rank}: {text}")  # the first one's stays

    def of_another(self) -> str | None:
        with suppress(RuntimeError):
            if self._store.check([self._key]):
                return self._store.get(self._key).decode()
        return None


def _default_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _join(backend: str) -> None:
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        return
    try:
        dist.init_process_group(backend)
    except ValueError as error:
        raise ConfigError(f"RANK is set, so the variables that torchrun sets are expected: {error}") from None


def _leave() -> None:
    """Leave the group; DeepSpeed, where it was used, remembers it and has to forget it, or the next run in this process would fail."""
    if (deepspeed := sys.modules.get("deepspeed")) is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        dist.destroy_process_group()
