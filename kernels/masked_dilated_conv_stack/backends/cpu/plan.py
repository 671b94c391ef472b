"""A batch cut into groups of rows of one task, and what each convolution of a group reads, on a CPU.

Legend: N packed positions, B rows (users), R rows of a group, k taps.

A position is named by its row and its distance from the row's last position, since that is what the positions seen in `last` mode
depend on: which distances a stage computes is the same for every row, up to the row's length. A group's positions lie by distance, and
its rows by falling length: first every row's last position, then the positions before those, and so on, each time of the first so
many rows. What lies j·d distances further on is then one stretch of memory, and where all rows are of one length, so is what reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.filters import OF_FOUR, OF_TWO, Filter
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.products import IMAGES
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout, Positions, seen_offsets

# Rows whose product is saved; below it an algorithm's own matrices and calls take more.
LEAST_SAVED = 512
# Up to so many rows of several lengths a plan is kept for the next batch of such rows.
_FEW_ROWS = 4

Indices: TypeAlias = npt.NDArray[np.int64]
Places: TypeAlias = slice | Tensor


@dataclass(frozen=True)
class Tap:
    """Input positions that a tap reads, and the output positions that they belong to; each a stretch or int64."""

    read: Places
    dest: Places
    size: int


@dataclass(frozen=True)
class Cut:
    """A stage's outputs as uses of a filtering algorithm, and the rest.

    The algorithm's inputs and outputs are blocks of d distances of all rows: m blocks of outputs read those blocks and the two after them.

    Attributes:
        filter: The algorithm, of m outputs.
        uses: How often it is used.
        block: Positions of a block.
        made: Outputs that the algorithm makes: all first ones lie together, then all second ones …
        read: Inputs that it reads; those beyond the stage's are zeros.
        rest: The taps of the other outputs, which are counted from the first of them.
    """

    filter: Filter
    uses: int
    block: int
    made: int
    read: int
    rest: tuple[Tap, ...]

    def inputs(self, x: Tensor) -> list[Tensor]:
        """Return the algorithm's inputs [uses, block · C]."""
        blocks, step = x[: self.read].view(-1, self.block * x.shape[1]), self.filter.outputs
        return [blocks[first : first + step * (self.uses - 1) + 1 : step] for first in range(step + 2)]

    def input_gradients(self, grad: Tensor) -> list[Tensor]:
        """Return where the inputs' gradients belong, the first two with one block more."""
        blocks, step = grad[: self.read].view(-1, self.block * grad.shape[1]), self.filter.outputs
        return [blocks[first::step] for first in range(step)]

    def outputs(self, u: Tensor) -> Sequence[Tensor]:
        """Return the algorithm's outputs [uses · block, C]."""
        return u[: self.made].chunk(self.filter.outputs)

    def by_distance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what lies by distance as the algorithm makes it, [m, uses, block · C], and the rest."""
        return x[: self.made].view(self.uses, self.filter.outputs, -1).transpose(0, 1), x[self.made :]

    def as_made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same parts of what lies as the algorithm makes it."""
        return x[: self.made].view(self.filter.outputs, self.uses, -1), x[self.made :]


