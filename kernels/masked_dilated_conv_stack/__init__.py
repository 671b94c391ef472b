"""Masked dilated-convolution residual stack over packed sequences: one public function, backends behind it.

On a GPU the fused Triton kernels run. `DIST_TERACON_KERNELS=reference|gathered|triton` overrides the choice; what was chosen is logged
once.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os

from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack import reference
from dist_teracon.kernels.masked_dilated_conv_stack.backends import gathered
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu import stack as cpu_stack
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout, Positions, build_layout
from dist_teracon.kernels.masked_dilated_conv_stack.reference import StackParameters

__all__ = ["Layout", "Positions", "StackParameters", "backend_of", "build_layout", "masked_dilated_conv_stack"]

_logger = logging.getLogger(__name__)


def _triton(x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float) -> Tensor:
    # where no GPU is, Triton need not even be there
    from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.stack import stack

    return stack(x_NC, layout, parameters, masks_TKC, eps=eps)


_BACKENDS = {"cpu": cpu_stack.stack, "gathered": gathered.stack, "reference": reference.stack, "triton": _triton}


def backend_of(device_type: str, override: str) -> tuple[str, str]:
    """Return the backend for a device and why, in words.

    Args:
        device_type: As of `torch.device.type`.
        override: What DIST_TERACON_KERNELS says; empty for the default.

    Raises:
        ValueError: there is no such backend, or the device cannot run it.
    """
    if not override:
        return {"cuda": ("triton", "default on a GPU"), "cpu": ("cpu", "default on a CPU")}.get(device_type, ("gathered", "default"))
    if override not in _BACKENDS:
        close = difflib.get_close_matches(override, _BACKENDS, n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"DIST_TERACON_KERNELS={override}: no such backend{hint} (there are: {', '.join(sorted(_BACKENDS))})")
    if override == "triton" and device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"DIST_TERACON_KERNELS=triton: Triton's kernels want a GPU, not '{device_type}'; unset it, or for a (very slow) trial "
            "on a CPU set TRITON_INTERPRET=1 as well"
        )
    return override, "set by DIST_TERACON_KERNELS"


@functools.cache
def _choose(device_type: str, override: str) -> str:
    chosen, why = backend_of(device_type, override)
    _logger.info("masked_dilated_conv_stack on %s: backend '%s' (%s)", device_type, chosen, why)
    return chosen


def masked_dilated_conv_stack(
    x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float = 1e-8
) -> Tensor:
    """Run a stack of masked residual blocks over packed sequences (SPEC section 2).

    Args:
        x_NC: [N, C], the packed positions' inputs.
        layout: The batch's plan, from `build_layout`; holds dilations, tasks and which positions are wanted.
        parameters: The stack's weights.
        masks_TKC: [T, K, C], a mask for each task and convolution; None for no masks.
        eps: Added to the variance in LayerNorm.

    Returns:
        [N, C] for `positions="all"`, [B, C] for `"last"`.

    Raises:
        ValueError: shapes that do not fit each other or the layout, a task without masks; DIST_TERACON_KERNELS names no backend that
            runs here; the Triton backend wants one dtype, one device, and a contiguous x.
    """
    _check_shapes(x_NC, layout, parameters, masks_TKC)
    backend = _choose(x_NC.device.type, os.environ.get("DIST_TERACON_KERNELS", ""))
    return _BACKENDS[backend](x_NC, layout, parameters, masks_TKC, eps=eps)


def _check_shapes(x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None) -> None:
    """Refuse what would be read past its end, or broadcast to something else than was meant."""
    stages, taps, width = len(layout.stage_dilations), layout.kernel_size, x_NC.shape[-1]
    if x_NC.shape != (layout.packed, width):
        raise ValueError(f"x {tuple(x_NC.shape)} has other positions than the layout, {layout.packed}")
    wanted = ((width, width, taps), (width,), (width,), (width,))
    for name, values, shape in zip(parameters._fields, parameters, wanted, strict=True):
        if len(values) != stages or values[0].shape != shape:
            raise ValueError(f"{name}: {stages} convolutions of shape {shape} are wanted, not {len(values)} of {tuple(values[0].shape)}")
    if masks_TKC is not None:
        tasks = masks_TKC.shape[0]
        if masks_TKC.shape != (tasks, stages, width) or tasks < layout.tasks:
            fits = f"[{layout.tasks} or more, {stages}, {width}]"
            raise ValueError(f"masks {tuple(masks_TKC.shape)} do not fit the rows' tasks, convolutions and channels: {fits} is wanted")
