"""Masked dilated-convolution residual stack over packed sequences: one public function, backends behind it.

`DIST_TERACON_KERNELS=reference` overrides the choice; what was chosen is logged once.
"""

from __future__ import annotations

import functools
import logging
import os

from torch import Tensor

from dist_teracon.errors import ConfigError, nearest
from dist_teracon.kernels.masked_dilated_conv_stack import cpu, gathered, reference
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout, Positions, build_layout
from dist_teracon.kernels.masked_dilated_conv_stack.reference import StackParameters

__all__ = ["Layout", "Positions", "StackParameters", "build_layout", "masked_dilated_conv_stack"]

_BACKENDS = {"cpu": cpu.stack, "gathered": gathered.stack, "reference": reference.stack}
_logger = logging.getLogger(__name__)


@functools.cache
def _choose(device_type: str, override: str) -> str:
    if override and override not in _BACKENDS:
        known = sorted(_BACKENDS)
        raise ConfigError(f"DIST_TERACON_KERNELS={override}: no such backend{nearest(override, known)} (there are: {', '.join(known)})")
    chosen = override or ("cpu" if device_type == "cpu" else "gathered")
    why = "set by DIST_TERACON_KERNELS" if override else "default"
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
        ValueError: shapes that do not fit each other or the layout.
        ConfigError: DIST_TERACON_KERNELS names no backend.
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
        if masks_TKC.shape != (tasks, stages, width) or tasks <= (layout.single_task or 0):
            raise ValueError(f"masks {tuple(masks_TKC.shape)} do not fit {stages} convolutions, {width} channels and the rows' tasks")
