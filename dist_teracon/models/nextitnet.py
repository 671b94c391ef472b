"""NextItNet: a temporal convolutional network over packed behaviour sequences (SPEC section 2).

Legend: N packed positions, B rows (users), C channels, W numbers of a representation, K masks, T tasks, V items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dist_teracon.kernels.masked_dilated_conv_stack import Positions, StackParameters, build_layout, masked_dilated_conv_stack
from dist_teracon.models.dropout import row_dropout
from dist_teracon.models.pooling import mean_so_far

if TYPE_CHECKING:
    from dist_teracon.config import Pooling


class NextItNet(nn.Module):
    """Item embeddings and residual blocks of causal dilated convolutions.

    Args:
        items: Size V of the item table, reserved rows included.
        channels: C.
        dilations: The dilation d of each block, whose convolutions have d and 2d.
        kernel_size: Taps of a convolution.
        generator: Source of the initial values.
        pooling: `last`: the representation is the last position's; `mean`: the normalised mean of the items is added to it; `concat`:
            it stands beside it.
        dropout: Rate on items and on representations, for rows with a noise key.
    """

    def __init__(
        self,
        *,
        items: int,
        channels: int,
        dilations: Sequence[int],
        kernel_size: int,
        generator: torch.Generator,
        pooling: Pooling = "last",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        # set where the optimiser advances touched rows alone: the item table's gradient then holds these rows
        self.sparse = False
        self.pooling = pooling
        self.channels = channels
        self.output_dim = 2 * channels if pooling == "concat" else channels  # numbers W of a representation
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
        self,
        values: Tensor,
        row_offsets: Tensor,
        task_of_row: Tensor,
        masks_TKC: Tensor | None,
        *,
        positions: Positions,
        dropout_key: Tensor | None = None,
    ) -> Tensor:
        """Encode packed rows.

        Args:
            values: int32 [N], item indices of the rows end to end, oldest first.
            row_offsets: int64 [B + 1].
            task_of_row: int32 [B], row of the mask table.
            masks_TKC: [T, K, C] or None.
            positions: `all` for every position, `last` for each row's last.
            dropout_key: int64 [B], what a row's dropout follows from; rows of key 0 have none.

        Returns:
            [N, W] or [B, W].
        """
        layout = build_layout(row_offsets, task_of_row, dilations=self.dilations, kernel_size=self.kernel_size, positions=positions)
        x_NC = nn.functional.embedding(values, self.items, sparse=self.sparse)
        noisy = dropout_key is not None and self.dropout > 0
        if noisy:
            lengths = row_offsets.diff()
            row_N = torch.repeat_interleave(torch.arange(lengths.shape[0], device=lengths.device), lengths)
            place_N = torch.arange(x_NC.shape[0], device=lengths.device) - row_offsets[:-1].index_select(0, row_N)
            assert dropout_key is not None
            x_NC = row_dropout(x_NC, self.dropout, key_B=dropout_key, row=row_N, place=place_N, layer=0)
        masks = None if masks_TKC is None else masks_TKC.to(x_NC.dtype)
        hidden = masked_dilated_conv_stack(x_NC, layout, self.stack_parameters(), masks)
        if self.pooling != "last":
            mean = mean_so_far(x_NC, row_offsets, positions=positions)
            hidden = hidden + mean if self.pooling == "mean" else torch.cat([hidden, mean], dim=1)
        if noisy:
            assert dropout_key is not None
            if positions == "last":
                row_N, place_N = torch.arange(lengths.shape[0], device=lengths.device), lengths - 1
            hidden = row_dropout(hidden, self.dropout, key_B=dropout_key, row=row_N, place=place_N, layer=1)
        return hidden
