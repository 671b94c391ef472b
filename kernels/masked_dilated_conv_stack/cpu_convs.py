"""A dilated convolution over a group of rows whose positions lie by distance from the rows' ends (`cpu_plan`), on a CPU.

Legend: N positions, C channels, k taps, R rows of a group.

Which way is fastest depends on what a product costs beside moving its result (docs/kernels-cpu.md):

- `Direct`: a product a tap. What a tap reads is a stretch of memory, so nothing is gathered ahead of a product; where rows are of one
  length it is added up where it belongs, else row by row.
- `Filtered`: F(2, 3) for fp32 and fp64 with many channels and rows of one length, a third fewer products for some additions.
- `Joined`: one product over gathered taps for bf16 with few channels, whose products are so cheap, and so coarse, that each sum should
  be rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.cpu_plan import Places, Stage, common_size, taken
from dist_teracon.kernels.masked_dilated_conv_stack.cpu_products import Factor, products_of

# From so many channels on F(2, 3) saves more in products than its additions take.
FILTERED_FROM = 128


class Direct:
    """One product a tap.

    Args:
        weight: [C_out, C_in, k].
    """

    def __init__(self, weight: Tensor) -> None:
        # [k, C_in, C_out], the present position's first
        self.stacked = self._matrices(weight.permute(2, 1, 0).flip(0))
        self.products = products_of(weight.dtype, weight.shape[0])
        self.factors, self.turned = self.products.factors(self.stacked)

    @staticmethod
    def _matrices(taps: Tensor) -> Tensor:
        return taps.contiguous()

    def begin(self) -> None:
        """Set the weight's gradient to zero."""
        self.summed = torch.zeros_like(self.stacked, dtype=torch.promote_types(self.stacked.dtype, torch.float32))
        self.sums = self.summed.unbind(0)

    def gradient(self) -> Tensor:
        """Return the weight's gradient [C_out, C_in, k]."""
        return self.summed.flip(0).permute(2, 1, 0)

    def operand(self, h: Tensor, stage: Stage) -> Tensor:
        """Return a convolution's input [N_in, C] as this way takes it."""
        return h

    def run(self, x: Tensor, bias: Tensor, stage: Stage) -> Tensor:
        """Convolve: [N_in, C] -> [N_out, C], in this way's order."""
        first, *others = stage.taps
        u = self.products.times(taken(x, first.read), self.factors[0], bias)
        for tap, factor in zip(others, self.factors[1:], strict=False):
            self._add(u, tap.dest, taken(x, tap.read), factor)
        return u

    def differentiate(self, du: Tensor, x: Tensor, stage: Stage, *, dx: bool, dw: bool) -> Tensor | None:
        """Add the weight's gradient to the sums, and return the input's [N_in, C] if wanted."""
        grad: Tensor | None = None
        for number, tap in enumerate(stage.taps):
            part = taken(du, tap.dest) if number else du
            if dw:
                self.products.add_outer(self.sums[number], taken(x, tap.read), part)
            if not dx:
                continue
            if grad is None and tap.size == stage.inputs:
                grad = self.products.times(part, self.turned[0])
                continue
            if grad is None:
                grad = du.new_zeros(stage.inputs, du.shape[1])
            self._add(grad, tap.read, part, self.turned[number])
        return grad

    def _add(self, into: Tensor, places: Places, x: Tensor, factor: Factor) -> None:
        if isinstance(places, slice):
            self.products.add(into[places], x, factor)
        else:
            into.index_add_(0, places, self.products.times(x, factor))

    def activate(self, n: Tensor, stage: Stage) -> Tensor:
        """Return ReLU(n) by distance; n is in this way's order, and may be written over."""
        return n.relu_()

    def through_relu(self, dh: Tensor, n: Tensor, stage: Stage) -> Tensor:
        """Return n's gradient from that of ReLU(n), which lies by distance; n may be written over."""
        grad: Tensor = torch.ops.aten.threshold_backward(dh, n, 0)
        return grad

    def through_known_relu(self, dh: Tensor, operand: Tensor, stage: Stage) -> Tensor | None:
        """The same from the next convolution's operand, which is made of ReLU(n); None where that does not lie as dh does."""
        grad: Tensor = torch.ops.aten.threshold_backward(dh, operand[: dh.shape[0]], 0)
        return grad


