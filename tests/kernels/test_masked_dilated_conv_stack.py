"""The stack's backends against one another and against plain convolutions, on rows of any lengths and tasks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_problems import LENGTHS, problem, with_gradients

from dist_teracon.kernels.masked_dilated_conv_stack import (
    StackParameters,
    build_layout,
    masked_dilated_conv_stack,
    reference,
)
from dist_teracon.kernels.masked_dilated_conv_stack.backends import gathered, load_backend
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu import stack as cpu


def plain(x, lengths, tasks, parameters, masks, dilations):
    """Each row alone through torch's own convolution, its past filled with zeros."""
    channels, taps = x.shape[1], parameters.weight.shape[-1]
    outputs = []
    for row, task in zip(x.split(lengths), tasks.tolist(), strict=True):
        if not len(row):
            continue
        y = row
        for block, d in enumerate(dilations):
            h = y
            for stage, dilation in ((2 * block, d), (2 * block + 1, 2 * d)):
                padded = F.pad(h.t()[None], ((taps - 1) * dilation, 0))
                u = F.conv1d(padded, parameters.weight[stage], parameters.bias[stage], dilation=dilation)[0].t()
                n = F.layer_norm(u, (channels,), parameters.norm_weight[stage], parameters.norm_bias[stage], 1e-8)
                h = masks[task, stage] * torch.relu(n)
            y = y + h
        outputs.append(y)
    return torch.cat(outputs) if outputs else x


@pytest.mark.parametrize("one_task", [False, True])
@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize(("kernel_size", "dilations"), [(2, (1, 4)), (3, (1, 4)), (3, (5, 3)), (4, (2, 7)), (5, (1, 3))])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_gathered_equals_reference_in_output_and_every_gradient(lengths, kernel_size, dilations, positions, one_task):
    x, row_offsets, tasks, parameters, masks = problem(lengths, kernel_size=kernel_size, one_task=one_task)
    layout = build_layout(row_offsets, tasks, dilations=dilations, kernel_size=kernel_size, positions=positions)
    out, gradients = with_gradients(gathered.stack, x, layout, parameters, masks)
    expected, expected_gradients = with_gradients(reference.stack, x, layout, parameters, masks)
    assert out.shape == (len(lengths) if positions == "last" else sum(lengths), x.shape[1])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for got, right in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("kernel_size", "dilations"), [(2, (1, 4)), (3, (1, 4, 1, 4)), (3, (5, 3)), (5, (1, 3))])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equals_plain_convolutions_on_each_row_alone(lengths, kernel_size, dilations):
    x, row_offsets, tasks, parameters, masks = problem(lengths, kernel_size=kernel_size, blocks=len(dilations))
    layout = build_layout(row_offsets, tasks, dilations=dilations, kernel_size=kernel_size)
    out = masked_dilated_conv_stack(x, layout, parameters, masks)
    torch.testing.assert_close(out, plain(x, lengths, tasks, parameters, masks, dilations), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("dilations", [(1, 4), (3,), (6, 1, 2)])
def test_last_is_all_at_the_last_position_and_zero_for_an_empty_row(kernel_size, dilations):
    lengths = [9, 0, 1, 30, 2, 17]
    x, row_offsets, tasks, parameters, masks = problem(lengths, kernel_size=kernel_size, blocks=len(dilations))
    last, every = (
        masked_dilated_conv_stack(
            x, build_layout(row_offsets, tasks, dilations=dilations, kernel_size=kernel_size, positions=positions), parameters, masks
        )
        for positions in ("last", "all")
    )
    full = [row for row, length in enumerate(lengths) if length]
    torch.testing.assert_close(last[full], every[(row_offsets[1:] - 1)[full]], rtol=1e-12, atol=1e-12)
    assert not last[1].any()


def test_no_masks_are_masks_of_one():
    x, row_offsets, tasks, parameters, masks = problem([4, 6])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    without = masked_dilated_conv_stack(x, layout, parameters, None)
    torch.testing.assert_close(without, masked_dilated_conv_stack(x, layout, parameters, torch.ones_like(masks)), rtol=0, atol=0)
    assert not torch.allclose(without, masked_dilated_conv_stack(x, layout, parameters, masks))


@pytest.mark.parametrize(("length", "computed", "of"), [(100, 921, 1600), (30, 386, 480)])
def test_last_computes_only_what_the_last_position_sees(length, computed, of):
    work = {
        positions: sum(
            taps.forward.shape[0]
            for taps in build_layout(
                torch.tensor([0, length]), torch.zeros(1, dtype=torch.int32), dilations=(1, 4) * 4, positions=positions
            ).taps
        )
        for positions in ("all", "last")
    }
    assert work == {"all": of, "last": computed}


@pytest.mark.parametrize("backend", [cpu.stack, gathered.stack, reference.stack])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_gradcheck(backend, positions):
    x, row_offsets, tasks, parameters, masks = problem([3, 0, 5], channels=3, tasks=2, blocks=1)
    layout = build_layout(row_offsets, tasks, dilations=(1,), positions=positions)
    leaves = [value.clone().requires_grad_() for value in (x, *parameters, masks)]
    assert torch.autograd.gradcheck(lambda x, w, b, g, h, m: backend(x, layout, StackParameters(w, b, g, h), m, eps=1e-8), leaves)


def test_same_bits_for_same_inputs():
    x, row_offsets, tasks, parameters, masks = problem(LENGTHS["many"])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    first, second = (with_gradients(gathered.stack, x, layout, parameters, masks) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("tasks", [[0, 0, 0], [1, 0, 1]])
def test_layout_of_host_tensors_is_the_same_and_reads_no_device_values(positions, tasks):
    from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.plan import make_plan

    host = torch.tensor([0, 2, 2, 9]), torch.tensor(tasks, dtype=torch.int32)
    plain = build_layout(*host, dilations=(1, 4), positions=positions)
    named = {"host_row_offsets": host[0], "host_task_of_row": host[1]}
    layout = build_layout(*host, dilations=(1, 4), positions=positions, **named)
    assert (layout.single_task, layout.tasks, layout.packed) == (plain.single_task, plain.tasks, plain.packed)
    assert torch.equal(layout.lengths, plain.lengths)
    # tensors on `meta` have no values to read
    without = build_layout(*(values.to("meta") for values in host), dilations=(1, 4), positions=positions, **named)
    assert [taps.forward.shape for taps in without.taps] == [taps.forward.shape for taps in plain.taps]
    assert make_plan(without, tasks=2).inputs == make_plan(plain, tasks=2).inputs


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"host_row_offsets": torch.tensor([0, 2])}, "together, got one of them"),
        ({"host_row_offsets": torch.tensor([0]), "host_task_of_row": torch.tensor([0])}, r"host_row_offsets: .* got \(1,\) on cpu"),
        (
            {"host_row_offsets": torch.tensor([0, 2]), "host_task_of_row": torch.tensor([0], device="meta")},
            r"host_task_of_row: expected .* on the CPU, got \(1,\) on meta",
        ),
    ],
)
def test_host_tensors_that_do_not_fit_are_refused(named, message):
    with pytest.raises(ValueError, match=message):
        build_layout(torch.tensor([0, 2]), torch.tensor([0]), dilations=(1,), **named)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dilations": (0,)},
        {"dilations": (1, -4)},
        {"dilations": ()},
        {"dilations": (1,), "kernel_size": 0},
        {"dilations": (1,), "task_of_row": torch.zeros(3, dtype=torch.int32)},
        {"dilations": (1,), "row_offsets": torch.tensor([[0, 2, 4]])},
    ],
)
def test_layout_refuses_what_does_not_fit(arguments):
    given = {"row_offsets": torch.tensor([0, 2, 4]), "task_of_row": torch.zeros(2, dtype=torch.int32), **arguments}
    with pytest.raises(ValueError, match=r"at least 1|needs one entry more"):
        build_layout(given.pop("row_offsets"), given.pop("task_of_row"), **given)


