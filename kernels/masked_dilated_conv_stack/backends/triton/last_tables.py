"""The index tables of `last` mode, of all convolutions together: a few launches a batch, and one copy to the device.

Legend: N packed positions, B rows (users), k taps, T tasks, K convolutions.

`layout.py` makes the same tables convolution by convolution, in hundreds of launches; `tests/kernels/test_triton_plan.py` compares the two.

Levels are numbered 0 (the stack's input, packed as it came) to K (the last convolution's outputs); above 0 a row's positions lie by their
distance from the row's last one. Which distance reads which follows from the longest row alone (`_Distances`, cached). A batch adds its
rows' lengths and tasks: five numbers for each row and table, made on the host (`_cells`). An entry of a table is then found from its row's
cell: its place in the row leads to a line of the lookup, and that to a position of the same row, if the row reaches so far.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout, seen_offsets

Ints: TypeAlias = npt.NDArray[np.int64]

_BEYOND = np.iinfo(np.int32).max  # no row is so long
_ALIGNED = 4  # int32 in 16 bytes, the alignment for which the kernels are compiled


class LastTables(NamedTuple):
    """`inputs` to `reader` as in `Plan`, and by convolution what groups its outputs by task.

    Attributes:
        orders: int32 [N_out], outputs sorted by task; None where rows are of one task.
        bounds: int32 [T + 1], where each task's outputs start in that order.
        all_bounds: int32 [K, T + 1].
        input_bounds: int32 [2], of the stack's input as if of one task.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    forward: Tensor
    backward: Tensor
    kept: tuple[Tensor, ...]
    reader: tuple[Tensor, ...]
    orders: tuple[Tensor | None, ...]
    bounds: tuple[Tensor, ...]
    all_bounds: Tensor
    input_bounds: Tensor


