"""Packed batches: rows of any lengths and tasks laid end to end without padding (docs/architecture.md, Packed batches).

Legend: N packed positions, B rows (users), E examples, C channels, Y labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns

# Which outputs are needed: every position's, or each row's last.
Positions = Literal["all", "last"]


@dataclass(frozen=True)
class PackedRows:
    """Sequences end to end.

    Attributes:
        values: int32 [N].
        offsets: int64 [B + 1].
        columns: What there is of their events beside the items.
        features: int32 [B, F], features of their users; None where there are none.
        moments: int64 [B], when they are predicted, in seconds since 1970; None where nothing reads it.
    """

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    columns: EventColumns = NO_COLUMNS
    features: NDArray[np.int32] | None = None
    moments: NDArray[np.int64] | None = None

    @classmethod
    def none(cls, columns: Sequence[str] = (), *, features: int = 0, moments: bool = False) -> PackedRows:
        """Return no rows, with columns of these names, and so many features of users; with moments where asked."""
        values = np.zeros((0, features), dtype=np.int32) if features else None
        when = np.zeros(0, dtype=np.int64) if moments else None
        return cls(np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64), EventColumns.empty(columns), values, when)

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.offsets.shape[0] - 1

    def between(self, first: int, end: int) -> PackedRows:
        """Return the rows `first … end − 1`."""
        offsets = self.offsets[first : end + 1]
        events = slice(offsets[0], offsets[-1])
        features = None if self.features is None else self.features[first:end]
        moments = None if self.moments is None else self.moments[first:end]
        return PackedRows(self.values[events], offsets - offsets[0], self.columns[events], features, moments)

    def take(self, rows: NDArray[np.integer[Any]]) -> PackedRows:
        """Return some rows."""
        taken = take_rows(self.values, self.offsets, rows, columns=self.columns, features=self.features)
        return taken if self.moments is None else replace(taken, moments=self.moments[rows])


@dataclass(frozen=True)
class PackedSequences:
    """Rows of item indices end to end without padding, as a backbone reads them.

    Offsets and tasks are also at hand on the host, where a batch is made: what follows from them (sizes, layouts, the longest row) is
    derived there, and no forward pass waits for the device.

    Attributes:
        values: int32 [N], item indices, oldest first within a row.
        row_offsets: int64 [B + 1], row r being `values[row_offsets[r]:row_offsets[r + 1]]`.
        task_of_row: int32 [B], each row's row of the mask table.
        host_row_offsets, host_task_of_row: The same on the CPU.
        times, types: When events were and of which type they are, as in `PackedBatch`.
        user_features: Features of the rows' users, as in `PackedBatch`.
        moments: When rows are predicted, as in `PackedBatch`.
        dropout_key: What a row's dropout follows from, as in `PackedBatch`; None where nothing is dropped.
    """

    values: Tensor
    row_offsets: Tensor
    task_of_row: Tensor
    host_row_offsets: Tensor
    host_task_of_row: Tensor
    times: Tensor | None = None
    types: Tensor | None = None
    user_features: Tensor | None = None
    moments: Tensor | None = None
    dropout_key: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows B."""
        return self.row_offsets.shape[0] - 1


@dataclass(frozen=True)
class Examples:
    """A labelled term of a batch's loss.

    Attributes:
        task: Its name.
        index: int64 [E], which row of the batch's output (position for `all`, row for `last`) an example reads.
        labels: int64 [E].
        total: Examples in the global batch, over all ranks and micro-batches.
    """

    task: str
    index: Tensor
    labels: Tensor
    total: int


@dataclass(frozen=True)
class Retention:
    """Rows of a past task with the frozen teacher's outputs.

    Attributes:
        task: The past task's name.
        index: int64 [n], which row of the batch's output (position for `all`, row for `last`) a row's representation is.
        targets: [n, Y] the teacher's logits, or [n, C] its representations.
        total: Rows in the global batch.
    """

    task: str
    index: Tensor
    targets: Tensor
    total: int


