"""One more position of rows: each of several by torch, a single one by NumPy, all by reading the longer row."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.kernels.masked_dilated_conv_stack import StackParameters
from dist_teracon.models.conv_step import ConvolutionStepper
from dist_teracon.models.conv_step_row import RowStepper


def stepper(channels: int, taps: int, *, masked: bool, views: int = 1) -> ConvolutionStepper:
    generator = torch.Generator().manual_seed(channels)
    dilations = (1, 2, 4, 8)
    weight = torch.randn(4, channels, channels, taps, generator=generator) / (channels * taps) ** 0.5
    bias, scale, shift = torch.randn(3, 4, channels, generator=generator)
    masks = torch.rand(views, 4, channels, generator=generator).sub(0.2).clamp_min(0) if masked else None
    return ConvolutionStepper(StackParameters(weight, bias, scale, shift), masks, dilations=dilations, eps=1e-8)


@pytest.mark.parametrize(("channels", "taps"), [(8, 2), (13, 3), (96, 3), (64, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_single_row_is_read_as_one_of_several(channels: int, taps: int, masked: bool) -> None:
    steps = stepper(channels, taps, masked=masked)
    x_LC = torch.randn(40, channels, generator=torch.Generator().manual_seed(1))
    _, kept = steps.begin(x_LC[:30])
    single, several = kept[None], torch.stack([kept, kept])
    for position in range(30, 40):
        out, single = steps.step(x_LC[position][None], single)
        outs, several = steps.step(x_LC[position].expand(2, -1), several)
        assert out.shape == (1, 1, channels) and single.shape == kept[None].shape
        torch.testing.assert_close(out.expand_as(outs), outs, rtol=0, atol=1e-5)
    whole, kept = steps.begin(x_LC)
    torch.testing.assert_close(out[0], whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(single[0], kept, rtol=0, atol=1e-5)


def test_what_was_kept_stays_as_it_is() -> None:
    steps = stepper(8, 3, masked=True)
    x_LC = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    _, kept = steps.begin(x_LC)
    before, row = kept.clone(), x_LC[:1].clone()
    first, _ = steps.step(x_LC[:1], kept[None])
    again, _ = steps.step(x_LC[:1], kept[None])
    assert kept.equal(before) and x_LC[:1].equal(row) and first.equal(again)


def test_inputs_of_equal_numbers_give_the_shift() -> None:
    """A convolution whose outputs are all the same has no deviation; LayerNorm gives its shift then."""
    zeros, shift = torch.zeros(4, 8), torch.linspace(-1, 1, 8).expand(4, -1)
    parameters = StackParameters(torch.zeros(4, 8, 8, 3), zeros + 7.0, zeros + 1.0, shift)
    steps = ConvolutionStepper(parameters, None, dilations=(1, 2, 4, 8), eps=1e-8)
    out, _ = steps.step(torch.ones(1, 8), torch.zeros(1, 1, 30, 8))
    torch.testing.assert_close(out[0, 0], 1 + 2 * shift[0].clamp_min(0))


def test_parts_are_products_of_one_thread() -> None:
    for channels, past in ((64, 1), (256, 16), (97, 97)):
        row = stepper(channels, 3, masked=False).row
        assert isinstance(row, RowStepper)
        assert row._past.shape == (4, past, 2 * channels, channels // past)
