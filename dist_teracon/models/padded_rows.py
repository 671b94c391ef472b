"""Packed rows, padded for attention in groups of like length.

Attention of rows that are padded to the batch's longest costs B · L², most of it for padding where lengths differ (docs/performance.md,
Attention over histories of different lengths).

Legend: N packed positions, B rows, of a group or a batch; B' rows of a batch that are not empty, L a group's longest row, C channels,
K masked layers, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dist_teracon.data.batches import PackedSequences
from dist_teracon.data.event_columns import NO_TIME

# On a CPU rows of at least so many places are padded in groups of like length: at most so many, of at least so many rows each, and no two
# of almost one length.
_LONG, _GROUPS, _GROUP, _ALIKE = 64, 4, 8, 0.9


@dataclass(frozen=True)
class RowGroup:
    """Rows of like length, which are padded to the longest of them.

    Attributes:
        inside: bool [B, L], the places that are no padding.
        rows: int64 [B], which of the rows that are not empty these are; None for all of them.
        times_BL: int64 [B, L], when the events were, `NO_TIME` behind a row's end; None before `PaddedRows.with_times`.
    """

    inside: Tensor
    rows: Tensor | None
    times_BL: Tensor | None = None

    def of_rows(self, of_all: Tensor) -> Tensor:
        """Return the group's part of something of every row that is not empty."""
        return of_all if self.rows is None else of_all.index_select(0, self.rows)