@dataclass(frozen=True)
class PackedBatch:
    """A rank's share of a global batch.

    Attributes:
        values: int32 [N].
        row_offsets: int64 [B + 1].
        task_of_row: int32 [B], row of the mask table.
        positions: Which positions of the output the examples read.
        examples: The labelled terms.
        retention: Past tasks' rows.
        epoch, step, steps: Which batch of how many of which epoch this is.
        user_hash: uint64 [B], whose rows they are; only in evaluation.
        earlier: Ragged [B], the task's labels that the rows' users took before the rows begin; only in evaluation, where it is asked for.
        num_micro_batches: Into how many micro-batches its step was cut.
        dropout_key: int64 [B], what a row's dropout at this step follows from; 0 for none, as for replayed rows.
        host_row_offsets, host_task_of_row: `row_offsets` and `task_of_row` on the CPU, for a batch that was moved to a device.
        times: int64 [N], seconds since 1970 of each event, `NO_TIME` for unknown; None where the model does not read them.
        types: int32 [N], the events' types, `UNKNOWN_TYPE` for unknown; None where the model does not read them.
        user_features: int32 [B, F], features of the rows' users, `MISSING` for none, `CLOSED` where the row's task must not read one; None
            where the model reads none.
        moments: int64 [B], seconds since 1970 at which each row is predicted, `NO_TIME` for unknown; None where the model does not read it.
    """

    values: Tensor
    row_offsets: Tensor
    task_of_row: Tensor
    positions: Positions
    examples: tuple[Examples, ...] = ()
    retention: tuple[Retention, ...] = ()
    epoch: int = 0
    step: int = 0
    steps: int = 1
    user_hash: NDArray[np.uint64] | None = None
    earlier: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    num_micro_batches: int = 1
    dropout_key: Tensor | None = None
    host_row_offsets: Tensor | None = None
    host_task_of_row: Tensor | None = None
    times: Tensor | None = None
    types: Tensor | None = None
    user_features: Tensor | None = None
    moments: Tensor | None = None

    @classmethod
    def from_sequences(
        cls, sequences: Sequence[Sequence[int] | NDArray[Any]], *, mask_index: int | Sequence[int] = 0, positions: Positions = "last",
        times: Sequence[Sequence[int] | NDArray[Any]] | None = None, types: Sequence[Sequence[int] | NDArray[Any]] | None = None,
        user_features: Sequence[Sequence[int]] | None = None, moments: Sequence[int] | NDArray[Any] | None = None,
    ) -> PackedBatch:  # fmt: skip
        """Pack rows of item indices.

        Args:
            sequences: A row each, oldest item first; a row may be empty.
            mask_index: Row of the mask table, for all rows or for each.
            positions: Which outputs are needed.
            times, types: Rows of the same lengths: when each event was (s), and of which type it is.
            user_features: Rows of F values.
            moments: When each row is predicted (s).

        Raises:
            ValueError: a row of times or types has another length than its items.
        """
        flat = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        lengths = torch.tensor([part.shape[0] for part in flat], dtype=torch.int64)
        tasks = torch.as_tensor(mask_index, dtype=torch.int32).expand(len(flat)).contiguous()
        values = np.concatenate(flat) if flat else np.zeros(0, dtype=np.int32)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return cls(
            values=torch.from_numpy(values), row_offsets=offsets, task_of_row=tasks, positions=positions,
            times=_flat_column("times", times, lengths, np.int64), types=_flat_column("types", types, lengths, np.int32),
            user_features=None if user_features is None else torch.as_tensor(np.asarray(user_features, dtype=np.int32)),
            moments=None if moments is None else torch.as_tensor(np.asarray(moments, dtype=np.int64)),
        )  # fmt: skip

    @property
    def columns(self) -> EventColumns:
        """What there is of the events beside their items, of a batch on the host."""
        return EventColumns(*(None if column is None else column.numpy() for column in (self.times, self.types)))

    def with_columns(self, columns: EventColumns) -> PackedBatch:
        """Return the batch with what there is of its events beside the items; of a batch on the host."""
        if not columns.names:
            return self
        # what a file's bytes are read as cannot be written to, and PyTorch has no such tensors
        own = columns.map(lambda column: np.require(column, requirements=["C", "W"]))
        times, types = (None if column is None else torch.from_numpy(column) for column in (own.times, own.types))
        return replace(self, times=times, types=types)

    def with_features(self, features: NDArray[np.int32] | None) -> PackedBatch:
        """Return the batch with features of its rows' users, where there are any; of a batch on the host."""
        return self if features is None else replace(self, user_features=torch.from_numpy(np.require(features, requirements=["C", "W"])))

    def with_beside(self, rows: PackedRows) -> PackedBatch:
        """Return the batch with what packed rows, which are its own, have beside their items; of a batch on the host."""
        made = self.with_columns(rows.columns).with_features(rows.features)
        return made if rows.moments is None else replace(made, moments=torch.from_numpy(np.require(rows.moments, requirements=["C", "W"])))

    @property
    def packed_rows(self) -> PackedRows:
        """The rows as arrays; of a batch on the host."""
        features, moments = (None if part is None else part.numpy() for part in (self.user_features, self.moments))
        return PackedRows(self.values.numpy(), self.row_offsets.numpy(), self.columns, features, moments)

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.row_offsets.shape[0] - 1

    @property
    def sequences(self) -> PackedSequences:
        """The rows as a backbone reads them."""
        on_host = (
            self.row_offsets if self.host_row_offsets is None else self.host_row_offsets,
            self.task_of_row if self.host_task_of_row is None else self.host_task_of_row,
        )
        beside = (self.times, self.types, self.user_features, self.moments)
        return PackedSequences(self.values, self.row_offsets, self.task_of_row, *on_host, *beside)

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on a device."""
        if device.type == self.values.device.type:
            return self
        return replace(
            self,
            values=to_device(self.values, device),
            row_offsets=to_device(self.row_offsets, device),
            task_of_row=to_device(self.task_of_row, device),
            dropout_key=None if self.dropout_key is None else to_device(self.dropout_key, device),
            times=None if self.times is None else to_device(self.times, device),
            types=None if self.types is None else to_device(self.types, device),
            user_features=None if self.user_features is None else to_device(self.user_features, device),
            moments=None if self.moments is None else to_device(self.moments, device),
            host_row_offsets=self.row_offsets,
            host_task_of_row=self.task_of_row,
            examples=tuple(replace(e, index=to_device(e.index, device), labels=to_device(e.labels, device)) for e in self.examples),
            retention=tuple(replace(r, index=to_device(r.index, device), targets=to_device(r.targets, device)) for r in self.retention),
        )

    def with_retention(self, parts: Sequence[tuple[PackedRows, int]], terms: Sequence[tuple[str, Tensor, int]]) -> PackedBatch:
        """Return the batch with rows of past tasks behind its own.

        Args:
            parts: For each past task its rows and their row of the mask table.
            terms: For each past task its name, targets and rows in the global batch.
        """
        rows = concatenate([self.packed_rows, *(part for part, _ in parts)])
        tasks = torch.cat([self.task_of_row, *(torch.full((part.rows,), mask_index, dtype=torch.int32) for part, mask_index in parts)])
        offsets = torch.from_numpy(rows.offsets)
        # a user's representation is the last position, also where all positions are computed
        place = offsets[1:] - 1 if self.positions == "all" else torch.arange(rows.rows)
        retention, first = [], self.rows
        for (part, _), (task, targets, total) in zip(parts, terms, strict=True):
            retention.append(Retention(task, place[first : first + part.rows], targets, total))
            first += part.rows
        return replace(
            self,
            values=torch.from_numpy(rows.values),
            row_offsets=offsets,
            task_of_row=tasks,
            retention=tuple(retention),
            # the teacher saw whole sequences, so the student sees them whole
            dropout_key=self._dropout_key_with(rows.rows - self.rows),
        ).with_beside(rows)

    def _dropout_key_with(self, replayed: int) -> Tensor | None:
        return None if self.dropout_key is None else torch.cat([self.dropout_key, self.dropout_key.new_zeros(replayed)])

    def split(self, parts: int) -> list[PackedBatch]:
        """Cut the batch into micro-batches, row r going to part `r mod parts`; totals stay those of the global batch."""
        return [self] if parts == 1 else [self._select(torch.arange(self.rows) % parts == part, parts) for part in range(parts)]

    def _select(self, kept: Tensor, parts: int) -> PackedBatch:
        lengths = self.row_offsets.diff()
        position_kept = torch.repeat_interleave(kept, lengths)
        offsets = torch.cat([self.row_offsets.new_zeros(1), torch.cumsum(lengths[kept], 0)])
        output_kept = position_kept if self.positions == "all" else kept
        renumbered = torch.cumsum(output_kept, 0) - 1
        examples = tuple(
            replace(e, index=renumbered[e.index[output_kept[e.index]]], labels=e.labels[output_kept[e.index]]) for e in self.examples
        )
        retention = tuple(
            replace(r, index=renumbered[r.index[output_kept[r.index]]], targets=r.targets[output_kept[r.index]]) for r in self.retention
        )
        return replace(
            self,
            num_micro_batches=parts,
            values=self.values[position_kept],
            times=None if self.times is None else self.times[position_kept],
            types=None if self.types is None else self.types[position_kept],
            user_features=None if self.user_features is None else self.user_features[kept],
            moments=None if self.moments is None else self.moments[kept],
            row_offsets=offsets,
            task_of_row=self.task_of_row[kept],
            dropout_key=None if self.dropout_key is None else self.dropout_key[kept],
            examples=examples,
            retention=retention,
        )


def _flat_column(name: str, rows: Sequence[Any] | None, lengths: Tensor, dtype: type) -> Tensor | None:
    if rows is None:
        return None
    flat: list[NDArray[Any]] = [np.asarray(row, dtype=dtype) for row in rows]
    if [part.shape[0] for part in flat] != lengths.tolist():
        raise ValueError(f"{name}: expected a row for each sequence, as long as it")
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=dtype), *flat]))


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the host to a GPU through pinned memory, as a copy from other memory waits for the GPU's work."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def ragged_positions(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions `starts[i] … starts[i] + lengths[i] − 1` of all i, one behind the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


def take_rows(
    values: NDArray[np.int32], offsets: NDArray[np.int64], rows: NDArray[np.integer[Any]], *,
    without_last: int = 0, columns: EventColumns = NO_COLUMNS, features: NDArray[np.int32] | None = None,
) -> PackedRows:  # fmt: skip
    """Gather rows of a ragged column, and of what is beside it; each without so many of its last items."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts - without_last
    places = ragged_positions(starts, lengths)
    own = None if features is None else features[rows]
    return PackedRows(values[places], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), columns[places], own)


def concatenate(parts: Sequence[PackedRows]) -> PackedRows:
    """Lay packed rows behind one another."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts]) if parts else np.zeros(0, dtype=np.int64)
    values = np.concatenate([part.values for part in parts]) if parts else np.zeros(0, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # a part without rows, as of a rank without shards, may have nothing beside them
    with_rows = [part for part in parts if part.rows] or parts[:1]
    features = [part.features for part in with_rows if part.features is not None]
    moments = [part.moments for part in with_rows if part.moments is not None]
    assert {len(features), len(moments)} <= {0, len(with_rows)}, "rows with and without features or moments"
    columns = EventColumns.concatenate([part.columns for part in with_rows])
    return PackedRows(
        values, offsets, columns, np.concatenate(features) if features else None, np.concatenate(moments) if moments else None
    )
