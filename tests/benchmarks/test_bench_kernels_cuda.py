"""The GPU benchmark of the convolution stack, as far as it goes without a GPU."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.bench import kernels_cuda, kernels_profile
from dist_teracon.errors import RunError
from dist_teracon.kernels.masked_dilated_conv_stack import StackParameters, build_layout, masked_dilated_conv_stack


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="no NVIDIA GPU"):
        kernels_cuda.run_cuda(None)
    with pytest.raises(RunError, match="no NVIDIA GPU"):
        kernels_profile.run_profile(None)


def test_floor_of_a_shape():
    best = kernels_cuda.floor(102_400)
    assert best.memory == pytest.approx(9.5 * 16 * 102_400 * 256 * 2 / 3.35e12)
    assert best.arithmetic == pytest.approx(3 * 2 * 16 * 3 * 102_400 * 256 * 256 / 989e12)
    assert best.seconds == best.memory


def test_plain_path_computes_the_same_stack(monkeypatch):
    monkeypatch.setattr(kernels_cuda, "CHANNELS", 8)
    generator = torch.Generator().manual_seed(0)
    stages = 2 * len(kernels_cuda.DILATIONS)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    parameters = StackParameters(draw(stages, 8, 8, 3), draw(stages, 8), draw(stages, 8), draw(stages, 8))
    x, masks = draw(2, 8, 20), draw(1, stages, 8)
    layout = build_layout(torch.tensor([0, 20, 40]), torch.zeros(2, dtype=torch.int32), dilations=kernels_cuda.DILATIONS)
    packed = x.transpose(1, 2).reshape(40, 8)
    expected = masked_dilated_conv_stack(packed, layout, parameters, masks).view(2, 20, 8).transpose(1, 2)
    torch.testing.assert_close(kernels_cuda._eager(x, parameters, masks), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", kernels_profile.CASES, ids=lambda case: case.label)
def test_profiled_call_returns_every_gradient(case):
    gradients = kernels_profile.call(case, device="cpu", channels=8, rows=7)()
    assert len(gradients) == 6
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
