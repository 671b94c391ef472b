"""NextItNet: a temporal convolutional network over packed behaviour sequences (SPEC section 2).

Legend: N packed positions, B rows (users), C channels, K masks, T tasks, V items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dist_teracon.kernels.masked_dilated_conv_stack import Positions, StackParameters, build_layout, masked_dilated_conv_stack
from dist_teracon.models.pooling import mean_so_far


class NextItNet(nn.Module):
    """Item embeddings and residual blocks of causal dilated convolutions.

    Args:
        items: Size V of the item table, reserved rows included.
        channels: C.
        dilations: The dilation d of each block, whose convolutions have d and 2d.
        kernel_size: Taps of a convolution.
        generator: Source of the initial values.
        pooling: `last`: the representation is the last position's; `mean`: the normalised mean of the items is added to it.
    """

    def __init__(
        self,
        *,
        items: int,
        channels: int,
        dilations: Sequence[int],
        kernel_size: int,
        generator: torch.Generator,
        pooling: Literal["last", "mean"] = "last",
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.channels = channels
        self.dilations = tuple(dilations)
        self.kernel_size = kernel_size
        self.masks = 2 * len(self.dilations)
        K, C = self.masks, channels
        bound = math.sqrt(1 / items)
        self.items = nn.Parameter(torch.empty(items, C).uniform_(-bound, bound, generator=generator))
        # He's uniform bound for a fan-in of C·k with slope √5, as PyTorch's own convolutions start
        bound = 1 / math.sqrt(C * kernel_size)
        self.conv_weight = nn.Parameter(torch.empty(K, C, C, kernel_size).uniform_(-bound, bound, generator=generator))
        self.conv_bias = nn.Parameter(torch.empty(K, C).uniform_(-bound, bound, generator=generator))
        self.norm_weight = nn.Parameter(torch.ones(K, C))
        self.norm_bias = nn.Parameter(torch.zeros(K, C))

    def stack_parameters(self) -> StackParameters:
        """Return the blocks' weights, as the kernel takes them."""
        return StackParameters(self.conv_weight, self.conv_bias, self.norm_weight, self.norm_bias)

    def forward(
        self, values: Tensor, row_offsets: Tensor, task_of_row: Tensor, masks_TKC: Tensor | None, *, positions: Positions
    ) -> Tensor:
        """Encode packed rows.

        Args:
            values: int32 [N], item indices of the rows end to end, oldest first.
            row_offsets: int64 [B + 1].
            task_of_row: int32 [B], row of the mask table.
            masks_TKC: [T, K, C] or None.
            positions: `all` for every position, `last` for each row's last.

        Returns:
            [N, C] or [B, C].
        """
        layout = build_layout(row_offsets, task_of_row, dilations=self.dilations, kernel_size=self.kernel_size, positions=positions)
        x_NC = nn.functional.embedding(values, self.items)
        masks = None if masks_TKC is None else masks_TKC.to(x_NC.dtype)
        hidden = masked_dilated_conv_stack(x_NC, layout, self.stack_parameters(), masks)
        return hidden if self.pooling == "last" else hidden + mean_so_far(x_NC, row_offsets, positions=positions)
