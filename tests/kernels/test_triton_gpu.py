"""The fused kernels on a GPU, at real shapes, fp32 and bf16, against fp64; and that they are what runs there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stack_cases import Case, compare, differentiate, fused, problem

from dist_teracon.kernels.masked_dilated_conv_stack import build_layout, masked_dilated_conv_stack, reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

# bf16 holds 8 bits: a rounding is 2⁻⁹ at most, and inputs, normalised values and two gradients are rounded one after another
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}
RAGGED = tuple((37 * row) % 101 for row in range(300))


def check(answer, dtype):
    assert {name: error for name, error in answer["errors"].items() if not error <= TOLERANCE[dtype]} == {}
    assert answer["same"], "the same inputs gave other bits"


# Rounding turns a ReLU over wherever a pre-activation is near zero, and the gradient there is another one: `clear` keeps all of them
# away from zero, so that the gradients at real shapes can be compared closely. Turning ReLUs are compared at small shapes, below.
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("channels", [64, 96, 256, 512])
@pytest.mark.parametrize("dilations", [(1,), (4,)])
@pytest.mark.parametrize("tasks", [1, 6])
def test_a_block_at_real_shapes(dtype, positions, channels, dilations, tasks):
    seed = int(torch.randint(1 << 30, ()))
    print(f"seed {seed}")
    case = Case(RAGGED, channels, 3, dilations, positions, tasks, seed, clear=True, again=True, dtype=dtype, device="cuda")
    check(compare(case), dtype)


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("channels", [16, 48, 128])
def test_turning_relus_in_fp32(positions, channels, kernel_size):
    check(compare(Case((7, 1, 2, 0, 19, 3), channels, kernel_size, (1, 4), positions, device="cuda")), "float32")


def test_long_rows():
    case = Case((2048, 1, 0, 2047), 256, 3, (1, 4), clear=True, dtype="bfloat16", device="cuda")
    check(compare(case), "bfloat16")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_eight_blocks_stage_by_stage(dtype):
    """Each block of a deep stack is given the fp64 result of the blocks below it, rounded, so that errors do not add up."""
    deep = Case(RAGGED[:60], 256, 3, (1, 4) * 4, clear=True, dtype=dtype, device="cuda")
    leaves, _ = problem(deep)
    x = leaves[0]
    generator = torch.Generator("cuda").manual_seed(1)
    for block, dilation in enumerate(deep.dilations):
        _, layout = problem(Case(deep.lengths, 256, 3, (dilation,), device="cuda"))
        own = slice(2 * block, 2 * block + 2)
        given = [x, *(leaf[own] for leaf in leaves[1:5]), leaves[5][:, own]]
        given = [leaf.to(getattr(torch, dtype)).double() for leaf in given]
        weights = torch.randn(x.shape, dtype=torch.float64, device="cuda", generator=generator).to(getattr(torch, dtype)).double()
        right = differentiate(reference.stack, given, layout, torch.float64, weights)
        got = fused(given, layout, getattr(torch, dtype), weights)
        errors = {name: float((got[name].double() - value).norm() / value.norm()) for name, value in right.items()}
        assert {name: error for name, error in errors.items() if not error <= TOLERANCE[dtype]} == {}, f"block {block}"
        x = right["output"]


def test_triton_kernels_run_by_default(monkeypatch):
    monkeypatch.delenv("DIST_TERACON_KERNELS", raising=False)
    case = Case((30, 20), 64, dtype="bfloat16", device="cuda")
    leaves, layout = problem(case)

    def stack(x, layout, parameters, masks, *, eps):
        return masked_dilated_conv_stack(x, layout, parameters, masks, eps=eps)

    weights = torch.ones(50, 64, dtype=torch.float64, device="cuda")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        differentiate(stack, leaves, layout, torch.bfloat16, weights)
        torch.cuda.synchronize()
    names = [event.name for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    for kernel, launches in {"forward_stage": 4, "backward_stage": 5, "weight_gradient": 1, "sum_tiles": 1}.items():
        assert sum(kernel in name for name in names) == launches, names


@pytest.mark.parametrize("positions", ["all", "last"])
def test_neither_layout_nor_call_waits_for_the_gpu(positions):
    case = Case((30, 20), 64, positions=positions, dtype="bfloat16", device="cuda")
    leaves, _ = problem(case)
    host = torch.tensor([0, 30, 50]), torch.tensor([0, 1], dtype=torch.int32)
    row_offsets, task_of_row = (values.cuda() for values in host)
    weights = torch.ones(2 if positions == "last" else 50, 64, dtype=torch.float64, device="cuda")

    def stack(x, _, parameters, masks, *, eps):
        layout = build_layout(
            row_offsets, task_of_row, dilations=case.dilations, positions=positions, host_row_offsets=host[0], host_task_of_row=host[1]
        )
        return masked_dilated_conv_stack(x, layout, parameters, masks, eps=eps)

    differentiate(stack, leaves, None, torch.bfloat16, weights)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        differentiate(stack, leaves, None, torch.bfloat16, weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")


_BOTH_MODES = """
from stack_cases import Case, compare
for positions in ("all", "last"):
    for dtype in ("float32", "bfloat16"):
        print(compare(Case((7, 1, 0, 40), 64, 3, (1, 4), positions, 2, dtype=dtype, device="cuda"))["errors"])
"""


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer on this machine")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_kernels_touch_only_their_own_memory(tool):
    found = [str(Path(__file__).parents[1] / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", _BOTH_MODES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
