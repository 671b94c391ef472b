"""The CPU backend: its ways to convolve against the reference, its groups of rows, its rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_problems import LENGTHS, problem, with_gradients

from dist_teracon.kernels.masked_dilated_conv_stack import (
    FrozenParameters,
    StackParameters,
    build_layout,
    reference,
)
from dist_teracon.kernels.masked_dilated_conv_stack.backends import gathered
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu import convolutions as cpu_convs
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu import plan as cpu_plan
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu import products as cpu_products
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu import stack as cpu
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.convolutions import (
    FILTERED_FROM,
    Direct,
    Filtered,
    Joined,
    select_algorithm,
)
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.filters import OF_FOUR, OF_TWO
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.plan import common_size, plan
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.products import ConvolutionProducts, Products, common_size_within

RAGGED = {
    **LENGTHS,
    "longer than the field": [100, 37, 0, 64, 5, 2, 1, 81],
    "one length": [30] * 6,
    "some of one length": [9, 30, 30, 30, 4],
    "much in common": [40, 21, 33, 36],
}


@pytest.fixture(autouse=True)
def no_kept_plans():
    """Tests change the rules by which plans are made."""
    cpu_plan._shape.cache_clear()
    yield
    cpu_plan._shape.cache_clear()


@pytest.fixture(params=[None, 1], ids=["few groups", "a group a row"])
def group_bytes(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(cpu, "GROUP_BYTES", request.param)


@pytest.fixture(params=[Direct, Filtered, Joined])
def way(request, monkeypatch):
    monkeypatch.setattr(cpu, "select_algorithm", lambda *_: request.param)
    monkeypatch.setattr(cpu_plan, "LEAST_SAVED", 1)


@pytest.fixture(params=[Products, ConvolutionProducts])
def products(request, monkeypatch):
    monkeypatch.setattr(cpu_convs, "products_of", lambda *_: request.param())
    monkeypatch.setattr(cpu_products, "LEAST_MULTIPLICATIONS", 1)


@pytest.mark.usefixtures("group_bytes", "way", "products")
@pytest.mark.parametrize("one_task", [False, True])
@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("dilations", [(1,), (1, 4), (5, 3), (9, 2)])
@pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED)
def test_equals_reference_in_output_and_every_gradient(lengths, dilations, positions, one_task):
    x, row_offsets, tasks, parameters, masks = problem(lengths, one_task=one_task, blocks=len(dilations))
    layout = build_layout(row_offsets, tasks, dilations=dilations, positions=positions)
    out, gradients = with_gradients(cpu.stack, x, layout, parameters, masks)
    expected, expected_gradients = with_gradients(reference.stack, x, layout, parameters, masks)
    assert out.shape == (len(lengths) if positions == "last" else sum(lengths), x.shape[1])
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    for got, right in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("group_bytes")
@pytest.mark.parametrize("kernel_size", [1, 2, 4, 5])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_other_numbers_of_taps(positions, kernel_size):
    x, row_offsets, tasks, parameters, masks = problem([5, 9, 0, 3, 30, 1, 7, 4], kernel_size=kernel_size)
    layout = build_layout(row_offsets, tasks, dilations=(1, 4), kernel_size=kernel_size, positions=positions)
    out, gradients = with_gradients(cpu.stack, x, layout, parameters, masks)
    expected, expected_gradients = with_gradients(reference.stack, x, layout, parameters, masks)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    for got, right in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("change", ["zeros", "all zeros", "negative"])
@pytest.mark.parametrize("one_task", [False, True])
def test_masks_at_and_below_zero_have_the_references_output_and_gradients(one_task, change):
    x, row_offsets, tasks, parameters, masks = problem([5, 9, 3], one_task=one_task)
    masks = {"zeros": torch.where(masks < 0.5, 0, masks), "all zeros": 0 * masks, "negative": masks - 0.5}[change]
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    out, gradients = with_gradients(cpu.stack, x, layout, parameters, masks)
    expected, expected_gradients = with_gradients(reference.stack, x, layout, parameters, masks)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    for got, right in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-10)


def test_masks_may_lie_in_any_order():
    x, row_offsets, tasks, parameters, masks = problem([5, 9, 3])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    transposed = masks.transpose(0, 1).contiguous().transpose(0, 1)
    assert transposed.shape[0] > 1
    assert not transposed.is_contiguous()
    _, gradients = with_gradients(cpu.stack, x, layout, parameters, transposed)
    _, expected = with_gradients(reference.stack, x, layout, parameters, masks)
    for got, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("way", "products")
def test_a_second_backward_pass_gives_the_same():
    x, row_offsets, tasks, parameters, masks = problem([30, 30, 21, 9])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    leaves = [value.clone().requires_grad_() for value in (x, *parameters, masks)]
    total = cpu.stack(leaves[0], layout, StackParameters(*leaves[1:5]), leaves[5], eps=1e-8).square().sum()
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(total, leaves)
    for once, again, before in zip(first, second, kept, strict=True):
        assert torch.equal(once, before)
        assert torch.equal(once, again)


def test_without_masks_a_rows_task_is_not_looked_at():
    x, row_offsets, tasks, parameters, _ = problem([5, 9, 3])
    for of_row in (tasks, torch.full_like(tasks, 2)):
        layout = build_layout(row_offsets, of_row, dilations=(1, 4))
        out = cpu.stack(x, layout, parameters, None, eps=1e-8)
        torch.testing.assert_close(out, reference.stack(x, layout, parameters, None, eps=1e-8), rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("channels", [64, FILTERED_FROM])
def test_a_block_in_fp32_is_the_reference_in_fp64_to_a_hundred_thousandth(channels, dilation, positions):
    x, row_offsets, tasks, parameters, masks = problem([60, 3, 0, 31, 100], channels=channels, blocks=1)
    layout = build_layout(row_offsets, tasks, dilations=(dilation,), positions=positions)
    parameters = parameters._replace(weight=parameters.weight / np.sqrt(3 * channels))
    out = cpu.stack(x.float(), layout, StackParameters(*(p.float() for p in parameters)), masks.float(), eps=1e-8)
    expected = reference.stack(x, layout, parameters, masks, eps=1e-8)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("lengths", [[100] * 6, [60, 71, 55, 80] * 2], ids=["even", "ragged"])
def test_filtered_gradients_in_fp32_are_those_in_fp64_to_a_hundred_thousandth(lengths, positions):
    x, row_offsets, tasks, parameters, masks = problem(lengths, channels=FILTERED_FROM, blocks=1, one_task=True)
    layout = build_layout(row_offsets, tasks, dilations=(1,), positions=positions)
    (group,) = plan(layout, positions_at_once=1000)
    assert all(stage.cut is not None for stage in group.stages) or positions == "last"
    # all gates open: one that rounding shuts would be an error of another kind
    parameters = parameters._replace(weight=parameters.weight / np.sqrt(3 * FILTERED_FROM), norm_bias=5 * parameters.norm_weight.abs())
    wide = [x, *parameters, masks]
    shape = (len(lengths), FILTERED_FROM) if positions == "last" else x.shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def run(stack, dtype):
        leaves = [value.to(dtype).requires_grad_() for value in wide]
        out = stack(leaves[0], layout, StackParameters(*leaves[1:5]), leaves[5], eps=1e-8)
        return [out.detach().double(), *(grad.double() for grad in torch.autograd.grad(out, leaves, weights.to(dtype)))]

    for got, right in zip(run(cpu.stack, torch.float32), run(reference.stack, torch.float64), strict=True):
        assert (got - right).norm() <= 1e-5 * right.norm()


@pytest.mark.parametrize("positions", ["all", "last"])
def test_bf16_is_nearer_to_fp64_than_the_reference_in_bf16(positions):
    x, row_offsets, tasks, parameters, masks = problem([60, 3, 0, 31, 100], channels=64, blocks=2)
    layout = build_layout(row_offsets, tasks, dilations=(1, 4), positions=positions)
    parameters = parameters._replace(weight=parameters.weight / np.sqrt(3 * 64))
    narrow = [value.bfloat16() for value in (x, *parameters, masks)]
    shape = (5, 64) if positions == "last" else x.shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()

    def run(stack, dtype):
        leaves = [value.to(dtype).requires_grad_() for value in narrow]
        out = stack(leaves[0], layout, StackParameters(*leaves[1:5]), leaves[5], eps=1e-8)
        return [out.detach().double(), *(grad.double() for grad in torch.autograd.grad(out, leaves, weights.to(dtype)))]

    for ours, plain, exact in zip(
        run(cpu.stack, torch.bfloat16), run(reference.stack, torch.bfloat16), run(reference.stack, torch.float64), strict=True
    ):
        assert (ours - exact).norm() <= 0.04 * exact.norm()
        assert (ours - exact).norm() <= 0.9 * (plain - exact).norm()  # plain rounds between products too


@pytest.mark.parametrize(
    ("dtype", "channels", "taps", "way"),
    [
        (torch.float32, 64, 3, Direct),
        (torch.float32, FILTERED_FROM, 3, Filtered),
        (torch.float64, FILTERED_FROM, 3, Filtered),
        (torch.float32, FILTERED_FROM, 2, Direct),
        (torch.bfloat16, 64, 3, Joined),
        (torch.bfloat16, 64, 5, Joined),
    ],
)
def test_ways_follow_number_type_width_and_taps(dtype, channels, taps, way):
    assert select_algorithm(dtype, channels, taps) is way


@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_kept_plan_serves_rows_of_the_same_lengths_in_another_order(positions):
    """Frozen parameters and a plan that was made before give the bits of parameters and a plan made anew."""
    _, _, _, parameters, _ = problem([1], channels=8)
    frozen = FrozenParameters(*parameters)
    for lengths in ([7, 3, 0, 12], [12, 7, 3], [3, 12, 7], [7], [7], [5] * 6, [5] * 6):
        x, row_offsets, tasks, _, masks = problem(lengths, channels=8, one_task=True, seed=len(lengths))
        made = [build_layout(row_offsets, tasks, dilations=(1, 2), positions=positions) for _ in range(2)]
        kept = cpu.stack(x, made[0], frozen, masks, eps=1e-8)
        torch.testing.assert_close(kept, reference.stack(x, made[0], parameters, masks, eps=1e-8), rtol=1e-11, atol=1e-11)
        cpu_plan._shape.cache_clear()
        assert torch.equal(kept, cpu.stack(x, made[1], parameters, masks, eps=1e-8))


@torch.no_grad()
def test_what_is_kept_of_masks_is_of_these_masks_as_they_are():
    """Other masks, none, other number types, and masks that were written over or have become negative, give what they give anew."""
    x, row_offsets, tasks, parameters, masks = problem([7, 3, 12], channels=8, one_task=True)
    layout = build_layout(row_offsets, tasks, dilations=(1, 2))
    frozen = FrozenParameters(*parameters)

    def assert_same(masks, x=x, frozen=frozen, parameters=parameters):
        assert torch.equal(cpu.stack(x, layout, frozen, masks, eps=1e-8), cpu.stack(x, layout, parameters, masks, eps=1e-8))

    for one in (masks, None, masks, masks.flip(0), masks.clone(), None):
        assert_same(one)
    assert_same(masks, x.float(), FrozenParameters(*(p.float() for p in parameters)), StackParameters(*(p.float() for p in parameters)))
    for changed in (masks.mul_(0.5), masks.neg_()):
        assert_same(changed)
    for number in range(20):
        assert_same(torch.full_like(masks, number / 20))
    assert len(frozen.prepared["norms"]) == cpu._NORMS_KEPT
    with torch.inference_mode():
        uncounted = masks.abs()
        assert_same(uncounted)
        assert_same(uncounted.mul_(0.1))


def test_groups_hold_every_row_once_and_one_task_each():
    lengths = [30] * 20 + [7, 0, 12, 1, 30, 9, 9, 2]
    tasks = torch.arange(len(lengths)) % 3
    layout = build_layout(torch.tensor([0, *lengths]).cumsum(0), tasks, dilations=(1, 4), positions="last")
    groups = plan(layout, positions_at_once=90)
    rows = [group.results.tolist() for group in groups]
    assert sorted(itertools.chain.from_iterable(rows)) == [row for row, length in enumerate(lengths) if length]
    assert all({int(tasks[row]) for row in of_group} == {group.task} for of_group, group in zip(rows, groups, strict=True))
    assert max(sum(lengths[row] for row in of_group) for of_group in rows) <= 120


def test_taps_of_rows_of_one_length_are_stretches_of_memory():
    layout = build_layout(torch.arange(0, 31 * 4, 30), torch.zeros(4, dtype=torch.int64), dilations=(1, 4))
    (group,) = plan(layout, positions_at_once=1000)
    assert [(tap.read, tap.dest) for tap in group.stages[1].taps] == [
        (slice(reach * 8, 120), slice(0, 120 - reach * 8)) for reach in range(3)
    ]


@pytest.mark.parametrize(
    ("lengths", "dilation", "filter_", "uses"),
    [
        ([100] * 3, 1, OF_FOUR, 25),
        ([100] * 3, 8, OF_FOUR, 3),
        ([3] * 3, 1, OF_TWO, 1),
        ([6] * 3, 1, OF_FOUR, 1),
        ([7] * 3, 1, OF_FOUR, 1),
        ([8] * 3, 1, OF_FOUR, 2),
        ([40, 33, 21], 1, OF_FOUR, 4),  # the last two of 21 distances are read alone
        ([40, 33, 5], 1, OF_TWO, 1),
        ([40, 33, 3], 1, None, 0),
        ([24, 24], 4, OF_FOUR, 1),
        ([8, 8], 4, None, 0),  # taps before a row's start are left out, so there is less to save
        ([5, 5], 3, None, 0),
    ],
)
def test_algorithms_make_what_all_rows_have(lengths, dilation, filter_, uses, monkeypatch):
    monkeypatch.setattr(cpu_plan, "LEAST_SAVED", 1)
    layout = build_layout(torch.tensor([0, *lengths]).cumsum(0), torch.zeros(len(lengths), dtype=torch.int64), dilations=(dilation,))
    (group,) = plan(layout, positions_at_once=1000)
    cut = group.stages[0].cut
    if filter_ is None:
        assert cut is None
        return
    assert (cut.filter, cut.uses) == (filter_, uses)
    made = filter_.outputs * uses * dilation  # distances
    assert cut.made == made * len(lengths)
    assert sum(tap.size for tap in cut.rest) == sum(max(0, length - reach * dilation - made) for length in lengths for reach in range(3))


@pytest.mark.parametrize("filter_", [OF_TWO, OF_FOUR])
def test_an_algorithm_is_the_sum_over_taps(filter_):
    """On numbers: as many uses as blocks, each block one number, so products of matrices are products."""
    generator = torch.Generator().manual_seed(0)
    taps, x = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (3, filter_.outputs + 2))
    products = [operand * matrix for operand, matrix in zip(filter_.operands(x.unbind(0)), filter_.matrices(taps), strict=True)]
    y = [torch.zeros((), dtype=torch.float64) for _ in range(filter_.outputs)]
    filter_.combine([product.clone() for product in products[1:-1]], y)
    y[0] += products[0]
    y[-1] += products[-1]
    torch.testing.assert_close(torch.stack(y), x.unfold(0, 3, 1) @ taps)


@given(size=st.integers(1, 1 << 20))
def test_common_sizes_are_few_and_little_larger(size):
    made = common_size(size)
    assert size <= made <= size * 17 / 16
    assert common_size(made) == made
    assert made >> max(0, made.bit_length() - 5) << max(0, made.bit_length() - 5) == made


@given(size=st.integers(1, 1 << 20), multiple=st.sampled_from([1, 16]))
def test_common_sizes_within_are_few_and_little_smaller(size, multiple):
    made = common_size_within(size, multiple)
    assert made <= size < made + max(multiple, size / 32 + 1)
    assert made % multiple == 0
    assert common_size_within(made, multiple) == made
    assert made % (1 << max(0, size.bit_length() - 6)) == 0


def test_negative_masks_run_by_gathered_which_is_logged_once(caplog):
    x, row_offsets, tasks, parameters, masks = problem([5, 3])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    cpu._log_once.cache_clear()
    with caplog.at_level("INFO", logger="dist_teracon"):
        outputs = [cpu.stack(x, layout, parameters, masks - 0.5, eps=1e-8) for _ in range(2)]
    assert torch.equal(outputs[0], gathered.stack(x, layout, parameters, masks - 0.5, eps=1e-8))
    assert ["run by 'gathered'" in message for message in caplog.messages] == [True]


@pytest.mark.usefixtures("group_bytes", "way", "products")
def test_what_stands_in_other_rows_is_not_read():
    x, row_offsets, tasks, parameters, masks = problem([9, 4, 12, 1])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    spoilt = x.clone()
    spoilt[9:13] = float("nan")
    out, again = (cpu.stack(values, layout, parameters, masks, eps=1e-8) for values in (x, spoilt))
    assert torch.equal(out[:9], again[:9])
    assert torch.equal(out[13:], again[13:])
    assert again[9:13].isnan().all()


@pytest.mark.usefixtures("way", "products")
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


@pytest.mark.usefixtures("way", "products")
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
        for got, right in zip(some[name], every[name], strict=True):
            assert got is None if name == frozen else torch.equal(got, right)


def test_tensors_elsewhere_are_refused():
    x, row_offsets, tasks, parameters, masks = problem([5])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    with pytest.raises(ValueError, match="expected tensors on a CPU, got meta"):
        cpu.stack(x.to("meta"), layout, parameters, masks, eps=1e-8)


def test_wide_bf16_runs_by_gathered():
    x, row_offsets, tasks, parameters, masks = problem([9, 3], channels=FILTERED_FROM, blocks=1)
    layout = build_layout(row_offsets, tasks, dilations=(1,))
    x, masks, parameters = x.bfloat16(), masks.bfloat16(), StackParameters(*(p.bfloat16() for p in parameters))
    assert torch.equal(cpu.stack(x, layout, parameters, masks, eps=1e-8), gathered.stack(x, layout, parameters, masks, eps=1e-8))
