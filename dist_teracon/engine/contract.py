"""The contract of an engine: data parallelism over one module and one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

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

    def scale_rates(self, factor: float) -> None:
        """Have the steps from now on take `factor` times the learning rates that the parameter groups came with."""

    def gradient_square(self) -> Tensor:
        """Return the gradient's squared length, before clipping, as this rank's part of the sum over ranks; of the step that is due.

        Called after the last micro-batch's backward and before `step`. A scalar on the device, for which nobody waits here.
        """

    def when_exchanging(self, begins: Callable[[], None], ends: Callable[[], None]) -> None:
        """Have two functions called around each exchange of gradients with the other ranks."""

    def edit_masters(self, parameters: Iterable[torch.nn.Parameter], edit: Edit) -> None:
        """Edit the values that the optimiser steps, and the copies that the module computes with, in place."""

    def state_dict(self) -> dict[str, Tensor]:
        """Gather the whole state on every rank, on the CPU: `parameter/<name>` and `<moment>/<name>` in fp32, `steps`."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state that `state_dict` gave, at any world size."""

    def release(self) -> None:
        """Give the module back as plain fp32 parameters and free the rest; the engine cannot be used after."""
