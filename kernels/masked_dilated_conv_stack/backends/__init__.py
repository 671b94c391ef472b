"""The backends of the convolution stack by name; the package's README.md has a line on each, and on how to add one."""

from __future__ import annotations

import functools
import importlib
from typing import Protocol, cast

from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout
from dist_teracon.kernels.masked_dilated_conv_stack.reference import StackParameters

_PACKAGE = "dist_teracon.kernels.masked_dilated_conv_stack"

# name -> the module whose `stack` it is, imported where it first runs: Triton need not be installed where no GPU is
BACKENDS = {
    "cpu": "backends.cpu.stack",
    "gathered": "backends.gathered",
    "reference": "reference",
    "triton": "backends.triton.stack",
}
# by `torch.device.type`; elsewhere "gathered", which runs on any device
DEFAULTS = {"cpu": "cpu", "cuda": "triton"}


class Stack(Protocol):
    """The stack as a backend computes it: output and gradients equal `reference.stack`'s."""

    def __call__(self, x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float) -> Tensor:
        """Run the residual blocks, see `masked_dilated_conv_stack`."""


@functools.cache
def load_backend(name: str) -> Stack:
    """Return a registered backend's `stack`."""
    return cast(Stack, importlib.import_module(f"{_PACKAGE}.{BACKENDS[name]}").stack)