def _spoil(what, x, parameters, masks):
    spoilt = {
        "too few positions": (x[:-1], parameters, masks),
        "too many positions": (torch.cat([x, x]), parameters, masks),
        "stages missing": (x, StackParameters(*(value[:2] for value in parameters)), masks),
        "another kernel size": (x, parameters._replace(weight=parameters.weight[..., :2]), masks),
        "other channels": (x, parameters._replace(bias=parameters.bias[:, :3]), masks),
        "a mask too few": (x, parameters, masks[:, :3]),
        "no mask of the task": (x, parameters, masks[:0]),
    }
    return spoilt[what]


@pytest.mark.parametrize(
    "what",
    [
        "too few positions",
        "too many positions",
        "stages missing",
        "another kernel size",
        "other channels",
        "a mask too few",
        "no mask of the task",
    ],
)
def test_stack_refuses_shapes_that_do_not_fit(what):
    x, row_offsets, tasks, parameters, masks = problem([1], tasks=1)
    layout = build_layout(row_offsets, tasks, dilations=(1, 4), positions="last")
    x, parameters, masks = _spoil(what, x, parameters, masks)
    with pytest.raises(ValueError, match=r"expected .* got"):
        masked_dilated_conv_stack(x, layout, parameters, masks)


@pytest.fixture
def fresh_choice():
    from dist_teracon.kernels import masked_dilated_conv_stack as op

    op._choose.cache_clear()
    yield op
    op._choose.cache_clear()


def test_override_chooses_the_backend_and_is_logged_once(fresh_choice, monkeypatch, caplog):
    x, row_offsets, tasks, parameters, masks = problem([3, 4])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    called = []

    def load(name):
        return load_backend(name) if name == "cpu" else lambda *a, **k: called.append(name) or load_backend(name)(*a, **k)

    monkeypatch.setattr(fresh_choice, "load_backend", load)
    with caplog.at_level("INFO", logger="dist_teracon"):
        masked_dilated_conv_stack(x, layout, parameters, masks)
        assert not called
        monkeypatch.setenv("DIST_TERACON_KERNELS", "reference")
        for _ in range(3):
            masked_dilated_conv_stack(x, layout, parameters, masks)
    assert called == ["reference"] * 3
    assert ["'cpu' (default on a CPU)" in m or "'reference' (set by DIST_TERACON_KERNELS)" in m for m in caplog.messages] == [True, True]


def test_an_unknown_override_names_the_known_backends(monkeypatch):
    x, row_offsets, tasks, parameters, masks = problem([3])
    layout = build_layout(row_offsets, tasks, dilations=(1, 4))
    monkeypatch.setenv("DIST_TERACON_KERNELS", "referense")
    with pytest.raises(ValueError, match=r"DIST_TERACON_KERNELS=referense.*did you mean 'reference'.*gathered"):
        masked_dilated_conv_stack(x, layout, parameters, masks)
