"""SASRec: causal self-attention over packed behaviour sequences (Kang and McAuley, 2018; docs/method.md, Backbones).

Rows are padded for the attention itself (`models/padded_rows.py`), and nowhere else: all linear layers run on the packed positions.
Without a bias of times the attention holds no matrix of L × L numbers; with one it needs them, a row and head, as its mask
(`models/time_bias.py`).

Legend: N packed positions, B rows (users), L a group's longest row, C channels, H heads, D channels of a head, K masked layers, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel, Share, Whole
from dist_teracon.data.batches import PackedSequences, Positions
from dist_teracon.models.backbone import Backbone, LayerParameters, Patch, register_backbone
from dist_teracon.models.dropout import RowNoise
from dist_teracon.models.padded_rows import PaddedRows, RowGroup
from dist_teracon.models.pooling import last_positions
from dist_teracon.models.time_bias import TimeBias, causal_places, padded_places, rows_at_once

_EPS = 1e-8
_FIRST_NOISE = 2  # dropouts before the layers' own: of items and representations (`models/backbone.py`)


class SasRecSettings(ConfigModel):
    """SASRec's settings.

    Attributes:
        layers: Each an attention and a feed-forward sub-layer.
        heads: Of the attention; they divide the channels.
        expansion: Inner width of the feed-forward sub-layer, as a multiple of the channels.
        positions: `learned`: embeddings of places, counted from a row's first item, are added to the items'; `none`: order is seen
            through the causal mask alone.
        dropout: Share of the entries of each sub-layer's output that are dropped in training, before they are added to the residual
            stream; beside `model.dropout`, and as there none of replayed rows.
        max_positions: Places that have an embedding of their own; those behind share the last one.
        time_bias: `learned`: what a place attends to depends on how long ago it was, too; reads times of events. `none`: it does not.
    """

    layers: Annotated[Whole, Field(ge=1, le=128)] = 2
    heads: Annotated[Whole, Field(ge=1, le=4096)] = 2
    expansion: Annotated[Whole, Field(ge=1, le=8)] = 1
    positions: Literal["learned", "none"] = "learned"
    max_positions: Annotated[Whole, Field(ge=1, le=65_536)] = 256
    time_bias: Literal["learned", "none"] = "none"
    dropout: Share = 0.0


@register_backbone
class SasRec(Backbone):
    """Pre-norm layers; the outputs of both sub-layers are masked before they are added to the residual stream, so K = 2 · layers."""

    name = "sasrec"
    Settings = SasRecSettings

    @classmethod
    def check(cls, settings: ConfigModel, *, channels: int) -> str:
        assert isinstance(settings, SasRecSettings)
        fits = channels % settings.heads == 0
        return "" if fits else f"heads: expected a divisor of model.channels ({channels}), got {settings.heads}"

    @classmethod
    def event_columns(cls, settings: ConfigModel) -> dict[str, str]:
        assert isinstance(settings, SasRecSettings)
        return {"times": "time_bias"} if settings.time_bias == "learned" else {}

    @classmethod
    def places(cls, settings: ConfigModel) -> int:
        assert isinstance(settings, SasRecSettings)
        return settings.max_positions if settings.positions == "learned" else 0

    def __init__(self, settings: SasRecSettings, *, channels: int, generator: torch.Generator, **shared: Any) -> None:
        super().__init__(settings, channels=channels, generator=generator, **shared)
        assert channels % settings.heads == 0
        self.heads, self.num_masked_layers, self.inner_dropout = settings.heads, 2 * settings.layers, settings.dropout
        C, inner, layers = channels, settings.expansion * channels, settings.layers

        def matrix(rows: int, columns: int) -> nn.Parameter:
            bound = 1 / math.sqrt(columns)  # as PyTorch's own linear layers start
            return nn.Parameter(torch.empty(layers, rows, columns).uniform_(-bound, bound, generator=generator))

        self.in_weight, self.in_bias = matrix(3 * C, C), nn.Parameter(torch.zeros(layers, 3 * C))
        self.out_weight, self.out_bias = matrix(C, C), nn.Parameter(torch.zeros(layers, C))
        self.inner_weight, self.inner_bias = matrix(inner, C), nn.Parameter(torch.zeros(layers, inner))
        self.outer_weight, self.outer_bias = matrix(C, inner), nn.Parameter(torch.zeros(layers, C))
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(2 * layers, C)), nn.Parameter(torch.zeros(2 * layers, C))
        self.last_norm_weight, self.last_norm_bias = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))
        self.position_embedding: nn.Parameter | None = None
        if settings.positions == "learned":
            self.position_embedding = nn.Parameter(torch.empty(settings.max_positions, C).normal_(0, 0.02, generator=generator))
        self.time_bias = TimeBias(layers, settings.heads) if settings.time_bias == "learned" else None

    def transform(self, x_NC: Tensor, sequences: PackedSequences, masks_TKC: Tensor | None, *, positions: Positions) -> Tensor:
        return self._run(x_NC, PaddedRows.of(sequences, masks_TKC), positions, None, self._noise(sequences))

    def transform_patched(self, x_NC: Tensor, sequences: PackedSequences, patch: Patch, *, positions: Positions) -> Tensor:
        """Return what the layers give with a patch behind every sub-layer, before it is added to the residual stream."""
        return self._run(x_NC, PaddedRows.of(sequences, None), positions, patch, self._noise(sequences))

    def _noise(self, sequences: PackedSequences) -> RowNoise | None:
        if sequences.dropout_key is None or not self.inner_dropout:
            return None
        return RowNoise.of(sequences.row_offsets, sequences.dropout_key, self.inner_dropout, total=sequences.values.shape[0])

    def _run(self, x_NC: Tensor, rows: PaddedRows, positions: Positions, patch: Patch | None, noise: RowNoise | None) -> Tensor:
        if self.position_embedding is not None:
            x_NC = x_NC + F.embedding(rows.place_N.clamp_max(self.position_embedding.shape[0] - 1), self.position_embedding)
        layers = self.num_masked_layers // 2
        if self.time_bias is not None:
            rows = rows.with_times()
        for layer in range(layers):
            x_NC = self._layer(x_NC, rows, layer, last=positions == "last" and layer == layers - 1, patch=patch, noise=noise)
        hidden = F.layer_norm(x_NC, (self.channels,), self.last_norm_weight, self.last_norm_bias, _EPS)
        return hidden if positions == "all" else rows.with_empty_rows(hidden)

    def transform_padded(
        self, x_BLC: Tensor, lengths: Tensor, mask_KC: Tensor | None, *, times_BL: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        if self.position_embedding is not None:
            place = torch.arange(x_BLC.shape[1], device=x_BLC.device).clamp_max(self.position_embedding.shape[0] - 1)
            x_BLC = x_BLC + F.embedding(place, self.position_embedding)
        for layer in range(self.num_masked_layers // 2):
            normed = self._norm(x_BLC, 2 * layer)
            query, key, value = F.linear(normed, self.in_weight[layer], self.in_bias[layer]).split(self.channels, dim=2)
            mixed = F.linear(self._attend_to_past(query, key, value, times_BL, layer), self.out_weight[layer], self.out_bias[layer])
            x_BLC = x_BLC + (mixed if mask_KC is None else mixed * mask_KC[2 * layer])
            inner = F.relu(F.linear(self._norm(x_BLC, 2 * layer + 1), self.inner_weight[layer], self.inner_bias[layer]))
            outer = F.linear(inner, self.outer_weight[layer], self.outer_bias[layer])
            x_BLC = x_BLC + (outer if mask_KC is None else outer * mask_KC[2 * layer + 1])
        return F.layer_norm(last_positions(x_BLC, lengths), (self.channels,), self.last_norm_weight, self.last_norm_bias, _EPS)

    def _layer(self, x_NC: Tensor, rows: PaddedRows, layer: int, *, last: bool, patch: Patch | None, noise: RowNoise | None) -> Tensor:
        """Return a layer's output at every position, or where `last` at the last position of each row that has any."""
        C, k, weight, bias = self.channels, 2 * layer, self.in_weight[layer], self.in_bias[layer]
        normed_NC = self._norm(x_NC, k)
        if last:
            x_NC, here_NC = x_NC.index_select(0, rows.last_N), normed_NC.index_select(0, rows.last_N)
            query = F.linear(here_NC, weight[:C], bias[:C])[:, None]  # [B', 1, C]
            of_groups = (rows.padded(part) for part in F.linear(normed_NC, weight[C:], bias[C:]).split(C, dim=1))
            mixed_NC = rows.in_order([
                self._attend_from_last(rows, group, group.of_rows(query), key, value, layer)
                for group, key, value in zip(rows.groups, *of_groups, strict=True)
            ])  # fmt: skip
        else:
            here_NC = normed_NC
            of_groups = (rows.padded(part) for part in F.linear(normed_NC, weight, bias).split(C, dim=1))
            # rows begin at the left, so the past, which is all that a position reads, holds no padding
            mixed_NC = rows.packed([
                self._attend_to_past(query, key, value, group.times_BL, layer)
                for group, query, key, value in zip(rows.groups, *of_groups, strict=True)
            ])  # fmt: skip

        def added(x_NC: Tensor, k: int) -> Tensor:
            masked_NC = (rows.mask_of_last if last else rows.mask_of_all)(x_NC, k)
            if noise is None:
                return masked_NC
            layer = _FIRST_NOISE + k
            return noise.on_last(masked_NC, layer, rows=rows.filled) if last else noise.on_positions(masked_NC, layer)

        attended_NC = F.linear(mixed_NC, self.out_weight[layer], self.out_bias[layer])
        x_NC = x_NC + added(attended_NC if patch is None else patch(k, here_NC, attended_NC), k)
        here_NC = self._norm(x_NC, k + 1)
        inner = F.relu(F.linear(here_NC, self.inner_weight[layer], self.inner_bias[layer]))
        fed_NC = F.linear(inner, self.outer_weight[layer], self.outer_bias[layer])
        return x_NC + added(fed_NC if patch is None else patch(k + 1, here_NC, fed_NC), k + 1)

    def _attend_from_last(self, rows: PaddedRows, group: RowGroup, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Attention of the last place of a group's rows: [B, C]."""
        # behind its end a row has padding, which must not be read
        read = group.inside[:, None, None]
        if self.time_bias is not None:
            assert group.times_BL is not None
            now = group.of_rows(rows.last_times)[:, None]
            read = padded_places(self.time_bias(now, group.times_BL, layer), group.inside).to(query.dtype)
        return self._attend(query, key, value, attn_mask=read).flatten(0, 1)

    def _attend_to_past(self, query: Tensor, key: Tensor, value: Tensor, times_BL: Tensor | None, layer: int) -> Tensor:
        """Attention of [B, L, C] by heads, a place reading itself and what is before it: [B, L, C]."""
        if self.time_bias is None:
            return self._attend(query, key, value, is_causal=True)
        assert times_BL is not None
        parts = [part.split(rows_at_once(self.heads, query.shape[1])) for part in (query, key, value, times_BL)]
        mixed = [
            self._attend(q, k, v, attn_mask=causal_places(self.time_bias(times, times, layer)).to(q.dtype))
            for q, k, v, times in zip(*parts, strict=True)
        ]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Attention of [B, ·, C] by heads [B, H, ·, D]: [B, ·, C]."""
        by_head = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(*by_head, **options).transpose(1, 2).flatten(2)

    def _norm(self, x_NC: Tensor, k: int) -> Tensor:
        return F.layer_norm(x_NC, (self.channels,), self.norm_weight[k], self.norm_bias[k], _EPS)

    def decay_parameters(self) -> set[str]:
        return {"item_embedding.weight", "in_weight", "out_weight", "inner_weight", "outer_weight"}

    def norm_parameters(self) -> set[str]:
        return super().norm_parameters() | {"last_norm_weight", "last_norm_bias"}

    def masked_layers(self) -> Sequence[LayerParameters]:
        parts = (("in", "out"), ("inner", "outer"))
        return [
            LayerParameters(
                tuple((f"{part}_weight", k // 2) for part in parts[k % 2]),
                tuple((f"{part}_bias", k // 2) for part in parts[k % 2]),
                (("norm_weight", k), ("norm_bias", k)),
            )
            for k in range(self.num_masked_layers)
        ]