def make_last_tables(layout: Layout, *, tasks: int | None) -> LastTables:
    """Make the tables.

    Args:
        layout: Of `last` mode.
        tasks: T; None where all rows count as of one task.
    """
    lengths = layout.lengths.numpy()
    distances = _distances(layout.stage_dilations, layout.kernel_size, max(1, int(lengths.max(initial=0))))
    rows = _Rows.of(distances, lengths)
    stages, sizes = len(layout.stage_dilations), tuple(rows.sizes.tolist())
    task_of_row = np.zeros_like(lengths) if tasks is None else layout.host_task_of_row.numpy()
    by_task = np.argsort(task_of_row, kind="stable")
    bounds = rows.task_bounds(task_of_row, by_task, tasks or 1)
    taps, blocks = _cells(rows, distances.taps, aligned=False), _cells(rows, distances.blocks, aligned=True)
    orders = _order_cells(rows, by_task)
    arrays = [
        taps.values, blocks.values, distances.taps.lines, distances.blocks.lines, orders.values, bounds, np.array([0, sizes[0]]), *bounds,
    ]  # fmt: skip
    taps_cells, blocks_cells, taps_lines, blocks_lines, order_cells, all_bounds, input_bounds, *own_bounds = _upload(
        arrays, layout.row_offsets.device
    )
    index = _look_up(taps_cells, taps_lines, taps.total)
    beside = blocks.split(_look_up(blocks_cells, blocks_lines, blocks.total).view(-1))
    order: Sequence[Tensor | None] = (None,) * stages if tasks is None else orders.split(_places(order_cells, orders.total))
    outputs = sum(sizes[1:])
    return LastTables(
        sizes[:-1], sizes[1:], index[:outputs], index[outputs:], beside[: stages // 2], beside[stages // 2 :],
        tuple(order), tuple(own_bounds), all_bounds, input_bounds,
    )  # fmt: skip


@dataclass(frozen=True)
class _Lookup:
    """Tables one after another; an entry is a position of a `domain` level and names one of a `source` level.

    Attributes:
        domain, source, first: Of each table: its levels, its first line.
        lines: [lines, k, 2], for each place in a row of `domain`: a row of `source` must be longer than this (in positions), and which of
            its positions is named, counted from the row's base.
    """

    domain: Ints
    source: Ints
    first: Ints
    lines: Ints


@dataclass(frozen=True)
class _Distances:
    """What follows from the longest row.

    Attributes:
        longest: Its length.
        counts: [K + 1, longest + 1], how many positions a row of each length has at each level.
        taps: Each convolution's forward reads, then each one's backward reads.
        blocks: Each block's inputs behind its outputs, then each one's outputs behind its inputs.
    """

    longest: int
    counts: Ints
    taps: _Lookup
    blocks: _Lookup


@functools.lru_cache(maxsize=32)  # some 1.5 MB each at rows of 1,000
def _distances(stage_dilations: tuple[int, ...], kernel_size: int, longest: int) -> _Distances:
    # every position of the input has a line, in packed order, the unread ones too
    levels = [np.arange(longest)[::-1], *(part.numpy() for part in seen_offsets(stage_dilations, kernel_size, longest)[1:])]
    every = np.arange(longest + 1)
    counts = np.stack([every, *(np.searchsorted(level, every) for level in levels[1:])])
    back = np.arange(kernel_size - 1, -1, -1)
    forward = [(stage + 1, stage, back * dilation) for stage, dilation in enumerate(stage_dilations)]
    backward = [(stage, stage + 1, -back * dilation) for stage, dilation in enumerate(stage_dilations)]
    here, opens = np.zeros(1, dtype=np.int64), range(0, len(stage_dilations), 2)
    kept, reader = [(level + 2, level, here) for level in opens], [(level, level + 2, here) for level in opens]
    return _Distances(longest, counts, _lookup(levels, forward + backward), _lookup(levels, kept + reader))


def _lookup(levels: Sequence[Ints], tables: Sequence[tuple[int, int, Ints]]) -> _Lookup:
    """Join tables, each given by its domain, its source and by how much further each tap reads."""
    lines = []
    for domain, source, further in tables:
        target = levels[domain][:, None] + further
        if source == 0:  # a row's base is its last position
            lines.append(np.stack([target, -target], axis=-1))
            continue
        place = np.searchsorted(levels[source], target)
        found = levels[source][np.minimum(place, len(levels[source]) - 1)] == target
        lines.append(np.stack([np.where(found, place, _BEYOND), np.where(found, place, 0)], axis=-1))
    sizes = np.array([len(part) for part in lines])
    spare = np.zeros((_ALIGNED, *lines[0].shape[1:]), dtype=np.int64)  # read by what fills a table up to its alignment
    domains, sources = np.array([domain for domain, _, _ in tables]), np.array([source for _, source, _ in tables])
    return _Lookup(domains, sources, np.cumsum(sizes) - sizes, np.concatenate([*lines, spare]))


@dataclass(frozen=True)
class _Rows:
    """A batch's rows at each level: `counts` [K + 1, B] positions, `starts` [K + 1, B] the first, `sizes` [K + 1] all rows' together."""

    lengths: Ints
    longest: int
    counts: Ints
    starts: Ints
    sizes: Ints

    @classmethod
    def of(cls, distances: _Distances, lengths: Ints) -> _Rows:
        counts = distances.counts[:, lengths]
        return cls(lengths, distances.longest, counts, np.cumsum(counts, axis=1) - counts, counts.sum(axis=1))

    def task_bounds(self, task_of_row: Ints, by_task: Ints, tasks: int) -> Ints:
        """Return [K, T + 1], where each task's positions start at each level above the input, sorted by task."""
        ends = np.cumsum(self.counts[1:, by_task], axis=1)
        starts = np.concatenate([np.zeros((len(ends), 1), dtype=np.int64), ends], axis=1)
        bounds: Ints = starts[:, np.searchsorted(task_of_row[by_task], np.arange(tasks + 1))]
        return bounds


@dataclass(frozen=True)
class _Cells:
    """Tables' cells: `values` [numbers, tables · (B + 1)]; where the tables start and how long they are; entries altogether."""

    values: Ints
    starts: Ints
    sizes: Ints
    total: int

    def split(self, entries: Tensor) -> tuple[Tensor, ...]:
        """Return each table's entries."""
        return tuple(entries[start : start + size] for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True))


