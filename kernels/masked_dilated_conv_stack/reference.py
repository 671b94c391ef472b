"""The stack written plainly: exact in any dtype, differentiated by autograd, the yardstick of every other backend.

Legend: N packed positions, B rows (users), C channels, T tasks, K masks (two a block), k taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout, Taps


class StackParameters(NamedTuple):
    """Weights of a stack; every first dimension runs over its K convolutions, two a block.

    Attributes:
        weight: [K, C, C, k]: out, in, tap; tap k − 1 is the present position.
        bias: [K, C].
        norm_weight, norm_bias: [K, C], LayerNorm over channels.
    """

    weight: Tensor | Sequence[Tensor]
    bias: Tensor | Sequence[Tensor]
    norm_weight: Tensor | Sequence[Tensor]
    norm_bias: Tensor | Sequence[Tensor]


class FrozenParameters(StackParameters):
    """Weights that no longer change, so that a backend may keep what it prepares of them.

    Attributes:
        prepared: What is kept, by a key of the backend's own.
    """

    prepared: dict[Any, Any]

    def __init__(self, *parts: Tensor | Sequence[Tensor]) -> None:
        self.prepared = {}


def conv(x_NC: Tensor, taps: Taps, weight: Tensor, bias: Tensor) -> Tensor:
    """Dilated causal convolution over packed rows: [N_in, C] -> [N_out, C]."""
    padded = torch.cat([x_NC, x_NC.new_zeros(1, x_NC.shape[1])])
    gathered = padded[taps.forward]  # [N_out, k, C]
    return torch.einsum("nkc,ock->no", gathered, weight) + bias


def mask_of_position(masks_TC: Tensor, layout: Layout, taps: Taps) -> Tensor:
    """Return each position's mask: [1, C] where all rows are of one task, else [N_out, C]."""
    if layout.single_task is not None:
        return masks_TC[layout.single_task : layout.single_task + 1]
    assert layout.task_of_row is not None
    return masks_TC.index_select(0, layout.task_of_row.index_select(0, taps.rows))


def finish(x_NC: Tensor, layout: Layout) -> Tensor:
    """Give every row its output in `last` mode: rows without a position get zeros."""
    if layout.positions == "all" or layout.output_row is None:
        return x_NC
    return x_NC.new_zeros(layout.rows, x_NC.shape[1]).index_copy(0, layout.output_row, x_NC)


def stack(x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float) -> Tensor:
    """Run the residual blocks `y = x + m₂ ⊙ ReLU(LN(conv₂d(m₁ ⊙ ReLU(LN(conv_d(x))))))` (docs/method.md, Backbones)."""
    for block, kept in enumerate(layout.residual):
        h = x_NC
        for stage in (2 * block, 2 * block + 1):
            taps = layout.taps[stage]
            u = conv(h, taps, parameters.weight[stage], parameters.bias[stage])
            n = F.layer_norm(u, u.shape[1:], parameters.norm_weight[stage], parameters.norm_bias[stage], eps)
            h = torch.relu(n)
            if masks_TKC is not None:
                h = h * mask_of_position(masks_TKC[:, stage], layout, taps)
        x_NC = (x_NC if kept is None else x_NC.index_select(0, kept)) + h
    return finish(x_NC, layout)
