"""A user's state: an event at a time added to what was read before, equal to reading the longer history as a whole.

A causal convolution of k taps and dilation d reads the present position and (k − 1)·d before it. So with the last (k − 1)·d inputs of
each convolution one more position costs one row of each product, whatever came before. A backbone without `stepper` reads the history
anew, and so does one whose reach is longer than the length limit, once a history is cut: what was cut off would still be in its inputs.
A mean over the history goes on from the sum of what was read. It is kept in float64, whose digits beyond float32's hold what thousands of
events that come and go round off, so that it need never be computed anew.

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
from torch import Tensor

from dist_teracon.continual.method import Method
from dist_teracon.data.batches import PackedBatch, PackedRows, concatenate
from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns
from dist_teracon.errors import ConfigError
from dist_teracon.inference.state_row import RowReader
from dist_teracon.models.backbone import Backbone, Stepper
from dist_teracon.models.conv_step_row import RowStepper
from dist_teracon.models.network import Network
from dist_teracon.models.pooling import mean_of_sums

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
        total: float64 [C], the sum of the events' embeddings; None where no mean is read, or until the next event makes it.
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
    total: Tensor | None = None

    @property
    def row(self) -> PackedRows:
        """The history as a row."""
        return PackedRows(self.items, np.array([0, len(self.items)]), self.columns, self.features, self.moments)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return self.items.nbytes + sum(0 if part is None else part.nbytes for part in (self.kept, self.total))


class Reading(NamedTuple):
    """A row that was read: what is kept of it, as of `UserState`, and its vector float32 [W]."""

    row: PackedRows
    kept: Tensor | None
    total: Tensor | None
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
        # an event's input reads the event before it too, for the time between them
        self._read = 1 if backbone.event_embedding is None else 2
        # the first event of a cut history has no gap to one before it, so no output may read it
        self._exact_when_cut = reach is not None and reach + self._read - 1 <= limit
        self._pooled = backbone.pooling != "last"
        self._device = backbone.item_embedding.weight.device

    @cached_property
    def _stepper(self) -> Stepper:
        return self._backbone.stepper(self._masks)

    @cached_property
    def _row_reader(self) -> RowReader | None:
        row: RowStepper | None = getattr(self._stepper, "row", None) if RowReader.reads(self._backbone) else None
        return None if row is None else RowReader(self._backbone, row)

    @torch.inference_mode()
    def start(self, rows: Sequence[PackedRows]) -> list[Reading]:
        """Read rows as a whole."""
        keeps = [self._steps and (len(row.values) < self._limit or self._exact_when_cut) for row in rows]
        begun = iter([self._begin(row) for row, keep in zip(rows, keeps, strict=True) if keep])
        whole = iter(self._whole([row for row, keep in zip(rows, keeps, strict=True) if not keep]))
        return [next(begun) if keep else next(whole) for keep in keeps]

    def extend(self, states: Sequence[UserState], events: Sequence[PackedRows]) -> list[Reading]:
        """Read one more event of each state, a row of its own; what the states keep stays as it is."""
        longer = [_appended(state, event, self._limit) for state, event in zip(states, events, strict=True)]
        if len(states) == 1 and self._goes_on(states[0]) and self._row_reader is not None:
            return [self._row(self._row_reader, states[0], longer[0])]
        return self._extended(states, longer)

    @torch.inference_mode()
    def _extended(self, states: Sequence[UserState], longer: Sequence[PackedRows]) -> list[Reading]:
        going_on = [place for place, state in enumerate(states) if self._goes_on(state)]
        if len(going_on) == len(states):
            return self._go_on(states, longer)
        anew = sorted(set(range(len(states))).difference(going_on))
        found = dict(zip(anew, self.start([longer[place] for place in anew]), strict=True))
        if going_on:
            steps = self._go_on([states[place] for place in going_on], [longer[place] for place in going_on])
            found |= zip(going_on, steps, strict=True)
        return [found[place] for place in range(len(states))]

    def _goes_on(self, state: UserState) -> bool:
        """Whether a state's next event is read from what it keeps."""
        return state.kept is not None and len(state.items) < self._limit + self._exact_when_cut

    def _row(self, reader: RowReader, state: UserState, row: PackedRows) -> Reading:
        assert state.kept is not None
        gone = state.items[0] if len(state.items) == self._limit else None
        total = self._total(state).numpy() if self._pooled else None
        vector, kept, total = reader.read(row.values, state.kept.numpy()[0], total, gone=gone)
        return Reading(row, torch.from_numpy(kept)[None], None if total is None else torch.from_numpy(total), vector)

    def _go_on(self, states: Sequence[UserState], rows: Sequence[PackedRows]) -> list[Reading]:
        last, gone = self._read_now(states, rows)
        kept = [state.kept for state in states if state.kept is not None]
        hidden, longer = self._stepper.step(last, torch.stack(kept) if len(kept) > 1 else kept[0].unsqueeze(0))
        totals = None
        if self._pooled:
            totals = last + (torch.stack([self._total(state) for state in states]) if len(states) > 1 else self._total(states[0]))
            for place, change in gone.items():
                totals[place] += change
        return self._readings(rows, hidden, longer, totals)

    def _begin(self, row: PackedRows) -> Reading:
        x_LC, _ = self._embedded([row])
        hidden_VC, kept = self._stepper.begin(x_LC)
        totals = x_LC.double().sum(0, keepdim=True) if self._pooled else None
        return self._readings([row], hidden_VC[None], kept[None], totals)[0]

    def _readings(self, rows: Sequence[PackedRows], hidden: Tensor, kept: Tensor, totals: Tensor | None) -> list[Reading]:
        vectors = self._vectors(hidden, totals, rows)
        if len(rows) == 1:
            return [Reading(rows[0], kept.squeeze(0), None if totals is None else totals.squeeze(0), vectors[0])]
        # of several users each one's own memory, so that none holds the others'
        own = [None] * len(rows) if totals is None else [total.clone() for total in totals]
        return [Reading(*parts) for parts in zip(rows, [part.clone() for part in kept], own, vectors, strict=True)]

    def _read_now(self, states: Sequence[UserState], rows: Sequence[PackedRows]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the embedded last events of longer rows [B, C], and what the limit's cut changes in the sums, float64 [C], by place."""
        cut = [place for place, state in enumerate(states) if len(state.items) == self._limit] if self._pooled else []
        if self._read == 1:
            left = self._items([states[place].items[:1] for place in cut]).double() if cut else ()
            return self._items([row.values[-1:] for row in rows]), {place: -own for place, own in zip(cut, left, strict=True)}
        parts = [_part(row, slice(-2, None)) for row in rows]
        for place in cut:
            # the first event leaves, and the next one reads otherwise without an event before it
            parts += [_part(states[place].row, slice(0, 2)), _part(rows[place], slice(0, 1))]
        x_NC, ends = self._embedded(parts)
        x_NC, last = x_NC.double(), x_NC[[end - 1 for end in ends[: len(rows)]]]
        # of the two first events, and the second one as the first
        first = {place: ends[len(rows) + 2 * number] for number, place in enumerate(cut)}
        return last, {place: x_NC[end] - x_NC[end - 1] - x_NC[end - 2] for place, end in first.items()}

    def _items(self, items: Sequence[NDArray[np.int32]]) -> Tensor:
        packed = np.concatenate(items) if len(items) > 1 else items[0]
        return self._backbone.embed_items(torch.from_numpy(packed).to(self._device))

    def _embedded(self, rows: Sequence[PackedRows]) -> tuple[Tensor, list[int]]:
        """Return the embedded positions of rows [N, C], and where each row's end."""
        packed = concatenate(rows)
        return self._backbone.embed(self._batch(packed).sequences), packed.offsets[1:].tolist()

    def _total(self, state: UserState) -> Tensor:
        """Return the sum of a state's embedded events, as it is kept, or of a state that was read from a disk."""
        if state.total is not None:
            return state.total
        with torch.inference_mode():
            return self._embedded([state.row])[0].double().sum(0)

    def _whole(self, rows: Sequence[PackedRows]) -> list[Reading]:
        if not rows:
            return []
        views = concatenate(rows).take(np.repeat(np.arange(len(rows)), self._views))
        hidden = self._backbone.encode(self._batch(views).sequences, self._masks, positions="last")
        vectors = self._combined(hidden.view(len(rows), self._views, -1))
        return [Reading(row, None, None, vector) for row, vector in zip(rows, vectors, strict=True)]

    def _batch(self, rows: PackedRows) -> PackedBatch:
        # one row a user is of no view, several are one of each
        views = torch.arange(rows.rows, dtype=torch.int32) % self._views
        batch = PackedBatch(torch.from_numpy(rows.values), torch.from_numpy(rows.offsets), views, "last")
        return batch.with_beside(rows).to(self._device)

    def _vectors(self, hidden_BVC: Tensor, totals_BC: Tensor | None, rows: Sequence[PackedRows]) -> NDArray[np.float32]:
        """Return the vectors [B, W] of rows; `totals_BC` are the sums of their embedded positions, where `pooling` reads them."""
        beside, backbone = [hidden_BVC], self._backbone
        if totals_BC is not None:
            mean = mean_of_sums(totals_BC, [len(row.values) for row in rows], dtype=hidden_BVC.dtype)
            mean_BVC = mean[:, None].expand_as(hidden_BVC)
            beside = [hidden_BVC + mean_BVC] if backbone.pooling == "mean" else [hidden_BVC, mean_BVC]
        if backbone.user_features is not None or backbone.history_features is not None:
            batch = self._batch(concatenate(rows))
            if backbone.user_features is not None:
                own = backbone.user_features.beside(batch.user_features, batch.row_offsets, outputs=len(rows), positions="last")
                beside.append(own[:, None].expand_as(hidden_BVC))
            if backbone.history_features is not None:
                own = backbone.history_features(batch.sequences, positions="last")
                beside.append(own[:, None].expand(-1, hidden_BVC.shape[1], -1))
        return self._combined(torch.cat(beside, dim=2) if len(beside) > 1 else beside[0])

    def _combined(self, vectors_BVW: Tensor) -> NDArray[np.float32]:
        combined = vectors_BVW.mean(dim=1) if self._combine == "mean" and self._views > 1 else vectors_BVW.flatten(1)
        return combined.float().cpu().numpy()


def state_encoder(method: Method, kind: str, *, limit: int, device: torch.device) -> StateEncoder:
    """Return what reads states of a kind of vectors, as of `PretrainedModel.vectors`.

    Raises:
        ConfigError: the method computes more than a backbone under masks, or has no one network for this kind.
    """
    way = "" if kind in method.learned else kind.partition(":")[2]
    if not method.masks_alone:
        raise ConfigError(f"state: method '{method.name}' computes with weights or modules of its own a task; use encode")
    network = method.model() if way else method.network_of(kind)
    if not isinstance(network, Network):
        said = f"has no one network for {kind}; take a task" if way else "has no network; use encode"
        raise ConfigError(f"state: method '{method.name}' {said}")
    with torch.no_grad():
        masks = None if way == "open" else method.masks()
    if masks is None and way == "concat":
        masks = torch.ones(len(method.learned), network.backbone.num_masked_layers, network.backbone.channels, device=device)
    elif masks is not None and not way:
        masks = masks[method.mask_index(kind) :][:1]
    combine: Combine = "mean" if way == "mean" else "concat" if way == "concat" else "one"
    return StateEncoder(network.backbone, masks, combine=combine, limit=limit)


def _appended(state: UserState, event: PackedRows, limit: int) -> PackedRows:
    """Return a state's row with one more event, cut to the limit."""
    items = np.concatenate([state.items, event.values])[-limit:]
    columns = EventColumns.concatenate([state.columns, event.columns])[-limit:] if state.columns.names else NO_COLUMNS
    return PackedRows(items, np.array([0, len(items)]), columns, state.features, event.moments)


def _part(row: PackedRows, events: slice) -> PackedRows:
    """Return some of a row's events alone."""
    items = row.values[events]
    return PackedRows(items, np.array([0, len(items)]), row.columns[events] if row.columns.names else NO_COLUMNS)