@dataclass(frozen=True)
class Stage:
    """A convolution of a group.

    Attributes:
        dilation: d.
        inputs: Positions N_in of the input.
        outputs: Positions N_out of the output.
        taps: The present position's first, which is there for every output.
        rows: R where all distances from 0 on are computed, else 0.
        common: Distances that all rows have, of the input and of the output.
        even: Whether all rows are of one length.
    """

    dilation: int
    inputs: int
    outputs: int
    taps: tuple[Tap, ...]
    rows: int
    common: tuple[int, int]
    even: bool

    @functools.cached_property
    def cut(self) -> Cut | None:
        """How a filtering algorithm makes this stage's outputs; None where it saves too little."""
        if not self.rows or len(self.taps) != 3:
            return None
        best = max((self._cut_by(filter_) for filter_ in (OF_TWO, OF_FOUR)), key=self._saved)
        return best if self._saved(best) >= LEAST_SAVED else None

    def _saved(self, cut: Cut) -> int:
        """Return how many rows' products a cut saves."""
        taps, rest = (sum(tap.size for tap in of) for of in (self.taps, cut.rest))
        return taps - rest - (cut.filter.outputs + 2) * cut.uses * cut.block

    def _cut_by(self, filter_: Filter) -> Cut:
        inputs, outputs = (distances // self.dilation for distances in self.common)
        # beyond an even group's inputs are zeros, beyond another's are rows' that not all have
        uses = max(0, outputs if self.even else min(outputs, inputs - 2)) // filter_.outputs
        block = self.dilation * self.rows
        made = uses * filter_.outputs * block
        return Cut(filter_, uses, block, made, made + 2 * block, tuple(_from(tap, made) for tap in self.taps))

    @functools.cached_property
    def gathers(self) -> tuple[Tensor, Tensor]:
        """int64 [N_out · k], the inputs that an output reads, N_in for none; and [N_in · k], the outputs that read an input.

        Both as for so many more outputs and inputs, which read none, as `common_size` adds.
        """
        forward = np.full((common_size(self.outputs), len(self.taps)), self.inputs)
        backward = np.full((common_size(self.inputs), len(self.taps)), self.outputs)
        for number, tap in enumerate(self.taps):
            read, dest = _indices(tap.read), _indices(tap.dest)
            forward[dest, number], backward[read, number] = read, dest
        return torch.from_numpy(forward.reshape(-1)), torch.from_numpy(backward.reshape(-1))


@dataclass(frozen=True)
class Group:
    """Some rows' place in the batch and their plan.

    Attributes:
        stages: Each convolution.
        residual: For each block, which of its inputs its outputs are added to.
        inputs: int64 [N_in], the packed position behind each input.
        results: int64, where the stack's outputs belong: packed positions for `all`, rows for `last`.
        task: The rows' task; 0 where the batch has one and no table.
    """

    stages: tuple[Stage, ...]
    residual: tuple[Places, ...]
    inputs: Tensor
    results: Tensor
    task: int


def plan(layout: Layout, *, positions_at_once: int) -> tuple[Group, ...]:
    """Cut a batch into groups of rows of one task and plan each; rows without a position are in none.

    Args:
        layout: The batch.
        positions_at_once: About how many packed positions a group has, twice as many at most; a longer row is a group of its own.
    """
    key = ("cpu", positions_at_once)
    if key not in layout.plans:
        layout.plans[key] = tuple(_group(layout, rows) for rows in _cut(layout, positions_at_once))
    made: tuple[Group, ...] = layout.plans[key]
    return made


def _cut(layout: Layout, at_once: int) -> Iterator[Indices]:
    lengths = layout.lengths.numpy()
    if len(lengths) == 1:  # as when a server has one request: nothing to cut
        yield from [np.zeros(1, dtype=np.int64)] if lengths[0] else []
        return
    tasks = np.zeros_like(lengths) if layout.task_of_row is None else layout.task_of_row.numpy()
    order = np.lexsort((-lengths, tasks))  # stable
    order = order[lengths[order] > 0]
    size = lengths[order]
    new_task = np.flatnonzero(np.diff(tasks[order])) + 1
    for rows, sizes in zip(np.split(order, new_task), np.split(size, new_task), strict=True):
        if not len(rows):
            continue
        # rows of one length that fill half a group are one of their own, whose taps are stretches on both sides
        values, starts, counts = np.unique(-sizes, return_index=True, return_counts=True)
        alone = -values * counts * 2 >= at_once
        cuts = np.unique(np.concatenate([starts[alone], starts[alone] + counts[alone]]))
        for part in np.split(rows, cuts[(cuts > 0) & (cuts < len(rows))]):
            pieces = min(len(part), -(-int(lengths[part].sum()) // at_once))
            reached = np.cumsum(lengths[part]) - lengths[part]
            cuts = np.searchsorted(reached, np.arange(1, pieces) * reached[-1] / pieces)
            if lengths[part[0]] == lengths[part[-1]] and lengths[part[0]] * IMAGES <= 2 * at_once:
                # so all products of the group have a multiple of so many rows, and oneDNN takes them whole
                cuts = (cuts + IMAGES // 2) // IMAGES * IMAGES
            yield from np.split(part, np.unique(cuts[(cuts > 0) & (cuts < len(part))]))


def _group(layout: Layout, rows: Indices) -> Group:
    lengths = layout.lengths.numpy()[rows]
    # of one length, or few: likely to come again, and small
    again = len(rows) <= _FEW_ROWS or lengths[0] == lengths[-1]
    make = _shape if again else _shape.__wrapped__
    shape = make(lengths.tobytes(), layout.positions, layout.stage_dilations, layout.kernel_size)
    last = layout.row_offsets.numpy()[rows + 1] - 1
    inputs = torch.from_numpy(last[shape.row] - shape.back)
    results = inputs if layout.positions == "all" else torch.from_numpy(rows)
    several = layout.task_of_row
    task = (layout.single_task or 0) if several is None else int(several[int(rows[0])])
    return Group(shape.stages, shape.residual, inputs, results, task)


@dataclass(frozen=True)
class _Shape:
    """What of a group follows from its rows' lengths alone.

    Attributes:
        stages, residual: As of `Group`.
        row, back: int64 [N_in], each input's row in the group, and its distance from that row's last position.
    """

    stages: tuple[Stage, ...]
    residual: tuple[Places, ...]
    row: Indices
    back: Indices


@functools.lru_cache(maxsize=256)
def _shape(of_lengths: bytes, positions: Positions, dilations: tuple[int, ...], kernel_size: int) -> _Shape:
    """Plan rows of these lengths (int64), which fall."""
    lengths = np.frombuffer(of_lengths, dtype=np.int64)
    longest = int(lengths[0])
    longer = len(lengths) - np.searchsorted(lengths[::-1], np.arange(longest + 1), side="right")  # rows longer than a distance
    distances = _distances(positions, dilations, kernel_size, longest)
    planned: dict[tuple[int, int, int], Stage] = {}
    stages = []
    for dilation, before, after in zip(dilations, distances, distances[1:], strict=False):
        key = (dilation, id(before), id(after))
        if key not in planned:
            planned[key] = _stage(longer, dilation, before, after, kernel_size)
        stages.append(planned[key])
    residual = tuple(_residual_places(longer, before, after) for before, after in zip(distances[:-1:2], distances[2::2], strict=True))
    count = longer[distances[0]]
    return _Shape(tuple(stages), residual, _ranges(np.zeros_like(count), count), np.repeat(distances[0], count))


@functools.lru_cache(maxsize=1024)
def _distances(positions: Positions, dilations: tuple[int, ...], kernel_size: int, longest: int) -> tuple[Indices, ...]:
    """Return the distances of the input and of each stage's output, ascending; stages with the same ones share the array."""
    if positions == "all":
        return (np.arange(longest),) * (len(dilations) + 1)
    distinct: dict[bytes, Indices] = {}
    seen = (part.numpy() for part in seen_offsets(dilations, kernel_size, longest))
    return tuple(distinct.setdefault(part.tobytes(), part) for part in seen)


def _stage(longer: Indices, dilation: int, before: Indices, after: Indices, kernel_size: int) -> Stage:
    inputs, outputs = longer[before], longer[after]
    in_starts, out_starts = np.cumsum(inputs) - inputs, np.cumsum(outputs) - outputs
    taps = []
    for reach in range(kernel_size):
        far = after + reach * dilation
        far = far[: np.searchsorted(far, len(longer) - 1)]  # those that the longest row has
        count = longer[far]
        read, dest = in_starts[np.searchsorted(before, far)], out_starts[: len(far)]
        taps.append(Tap(_places(read, count), _places(dest, count), int(count.sum())))
    dense = len(before) == before[-1] + 1 and len(after) == after[-1] + 1
    shortest = int((longer == longer[0]).sum())
    common = (min(len(before), shortest), min(len(after), shortest))
    rows, even = int(longer[0]), bool(longer[-2] == longer[0])
    return Stage(dilation, int(inputs.sum()), int(outputs.sum()), tuple(taps), rows if dense else 0, common, even)


def _from(tap: Tap, first: int) -> Tap:
    """Return a tap of the outputs from this one on, which are counted from it."""
    if isinstance(tap.dest, slice):
        skipped = min(max(0, first - tap.dest.start), tap.size)
        dest: Places = slice(max(0, tap.dest.start - first), max(0, tap.dest.stop - first))
    else:
        skipped = int(torch.searchsorted(tap.dest, first))
        dest = tap.dest[skipped:] - first
    read = slice(tap.read.start + skipped, tap.read.stop) if isinstance(tap.read, slice) else tap.read[skipped:]
    return Tap(read, dest, tap.size - skipped)


def _residual_places(longer: Indices, before: Indices, after: Indices) -> Places:
    starts = np.cumsum(longer[before]) - longer[before]
    return _places(starts[np.searchsorted(before, after)], longer[after])


def _ranges(starts: Indices, counts: Indices) -> Indices:
    """Lay the ranges of so many numbers from these starts end to end."""
    ends = np.cumsum(counts)
    made: Indices = np.repeat(starts - (ends - counts), counts) + np.arange(int(ends[-1]) if len(ends) else 0)
    return made


def _places(starts: Indices, counts: Indices) -> Places:
    """Return these ranges: one stretch where they follow one another."""
    if not len(starts):
        return slice(0, 0)
    if bool((starts[1:] == starts[:-1] + counts[:-1]).all()):
        return slice(int(starts[0]), int(starts[-1] + counts[-1]))
    return torch.from_numpy(_ranges(starts, counts))


def _indices(places: Places) -> Indices:
    return np.arange(places.start, places.stop) if isinstance(places, slice) else places.numpy()


def common_size(size: int) -> int:
    """Round up by a sixteenth at most, to one of few sizes: oneDNN compiles a product for each that it has not seen lately."""
    step = 1 << max(0, size.bit_length() - 5)
    return -(-size // step) * step


def gather_rows(x: Tensor, places: Places) -> Tensor:
    """Return the rows of x at these places."""
    return x[places] if isinstance(places, slice) else x.index_select(0, places)