def _cells(rows: _Rows, lookup: _Lookup, *, aligned: bool) -> _Cells:
    """Return for each table and row: entries; what leads from an entry's number to its line; base, limit, and the number for none.

    A table's last cell is of no row: it fills the table up, so that the next one begins where a launch takes it as it is.
    """
    domain, source = lookup.domain, lookup.source
    sizes = rows.sizes[domain]
    filled = -sizes % _ALIGNED if aligned else np.zeros_like(sizes)
    starts = np.cumsum(sizes + filled) - (sizes + filled)
    packed = np.where(domain[:, None] == 0, rows.longest - rows.lengths, 0)  # a short row's first position is not the longest one's
    values = np.zeros((5, len(domain), len(rows.lengths) + 1), dtype=np.int64)
    entries, shift, base, limit, none = values[:, :, :-1]
    entries[:] = rows.counts[domain]
    shift[:] = lookup.first[:, None] + packed - starts[:, None] - rows.starts[domain]
    base[:] = np.where(source[:, None] == 0, rows.starts[0] + rows.lengths - 1, rows.starts[source])
    limit[:] = rows.counts[source]
    none[:] = rows.sizes[source][:, None]
    values[0, :, -1], values[1, :, -1] = filled, len(lookup.lines) - _ALIGNED - starts - sizes
    return _Cells(values.reshape(5, -1), starts, sizes, int((sizes + filled).sum()))


def _order_cells(rows: _Rows, by_task: Ints) -> _Cells:
    """Return for each level above the input and each row, in the order of tasks: positions, and what an entry's number is shifted by."""
    sizes = rows.sizes[1:]
    filled = -sizes % _ALIGNED
    starts = np.cumsum(sizes + filled) - (sizes + filled)
    values = np.zeros((2, len(sizes), len(by_task) + 1), dtype=np.int64)
    counts = rows.counts[1:, by_task]
    values[0, :, :-1], values[0, :, -1] = counts, filled
    values[1, :, :-1] = rows.starts[1:, by_task] - (starts[:, None] + np.cumsum(counts, axis=1) - counts)
    return _Cells(values.reshape(2, -1), starts, sizes, int((sizes + filled).sum()))


def _upload(arrays: Sequence[Ints], device: torch.device) -> list[Tensor]:
    """Copy arrays to the device as int32, all at once and without waiting for it; each one is aligned there."""
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.size // _ALIGNED) * _ALIGNED
    joined = torch.empty(size, dtype=torch.int32, pin_memory=device.type == "cuda")
    host = joined.numpy()
    for start, array in zip(starts, arrays, strict=True):
        host[start : start + array.size] = array.reshape(-1)
    there = joined.to(device, non_blocking=True)
    return [there[start : start + array.size].view(array.shape) for start, array in zip(starts, arrays, strict=True)]


def _look_up(cells: Tensor, lines: Tensor, total: int) -> Tensor:
    """Return the entries [total, k] of tables, from their cells [5, cells]."""
    cell = torch.repeat_interleave(cells[0], output_size=total)
    shift, base, limit, none = cells[1:].index_select(1, cell).unsqueeze(-1).unbind(0)
    line = shift.view(-1) + torch.arange(total, dtype=torch.int32, device=cells.device)
    beyond, place = lines.index_select(0, line).unbind(-1)
    return torch.where(beyond < limit, base + place, none)


def _places(cells: Tensor, total: int) -> Tensor:
    """Return the entries [total] of `_order_cells`."""
    cell = torch.repeat_interleave(cells[0], output_size=total)
    return cells[1].index_select(0, cell) + torch.arange(total, dtype=torch.int32, device=cells.device)
