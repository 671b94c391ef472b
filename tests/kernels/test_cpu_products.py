"""Products by oneDNN against those by MKL: equal to rounding, chosen by the processor."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu import products as cpu_products
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.products import LEAST_CHANNELS, ConvolutionProducts, Products, library_of

# none by oneDNN, all, all but a few, with a size that is rounded down
ROWS = [0, 1, 15, 16, 37, 208, 1111]


@pytest.fixture
def some_by_convolution(monkeypatch):
    monkeypatch.setattr(cpu_products, "LEAST_MULTIPLICATIONS", 16 * 24 * 40)


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


@pytest.mark.usefixtures("some_by_convolution")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_times(rows, transposed, with_out, with_bias):
    matrices = _numbers(2, 24, 40)
    x, bias = _numbers(rows, 40 if transposed else 24), _numbers(24 if transposed else 40) if with_bias else None
    factor = ConvolutionProducts().factors(matrices)[transposed][1]
    out = torch.full((rows, 24 if transposed else 40), float("nan")) if with_out else None
    made = ConvolutionProducts().times(x, factor, bias, out)
    assert out is None or made.data_ptr() == out.data_ptr()
    expected = x.double() @ (matrices[1].t() if transposed else matrices[1]).double() + (0 if bias is None else bias)
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize(
    ("vendor", "family", "override", "library"),
    [
        ("AuthenticAMD", 25, "", "mkl"),
        ("AuthenticAMD", 26, "", "onednn"),
        ("AuthenticAMD", 26, "mkl", "mkl"),
        ("GenuineIntel", 6, "", "mkl"),
        ("GenuineIntel", 6, "onednn", "onednn"),
        ("", 0, "", "mkl"),
    ],
)
def test_the_processors_make_decides_unless_it_is_said(vendor, family, override, library):
    name, why = library_of(vendor, family, override)
    assert name == library
    assert ("set by" in why) == bool(override)


def test_what_was_chosen_is_logged_once_and_the_same_each_time(monkeypatch, caplog):
    monkeypatch.setattr(cpu_products, "_processor", lambda: ("AuthenticAMD", 26))
    cpu_products._chosen.cache_clear()
    with caplog.at_level("INFO", logger="dist_teracon"):
        chosen = {type(cpu_products.products_of(torch.float32, LEAST_CHANNELS)) for _ in range(3)}
    cpu_products._chosen.cache_clear()
    assert chosen == {ConvolutionProducts}
    assert caplog.messages == ["fp32 products on cpu: by 'onednn' (MKL is slow on AMD's family 26)"]


def test_an_unknown_library_is_refused(monkeypatch):
    monkeypatch.setenv("DIST_TERACON_CPU_PRODUCTS", "blas")
    with pytest.raises(ValueError, match=r"DIST_TERACON_CPU_PRODUCTS=blas: no such library \(known: mkl, onednn\)"):
        cpu_products.products_of(torch.float32, LEAST_CHANNELS)


@pytest.mark.parametrize(
    ("text", "processor"),
    [
        (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t: 2\n\nprocessor\t: 1\ncpu family\t: 3\n",
            ("AuthenticAMD", 26),
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", ("", 0)),
        (None, ("", 0)),
    ],
)
def test_the_processor_is_read_where_it_is_given(text, processor, monkeypatch):
    def read(*_, **__):
        if text is None:
            raise FileNotFoundError("/proc/cpuinfo")
        return text

    monkeypatch.setattr(cpu_products.Path, "read_text", read)
    assert cpu_products._processor() == processor


@pytest.mark.parametrize(
    ("dtype", "channels"), [(torch.float64, LEAST_CHANNELS), (torch.bfloat16, LEAST_CHANNELS), (torch.float32, LEAST_CHANNELS - 1)]
)
def test_other_number_types_and_narrow_rows_are_mkls(dtype, channels, monkeypatch):
    monkeypatch.setattr(cpu_products, "_chosen", None)
    assert type(cpu_products.products_of(dtype, channels)) is Products