class Filtered(Direct):
    """Two outputs of three taps from four products: the minimal filtering algorithm F(2, 3).

    (Winograd, Arithmetic Complexity of Computations, 1980, section V.) For inputs x₀ … x₃ at distance d from one another and taps
    g₀, g₁, g₂, the two outputs

        y₀ = x₀g₀ + x₁g₁ + x₂g₂ = m₁ + m₂ + m₃        m₁ = (x₀ − x₂)·g₀      m₂ = (x₁ + x₂)·(g₀ + g₁ + g₂)/2
        y₁ = x₁g₀ + x₂g₁ + x₃g₂ = m₂ − m₃ + m₄        m₄ = (x₃ − x₁)·g₂      m₃ = (x₂ − x₁)·(g₀ − g₁ + g₂)/2

    take four products instead of six. Blocks of d distances alternate: y₁ and x₃ in the even ones, y₀ and x₂ in the odd ones, x₁ and
    x₀ in the two that follow. All y₁ lie together, then all y₀, then the outputs that fill no two blocks: a product a tap. Rows of
    several lengths take a product a tap too.
    """

    @staticmethod
    def _matrices(taps: Tensor) -> Tensor:
        g2, g1, g0 = taps
        outer = (g0 + g2).mul_(0.5)
        return torch.stack([g2, g1, g0, outer + 0.5 * g1, outer - 0.5 * g1])

    def gradient(self) -> Tensor:
        g2, g1, g0, plus, minus = self.sums
        outer = (plus + minus).mul_(0.5)
        return torch.stack([g0 + outer, (plus - minus).mul_(0.5).add_(g1), g2 + outer]).permute(2, 1, 0)

    def operand(self, h: Tensor, stage: Stage) -> Tensor:
        missing = 2 * (_pairs(stage) + 1) * stage.dilation * stage.rows - h.shape[0] if _pairs(stage) else 0
        return torch.cat([h, h.new_zeros(missing, h.shape[1])]) if missing > 0 else h

    def run(self, x: Tensor, bias: Tensor, stage: Stage) -> Tensor:
        if not _pairs(stage):
            return super().run(x, bias, stage)
        g2, _, g0, plus, minus = self.factors
        v1, v2, v3, v4 = self._operands(x, stage)
        u = x.new_empty(stage.outputs, x.shape[1])
        y1, y0, rest = u.tensor_split((v1.shape[0], 2 * v1.shape[0]))
        m2, m3 = self.products.times(v2, plus, bias), self.products.times(v3, minus)
        self.products.add(torch.sub(m2, m3, out=y1), v4, g2)
        self.products.add(torch.add(m2, m3, out=y0), v1, g0)
        for number, (read, size) in enumerate(_rest(stage)):
            if number:
                self.products.add(rest[:size], x[read], self.factors[number])
            else:
                self.products.times(x[read], g2, bias, out=rest)
        return u

    def differentiate(self, du: Tensor, x: Tensor, stage: Stage, *, dx: bool, dw: bool) -> Tensor | None:
        if not _pairs(stage):
            return super().differentiate(du, x, stage, dx=dx, dw=dw)
        each = _pairs(stage) * stage.dilation * stage.rows
        dy1, dy0, rest = du.tensor_split((each, 2 * each))
        dproducts = (dy0, dy0 + dy1, dy0 - dy1, dy1)
        if dw:
            g2, _, g0, plus, minus = self.sums
            for into, operand, made in zip((g0, plus, minus, g2), self._operands(x, stage), dproducts, strict=True):
                self.products.add_outer(into, operand, made)
        grad = self._input_gradient(dproducts, stage) if dx else None
        for number, (read, size) in enumerate(_rest(stage)):
            if dw:
                self.products.add_outer(self.sums[number], x[read], rest[:size])
            if grad is not None:
                self.products.add(grad[read], rest[:size], self.turned[number])
        return None if grad is None else grad[: stage.inputs]

    def activate(self, n: Tensor, stage: Stage) -> Tensor:
        if not _pairs(stage):
            return super().activate(n, stage)
        h = torch.empty_like(n)
        for by_distance, made in zip(_ordered(h, stage), _made(n, stage), strict=True):
            torch.clamp_min(made, 0, out=by_distance)
        return h

    def through_relu(self, dh: Tensor, n: Tensor, stage: Stage) -> Tensor:
        if not _pairs(stage):
            return super().through_relu(dh, n, stage)
        for by_distance, made in zip(_ordered(dh, stage), _made(n, stage), strict=True):
            torch.ops.aten.threshold_backward.grad_input(by_distance, made, 0, grad_input=made)
        return n

    def through_known_relu(self, dh: Tensor, operand: Tensor, stage: Stage) -> Tensor | None:
        h = operand[: dh.shape[0]]
        if not _pairs(stage):
            return super().through_known_relu(dh, h, stage)
        grad = torch.empty_like(dh)
        for of_dh, of_h, made in zip(_ordered(dh, stage), _ordered(h, stage), _made(grad, stage), strict=True):
            torch.ops.aten.threshold_backward.grad_input(of_dh, of_h, 0, grad_input=made)
        return grad

    @staticmethod
    def _operands(x: Tensor, stage: Stage) -> list[Tensor]:
        """Return what the four products take."""
        even, odd = _blocks(x, stage)
        x3, x2, x1, x0 = even[:-1], odd[:-1], even[1:], odd[1:]
        signed = ((x0, x2, -1), (x1, x2, 1), (x2, x1, -1), (x3, x1, -1))
        return [torch.add(a, b, alpha=sign, out=x.new_empty(a.shape)).view(-1, x.shape[1]) for a, b, sign in signed]

    def _input_gradient(self, dproducts: tuple[Tensor, ...], stage: Stage) -> Tensor:
        g2, _, g0, plus, minus = self.turned
        pairs, channels = _pairs(stage), dproducts[0].shape[1]
        factors = (g0, plus, minus, g2)
        d1, d2, d3, d4 = (self.products.times(made, factor).view(pairs, -1) for made, factor in zip(dproducts, factors, strict=True))
        written = 2 * (pairs + 1) * stage.dilation * stage.rows
        grad = dproducts[0].new_empty(max(stage.inputs, written), channels)
        grad[written:].zero_()
        even, odd = _blocks(grad, stage)
        of_x1, of_x2 = (d2 - d3).sub_(d4), d2.add_(d3).sub_(d1)
        even[0], odd[0] = d4[0], of_x2[0]
        torch.add(of_x1[:-1], d4[1:], out=even[1:-1])
        torch.add(of_x2[1:], d1[:-1], out=odd[1:-1])
        even[-1], odd[-1] = of_x1[-1], d1[-1]
        return grad


