"""The running mean of packed rows against a plain loop in fp64: values and gradients, plain torch, Triton's interpreter, a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dist_teracon.kernels.running_mean import reference, running_mean

LENGTHS = ((4, 1, 0, 18, 3), (1, 1, 1), (0, 5, 0), (0, 0), ())


def errors(mean, lengths, channels, dtype, device="cpu"):
    """Largest differences from the loop, of values and of gradients."""
    generator = torch.Generator().manual_seed(len(lengths) + channels)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.randn(int(offsets[-1]), channels, generator=generator).to(dtype)
    weight = torch.randn(values.shape, generator=generator).to(dtype)
    x = values.to(device).requires_grad_()
    found = mean(x, offsets.to(device))
    assert found.dtype == dtype
    (gradient,) = torch.autograd.grad((found * weight.to(device)).sum(), x)
    exact = values.double().requires_grad_()
    rows = [exact[a:b].cumsum(0) / torch.arange(1, b - a + 1)[:, None] for a, b in pairwise(offsets.tolist())]
    expected = torch.cat([*rows, exact[:0]])
    (expected_gradient,) = torch.autograd.grad((expected * weight.double()).sum(), exact)
    pairs = ((found, expected), (gradient, expected_gradient))
    return [float((one.detach().cpu().double() - other.detach()).abs().max()) if one.numel() else 0.0 for one, other in pairs]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_plain_torch(lengths):
    assert max(errors(running_mean, lengths, 5, torch.float32)) < 1e-6
    assert max(errors(running_mean, lengths, 5, torch.float64)) < 1e-14


def test_a_rows_mean_does_not_depend_on_the_rows_before_it():
    row = torch.full((50, 3), 1e-3)
    before = torch.full((400, 3), 1e6)
    alone = reference.running_mean(row, torch.tensor([0, 50]))
    behind = reference.running_mean(torch.cat([before, row]), torch.tensor([0, 400, 450]))[400:]
    torch.testing.assert_close(alone, behind, rtol=1e-4, atol=0)


def test_the_kernels_in_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", "import test_running_mean as t; t.interpreted()"], cwd=Path(__file__).parent, capture_output=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def interpreted():
    from dist_teracon.kernels.running_mean import fused

    for lengths in LENGTHS:
        for channels in (5, 70):
            assert max(errors(fused.running_mean, lengths, channels, torch.float32)) < 1e-6, (lengths, channels)
    assert max(errors(fused.running_mean, LENGTHS[0], 5, torch.float64)) < 1e-14


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="expected x"):
        running_mean(torch.zeros(4), torch.tensor([0, 4]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-13), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("channels", [5, 64, 256])
def test_the_kernels_on_a_gpu(dtype, tolerance, channels):
    lengths = tuple((37 * row) % 101 for row in range(300))
    assert max(errors(running_mean, lengths, channels, dtype, device="cuda")) < tolerance
    for short in LENGTHS:
        assert max(errors(running_mean, short, channels, dtype, device="cuda")) < tolerance
