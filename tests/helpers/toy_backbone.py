"""A toy backbone, as docs/extending.md shows it: order is not seen, each layer reads the mean of the row so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel
from dist_teracon.data.batches import PackedSequences, Positions
from dist_teracon.models.backbone import Backbone, LayerParameters, register_backbone
from dist_teracon.models.pooling import mean_so_far


class BagSettings(ConfigModel):
    layers: Annotated[int, Field(ge=1)] = 2


@register_backbone
class Bag(Backbone):
    """`x ← x + m_k ⊙ ReLU(W_k · mean of the row up to here + b_k)`, one masked layer after another."""

    name = "bag"
    Settings = BagSettings

    def __init__(self, settings: BagSettings, *, channels: int, generator: torch.Generator, **shared: Any) -> None:
        super().__init__(settings, channels=channels, generator=generator, **shared)
        self.num_masked_layers = K = settings.layers
        bound = 1 / math.sqrt(channels)
        self.weight = nn.Parameter(torch.empty(K, channels, channels).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.zeros(K, channels))

    def transform(self, x_NC: Tensor, sequences: PackedSequences, masks_TKC: Tensor | None, *, positions: Positions) -> Tensor:
        lengths, ends = sequences.host_row_offsets.diff(), sequences.host_row_offsets[1:]
        task_N = sequences.host_task_of_row.repeat_interleave(lengths).to(x_NC.device)
        for k in range(self.num_masked_layers):
            mean_NC = mean_so_far(x_NC, sequences.row_offsets, positions="all")
            h_NC = torch.relu(F.linear(mean_NC, self.weight[k], self.bias[k]))
            x_NC = x_NC + (h_NC if masks_TKC is None else h_NC * masks_TKC[:, k].index_select(0, task_N))
        if positions == "all":
            return x_NC
        filled = lengths.nonzero().squeeze(1)  # an empty row has no last position; it gives zeros
        last_BC = x_NC.index_select(0, (ends[filled] - 1).to(x_NC.device))
        return x_NC.new_zeros(len(lengths), x_NC.shape[1]).index_copy(0, filled.to(x_NC.device), last_BC)

    def decay_parameters(self) -> set[str]:
        return {"item_embedding.weight", "weight"}

    def masked_layers(self) -> Sequence[LayerParameters]:
        return [LayerParameters((("weight", k),), (("bias", k),), ()) for k in range(self.num_masked_layers)]
