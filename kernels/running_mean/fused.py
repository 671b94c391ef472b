"""The running mean on a GPU, with its gradient: what launches the kernels of `row_walk.py`.

`torch.cumsum` over the positions of a batch walks all N of them one after another for every channel, on a GPU 20 ms at N = 100,000
and C = 256, and as much again backward (docs/kernels.md). Rows are independent, so B × C / 64 programs walk one row each.
A row's sum takes in nothing but the row: its bits do not depend on the batch.

Legend: N packed positions, B rows (users), C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dist_teracon.kernels.running_mean.row_walk import backward_walk, forward_walk

_CHANNELS = 64  # a program's; two to a thread of one warp


class _RunningMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, row_offsets: Tensor) -> Tensor:
        ctx.save_for_backward(row_offsets)
        return _launch(forward_walk, x_NC, row_offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (row_offsets,) = ctx.saved_tensors
        return _launch(backward_walk, gradients[0], row_offsets), None


def running_mean(x_NC: Tensor, row_offsets: Tensor) -> Tensor:
    """Return the mean of a row's inputs up to each position, see the package's `running_mean`; sums are fp32, of fp64 inputs fp64."""
    result: Tensor = _RunningMean.apply(x_NC, row_offsets)
    return result


def _launch(kernel: Any, values_NC: Tensor, row_offsets: Tensor) -> Tensor:
    values_NC = values_NC.contiguous()
    out_NC = torch.empty_like(values_NC)
    rows, channels = row_offsets.shape[0] - 1, values_NC.shape[1]
    if rows and channels and values_NC.shape[0]:
        grid = (rows, triton.cdiv(channels, _CHANNELS))
        total = tl.float64 if values_NC.dtype == torch.float64 else tl.float32
        kernel[grid](values_NC, row_offsets, out_NC, channels, BLOCK=_CHANNELS, SUM=total, num_warps=1)
    return out_NC
