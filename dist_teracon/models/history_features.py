"""What of a history as a whole stands beside a representation: how much it holds, how long ago it ended, the truncated SVD of its items.

Numbers for the heads alone, without weights of their own: a head that reads them is what logistic regression on them would be. They are
made from the rows that the network reads, at each position of what came up to it, so nothing has to be kept of a user, and a user who
was never trained on has them too (docs/method.md, Backbones).

Legend: N packed positions, B rows (users), F numbers, D directions of the SVD, V items, T types that are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_teracon.config.model import HistoryFeature, ModelConfig
from dist_teracon.data.batches import PackedSequences, Positions
from dist_teracon.data.event_columns import NO_TIME
from dist_teracon.kernels.running_mean import running_mean
from dist_teracon.models.event_embedding import times_behind

# By feature, the column of events that it reads (`DatasetInfo.history.names`).
COLUMN_OF: dict[HistoryFeature, str] = {"types": "types", "recency": "times"}
# Types that are counted, the most frequent ones; a fixed number, so that types of later versions change no shape.
TYPES = 8
# What is further from the mean, in standard deviations, is taken as so far.
_FURTHEST = 10.0
_DAY_S = 86_400.0


@dataclass(frozen=True)
class HistoryStart:
    """What follows from the histories of training users.

    Attributes:
        shift, scale: float32 [F], each number's mean, and one divided by its standard deviation, 0 where it has none.
        factors: float32 [V, 1 + D], each item's weight, and the weight times its part of each direction; None without `svd`.
    """

    shift: Tensor
    scale: Tensor
    factors: Tensor | None = None


class HistoryFeatures(nn.Module):
    """Numbers that tell a history as a whole, [·, F], standardised.

    Args:
        features: Which there are, one at least.
        num_items: V.
        directions: D, for `svd`.
        start: What follows from training users; None where it is about to be loaded.

    Attributes:
        shift, scale, factors: As of `HistoryStart`, buffers: they travel with the weights, and stay fp32 in a network that is cast.
    """

    def __init__(
        self, features: Sequence[HistoryFeature], *, num_items: int, directions: int, start: HistoryStart | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.features, self.directions = tuple(features), directions
        start = self.unknown_start(num_items) if start is None else start
        assert start.shift.shape == (self.width,), "numbers of another shape than features"
        self.shift: Tensor
        self.scale: Tensor
        self.factors: Tensor | None
        self.register_buffer("shift", start.shift.clone())
        self.register_buffer("scale", start.scale.clone())
        # a copy each: a run may have several networks, and what is saved must not share memory
        self.register_buffer("factors", None if start.factors is None else start.factors.clone())

    @property
    def width(self) -> int:
        """Numbers F of a history."""
        sizes: dict[HistoryFeature, int] = {"counts": 2, "types": TYPES, "recency": 1, "svd": self.directions}
        return sum(sizes[feature] for feature in self.features)

    def unknown_start(self, num_items: int, factors: Tensor | None = None) -> HistoryStart:
        """Return what leaves numbers as they are, with an item's factors where they are known."""
        if "svd" in self.features and factors is None:
            factors = torch.zeros(num_items, 1 + self.directions)
        return HistoryStart(torch.zeros(self.width), torch.ones(self.width), factors)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HistoryFeatures:
        """Follow the module to a device, and not to another number type."""
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    @torch.no_grad()
    def forward(self, sequences: PackedSequences, *, positions: Positions) -> Tensor:
        """Return the numbers of rows, or of what came up to each position: [B, F] for `last`, [N, F] for `all`.

        What is not known is 0, as the mean of training users.

        Raises:
            ValueError: a column that is read is not there.
        """
        return self._standard(self.raw(sequences, positions=positions))

    def padded(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the numbers of padded rows [B, F], in plain operations for `torch.export`; for features of items alone.

        Args:
            items: int64 [B, L], rows that begin at the left.
            lengths: int64 [B].
        """
        place = torch.arange(items.shape[1], device=items.device)
        inside_BL = place < lengths[:, None]
        again_BLL = (items[:, :, None] == items[:, None, :]) & (place[None, :] < place[:, None])
        steps = self._steps(items, again_BLL.sum(dim=2), None)
        return self._standard(self._numbers({name: (step * inside_BL[:, :, None]).sum(dim=1) for name, step in steps.items()}))

    def _standard(self, raw: Tensor) -> Tensor:
        return ((raw - self.shift) * self.scale).nan_to_num(nan=0.0).clamp(-_FURTHEST, _FURTHEST)

    @torch.no_grad()
    def raw(self, sequences: PackedSequences, *, positions: Positions) -> Tensor:
        """Return the numbers as they are before they are standardised, NaN for what is not known; else as `forward`."""
        lengths = sequences.row_offsets.diff()
        row_N = torch.arange(lengths.shape[0], device=lengths.device).repeat_interleave(lengths, output_size=sequences.values.shape[0])
        steps = self._steps(sequences.values, _earlier(sequences.values.long(), row_N), sequences.types)
        sums: dict[str, Tensor] = {}
        if steps:
            total = _sums(torch.cat(list(steps.values()), dim=-1), sequences.row_offsets, row_N, positions=positions)
            sums = dict(zip(steps, total.split([step.shape[-1] for step in steps.values()], dim=-1), strict=True))
        if "recency" in self.features:
            sums["recency"] = _days_behind(sequences, positions=positions)[:, None]
        return self._numbers(sums)

    def _steps(self, items: Tensor, earlier: Tensor, types: Tensor | None) -> dict[str, Tensor]:
        """Return what each event adds to the sums that numbers are made from, by feature [*, ·].

        Args:
            items: Of any shape.
            earlier: How many of the same item came before each in its row.
            types: Of the events, for `types`.
        """
        steps: dict[str, Tensor] = {}
        if "counts" in self.features:
            steps["counts"] = torch.stack([torch.ones_like(earlier), earlier == 0], dim=-1).float()
        if "types" in self.features:
            if types is None:
                raise ValueError("model.history_features: 'types' reads types of events, and the batch has none")
            steps["types"] = (types[..., None] == torch.arange(1, TYPES + 1, device=types.device)).float()
        if "svd" in self.features:
            own = F.embedding(items, self.factors_known)
            # the sum of squares of an item's count grows by 2n + 1 where n of it came before
            steps["svd"] = torch.cat([own[..., :1].square() * (2 * earlier + 1)[..., None], own[..., 1:]], dim=-1)
        return steps

    def _numbers(self, sums: dict[str, Tensor]) -> Tensor:
        """Return the numbers [·, F] that sums over events make."""
        parts = dict(sums)
        for name in ("counts", "types"):
            if name in parts:
                parts[name] = parts[name].round().log1p()
        if "svd" in parts:
            length, along = parts["svd"][:, :1], parts["svd"][:, 1:]
            parts["svd"] = along * length.clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
        return torch.cat([parts[feature] for feature in self.features], dim=1)

    @property
    def factors_known(self) -> Tensor:
        """The factors, of a network that reads them."""
        assert self.factors is not None
        return self.factors


def _earlier(values_N: Tensor, row_N: Tensor) -> Tensor:
    """Return how many of the same item came before each event in its row, int64 [N]."""
    total = values_N.shape[0]
    key = (row_N << 32) + values_N
    ordered, order = key.sort(stable=True)
    place = torch.arange(total, device=key.device)
    begins = torch.ones(total, dtype=torch.bool, device=key.device)
    begins[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(begins, place, 0).cummax(dim=0).values if total else place
    return torch.empty_like(place).index_copy_(0, order, place - first)


def _sums(x_NF: Tensor, row_offsets: Tensor, row_N: Tensor, *, positions: Positions) -> Tensor:
    """Return sums over whole rows [B, F], or over what came up to each position [N, F]."""
    every = torch.arange(x_NF.shape[0], device=x_NF.device)
    if positions == "last":
        return F.embedding_bag(every, x_NF, row_offsets[:-1], mode="sum")
    return running_mean(x_NF, row_offsets) * (every - row_offsets[row_N] + 1)[:, None]


def _days_behind(sequences: PackedSequences, *, positions: Positions) -> Tensor:
    """Return `ln(1 + days)` from the last event to the moment of prediction [B]; for `all` from each event to what follows it [N].

    NaN for what is not known.
    """
    times_N, moments_B = sequences.times, sequences.moments
    if times_N is None or moments_B is None:
        raise ValueError("model.history_features: 'recency' reads times of events and of prediction, and the batch has none")
    if positions == "all":
        return _log_days(times_N, times_behind(times_N, sequences.row_offsets, moments_B))
    # with one more place in front, which empty rows at the begin read
    padded = torch.cat([times_N.new_full((1,), NO_TIME), times_N])
    last_B = torch.where(sequences.row_offsets.diff() > 0, padded[sequences.row_offsets[1:]], NO_TIME)
    return _log_days(last_B, moments_B)


def _log_days(before: Tensor, after: Tensor) -> Tensor:
    unknown = (before == NO_TIME) | (after == NO_TIME)
    days = torch.where(unknown, 0, after - before).clamp_min(0).double() / _DAY_S
    return torch.where(unknown, torch.nan, days.log1p()).float()


def settings_of(model: ModelConfig) -> dict[str, Any]:
    """Return the arguments that a model's configuration has for `HistoryFeatures`."""
    return {"features": model.history_features, "directions": model.history_svd}
