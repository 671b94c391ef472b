"""A layout in the form in which the Triton kernels read it: small int32 tables, made without waiting for the device.

Legend: N packed positions, B rows (users), k taps, T tasks, K convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.last_tables import make_last_tables
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
    task_of_row = None if tasks is None else layout.task_of_row
    tasks = 1 if tasks is None or task_of_row is None else tasks
    key = ("triton", tasks, task_of_row is None)
    if key not in layout.plans:
        layout.plans[key] = (_plan_all if layout.positions == "all" else _plan_last)(layout, task_of_row, tasks)
    made: Plan = layout.plans[key]
    return made


def _plan_all(layout: Layout, task_of_row: Tensor | None, tasks: int) -> Plan:
    """Every position at every stage: a tap is one offset for all, and where a sequence starts and ends says all the rest."""
    device, total, stages = layout.row_offsets.device, layout.packed, len(layout.stage_dilations)
    lengths = layout.row_offsets.diff()
    rows = torch.repeat_interleave(torch.arange(layout.rows, device=device), lengths, output_size=total)
    packed = torch.arange(total, device=device)
    before = packed - layout.row_offsets.index_select(0, rows)
    group = _grouping(task_of_row, rows, tasks)
    counts = (total,) * stages
    return Plan(
        counts, counts, _starts(counts), _starts(counts), layout.stage_dilations, tasks, (group,) * stages, _all_as_one(total, device),
        group.bounds.expand(stages, -1).contiguous(), _table(layout, counts, counts),
        before.int(), (lengths.index_select(0, rows) - 1 - before).int(), None, None,
        (None,) * (stages // 2), (None,) * (stages // 2),
    )  # fmt: skip


def _plan_last(layout: Layout, task_of_row: Tensor | None, tasks: int) -> Plan:
    """What the last positions see: each stage has positions of its own, and reads by index."""
    made = make_last_tables(layout, tasks=None if task_of_row is None else tasks)
    groups = tuple(Grouping(order, bounds) for order, bounds in zip(made.orders, made.bounds, strict=True))
    return Plan(
        made.inputs, made.outputs, _starts(made.inputs), _starts(made.outputs), layout.stage_dilations, tasks, groups,
        Grouping(None, made.input_bounds), made.all_bounds, _table(layout, made.inputs, made.outputs),
        None, None, made.forward, made.backward, made.kept, made.reader,
    )  # fmt: skip


def _table(layout: Layout, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Tensor:
    stages = zip(_starts(inputs), _starts(outputs), inputs, outputs, layout.stage_dilations, strict=False)
    return torch.tensor(list(stages), dtype=torch.int64).to(layout.row_offsets.device, non_blocking=True)


def _starts(counts: tuple[int, ...]) -> tuple[int, ...]:
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return tuple(starts)


def _all_as_one(count: int, device: torch.device) -> Grouping:
    return Grouping(None, count * torch.arange(2, dtype=torch.int32, device=device))


def _grouping(task_of_row: Tensor | None, rows: Tensor, tasks: int) -> Grouping:
    device = rows.device
    if task_of_row is None:
        return _all_as_one(rows.shape[0], device)
    ordered, order = torch.sort(task_of_row.index_select(0, rows).to(torch.int16), stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(tasks + 1, dtype=torch.int16, device=device), out_int32=True)
    return Grouping(order.int(), bounds)
