"""The CPU backend: its ways to convolve against the reference, its groups of rows, its rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_problems import LENGTHS, problem, with_gradients

from dist_teracon.kernels.masked_dilated_conv_stack import StackParameters, build_layout, cpu, reference
from dist_teracon.kernels.masked_dilated_conv_stack.cpu_convs import Direct, Filtered, Joined

RAGGED = {
    **LENGTHS,
    "longer than the field": [100, 37, 0, 64, 5, 2, 1, 81],
    "one length": [30] * 6,
    "some of one length": [9, 30, 30, 30, 4],
}


@pytest.fixture(params=[None, 1], ids=["few groups", "a group a row"])
def group_bytes(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(cpu, "GROUP_BYTES", request.param)


@pytest.fixture(params=[Direct, Filtered, Joined])
def way(request, monkeypatch):
    monkeypatch.setattr(cpu, "way_of", lambda *_: request.param)


@pytest.mark.usefixtures("group_bytes", "way")
@pytest.mark.parametrize("one_task", [False, True])
@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("dilations", [(1,), (1, 4), (5, 3), (9, 2)])
@pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED)
def test_equals_reference_in_output_and_every_gradient(lengths, dilations, positions, one_task):
    x, row_offsets, tasks, parameters, masks = problem(lengths, one_task=one_task, blocks=len(dilations))
    layout = build_layout(row_offsets, tasks, dilations=dilations, positions=positions)
    out, gradients = with_gradients(cpu.stack, x, layout, parameters, masks)
    wanted, wanted_gradients = with_gradients(reference.stack, x, layout, parameters, masks)
    assert out.shape == (len(lengths) if positions == "last" else sum(lengths), x.shape[1])
    torch.testing.assert_close(out, wanted, rtol=1e-11, atol=1e-11)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("group_bytes")
@pytest.mark.parametrize("kernel_size", [1, 2, 4, 5])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_other_numbers_of_taps(positions, kernel_size):
    x, row_offsets, tasks, parameters, masks = problem([5, 9, 0, 3, 30, 1, 7, 4], kernel_size=kernel_size)
    layout = build_layout(row_offsets, tasks, dilations=(1, 4), kernel_size=kernel_size, positions=positions)
    out, gradients = with_gradients(cpu.stack, x, layout, parameters, masks)
    wanted, wanted_gradients = with_gradients(reference.stack, x, layout, parameters, masks)
    torch.testing.assert_close(out, wanted, rtol=1e-11, atol=1e-11)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("change", ["zeros", "all zeros", "negative"])
@pytest.mark.parametrize("one_task", [False, True])
def test_masks_at_and_below_zero_have_the_references_output_and_gradients(one_task, change):
    x, row_offsets, tasks, parameters, masks = problem([5, 9, 3], one_task=one_task)
    masks = {"zeros": torch.where(masks < 0.5, 0, masks), "all zeros": 0 * masks, "negative": masks - 0.5}[change]
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    out, gradients = with_gradients(cpu.stack, x, layout, parameters, masks)
    wanted, wanted_gradients = with_gradients(reference.stack, x, layout, parameters, masks)
    torch.testing.assert_close(out, wanted, rtol=1e-11, atol=1e-11)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_without_masks_a_rows_task_is_not_looked_at():
    x, row_offsets, tasks, parameters, _ = problem([5, 9, 3])
    for of_row in (tasks, torch.full_like(tasks, 2)):
        layout = build_layout(row_offsets, of_row, dilations=(1, 4))
        out = cpu.stack(x, layout, parameters, None, eps=1e-8)
        torch.testing.assert_close(out, reference.stack(x, layout, parameters, None, eps=1e-8), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("dilation", [1, 4])
def test_a_block_in_fp32_is_the_reference_in_fp64_to_a_hundred_thousandth(dilation, positions):
    x, row_offsets, tasks, parameters, masks = problem([60, 3, 0, 31, 100], channels=64, blocks=1)
    layout = build_layout(row_offsets, tasks, dilations=(dilation,), positions=positions)
    parameters = parameters._replace(weight=parameters.weight / np.sqrt(3 * 64))
    out = cpu.stack(x.float(), layout, StackParameters(*(p.float() for p in parameters)), masks.float(), eps=1e-8)
    wanted = reference.stack(x, layout, parameters, masks, eps=1e-8)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)


def test_what_stands_in_other_rows_is_not_read():
    x, row_offsets, tasks, parameters, masks = problem([9, 4, 12, 1])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    spoilt = x.clone()
    spoilt[9:13] = float("nan")
    out, again = (cpu.stack(values, layout, parameters, masks, eps=1e-8) for values in (x, spoilt))
    assert torch.equal(out[:9], again[:9])
    assert torch.equal(out[13:], again[13:])
    assert again[9:13].isnan().all()


def test_same_bits_for_same_inputs():
    x, row_offsets, tasks, parameters, masks = problem([30, 7, 0, 55], channels=16)
    first, second = (
        with_gradients(
            cpu.stack,
            x.float(),
            build_layout(row_offsets, tasks, dilations=(1, 4)),
            StackParameters(*(p.float() for p in parameters)),
            masks.float(),
        )
        for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_weights_in_a_list_get_their_own_gradients():
    x, row_offsets, tasks, parameters, masks = problem([5, 8])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    lists = StackParameters(*([row.clone().requires_grad_() for row in values] for values in parameters))
    cpu.stack(x, layout, lists, masks, eps=1e-8).sum().backward()
    whole = StackParameters(*(values.clone().requires_grad_() for values in parameters))
    cpu.stack(x, layout, whole, masks, eps=1e-8).sum().backward()
    for parts, together in zip(lists, whole, strict=True):
        assert all(torch.equal(part.grad, grad) for part, grad in zip(parts, together.grad, strict=True))


@pytest.mark.parametrize("frozen", ["x", "weights", "masks"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen):
    x, row_offsets, tasks, parameters, masks = problem([6, 11])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))

    def gradients(without):
        leaves = {"x": [x.clone()], "weights": [p.clone() for p in parameters], "masks": [masks.clone()]}
        for name, values in leaves.items():
            for value in values:
                value.requires_grad_(name != without)
        cpu.stack(leaves["x"][0], layout, StackParameters(*leaves["weights"]), leaves["masks"][0], eps=1e-8).square().sum().backward()
        return {name: [value.grad for value in values] for name, values in leaves.items()}

    some, every = gradients(frozen), gradients(None)
    for name in every:
        for got, want in zip(some[name], every[name], strict=True):
            assert got is None if name == frozen else torch.equal(got, want)


def test_tensors_elsewhere_are_refused():
    x, row_offsets, tasks, parameters, masks = problem([5])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    with pytest.raises(ValueError, match="on a CPU, not on meta"):
        cpu.stack(x.to("meta"), layout, parameters, masks, eps=1e-8)
