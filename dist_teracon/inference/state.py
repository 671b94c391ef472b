"""A user's state: an event at a time added to what was read before, equal to reading the longer history as a whole.

A causal convolution of k taps and dilation d reads the present position and (k − 1)·d before it. So with the last (k − 1)·d inputs of
each convolution one more position costs one column of each product, whatever came before. A backbone without `stream` reads the history
anew, and so does one whose reach is longer than the length limit, once a history is cut: what was cut off would still be in its inputs.

With `recency` an event's input is known for good when the next one comes: until then it is the moment of prediction that follows it. So
what is kept is then of the events before the last one, and one more event costs two columns.

Legend: V views (masks) of one row, L positions, C channels, W numbers of a representation, K masked layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_teracon.data.batches import PackedBatch, PackedRows, PackedSequences
from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns
from dist_teracon.models.backbone import Backbone

Combine = Literal["one", "mean", "concat"]


@dataclass(frozen=True)
class UserState:
    """What has been read of a user.

    Attributes:
        kind: Of the vector, as of `PretrainedModel.vectors`.
        fingerprint: Of the model that the state belongs to.
        items: int32 [L], the item indices within the length limit, oldest first.
        layers: The last inputs of each convolution [V, (k − 1)·d, C]; None where the backbone keeps none.
        vector: float32 [W].
        unknown: Events so far whose item the model does not know.
        columns: What is read of the events beside their items.
        features: int32 [1, F], what is read of the user's features; None where none are.
        moments: int64 [1], when the prediction is; None where it is not read.
    """

    kind: str
    fingerprint: str
    items: NDArray[np.int32]
    layers: tuple[Tensor, ...] | None
    vector: NDArray[np.float32]
    unknown: int = 0
    columns: EventColumns = NO_COLUMNS
    features: NDArray[np.int32] | None = None
    moments: NDArray[np.int64] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs that are kept."""
        return self.items.nbytes + sum(layer.nbytes for layer in self.layers or ())


class StateEncoder:
    """Encodes one row at a time and goes on from where it was.

    Args:
        backbone: The backbone.
        masks_VKC: The views' masks; None for a network without, which has one view.
        combine: What is made of the views' vectors.
        limit: The length limit.
    """

    def __init__(self, backbone: Backbone, masks_VKC: Tensor | None, *, combine: Combine, limit: int) -> None:
        self._backbone, self._masks, self._combine, self._limit = backbone, masks_VKC, combine, limit
        reach = backbone.reach
        self.streams = reach is not None
        # the first event of a cut history has no gap to one before it, so no output may read it
        first = int(backbone.event_embedding is not None)
        self._exact_when_cut = reach is not None and reach + first <= limit
        self._last_is_open = backbone.event_embedding is not None and backbone.event_embedding.recency_weight is not None

    @torch.no_grad()
    def start(self, row: PackedRows) -> tuple[tuple[Tensor, ...] | None, NDArray[np.float32]]:
        """Read a row; returns what to keep, and the vector float32 [W]."""
        x_LC = self._embed(row)
        views = 1 if self._masks is None else self._masks.shape[0]
        x_VLC = x_LC.expand(views, -1, -1)
        if self.streams:
            before = self._backbone.stream(x_VLC[:, :-1], self._masks, None)[1] if self._last_is_open and len(row.values) > 1 else None
            hidden, layers = self._backbone.stream(x_VLC if before is None else x_VLC[:, -1:], self._masks, before)
            if self._last_is_open:  # before a row's first event there is nothing
                layers = tuple(map(torch.zeros_like, layers)) if before is None else before
            return layers, self._vector(hidden, x_LC, row)
        lengths = torch.full((1,), len(row.values), device=x_LC.device)
        each = [None] if self._masks is None else list(self._masks)
        times: dict[str, Tensor] = {}
        if "times" in self._backbone.event_columns(self._backbone.settings):
            times["times_BL"] = torch.from_numpy(np.require(row.columns.times, requirements=["C", "W"]))[None].to(x_LC.device)
        hidden = torch.cat([self._backbone.transform_padded(x_LC[None], lengths, mask, **times) for mask in each])
        return None, self._vector(hidden, x_LC, row)

    @torch.no_grad()
    def extend(
        self, row: PackedRows, layers: tuple[Tensor, ...] | None, event: PackedRows
    ) -> tuple[PackedRows, tuple[Tensor, ...] | None, NDArray[np.float32]]:
        """Read one more event, a row of its own; returns the row with it, what to keep, and the vector."""
        columns = EventColumns.concatenate([row.columns, event.columns])
        items = np.append(row.values, event.values).astype(np.int32)
        cut = len(items) > self._limit
        length = min(len(items), self._limit)
        longer = PackedRows(items[-length:], np.array([0, length]), columns[-length:], row.features, event.moments)
        if layers is None or (cut and not self._exact_when_cut):
            return longer, *self.start(longer)
        x_LC = self._embed(longer)
        x_VLC = x_LC[-2:].expand(layers[0].shape[0], -1, -1)
        if self._last_is_open:
            _, kept = self._backbone.stream(x_VLC[:, :1], self._masks, layers)
            hidden, _ = self._backbone.stream(x_VLC[:, 1:], self._masks, kept)
        else:
            hidden, kept = self._backbone.stream(x_VLC[:, -1:], self._masks, layers)
        return longer, kept, self._vector(hidden, x_LC, longer)

    def _embed(self, row: PackedRows) -> Tensor:
        weight = self._backbone.item_embedding.weight

        def put(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(weight.device)

        x_LC = nn.functional.embedding(put(row.values), weight)
        if self._backbone.item_features is not None:
            x_LC = x_LC + self._backbone.item_features(put(row.values))
        if self._backbone.event_embedding is None:
            return x_LC
        times, types = (None if column is None else put(column) for column in (row.columns.times, row.columns.types))
        moments = None if row.moments is None else put(row.moments)
        return x_LC + self._backbone.event_embedding(times, types, put(row.offsets), moments)

    def _vector(self, hidden_VC: Tensor, x_LC: Tensor, row: PackedRows) -> NDArray[np.float32]:
        if self._backbone.pooling != "last":
            mean = nn.functional.layer_norm(x_LC.mean(dim=0), x_LC.shape[1:], eps=1e-8).expand(hidden_VC.shape[0], -1)
            hidden_VC = hidden_VC + mean if self._backbone.pooling == "mean" else torch.cat([hidden_VC, mean], dim=1)
        if self._backbone.user_features is not None:
            values = None if row.features is None else torch.from_numpy(np.ascontiguousarray(row.features)).to(x_LC.device)
            own = self._backbone.user_features(values)
            hidden_VC = torch.cat([hidden_VC, own.expand(hidden_VC.shape[0], -1)], dim=1)
        if self._backbone.history_features is not None:
            own = self._backbone.history_features(_sequences(row, x_LC.device), positions="last")
            hidden_VC = torch.cat([hidden_VC, own.expand(hidden_VC.shape[0], -1)], dim=1)
        combined = hidden_VC.mean(dim=0) if self._combine == "mean" else hidden_VC.flatten()
        return combined.float().cpu().numpy()


def _sequences(row: PackedRows, device: torch.device) -> PackedSequences:
    task = torch.zeros(1, dtype=torch.int32)
    values, offsets = (torch.from_numpy(np.ascontiguousarray(part)) for part in (row.values, row.offsets))
    return PackedBatch(values, offsets, task, "last").with_beside(row).to(device).sequences
