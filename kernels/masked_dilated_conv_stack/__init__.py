"""Masked dilated-convolution residual stack over packed sequences: one public function, backends behind it (README.md).

The device decides which backend runs; `DIST_TERACON_KERNELS` overrides it, and what was chosen is logged once.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os

from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.backends import BACKENDS, DEFAULTS, Stack, load_backend
from dist_teracon.kernels.masked_dilated_conv_stack.backends.gathered import convolution as packed_convolution
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout, Positions, build_layout
from dist_teracon.kernels.masked_dilated_conv_stack.reference import FrozenParameters, StackParameters
from dist_teracon.kernels.masked_dilated_conv_stack.reference import finish as with_empty_rows

__all__ = [
    "BACKENDS",
    "FrozenParameters",
    "Layout",
    "Positions",
    "StackParameters",
    "backend_of",
    "build_layout",
    "masked_dilated_conv_stack",
    "packed_convolution",
    "with_empty_rows",
]

_logger = logging.getLogger(__name__)


def backend_of(device_type: str, override: str) -> tuple[str, str]:
    """Return the backend for a device and the reason, in words.

    Args:
        device_type: As of `torch.device.type`.
        override: The value of DIST_TERACON_KERNELS; empty for the default.

    Raises:
        ValueError: no such backend, or one that the device cannot run.
    """
    if not override:
        if device_type in DEFAULTS:
            return DEFAULTS[device_type], f"default on a {'GPU' if device_type == 'cuda' else device_type.upper()}"
        return "gathered", "default"
    if override not in BACKENDS:
        close = difflib.get_close_matches(override, BACKENDS, n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"DIST_TERACON_KERNELS={override}: no such backend{hint} (known: {', '.join(sorted(BACKENDS))})")
    if override == "triton" and device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"DIST_TERACON_KERNELS=triton: expected a GPU for Triton's kernels, got '{device_type}'; unset it, or for a (very slow) trial "
            "on a CPU set TRITON_INTERPRET=1 as well"
        )
    return override, "set by DIST_TERACON_KERNELS"


@functools.cache
def _choose(device_type: str, override: str) -> Stack:
    chosen, why = backend_of(device_type, override)
    _logger.info("masked_dilated_conv_stack on %s: backend '%s' (%s)", device_type, chosen, why)
    return load_backend(chosen)


def masked_dilated_conv_stack(
    x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float = 1e-8
) -> Tensor:
    """Run a stack of masked residual blocks over packed sequences (docs/method.md, Backbones).

    Args:
        x_NC: [N, C], the packed positions' inputs.
        layout: The batch's plan, from `build_layout`; holds dilations, tasks and which positions are computed.
        parameters: The stack's weights.
        masks_TKC: [T, K, C], a mask for each task and convolution; None for no masks.
        eps: Added to the variance in LayerNorm.

    Returns:
        [N, C] for `positions="all"`, [B, C] for `"last"`.

    Raises:
        ValueError: shapes that do not fit each other or the layout, a task without masks; DIST_TERACON_KERNELS is no backend that
            runs here; for the Triton backend, other than one dtype, one device and a contiguous x.
    """
    _check_shapes(x_NC, layout, parameters, masks_TKC)
    stack = _choose(x_NC.device.type, os.environ.get("DIST_TERACON_KERNELS", ""))
    return stack(x_NC, layout, parameters, masks_TKC, eps=eps)


def _check_shapes(x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None) -> None:
    """Refuse what would be read past its end, or broadcast to something else than was meant."""
    stages, taps, width = len(layout.stage_dilations), layout.kernel_size, x_NC.shape[-1]
    if x_NC.shape != (layout.packed, width):
        raise ValueError(f"x: expected the layout's {layout.packed} positions, got {tuple(x_NC.shape)}")
    expected = ((width, width, taps), (width,), (width,), (width,))
    for name, values, shape in zip(parameters._fields, parameters, expected, strict=True):
        if len(values) != stages or values[0].shape != shape:
            raise ValueError(f"{name}: expected {stages} convolutions of shape {shape}, got {len(values)} of {tuple(values[0].shape)}")
    if masks_TKC is not None:
        tasks = masks_TKC.shape[0]
        if masks_TKC.shape != (tasks, stages, width) or tasks < layout.tasks:
            fits = f"[{layout.tasks} or more, {stages}, {width}]"
            raise ValueError(f"masks: expected {fits} for the rows' tasks, convolutions and channels, got {tuple(masks_TKC.shape)}")
