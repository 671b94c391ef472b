"""The stack as one gather and one matrix product a convolution, forward and backward; any device, any dtype.

A tap reads at most one input and an input is read by at most one output a tap, so the backward pass is a gather too, along the
inverse index: no scatter, the same bits for the same inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack import reference
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout, Taps
from dist_teracon.kernels.masked_dilated_conv_stack.reference import StackParameters


def _gather(x_NC: Tensor, index: Tensor) -> Tensor:
    """Rows of x by [M, k] index, the row past the end being zero: [M, k·C]."""
    padded = torch.cat([x_NC, x_NC.new_zeros(1, x_NC.shape[1])])
    return padded.index_select(0, index.flatten()).view(index.shape[0], index.shape[1] * x_NC.shape[1])


class _GatheredConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight: Tensor, bias: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(x_NC, weight, forward, backward)
        flat = weight.transpose(1, 2).reshape(weight.shape[0], -1)  # [C_out, k·C_in]
        return F.linear(_gather(x_NC, forward), flat, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x_NC, weight, forward, backward = ctx.saved_tensors
        out_channels, in_channels, taps = weight.shape
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = _gather(dy, backward) @ weight.permute(2, 0, 1).reshape(taps * out_channels, in_channels)
        if ctx.needs_input_grad[1]:
            dw = (dy.t() @ _gather(x_NC, forward)).view(out_channels, taps, in_channels).transpose(1, 2)
        if ctx.needs_input_grad[2]:
            db = dy.sum(0)
        return dx, dw, db, None, None


def convolution(x_NC: Tensor, taps: Taps, weight: Tensor, bias: Tensor) -> Tensor:
    """Dilated causal convolution over packed rows, [N_in, C] -> [N_out, C]; same arguments and result as `reference.conv`."""
    y: Tensor = _GatheredConv.apply(x_NC, weight, bias, taps.forward, taps.backward)
    return y


def stack(x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float) -> Tensor:
    """Run the residual blocks; same arguments and result as `reference.stack`."""
    # unbind, not indexing: its backward stacks the gradients once instead of adding K tensors of zeros
    weight, bias, norm_weight, norm_bias = (p.unbind(0) if isinstance(p, Tensor) else p for p in parameters)
    masks = None if masks_TKC is None else masks_TKC.unbind(1)
    for block, kept in enumerate(layout.residual):
        h = x_NC
        for stage in (2 * block, 2 * block + 1):
            taps = layout.taps[stage]
            u = convolution(h, taps, weight[stage], bias[stage])
            h = torch.relu(F.layer_norm(u, u.shape[1:], norm_weight[stage], norm_bias[stage], eps))
            if masks is not None:
                h = h * reference.mask_of_position(masks[stage], layout, taps)
        x_NC = (x_NC if kept is None else x_NC.index_select(0, kept)) + h
    return reference.finish(x_NC, layout)
