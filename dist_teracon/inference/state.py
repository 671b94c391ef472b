"""A user's state: an event at a time added to what was read before, equal to reading the longer history as a whole.

A causal convolution of k taps and dilation d reads the present position and (k − 1)·d before it. So with the last (k − 1)·d inputs of
each convolution one more position costs one row of each product, whatever came before. A backbone without `stepper` reads the history
anew, and so does one whose reach is longer than the length limit, once a history is cut: what was cut off would still be in its inputs.

Legend: B users, V views (masks) of one row, N packed positions, C channels, W numbers of a representation, K masked layers, P positions
kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_teracon.continual.method import Method
from dist_teracon.data.batches import PackedBatch, PackedRows, concatenate
from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns
from dist_teracon.errors import ConfigError
from dist_teracon.models.backbone import Backbone, Stepper
from dist_teracon.models.network import Network
from dist_teracon.models.pooling import mean_so_far

Combine = Literal["one", "mean", "concat"]


@dataclass(frozen=True)
class UserState:
    """What has been read of a user.

    Attributes:
        kind: Of the vector, as of `PretrainedModel.vectors`.
        fingerprint: Of the model that the state belongs to.
        items: int32 [L], the item indices within the length limit, oldest first.
        kept: The last inputs of the convolutions [V, P, C], one behind another; None where the next event is not read from them.
        vector: float32 [W].
        unknown: Events so far whose item the model does not know.
        columns: What is read of the events beside their items.
        features: int32 [1, F], what is read of the user's features; None where none are.
        moments: int64 [1], when the prediction is; None where it is not read.
    """

    kind: str
    fingerprint: str
    items: NDArray[np.int32]
    kept: Tensor | None
    vector: NDArray[np.float32]
    unknown: int = 0
    columns: EventColumns = NO_COLUMNS
    features: NDArray[np.int32] | None = None
    moments: NDArray[np.int64] | None = None

    @property
    def row(self) -> PackedRows:
        """The history as a row."""
        return PackedRows(self.items, np.array([0, len(self.items)]), self.columns, self.features, self.moments)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return self.items.nbytes + (0 if self.kept is None else self.kept.nbytes)


class Reading(NamedTuple):
    """A row that was read: what is kept of it, as of `UserState`, and its vector float32 [W]."""

    row: PackedRows
    kept: Tensor | None
    vector: NDArray[np.float32]


class StateEncoder:
    """Reads rows, and goes on from where they were; with the weights as they are when it is first used.

    Args:
        backbone: The backbone.
        masks_VKC: The views' masks; None for a network without, which has one view.
        combine: What is made of the views' vectors.
        limit: The length limit.
    """

    def __init__(self, backbone: Backbone, masks_VKC: Tensor | None, *, combine: Combine, limit: int) -> None:
        self._backbone, self._masks, self._combine, self._limit = backbone, masks_VKC, combine, limit
        self._views = 1 if masks_VKC is None else masks_VKC.shape[0]
        reach = backbone.reach
        # with `recency` an event's input is known for good only when the next one comes: such a row is read anew
        is_open = backbone.event_embedding is not None and backbone.event_embedding.recency_weight is not None
        self._steps = reach is not None and not is_open
        # the first event of a cut history has no gap to one before it, so no output may read it
        first = int(backbone.event_embedding is not None)
        self._exact_when_cut = reach is not None and reach + first <= limit

    @cached_property
    def _stepper(self) -> Stepper:
        return self._backbone.stepper(self._masks)

    @torch.inference_mode()
    def start(self, rows: Sequence[PackedRows]) -> list[Reading]:
        """Read rows as a whole."""
        keeps = [self._steps and (len(row.values) < self._limit or self._exact_when_cut) for row in rows]
        begun = iter([self._begin(row) for row, keep in zip(rows, keeps, strict=True) if keep])
        whole = iter(self._whole([row for row, keep in zip(rows, keeps, strict=True) if not keep]))
        return [next(begun) if keep else next(whole) for keep in keeps]

    @torch.inference_mode()
    def extend(self, rows: Sequence[PackedRows], kept: Sequence[Tensor | None], events: Sequence[PackedRows]) -> list[Reading]:
        """Read one more event of each row, a row of its own; what is kept stays as it is."""
        longer = [_appended(row, event, self._limit) for row, event in zip(rows, events, strict=True)]
        cut = [len(row.values) == self._limit and not self._exact_when_cut for row in rows]
        going_on = [place for place, inputs in enumerate(kept) if inputs is not None and not cut[place]]
        anew = [place for place in range(len(longer)) if place not in set(going_on)] if len(going_on) < len(longer) else []
        found = dict(zip(anew, self.start([longer[place] for place in anew]), strict=True)) if anew else {}
        if going_on:
            inputs = [kept_VPC for place in going_on if (kept_VPC := kept[place]) is not None]
            found |= zip(going_on, self._go_on([longer[place] for place in going_on], inputs), strict=True)
        return [found[place] for place in range(len(longer))]

    def _go_on(self, rows: Sequence[PackedRows], kept: Sequence[Tensor]) -> list[Reading]:
        # an event reads the one before it, for the time between them; a mean and features of the history read all
        whole = self._backbone.pooling != "last" or self._backbone.history_features is not None
        read = rows if whole else [_tail(row) for row in rows]
        batch = self._batch(concatenate(read) if len(read) > 1 else read[0])
        x_NC = self._backbone.embed(batch.sequences)
        last = x_NC[-1:] if len(rows) == 1 else x_NC.index_select(0, batch.row_offsets[1:] - 1)
        hidden, longer = self._stepper.step(last, torch.stack(list(kept)) if len(kept) > 1 else kept[0][None])
        vectors = self._vectors(hidden, x_NC, batch)
        # of several users each one's own memory, so that none holds the others'
        own = longer.unbind(0) if len(rows) == 1 else [part.clone() for part in longer]
        return [Reading(*parts) for parts in zip(rows, own, vectors, strict=True)]

    def _begin(self, row: PackedRows) -> Reading:
        batch = self._batch(row)
        x_LC = self._backbone.embed(batch.sequences)
        hidden_VC, kept = self._stepper.begin(x_LC)
        return Reading(row, kept, self._vectors(hidden_VC[None], x_LC, batch)[0])

    def _whole(self, rows: Sequence[PackedRows]) -> list[Reading]:
        if not rows:
            return []
        views = concatenate(rows).take(np.repeat(np.arange(len(rows)), self._views))
        hidden = self._backbone.encode(self._batch(views).sequences, self._masks, positions="last")
        vectors = self._combined(hidden.view(len(rows), self._views, -1))
        return [Reading(row, None, vector) for row, vector in zip(rows, vectors, strict=True)]

    def _batch(self, rows: PackedRows) -> PackedBatch:
        # one row a user is of no view, several are one of each
        views = torch.arange(rows.rows, dtype=torch.int32) % self._views
        batch = PackedBatch(torch.from_numpy(rows.values), torch.from_numpy(rows.offsets), views, "last")
        return batch.with_beside(rows).to(self._backbone.item_embedding.weight.device)

    def _vectors(self, hidden_BVC: Tensor, x_NC: Tensor, batch: PackedBatch) -> NDArray[np.float32]:
        """Return the vectors [B, W] of rows whose embedded positions are given, all of them where `pooling` reads them."""
        beside, backbone = [hidden_BVC], self._backbone
        if backbone.pooling != "last":
            mean_BVC = mean_so_far(x_NC, batch.row_offsets, positions="last")[:, None].expand_as(hidden_BVC)
            beside = [hidden_BVC + mean_BVC] if backbone.pooling == "mean" else [hidden_BVC, mean_BVC]
        if backbone.user_features is not None:
            own = backbone.user_features.beside(batch.user_features, batch.row_offsets, outputs=hidden_BVC.shape[0], positions="last")
            beside.append(own[:, None].expand_as(hidden_BVC))
        if backbone.history_features is not None:
            own = backbone.history_features(batch.sequences, positions="last")
            beside.append(own[:, None].expand(-1, hidden_BVC.shape[1], -1))
        return self._combined(torch.cat(beside, dim=2) if len(beside) > 1 else beside[0])

    def _combined(self, vectors_BVW: Tensor) -> NDArray[np.float32]:
        combined = vectors_BVW.mean(dim=1) if self._combine == "mean" else vectors_BVW.flatten(1)
        return combined.float().cpu().numpy()


def state_encoder(method: Method, kind: str, *, limit: int, device: torch.device) -> StateEncoder:
    """Return what reads states of a kind of vectors, as of `PretrainedModel.vectors`.

    Raises:
        ConfigError: the method computes more than a backbone under masks, or has no one network for this kind.
    """
    network, way = method.model(), kind.partition(":")[2]
    if not method.masks_alone:
        raise ConfigError(f"state: method '{method.name}' computes with weights or modules of its own a task; use encode")
    if isinstance(network, nn.ModuleDict) and kind in network:
        network = network[kind]
    if not isinstance(network, Network):
        raise ConfigError(f"state: method '{method.name}' has no one network for {kind}; take a task")
    with torch.no_grad():
        masks = None if way == "open" else method.masks()
    if masks is None and way == "concat":
        masks = torch.ones(len(method.learned), network.backbone.num_masked_layers, network.backbone.channels, device=device)
    elif masks is not None and not way:
        masks = masks[method.mask_index(kind) :][:1]
    combine: Combine = "mean" if way == "mean" else "concat" if way == "concat" else "one"
    return StateEncoder(network.backbone, masks, combine=combine, limit=limit)


def _appended(row: PackedRows, event: PackedRows, limit: int) -> PackedRows:
    """Return a row with one more event, cut to the limit."""
    items = np.concatenate([row.values, event.values])[-limit:]
    columns = EventColumns.concatenate([row.columns, event.columns])[-limit:] if row.columns.names else NO_COLUMNS
    return PackedRows(items, np.array([0, len(items)]), columns, row.features, event.moments)


def _tail(row: PackedRows) -> PackedRows:
    """Return the last two events."""
    items = row.values[-2:]
    return PackedRows(items, np.array([0, len(items)]), row.columns[-2:], row.features)
