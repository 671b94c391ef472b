"""Masked dilated-convolution residual stack over packed sequences: one public function, backends behind it.

`DIST_TERACON_KERNELS=reference` overrides the choice; what was chosen is logged once.
"""

from __future__ import annotations

import functools
import logging
import os

from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack import gathered, reference
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout, Positions, build_layout
from dist_teracon.kernels.masked_dilated_conv_stack.reference import StackParameters

__all__ = ["Layout", "Positions", "StackParameters", "build_layout", "masked_dilated_conv_stack"]

_BACKENDS = {"gathered": gathered.stack, "reference": reference.stack}
_logger = logging.getLogger(__name__)


@functools.cache
def _choose(device_type: str, override: str) -> str:
    if override and override not in _BACKENDS:
        raise ValueError(f"DIST_TERACON_KERNELS={override!r} is no backend; there are: {', '.join(sorted(_BACKENDS))}")
    chosen = override or "gathered"
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
    """
    backend = _choose(x_NC.device.type, os.environ.get("DIST_TERACON_KERNELS", ""))
    return _BACKENDS[backend](x_NC, layout, parameters, masks_TKC, eps=eps)
