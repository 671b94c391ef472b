"""The tables that the Triton kernels read in `last` mode, against the layout's, which are made convolution by convolution."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dist_teracon.kernels.masked_dilated_conv_stack import build_layout
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.plan import make_plan


def layout_of(lengths, task_of_row, dilations, kernel_size=3):
    row_offsets = torch.tensor([0, *lengths]).cumsum(0)
    return build_layout(
        row_offsets, torch.tensor(task_of_row, dtype=torch.int32), dilations=dilations, kernel_size=kernel_size, positions="last"
    )


def inverse(kept, inputs):
    reader = torch.full((inputs,), len(kept), dtype=torch.int32)
    return reader.scatter_(0, kept, torch.arange(len(kept), dtype=torch.int32))


def compare(layout, tasks):
    plan = make_plan(layout, tasks=tasks)
    assert plan.inputs == tuple(taps.backward.shape[0] for taps in layout.taps)
    assert plan.outputs == tuple(taps.forward.shape[0] for taps in layout.taps)
    assert torch.equal(plan.forward, torch.cat([taps.forward for taps in layout.taps]).int())
    assert torch.equal(plan.backward, torch.cat([taps.backward for taps in layout.taps]).int())
    for block, kept in enumerate(layout.residual):
        assert torch.equal(plan.kept[block], kept.int())
        assert torch.equal(plan.reader[block], inverse(kept, plan.inputs[2 * block]))
    assert torch.equal(plan.bounds, torch.stack([group.bounds for group in plan.groups]))
    assert plan.ungrouped.bounds.tolist() == [0, plan.inputs[0]]
    for taps, group in zip(layout.taps, plan.groups, strict=True):
        if layout.task_of_row is None or tasks is None:
            assert group.order is None
            assert group.bounds.tolist() == [0, len(taps.rows)]
            continue
        sorted_tasks, order = torch.sort(layout.task_of_row[taps.rows], stable=True)
        assert torch.equal(group.order, order.int())
        assert torch.equal(group.bounds, torch.searchsorted(sorted_tasks, torch.arange(tasks + 1)).int())
    return plan


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=12),
    dilations=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    kernel_size=st.integers(1, 5),
    masks=st.booleans(),
)
def test_same_tables_as_the_layout_s(rows, dilations, kernel_size, masks):
    layout = layout_of([length for length, _ in rows], [task for _, task in rows], dilations, kernel_size)
    compare(layout, 6 if masks else None)


@pytest.mark.parametrize("lengths", [[100] * 7, [1] * 5, [0, 0], [0], [], [100, 0, 1, 63, 24]])
@pytest.mark.parametrize("tasks", [1, 3])
def test_same_tables_at_the_model_s_dilations(lengths, tasks):
    compare(layout_of(lengths, [row % tasks for row in range(len(lengths))], (1, 4) * 4), 6)


def test_tables_are_aligned_as_launches_need_them():
    plan = compare(layout_of([5, 3, 7, 1], [2, 0, 1, 0], (1, 4, 1)), 3)
    whole = [plan.forward, plan.bounds, plan.ungrouped.bounds, *plan.kept, *plan.reader]
    whole += [tensor for group in plan.groups for tensor in (group.order, group.bounds) if tensor is not None]
    assert all(tensor.data_ptr() % 16 == 0 and tensor.is_contiguous() for tensor in whole)


class Counting(TorchDispatchMode):
    """Counts the operations within, views aside."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not any(alias.alias_info for alias in function._schema.arguments if alias.alias_info and not alias.alias_info.is_write):
            self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("blocks", [2, 8])
def test_a_deep_stack_takes_no_more_operations_than_a_shallow_one(blocks):
    make_plan(layout_of([20, 9, 3], [0, 1, 2], (1, 4) * (blocks // 2)), tasks=3)  # the cached part
    layout = layout_of([20, 9, 3], [0, 1, 2], (1, 4) * (blocks // 2))
    with Counting() as counting:
        make_plan(layout, tasks=3)
    assert sum(counting.calls.values()) <= 30, counting.calls
