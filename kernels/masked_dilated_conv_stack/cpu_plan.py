"""A batch cut into groups of rows that fit a cache, and what each convolution of a group computes, on a CPU.

Legend: N packed positions, B rows (users).

A position is named by its row and its distance from the row's last position, since that is what the positions seen in `last` mode
depend on: which distances a stage computes is the same for every row, up to the row's length.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.cpu_convs import Paired, pair_by_distance
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout, seen_offsets

Indices: TypeAlias = npt.NDArray[np.int64]


class Spots:
    """The positions that a stage computes: in each row those at given distances from its end, oldest first.

    Args:
        lengths: int64 [B].
        member: bool [longest], which distances are computed.
    """

    def __init__(self, lengths: Indices, member: npt.NDArray[np.bool_]) -> None:
        self.lengths, self.member = lengths, member
        distances = np.flatnonzero(member)
        below = np.concatenate([[0], np.cumsum(member)])
        self.rank = below  # [longest + 1], how many members are nearer to the end
        count = below[lengths]
        self.total = int(count.sum())
        self.row_end = np.cumsum(count) - 1  # where a row's last computed position stands
        self.rows = np.repeat(np.arange(lengths.shape[0]), count)  # [N_out]
        self.distance = distances[self.row_end[self.rows] - np.arange(self.total)]  # [N_out]
        self.length = lengths[self.rows]

    def find(self, rows: Indices, distance: Indices) -> Indices:
        """Return where these positions stand; they must be among those computed."""
        found: Indices = self.row_end[rows] - self.rank[distance]
        return found


@dataclass(frozen=True)
class Group:
    """Some rows' plan for the whole stack.

    Attributes:
        convs: Each stage's convolution.
        residual: For each block int64 [N_out], the block's input position behind each output, and int64 [N_in], the output behind each
            input or N_out; None where they are the same.
        rows: For each stage int64 [N_out], the row of the group that an output belongs to.
        filled: int64, the rows of the group that have a position; None where all have.
    """

    convs: tuple[Paired, ...]
    residual: tuple[tuple[Tensor, Tensor] | None, ...]
    rows: tuple[Tensor, ...]
    filled: Tensor | None


@dataclass(frozen=True)
class RowsPlan:
    """One group's place in the batch: rows `[first, last)`, packed positions `[start, stop)`, and its plan.

    Attributes:
        tasks: For each stage the runs of outputs of one task: from, to, task; 0 for all where a batch has one task and no table.
    """

    first: int
    last: int
    start: int
    stop: int
    group: Group
    tasks: tuple[tuple[tuple[int, int, int], ...], ...]


def plan(layout: Layout, *, positions_at_once: int) -> tuple[RowsPlan, ...]:
    """Cut a batch into groups of whole rows and plan each.

    Args:
        layout: The batch.
        positions_at_once: About how many packed positions a group has; a longer row is a group of its own.
    """
    key = ("cpu", positions_at_once)
    if key not in layout.plans:
        layout.plans[key] = _plan(layout, positions_at_once)
    made: tuple[RowsPlan, ...] = layout.plans[key]
    return made


def _plan(layout: Layout, positions_at_once: int) -> tuple[RowsPlan, ...]:
    offsets = layout.row_offsets.numpy()
    total, groups = layout.packed, -(-layout.packed // positions_at_once)
    cuts: list[int] = np.unique(np.searchsorted(offsets, np.arange(groups + 1) * total // max(1, groups))).tolist() if total else []
    same: dict[bytes, Group] = {}  # rows of equal lengths, as in a batch of one length, share a plan
    parts = []
    for first, last in itertools.pairwise(cuts):
        lengths = np.diff(offsets[first : last + 1])
        if (key := lengths.tobytes()) not in same:
            same[key] = _group(lengths, layout)
        tasks = _task_runs(same[key], layout, first, last)
        parts.append(RowsPlan(first, last, int(offsets[first]), int(offsets[last]), same[key], tasks))
    return tuple(parts)


def _task_runs(group: Group, layout: Layout, first: int, last: int) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    if layout.task_of_row is None:
        return tuple(((0, rows.shape[0], layout.single_task or 0),) for rows in group.rows)
    tasks = layout.task_of_row[first:last].numpy()
    begins = np.concatenate([[0], np.flatnonzero(np.diff(tasks)) + 1])
    made: dict[int, tuple[tuple[int, int, int], ...]] = {}
    for rows in group.rows:
        if id(rows) not in made:
            ends = [*np.searchsorted(rows.numpy(), begins[1:]).tolist(), rows.shape[0]]
            runs = zip([0, *ends[:-1]], ends, tasks[begins].tolist(), strict=True)
            made[id(rows)] = tuple(run for run in runs if run[0] < run[1])
    return tuple(made[id(rows)] for rows in group.rows)


def _group(lengths: Indices, layout: Layout) -> Group:
    longest = int(lengths.max())
    every = Spots(lengths, np.ones(longest, dtype=np.bool_))
    known = {every.member.tobytes(): every}
    spots = [every]
    for seen in seen_offsets(layout.stage_dilations, layout.kernel_size, longest)[1:]:
        member = np.zeros(longest, dtype=np.bool_)
        member[seen.numpy()] = True
        if layout.positions == "all":
            spots.append(every)
        else:
            if member.tobytes() not in known:
                known[member.tobytes()] = Spots(lengths, member)
            spots.append(known[member.tobytes()])
    made: dict[tuple[int, int, int], Paired] = {}
    convs, residual = [], []
    for stage, dilation in enumerate(layout.stage_dilations):
        before, after = spots[stage], spots[stage + 1]
        key = (dilation, id(before), id(after))
        if key not in made:
            made[key] = _paired(before, after, dilation)
        convs.append(made[key])
        if stage % 2:
            residual.append(_residual(spots[stage - 1], after))
    filled = None if bool((lengths > 0).all()) else torch.from_numpy(np.flatnonzero(lengths))
    rows = {id(after): torch.from_numpy(after.rows) for after in spots[1:]}  # stages that compute the same positions share it
    return Group(tuple(convs), tuple(residual), tuple(rows[id(after)] for after in spots[1:]), filled)


def _residual(before: Spots, after: Spots) -> tuple[Tensor, Tensor] | None:
    if before is after:
        return None
    kept = before.find(after.rows, after.distance)
    back = np.full(before.total, after.total)
    back[kept] = np.arange(after.total)
    return torch.from_numpy(kept), torch.from_numpy(back)


def _paired(before: Spots, after: Spots, dilation: int) -> Paired:
    late = pair_by_distance(after.member, dilation)
    distance, length = after.distance, after.length
    # a pair's later output needs its tap at t − d·2: without it the earlier one is a row's first, and both are cheaper alone
    later = np.flatnonzero(late[distance] & (distance + 2 * dilation < length))
    rows, far = after.rows[later], distance[later]
    earlier = after.find(rows, far + dilation)
    alone = np.ones(after.total, dtype=np.bool_)
    alone[later] = alone[earlier] = False
    single = np.flatnonzero(alone)
    # inputs x₃ (the later output's own), x₂, x₁ and x₀, each d further back; x₀ may lie before the row
    inside = far + 3 * dilation < length[later]
    inputs = [before.find(rows, far + reach * dilation) for reach in (np.where(inside, 3, 1), 2, 1, 0)]
    one = after.rows[single]
    reads: list[tuple[Indices, Indices]] = []  # singles by tap: which of them, and what they read
    for reach in (2, 1, 0):
        far = distance[single] + reach * dilation
        which = np.flatnonzero(far < length[single])
        reads.append((single[which], before.find(one[which], far[which])))
    return Paired.build(before.total, after.total, earlier, later, inputs, inside, reads)
