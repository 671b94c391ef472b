"""The mean of each packed row's inputs up to each position: one public function, two ways to compute it (README.md)."""

from __future__ import annotations

import os

from torch import Tensor

from dist_teracon.kernels.running_mean import reference

__all__ = ["running_mean"]


def running_mean(x_NC: Tensor, row_offsets: Tensor) -> Tensor:
    """Return the mean of a row's inputs up to and with each position, [N, C] in the inputs' number type.

    On a GPU a Triton kernel runs it, elsewhere plain torch; `DIST_TERACON_KERNELS` decides as for the convolution stack
    (`triton`: the kernel; any other: plain torch).

    Args:
        x_NC: [N, C], the packed positions' inputs.
        row_offsets: int64 [B + 1], on the same device, ascending from 0 to N.

    Raises:
        ValueError: x is not [N, C], or the offsets lie on another device.
    """
    if x_NC.dim() != 2 or row_offsets.device != x_NC.device:
        raise ValueError(f"expected x [N, C] and offsets on one device, got {tuple(x_NC.shape)} on {x_NC.device}, {row_offsets.device}")
    chosen = os.environ.get("DIST_TERACON_KERNELS", "") or ("triton" if x_NC.device.type == "cuda" else "reference")
    if chosen == "triton":
        from dist_teracon.kernels.running_mean import fused  # Triton need not be installed where no GPU is

        return fused.running_mean(x_NC, row_offsets)
    return reference.running_mean(x_NC, row_offsets)