@dataclass(frozen=True)
class PaddedRows:
    """Where the packed positions lie when the rows that have any are padded by groups; all sizes come from the host.

    Attributes:
        groups: The rows, in groups of like length; one group where that saves nothing.
        flat_N: int64 [N], each packed position's place among those of all groups, one group's rows behind another's.
        place_N: int64 [N], its place in its row.
        last_N: int64 [B'], each row's last packed position, of B' rows that are not empty.
        back: int64 [B'], where among the rows of all groups each row stands; None for one group.
        filled: int64 [B'], which of the B rows these are; None where all are.
        num_rows: B.
        masks_TKC: The masks; None for none.
        task_B: int64 [B'], each row's task; None where all are of the one `task`.
        task_N: int64 [N], the same by position.
        times_N: int64 [N], when the events were; None where nothing reads it.
    """

    groups: Sequence[RowGroup]
    flat_N: Tensor
    place_N: Tensor
    last_N: Tensor
    back: Tensor | None
    filled: Tensor | None
    num_rows: int
    masks_TKC: Tensor | None
    task_B: Tensor | None
    task_N: Tensor | None
    task: int
    times_N: Tensor | None = None

    @classmethod
    def of(cls, sequences: PackedSequences, masks_TKC: Tensor | None) -> PaddedRows:
        device, num_rows = sequences.values.device, sequences.num_rows
        lengths, tasks = sequences.host_row_offsets.diff(), sequences.host_task_of_row.long()
        filled = lengths.nonzero().squeeze(1)
        lengths, tasks = lengths[filled], tasks[filled]
        ends = lengths.cumsum(0)
        row_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        place_N = torch.arange(row_N.shape[0]) - (ends - lengths)[row_N]
        several = bool((tasks != tasks[:1]).any())

        def put(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=True)

        # a GPU pads cheaply, and starts kernels dearly
        of_groups = like_lengths(lengths) if device.type == "cpu" else [torch.arange(len(lengths))]
        begin_B, places, groups = torch.zeros_like(lengths), 0, []
        for rows in of_groups:
            longest = int(lengths[rows].max()) if len(rows) else 1
            begin_B[rows] = places + longest * torch.arange(len(rows))
            places += longest * len(rows)
            inside = put(torch.arange(longest) < lengths[rows, None])
            groups.append(RowGroup(inside, put(rows) if len(of_groups) > 1 else None))
        return cls(
            groups=groups,
            flat_N=put(begin_B[row_N] + place_N),
            place_N=put(place_N),
            last_N=put(ends - 1),
            back=put(torch.cat(of_groups).argsort()) if len(of_groups) > 1 else None,
            filled=put(filled) if len(filled) < num_rows else None,
            num_rows=num_rows,
            masks_TKC=masks_TKC,
            task_B=put(tasks) if several else None,
            task_N=put(tasks[row_N]) if several and masks_TKC is not None else None,
            task=int(tasks[0]) if len(tasks) else 0,
            times_N=sequences.times,
        )

    def with_times(self) -> PaddedRows:
        """Return the rows with their events' times.

        Raises:
            ValueError: the batch has none.
        """
        if self.times_N is None:
            raise ValueError("model.backbone.time_bias: reads times of events, and the batch has none")
        of_groups = self._by_group(self.times_N, NO_TIME)
        return replace(self, groups=[replace(group, times_BL=times) for group, times in zip(self.groups, of_groups, strict=True)])

    @property
    def last_times(self) -> Tensor:
        """When each row's last event was, [B']."""
        assert self.times_N is not None
        return self.times_N.index_select(0, self.last_N)

    def padded(self, x_NC: Tensor) -> list[Tensor]:
        """Return [B, L, C] of each group, zero behind each row's end."""
        return self._by_group(x_NC, 0)

    def _by_group(self, values_N: Tensor, filler: int) -> list[Tensor]:
        sizes = [group.inside.numel() for group in self.groups]
        every = values_N.new_full((sum(sizes), *values_N.shape[1:]), filler).index_copy(0, self.flat_N, values_N)
        parts = zip(every.split(sizes), self.groups, strict=True)
        return [part.view(*group.inside.shape, *values_N.shape[1:]) for part, group in parts]

    def packed(self, of_groups: Sequence[Tensor]) -> Tensor:
        """Return the positions that rows have of each group's [B, L, C]: [N, C]."""
        return _behind_one_another([part.flatten(0, 1) for part in of_groups]).index_select(0, self.flat_N)

    def in_order(self, of_groups: Sequence[Tensor]) -> Tensor:
        """Return [B', C] from each group's rows."""
        every = _behind_one_another(of_groups)
        return every if self.back is None else every.index_select(0, self.back)

    def mask_of_all(self, x_NC: Tensor, k: int) -> Tensor:
        """Multiply every position by mask k of its row's task."""
        if self.masks_TKC is None:
            return x_NC
        return x_NC * (self.masks_TKC[self.task, k] if self.task_N is None else self.masks_TKC[:, k].index_select(0, self.task_N))

    def mask_of_last(self, x_BC: Tensor, k: int) -> Tensor:
        """Multiply each row's vector by mask k of its task."""
        if self.masks_TKC is None:
            return x_BC
        return x_BC * (self.masks_TKC[self.task, k] if self.task_B is None else self.masks_TKC[:, k].index_select(0, self.task_B))

    def with_empty_rows(self, x_BC: Tensor) -> Tensor:
        """Return [B, C] from [B', C], zero for an empty row."""
        if self.filled is None:
            return x_BC
        return x_BC.new_zeros(self.num_rows, x_BC.shape[1]).index_copy(0, self.filled, x_BC)


def _behind_one_another(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def like_lengths(lengths_B: Tensor) -> list[Tensor]:
    """Return rows in groups of like length, so that attention, which costs B · L², reads less padding: int64 indices, by falling length.

    Short rows stay together, as what a group costs by itself is more than it saves there.
    """
    every = torch.arange(len(lengths_B))
    if len(lengths_B) < 2 * _GROUP or int(lengths_B.max()) < _LONG:
        return [every]
    order = lengths_B.argsort(descending=True, stable=True)
    groups: list[Tensor] = []
    for part in order.split(max(_GROUP, -(-len(order) // _GROUPS))):
        if groups and lengths_B[part[0]] > _ALIKE * lengths_B[groups[-1][0]]:
            groups[-1] = torch.cat([groups[-1], part])
        else:
            groups.append(part)
    return groups if len(groups) > 1 else [every]