class Joined(Direct):
    """One product over an output's taps side by side; what a row lacks is read from rows of zeros behind the input's."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        taps, channels, _ = self.stacked.shape
        self.forward = self.stacked.view(taps * channels, channels)
        self.backward = self.stacked.transpose(1, 2).reshape(taps * channels, channels)

    def operand(self, h: Tensor, stage: Stage) -> Tensor:
        return _with_zeros(h, self.stacked.dtype)

    def run(self, x: Tensor, bias: Tensor, stage: Stage) -> Tensor:
        return torch.addmm(bias, self._gathered(x, stage.gathers[0]), self.forward)[: stage.outputs]

    def differentiate(self, du: Tensor, x: Tensor, stage: Stage, *, dx: bool, dw: bool) -> Tensor | None:
        narrow = _with_zeros(du, x.dtype)
        if dw:
            operand = self._gathered(x, stage.gathers[0])
            self.summed += (operand.t() @ narrow[: operand.shape[0]]).view_as(self.summed)
        return (self._gathered(narrow, stage.gathers[1]) @ self.backward)[: stage.inputs] if dx else None

    def through_known_relu(self, dh: Tensor, operand: Tensor, stage: Stage) -> Tensor | None:
        return None

    def _gathered(self, x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(0, index).view(-1, self.forward.shape[0])


def way_of(dtype: torch.dtype, channels: int, kernel_size: int) -> type[Direct]:
    """Return the fastest way for a number type, width and number of taps."""
    if dtype not in (torch.float32, torch.float64):
        return Joined
    return Filtered if kernel_size == 3 and channels >= FILTERED_FROM else Direct


def _with_zeros(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in another number type with one row of zeros, and those that `common_size` adds."""
    made = torch.empty(common_size(x.shape[0] + 1), x.shape[1], dtype=dtype)
    made[: x.shape[0]] = x
    made[x.shape[0] :] = 0
    return made


def _pairs(stage: Stage) -> int:
    """How many pairs of blocks of d distances a stage's output has, where its rows are of one length."""
    return stage.outputs // (2 * stage.dilation * stage.rows) if stage.rows else 0


def _rest(stage: Stage) -> list[tuple[slice, int]]:
    """For each tap what the outputs without a pair read, and how many of them do."""
    paired, reach = 2 * _pairs(stage) * stage.dilation * stage.rows, stage.dilation * stage.rows
    sizes = (max(0, min(stage.outputs, stage.inputs - tap * reach) - paired) for tap in range(3))
    return [(slice(paired + tap * reach, paired + tap * reach + size), size) for tap, size in enumerate(sizes) if size]


def _blocks(x: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
    """Return the even and the odd blocks of d distances, [pairs + 1, d · R · C] each."""
    pairs = _pairs(stage) + 1
    both = x[: 2 * pairs * stage.dilation * stage.rows].view(pairs, 2, -1)
    return both[:, 0], both[:, 1]


def _ordered(x: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
    """Return what lies by distance as `Filtered` makes it: the pairs' part [2, pairs, d · R · C], and the rest."""
    paired = 2 * _pairs(stage) * stage.dilation * stage.rows
    return x[:paired].view(_pairs(stage), 2, -1).transpose(0, 1), x[paired:]


def _made(x: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
    """Return the same parts of what lies as `Filtered` makes it."""
    paired = 2 * _pairs(stage) * stage.dilation * stage.rows
    return x[:paired].view(2, _pairs(stage), -1), x[paired:]
