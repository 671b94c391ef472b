"""Minimal filtering algorithms: m outputs of three taps from m + 2 products instead of 3m.

(Winograd, Arithmetic Complexity of Computations, 1980, section V; the numbers of F(4, 3) are those of the points 0, ±1, ±2, as in Lavin
and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.) For inputs x₀ … x_{m+1}, taps g₀, g₁, g₂ and outputs

    yᵢ = xᵢg₀ + xᵢ₊₁g₁ + xᵢ₊₂g₂        i < m

an algorithm has m + 2 products of an operand, a sum of inputs, and a matrix, a sum of taps. The first product is part of y₀ alone and the
last of y_{m−1} alone, so both can be added where they belong; the second is part of every output once, so a bias can go with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Filter(ABC):
    """One algorithm; `outputs` is m. Tensors of a sequence are alike in shape, and not written to unless documented."""

    outputs: int

    @abstractmethod
    def matrices(self, taps: Tensor) -> Tensor:
        """Return the products' matrices [m + 2, …] from the taps [3, …]."""

    @abstractmethod
    def tap_gradient(self, sums: Sequence[Tensor]) -> Tensor:
        """Return the taps' gradient [3, …] from those of the matrices."""

    @abstractmethod
    def operands(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Return the products' operands from the inputs x₀ … x_{m+1}, contiguous."""

    @abstractmethod
    def combine(self, middle: Sequence[Tensor], y: Sequence[Tensor]) -> None:
        """Write y₀ … y_{m−1} but for the first and the last product; the others are given, and may be written over."""

    @abstractmethod
    def product_gradients(self, dy: Sequence[Tensor]) -> list[Tensor]:
        """Return the products' gradients from the outputs'."""

    @abstractmethod
    def input_gradients(self, d: Sequence[Tensor], grad: Sequence[Tensor]) -> None:
        """Write the inputs' gradient from those of the operands, [q, …] each for q neighbouring uses of the algorithm.

        Args:
            d: The operands', which may be written over.
            grad: Where the inputs' belong: x₀ … x_{m−1} of all q uses and, [q + 1, …] the first two, of the one after them, whose first two
                inputs are the last use's last two.
        """


class _OfTwo(Filter):
    """F(2, 3)."""

    outputs = 2

    def matrices(self, taps: Tensor) -> Tensor:
        g0, g1, g2 = taps
        outer = (g0 + g2).mul_(0.5)
        return torch.stack([g0, outer + 0.5 * g1, outer - 0.5 * g1, g2])

    def tap_gradient(self, sums: Sequence[Tensor]) -> Tensor:
        s0, plus, minus, s3 = sums
        outer = (plus + minus).mul_(0.5)
        return torch.stack([s0 + outer, (plus - minus).mul_(0.5), s3 + outer])

    def operands(self, x: Sequence[Tensor]) -> list[Tensor]:
        x0, x1, x2, x3 = x
        return [x0 - x2, x1 + x2, x2 - x1, x3 - x1]

    def combine(self, middle: Sequence[Tensor], y: Sequence[Tensor]) -> None:
        plus, minus = middle
        torch.add(plus, minus, out=y[0])
        torch.sub(plus, minus, out=y[1])

    def product_gradients(self, dy: Sequence[Tensor]) -> list[Tensor]:
        dy0, dy1 = dy
        return [dy0, dy0 + dy1, dy0 - dy1, dy1]

    def input_gradients(self, d: Sequence[Tensor], grad: Sequence[Tensor]) -> None:
        d0, plus, minus, d3 = d
        of_x1 = (plus - minus).sub_(d3)
        of_x2 = plus.add_(minus).sub_(d0)
        _overlap(grad[0], d0, of_x2, alpha=1)
        _overlap(grad[1], of_x1, d3, alpha=1)


class _OfFour(Filter):
    """F(4, 3)."""

    outputs = 4

    def matrices(self, taps: Tensor) -> Tensor:
        g0, g1, g2 = taps
        near, far = (g0 + g2).div_(-6), (g0 + 4 * g2).div_(24)
        return torch.stack([g0 / 4, near - g1 / 6, near + g1 / 6, far + g1 / 12, far - g1 / 12, g2])

    def tap_gradient(self, sums: Sequence[Tensor]) -> Tensor:
        s0, s1, s2, s3, s4, s5 = sums
        near, far = (s1 + s2).div_(-6), (s3 + s4).div_(24)
        return torch.stack([near + far + s0 / 4, (s2 - s1).div_(6) + (s3 - s4).div_(12), near + 4 * far + s5])

    def operands(self, x: Sequence[Tensor]) -> list[Tensor]:
        x0, x1, x2, x3, x4, x5 = x
        even, odd = x4 - x2, x3 - x1
        v0 = (x0 - x2).mul_(4).add_(even)
        v3, v4 = torch.add(even, odd, alpha=2), torch.sub(even, odd, alpha=2)
        v5 = (x5 - x3).sub_(odd, alpha=4)
        torch.sub(x4, x2, alpha=4, out=even)
        torch.sub(x3, x1, alpha=4, out=odd)
        return [v0, even + odd, even.sub(odd), v3, v4, v5]

    def combine(self, middle: Sequence[Tensor], y: Sequence[Tensor]) -> None:
        m1, m2, m3, m4 = middle
        near, far = m1 + m2, m3 + m4
        torch.add(near, far, out=y[0])
        torch.add(near, far, alpha=4, out=y[2])
        m1.sub_(m2)
        m3.sub_(m4)
        torch.add(m1, m3, alpha=2, out=y[1])
        torch.add(m1, m3, alpha=8, out=y[3])

    def product_gradients(self, dy: Sequence[Tensor]) -> list[Tensor]:
        dy0, dy1, dy2, dy3 = dy
        even, odd = dy0 + dy2, dy1 + dy3
        near = [even + odd, even - odd]
        torch.add(dy0, dy2, alpha=4, out=even)
        torch.add(dy1, dy3, alpha=4, out=odd)
        return [dy0, *near, torch.add(even, odd, alpha=2), even.sub_(odd, alpha=2), dy3]

    def input_gradients(self, d: Sequence[Tensor], grad: Sequence[Tensor]) -> None:
        d0, d1, d2, d3, d4, d5 = d
        near, far = d1 + d2, d3 + d4
        d1.sub_(d2)
        d3.sub_(d4)
        torch.add(d1, d3, alpha=2, out=grad[3]).sub_(d5, alpha=5)
        torch.add(far, near, alpha=4, out=grad[2]).add_(d0, alpha=5).neg_()
        _overlap(grad[0], d0, near.add_(far).add_(d0), alpha=4)
        _overlap(grad[1], torch.sub(d5, d1, out=d4).mul_(4).sub_(d3, alpha=2), d5, alpha=1)


def _overlap(grad: Tensor, of_own: Tensor, of_previous: Tensor, *, alpha: float) -> None:
    """Write an input's gradient [q + 1, …]: alpha times what each use has for it, and what the use before has for it as its last but m."""
    torch.mul(of_own[0], alpha, out=grad[0])
    torch.add(of_previous[:-1], of_own[1:], alpha=alpha, out=grad[1:-1])
    grad[-1] = of_previous[-1]


OF_TWO, OF_FOUR = _OfTwo(), _OfFour()
