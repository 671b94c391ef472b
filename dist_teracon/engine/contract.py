"""What the trainer asks of an engine: data parallelism over one module and one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Runtime:
    """What a launcher hands to training: this process's place in the world.

    Attributes:
        rank, world_size: Of the process group.
        device: Where this process computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes the run's files."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return what every rank has put in, in the order of ranks; all ranks call it."""
        gathered: list[Any] = [value]
        if self.world_size > 1:
            gathered = [None] * self.world_size
            dist.all_gather_object(gathered, value)
        return gathered


# Edits a flat piece of a parameter in place: (values, start), `start` being its place in the flattened parameter.
Edit = Callable[[Tensor, int], None]


class Engine(Protocol):
    """A module and its optimiser under data parallelism; the state that leaves it is free of engine and world size."""

    def loss(self, batch: Any) -> Any:
        """Run the wrapped module's forward on a micro-batch."""

    def backward(self, loss: Tensor) -> None:
        """Back-propagate; gradients are averaged over ranks and micro-batches."""

    def step(self) -> None:
        """Step the optimiser if this was the last micro-batch of a step."""

    def edit_masters(self, parameters: Iterable[torch.nn.Parameter], edit: Edit) -> None:
        """Edit the values that the optimiser steps, and the copies that the module computes with, in place."""

    def state_dict(self) -> dict[str, Tensor]:
        """Gather the whole state on every rank, on the CPU: `parameter/<name>` and `<moment>/<name>` in fp32, `steps`."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state that `state_dict` gave, at any world size."""

    def release(self) -> None:
        """Give the module back as plain fp32 parameters and free the rest; the engine cannot be used after."""
