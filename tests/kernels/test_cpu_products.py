"""Products by oneDNN against those by MKL: equal to rounding, chosen by a clear measurement alone."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.kernels.masked_dilated_conv_stack import cpu_products
from dist_teracon.kernels.masked_dilated_conv_stack.cpu_products import LEAST_CHANNELS, ConvolutionProducts, Products

# none by oneDNN, all, all but a few, with a size that is rounded down
ROWS = [0, 1, 15, 16, 37, 208, 1111]


@pytest.fixture
def some_by_convolution(monkeypatch):
    monkeypatch.setattr(cpu_products, "LEAST_MULTIPLICATIONS", 16 * 24 * 40)


@pytest.fixture
def a_fresh_choice():
    cpu_products._fastest.cache_clear()
    yield
    cpu_products._fastest.cache_clear()


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


@pytest.mark.usefixtures("some_by_convolution")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_times(rows, turned, with_out, with_bias):
    matrices = _numbers(2, 24, 40)
    x, bias = _numbers(rows, 40 if turned else 24), _numbers(24 if turned else 40) if with_bias else None
    factor = ConvolutionProducts().factors(matrices)[turned][1]
    out = torch.full((rows, 24 if turned else 40), float("nan")) if with_out else None
    made = ConvolutionProducts().times(x, factor, bias, out)
    assert out is None or made.data_ptr() == out.data_ptr()
    wanted = x.double() @ (matrices[1].t() if turned else matrices[1]).double() + (0 if bias is None else bias)
    torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("some_by_convolution")
@pytest.mark.parametrize("rows", ROWS)
def test_what_is_added_is_added_in_place(rows):
    matrices, x, y = _numbers(1, 24, 40), _numbers(rows, 24), _numbers(rows, 40) + 1
    for products in (Products(), ConvolutionProducts()):
        into, sums = y.clone(), matrices[0].clone()
        products.add(into, x, products.factors(matrices)[0][0])
        products.add_outer(sums, x, y)
        torch.testing.assert_close(into.double(), y + x.double() @ matrices[0].double(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sums.double(), matrices[0] + x.double().t() @ y.double(), rtol=1e-5, atol=1e-4)


def test_few_multiplications_are_never_by_convolution(monkeypatch):
    monkeypatch.setattr(cpu_products, "_convolved", None)
    x, matrices = _numbers(127, 256), _numbers(1, 256, 256)
    factor = ConvolutionProducts().factors(matrices)[0][0]
    assert torch.equal(ConvolutionProducts().times(x, factor), Products().times(x, factor))


@pytest.mark.usefixtures("a_fresh_choice")
@pytest.mark.parametrize(
    ("seconds", "kind", "told"),
    [((3.0, 1.9), ConvolutionProducts, "by oneDNN"), ((3.0, 2.1), Products, "by MKL"), ((1.0, 2.0), Products, "by MKL")],
)
def test_onednn_is_taken_where_it_is_clearly_faster_and_the_log_says_so_once(seconds, kind, told, monkeypatch, caplog):
    measured = iter(seconds)
    monkeypatch.setattr(cpu_products, "_least_seconds", lambda *_: next(measured))
    with caplog.at_level("INFO", logger="dist_teracon"):
        assert {type(cpu_products.products_of(torch.float32, LEAST_CHANNELS)) for _ in range(3)} == {kind}
    assert [told in message for message in caplog.messages] == [True]


@pytest.mark.parametrize(
    ("dtype", "channels"), [(torch.float64, LEAST_CHANNELS), (torch.bfloat16, LEAST_CHANNELS), (torch.float32, LEAST_CHANNELS - 1)]
)
def test_other_number_types_and_narrow_rows_are_not_measured(dtype, channels, monkeypatch):
    monkeypatch.setattr(cpu_products, "_fastest", None)
    assert type(cpu_products.products_of(dtype, channels)) is Products
