"""Which backend runs where, and the errors of what cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist_teracon.kernels.masked_dilated_conv_stack import (
    BACKENDS,
    StackParameters,
    backend_of,
    build_layout,
    masked_dilated_conv_stack,
)
from dist_teracon.kernels.masked_dilated_conv_stack.backends import DEFAULTS, load_backend

ROOT = Path(__file__).parents[2]


def given(**changes):
    generator = torch.Generator().manual_seed(0)
    values = {
        "x": torch.randn(5, 16, generator=generator),
        "weight": torch.randn(2, 16, 16, 3, generator=generator),
        "bias": torch.zeros(2, 16),
        "norm_weight": torch.ones(2, 16),
        "norm_bias": torch.zeros(2, 16),
        "masks": torch.rand(2, 2, 16, generator=generator),
    }
    values |= {name: change(values[name]) for name, change in changes.items()}
    layout = build_layout(torch.tensor([0, 3, 5]), torch.tensor([0, 1]), dilations=(1,))
    return values["x"], layout, StackParameters(*list(values.values())[1:5]), values["masks"]


def test_a_gpu_runs_the_fused_kernels_by_default():
    assert backend_of("cuda", "") == ("triton", "default on a GPU")
    assert backend_of("cuda", "reference") == ("reference", "set by DIST_TERACON_KERNELS")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_registered_backend_can_be_loaded_and_is_documented(name):
    assert callable(load_backend(name))
    assert f"\n| `{name}` |" in (ROOT / "kernels/masked_dilated_conv_stack/README.md").read_text(encoding="utf-8")
    environment = (ROOT / "docs/training.md").read_text(encoding="utf-8").partition("| `DIST_TERACON_KERNELS` |")[2].partition("\n")[0]
    assert f"`{name}`" in environment


def test_defaults_are_registered():
    assert set(DEFAULTS.values()) <= set(BACKENDS)


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"DIST_TERACON_KERNELS=blas: no such backend \(known: cpu, gathered, reference, triton\)"):
        backend_of("cpu", "blas")


def test_fused_kernels_need_a_gpu_or_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("DIST_TERACON_KERNELS", "triton")
    with pytest.raises(ValueError, match=r"DIST_TERACON_KERNELS=triton: expected a GPU .* got 'cpu'; unset it"):
        masked_dilated_conv_stack(*given())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": lambda t: t.double()}, r"x: expected float32, bfloat16 or float16 .* got torch.float64"),
        ({"x": lambda t: t.bfloat16()}, r"x: expected float32 on a CPU, got torch.bfloat16"),
        ({"x": lambda t: t.t().contiguous().t()}, r"x: expected a contiguous tensor, got strides \(1, 5\) of shape \(5, 16\)"),
        ({"weight": lambda t: t.bfloat16()}, r"weight: expected torch.float32 as of x, got torch.bfloat16"),
        ({"masks": lambda t: t.half()}, r"masks: expected torch.float32 as of x, got torch.float16"),
        ({"bias": lambda t: t.to("meta")}, r"bias: expected cpu as of x, got meta"),
    ],
)
def test_fused_kernels_refuse_what_they_would_read_wrongly(changes, message):
    from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton import stack as triton_stack

    with pytest.raises(ValueError, match=message):
        triton_stack.stack(*given(**changes), eps=1e-8)


def test_too_many_channels_are_refused():
    from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.tile_table import choose_tile

    with pytest.raises(ValueError, match=r"channels: expected at most 512, .* got 513"):
        choose_tile("forward", "sm_90", bits=16, channels=513, gather=False)


@pytest.mark.parametrize(
    ("offsets", "tasks", "message"),
    [
        ([0, 3, 2], [0, 0], r"row_offsets: .* a shortest row of -1"),
        ([1, 3, 5], [0, 0], r"row_offsets: .* a start at 1"),
        ([0, 3, 5], [0, -1], r"task_of_row: expected indices of 0 and more, got -1"),
    ],
)
def test_a_layout_that_no_batch_has_is_refused(offsets, tasks, message):
    with pytest.raises(ValueError, match=message):
        build_layout(torch.tensor(offsets), torch.tensor(tasks), dilations=(1,))


def test_a_task_without_masks_is_refused():
    x, _, parameters, masks = given()
    layout = build_layout(torch.tensor([0, 3, 5]), torch.tensor([0, 2]), dilations=(1,))
    with pytest.raises(ValueError, match=r"masks: expected \[3 or more, 2, 16\] .* got \(2, 2, 16\)"):
        masked_dilated_conv_stack(x, layout, parameters, masks)


def test_offsets_that_do_not_end_at_the_last_position_are_refused():
    x, _, parameters, masks = given()
    layout = build_layout(torch.tensor([0, 3, 6]), torch.tensor([0, 1]), dilations=(1,))
    with pytest.raises(ValueError, match=r"x: expected the layout's 6 positions, got \(5, 16\)"):
        masked_dilated_conv_stack(x, layout, parameters, masks)


def test_triton_is_loaded_where_it_runs_alone():
    code = """
import sys
sys.modules["triton"] = None  # importing it raises
import torch
from dist_teracon.kernels.masked_dilated_conv_stack import StackParameters, build_layout, masked_dilated_conv_stack
layout = build_layout(torch.tensor([0, 3]), torch.tensor([0]), dilations=(1,))
p = StackParameters(torch.randn(2, 4, 4, 3), torch.zeros(2, 4), torch.ones(2, 4), torch.zeros(2, 4))
print(masked_dilated_conv_stack(torch.randn(3, 4), layout, p, None).shape)
"""
    environment = {name: value for name, value in os.environ.items() if name != "DIST_TERACON_KERNELS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([3, 4])"
