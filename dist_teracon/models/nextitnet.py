"""NextItNet: a temporal convolutional network over packed behaviour sequences (docs/method.md, Backbones).

Legend: N packed positions, B rows (users), C channels, K masked layers, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.profiler import record_function

from dist_teracon.config.base import ConfigModel, Whole
from dist_teracon.data.batches import PackedSequences, Positions
from dist_teracon.kernels.masked_dilated_conv_stack import (
    Layout,
    StackParameters,
    build_layout,
    masked_dilated_conv_stack,
    packed_convolution,
    with_empty_rows,
)
from dist_teracon.models.backbone import Backbone, LayerParameters, Patch, register_backbone
from dist_teracon.models.pooling import last_positions

_EPS = 1e-8  # of the kernels' LayerNorm


class NextItNetSettings(ConfigModel):
    """NextItNet's settings.

    Attributes:
        dilations: The dilation d of each residual block, whose two convolutions have d and 2d.
        kernel_size: Taps of a convolution.
    """

    dilations: Annotated[tuple[Annotated[Whole, Field(ge=1, le=65_536)], ...], Field(min_length=1, max_length=128)] = (
        1,
        4,
        1,
        4,
        1,
        4,
        1,
        4,
    )
    kernel_size: Annotated[Whole, Field(ge=2, le=5)] = 3


@register_backbone
class NextItNet(Backbone):
    """Residual blocks of causal dilated convolutions; every convolution's output is masked, so K is twice the number of blocks."""

    name = "nextitnet"
    Settings = NextItNetSettings

    def __init__(self, settings: NextItNetSettings, *, channels: int, generator: torch.Generator, **shared: Any) -> None:
        super().__init__(settings, channels=channels, generator=generator, **shared)
        self.dilations, self.kernel_size = settings.dilations, settings.kernel_size
        self.num_masked_layers = 2 * len(self.dilations)
        K, C = self.num_masked_layers, channels
        # He's uniform bound for a fan-in of C·k with slope √5, as PyTorch's own convolutions start
        bound = 1 / math.sqrt(C * self.kernel_size)
        self.conv_weight = nn.Parameter(torch.empty(K, C, C, self.kernel_size).uniform_(-bound, bound, generator=generator))
        self.conv_bias = nn.Parameter(torch.empty(K, C).uniform_(-bound, bound, generator=generator))
        self.norm_weight = nn.Parameter(torch.ones(K, C))
        self.norm_bias = nn.Parameter(torch.zeros(K, C))

    def transform(self, x_NC: Tensor, sequences: PackedSequences, masks_TKC: Tensor | None, *, positions: Positions) -> Tensor:
        parameters = StackParameters(self.conv_weight, self.conv_bias, self.norm_weight, self.norm_bias)
        return masked_dilated_conv_stack(x_NC, self._layout(sequences, positions), parameters, masks_TKC, eps=_EPS)

    def transform_patched(self, x_NC: Tensor, sequences: PackedSequences, patch: Patch, *, positions: Positions) -> Tensor:
        """Return what the blocks give with a patch between every convolution and its LayerNorm; convolution by convolution, not fused."""
        layout = self._layout(sequences, positions)
        weight, bias, norm_weight, norm_bias = (p.unbind(0) for p in (self.conv_weight, self.conv_bias, self.norm_weight, self.norm_bias))
        for block, kept in enumerate(layout.residual):
            h_NC = x_NC
            for k in (2 * block, 2 * block + 1):
                taps = layout.taps[k]
                here_NC = h_NC.index_select(0, taps.forward[:, -1])  # the last tap is the present position
                patched_NC = patch(k, here_NC, packed_convolution(h_NC, taps, weight[k], bias[k]))
                h_NC = F.relu(F.layer_norm(patched_NC, (self.channels,), norm_weight[k], norm_bias[k], _EPS))
            x_NC = (x_NC if kept is None else x_NC.index_select(0, kept)) + h_NC
        return with_empty_rows(x_NC, layout)

    def _layout(self, sequences: PackedSequences, positions: Positions) -> Layout:
        with record_function("layout"):
            return build_layout(
                sequences.row_offsets, sequences.task_of_row, dilations=self.dilations, kernel_size=self.kernel_size, positions=positions,
                host_row_offsets=sequences.host_row_offsets, host_task_of_row=sequences.host_task_of_row,
            )  # fmt: skip

    def flops(self, sequences: PackedSequences, *, positions: Positions) -> float:
        """Return the operations of the convolutions, at the positions that the wanted outputs depend on."""
        computed = sum(taps.forward.shape[0] for taps in self._layout(sequences, positions).taps)
        return 2.0 * self.conv_weight[0].numel() * computed

    def transform_padded(
        self, x_BLC: Tensor, lengths: Tensor, mask_KC: Tensor | None, *, times_BL: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        # a position reads nothing behind itself, so what stands behind a row's end reaches none of its positions
        for block, dilation in enumerate(self.dilations):
            h = x_BLC
            for k, d in ((2 * block, dilation), (2 * block + 1, 2 * dilation)):
                padded = F.pad(h.transpose(1, 2), ((self.kernel_size - 1) * d, 0))
                u = F.conv1d(padded, self.conv_weight[k], self.conv_bias[k], dilation=d).transpose(1, 2)
                h = torch.relu(F.layer_norm(u, (self.channels,), self.norm_weight[k], self.norm_bias[k], _EPS))
                h = h if mask_KC is None else h * mask_KC[k]
            x_BLC = x_BLC + h
        return last_positions(x_BLC, lengths)

    @property
    def reach(self) -> int:
        return 1 + sum(3 * (self.kernel_size - 1) * dilation for dilation in self.dilations)

    def stream(
        self, x_VLC: Tensor, masks_VKC: Tensor | None, layers: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
        kept = []
        for block, dilation in enumerate(self.dilations):
            h = x_VLC
            for k, d in ((2 * block, dilation), (2 * block + 1, 2 * dilation)):
                past = (self.kernel_size - 1) * d
                before = h.new_zeros(h.shape[0], past, self.channels) if layers is None else layers[k]
                whole = torch.cat([before, h], dim=1)
                kept.append(whole[:, -past:].clone())
                u = F.conv1d(whole.transpose(1, 2), self.conv_weight[k], self.conv_bias[k], dilation=d).transpose(1, 2)
                h = torch.relu(F.layer_norm(u, (self.channels,), self.norm_weight[k], self.norm_bias[k], _EPS))
                h = h if masks_VKC is None else h * masks_VKC[:, k : k + 1]
            x_VLC = x_VLC + h
        return x_VLC[:, -1], tuple(kept)

    def decay_parameters(self) -> set[str]:
        return {"item_embedding.weight", "conv_weight"}

    def masked_layers(self) -> Sequence[LayerParameters]:
        return [
            # a block's second convolution reads the first one's masked output, the first one the residual stream
            LayerParameters((("conv_weight", k),), (("conv_bias", k),), (("norm_weight", k), ("norm_bias", k)), k - 1 if k % 2 else None)
            for k in range(self.num_masked_layers)
        ]
