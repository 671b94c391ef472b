"""Matrix products of the CPU stack, by the library that is fast on the processor at hand: MKL, or oneDNN.

Legend: N rows, I and O channels of operand and result.

PyTorch gives products of fp32 to MKL, which on some processors takes half of the arithmetic there is (docs/kernels-cpu.md). Convolutions
go to oneDNN, and a product is one: of one tap, over rows as positions of images whose channels lie innermost. Which one is taken follows
from the processor's make, not from a measurement: a run that is taken up again is to have the same bits.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

_logger = logging.getLogger(__name__)

# PyTorch gives a convolution of fewer images to MKL.
IMAGES = 16
# A convolution's call, and the pass that adds its result to another, take more than is won on smaller products, and on narrower rows.
LEAST_MULTIPLICATIONS = 1 << 23
LEAST_CHANNELS = 64
# AMD's family from which on MKL is slow (docs/kernels-cpu.md)
_SLOW_MKL_FROM = 26


class Factor(NamedTuple):
    """A matrix to multiply rows with: `matrix` [I, O], and `transposed` [O, I] its transpose."""

    matrix: Tensor
    transposed: Tensor


class Products:
    """Products by PyTorch's own functions for matrices."""

    def factors(self, matrices: Tensor) -> tuple[list[Factor], list[Factor]]:
        """Return a factor for each of these matrices [n, I, O], and one for each one's transpose."""
        transposed = self._transposed(matrices)
        pairs = [Factor(*pair) for pair in zip(matrices.unbind(0), transposed.unbind(0), strict=True)]
        return pairs, [Factor(pair.transposed, pair.matrix) for pair in pairs]

    def _transposed(self, matrices: Tensor) -> Tensor:
        return matrices.transpose(1, 2)

    def times(self, x: Tensor, factor: Factor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Return x [N, I] times a factor, plus a bias [O]; written to `out` [N, O] where it is given."""
        return torch.mm(x, factor.matrix, out=out) if bias is None else torch.addmm(bias, x, factor.matrix, out=out)

    def add(self, into: Tensor, x: Tensor, factor: Factor) -> None:
        """Add x [N, I] times a factor to `into` [N, O]."""
        into.addmm_(x, factor.matrix)

    def add_outer(self, into: Tensor, x: Tensor, y: Tensor) -> None:
        """Add xᵀy to `into` [I, O], for x [N, I] and y [N, O]."""
        into.addmm_(x.t(), y)


class ConvolutionProducts(Products):
    """The same by oneDNN where there are rows enough; the last few rows, which would be one more size to compile for, as above."""

    def _transposed(self, matrices: Tensor) -> Tensor:
        return matrices.transpose(1, 2).contiguous()

    def times(self, x: Tensor, factor: Factor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        rows = _rows_by_convolution(x, factor.matrix.shape[1])
        if not rows:
            return super().times(x, factor, bias, out)
        made = _convolved(x[:rows], factor, bias)
        if out is None and rows == x.shape[0]:
            return made
        if out is None:
            out = x.new_empty(x.shape[0], factor.matrix.shape[1])
        out[:rows] = made
        if rows < x.shape[0]:
            super().times(x[rows:], factor, bias, out[rows:])
        return out

    def add(self, into: Tensor, x: Tensor, factor: Factor) -> None:
        rows = _rows_by_convolution(x, factor.matrix.shape[1])
        if rows:
            into[:rows] += _convolved(x[:rows], factor, None)
        if rows < x.shape[0]:
            super().add(into[rows:], x[rows:], factor)

    def add_outer(self, into: Tensor, x: Tensor, y: Tensor) -> None:
        rows = _rows_by_convolution(x, y.shape[1])
        if rows:  # a convolution's weight [O, I] has the gradient yᵀx, so x and y change places
            size = [x.shape[1], y.shape[1], 1, 1]
            into += conv2d_weight(_as_images(y[:rows]), size, _as_images(x[:rows])).view_as(into)
        if rows < x.shape[0]:
            super().add_outer(into, x[rows:], y[rows:])


_LIBRARIES = {"mkl": Products(), "onednn": ConvolutionProducts()}


def products_of(dtype: torch.dtype, channels: int) -> Products:
    """Return what is faster on this machine for a number type and width.

    Raises:
        ValueError: DIST_TERACON_CPU_PRODUCTS names no library.
    """
    wide = dtype == torch.float32 and channels >= LEAST_CHANNELS
    return _chosen(os.environ.get("DIST_TERACON_CPU_PRODUCTS", "")) if wide else _LIBRARIES["mkl"]


def library_of(vendor: str, family: int, override: str) -> tuple[str, str]:
    """Return the library for a processor and why, in words.

    Args:
        vendor: As in Linux's /proc/cpuinfo; empty if unknown.
        family: As there.
        override: The value of DIST_TERACON_CPU_PRODUCTS; empty for the default.

    Raises:
        ValueError: no such library.
    """
    if not override:
        slow = vendor == "AuthenticAMD" and family >= _SLOW_MKL_FROM
        return ("onednn", f"MKL is slow on AMD's family {family}") if slow else ("mkl", "default")
    if override not in _LIBRARIES:
        raise ValueError(f"DIST_TERACON_CPU_PRODUCTS={override}: no such library (known: {', '.join(_LIBRARIES)})")
    return override, "set by DIST_TERACON_CPU_PRODUCTS"


@functools.cache
def _chosen(override: str) -> Products:
    name, why = library_of(*_processor(), override)
    _logger.info("fp32 products on cpu: by '%s' (%s)", name, why)
    return _LIBRARIES[name]


def _processor() -> tuple[str, int]:
    """Return this processor's vendor and family; empty and 0 where unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return "", 0
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    family = fields.get("cpu family", "")
    return fields.get("vendor_id", ""), int(family) if family.isdigit() else 0


def common_size_within(size: int, multiple: int) -> int:
    """Round down, by a thirty-second at most or to the next multiple of a power of two, to one of few sizes: oneDNN
    compiles a product for each that it has not seen lately.
    """
    step = max(multiple, 1 << max(0, size.bit_length() - 6))
    return size // step * step


def _rows_by_convolution(x: Tensor, channels: int) -> int:
    """How many of x's rows go to oneDNN, a multiple of `IMAGES`."""
    if x.shape[0] * x.shape[1] * channels < LEAST_MULTIPLICATIONS:
        return 0
    return common_size_within(x.shape[0], IMAGES)


def _as_images(x: Tensor) -> Tensor:
    """View rows [N, C] as images [16, C, N/16, 1], channels innermost."""
    return x.view(IMAGES, -1, 1, x.shape[1]).permute(0, 3, 1, 2)


def _convolved(x: Tensor, factor: Factor, bias: Tensor | None) -> Tensor:
    made = F.conv2d(_as_images(x), factor.transposed[:, :, None, None], bias)
    return made.permute(0, 2, 3, 1).reshape(x.shape[0], factor.matrix.shape[1])
