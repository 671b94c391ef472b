"""A layout in the form in which the Triton kernels read it: small int32 tables, made without waiting for the device.

Legend: N packed positions, B rows (users), k taps, T tasks, K convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout


@dataclass(frozen=True)
class Grouping:
    """A stage's positions task by task.

    Attributes:
        order: int32 [N], positions sorted by task; None where they are of one task.
        bounds: int32 [T + 1], where each task's positions start in that order.
    """

    order: Tensor | None
    bounds: Tensor


@dataclass(frozen=True)
class Plan:
    """What the kernels of one stack read beside numbers.

    Attributes:
        inputs, outputs: Positions that each convolution reads and makes.
        first_input, first_output: Where a stage's positions start when all stages' lie one after another; K + 1 entries each.
        dilations: Of each convolution.
        tasks: T, the tasks that have bounds: 1 where all rows are of one task.
        groups: Of each convolution's outputs.
        ungrouped: Of the stack's input, as if of one task.
        bounds: int32 [K, T + 1], all groups' bounds.
        table: int64 [K, 5]: first input, first output, inputs, outputs, dilation.
        before, after: int32 [N], positions ahead of and behind each in its sequence; None where `forward` and `backward` are there.
        forward: int32 [ΣN_out, k], as `Taps.forward`.
        backward: int32 [ΣN_in, k], as `Taps.backward`.
        kept: For each block int32 [N_out], the block's input behind each output; None where they are the same.
        reader: For each block int32 [N_in], the reverse of `kept`, N_out standing for none.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    first_input: tuple[int, ...]
    first_output: tuple[int, ...]
    dilations: tuple[int, ...]
    tasks: int
    groups: tuple[Grouping, ...]
    ungrouped: Grouping
    bounds: Tensor
    table: Tensor
    before: Tensor | None
    after: Tensor | None
    forward: Tensor | None
    backward: Tensor | None
    kept: tuple[Tensor | None, ...]
    reader: tuple[Tensor | None, ...]


def make_plan(layout: Layout, *, tasks: int | None) -> Plan:
    """Turn a layout into a plan.

    Args:
        layout: From `build_layout`.
        tasks: T, rows of the mask table; None without masks.
    """
    inputs = tuple(taps.backward.shape[0] for taps in layout.taps)
    outputs = tuple(taps.forward.shape[0] for taps in layout.taps)
    task_of_row = None if tasks is None else layout.task_of_row
    tasks = 1 if tasks is None or task_of_row is None else tasks
    groups = _group(layout, task_of_row, tasks)
    first_input, first_output = _starts(inputs), _starts(outputs)
    device = layout.taps[0].forward.device
    table = torch.tensor(list(zip(first_input, first_output, inputs, outputs, layout.dilations, strict=False)), dtype=torch.int64)
    before = after = forward = backward = None
    if layout.positions == "all":
        before, after = _places(layout)
    else:
        forward = torch.cat([taps.forward for taps in layout.taps]).int()
        backward = torch.cat([taps.backward for taps in layout.taps]).int()
    return Plan(
        inputs, outputs, first_input, first_output, layout.dilations, tasks, groups, _all_as_one(inputs[0], device),
        torch.stack([group.bounds for group in groups]), table.to(device, non_blocking=True), before, after, forward, backward,
        tuple(None if kept is None else kept.int() for kept in layout.residual),
        tuple(None if kept is None else _reverse(kept, inputs[2 * block]) for block, kept in enumerate(layout.residual)),
    )  # fmt: skip


def _starts(counts: tuple[int, ...]) -> tuple[int, ...]:
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return tuple(starts)


def _reverse(kept: Tensor, inputs: int) -> Tensor:
    outputs = kept.shape[0]
    reader = torch.full((inputs,), outputs, dtype=torch.int32, device=kept.device)
    return reader.scatter_(0, kept, torch.arange(outputs, dtype=torch.int32, device=kept.device))


def _group(layout: Layout, task_of_row: Tensor | None, tasks: int) -> tuple[Grouping, ...]:
    made: dict[int, Grouping] = {}
    for taps in layout.taps:
        if id(taps.rows) not in made:  # all stages share one where every position is wanted
            made[id(taps.rows)] = _grouping(task_of_row, taps.rows, tasks)
    return tuple(made[id(taps.rows)] for taps in layout.taps)


def _all_as_one(count: int, device: torch.device) -> Grouping:
    return Grouping(None, count * torch.arange(2, dtype=torch.int32, device=device))


def _grouping(task_of_row: Tensor | None, rows: Tensor, tasks: int) -> Grouping:
    device = rows.device
    if task_of_row is None:
        return _all_as_one(rows.shape[0], device)
    ordered, order = torch.sort(task_of_row.index_select(0, rows).to(torch.int16), stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(tasks + 1, dtype=torch.int16, device=device), out_int32=True)
    return Grouping(order.int(), bounds)


def _places(layout: Layout) -> tuple[Tensor, Tensor]:
    rows = layout.taps[0].rows
    packed = torch.arange(rows.shape[0], device=rows.device)
    before = packed - layout.row_offsets.index_select(0, rows)
    after = layout.row_offsets.index_select(0, rows + 1) - 1 - packed
    return before.int(), after.int()
