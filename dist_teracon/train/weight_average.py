"""The running average of the weights at the ends of a phase's epochs, and a module that takes it for a while.

Weights at an epoch's end are one draw of what Adam wanders among; their average lies nearer to the middle, and moves less from stage to
stage (Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018; here an exponential average).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PARAMETER = "parameter/"


def update_average(before: Mapping[str, Tensor], now: Mapping[str, Tensor], *, keep: float, epoch: int) -> dict[str, Tensor]:
    """Take an epoch's parameters into the average; `before` is empty at the first.

    Args:
        before: The average so far, fp32, by name.
        now: The parameters at the end of the epoch.
        keep: Share of the average that stays, once there are enough epochs; until then it is the plain mean of them all.
        epoch: Counted from 1.
    """
    share = 1 - min(keep, 1 - 1 / epoch)
    return {name: torch.lerp(before[name], value, share) if before else value.clone() for name, value in now.items()}


@contextmanager
def swapped_parameters(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Have a module's parameters take other values inside, and their own again after; `values` may be empty."""
    own = {name: p.detach().clone() for name, p in module.named_parameters() if PARAMETER + name in values}
    load_parameters(module, values)
    try:
        yield
    finally:
        load_parameters(module, {PARAMETER + name: value for name, value in own.items()})


def load_parameters(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy `parameter/<name>` into the module's parameters of that name; others stay."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if (value := values.get(PARAMETER + name)) is not None:
                parameter.data.copy_(value)
