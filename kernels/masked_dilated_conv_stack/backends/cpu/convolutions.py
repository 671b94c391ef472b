"""A dilated convolution over a group of rows whose positions lie by distance from the rows' ends (`plan.py`), on a CPU.

Legend: N positions, C channels, k taps, R rows of a group.

Which algorithm is fastest depends on what a product costs beside moving its result (docs/kernels-cpu.md):

- `Direct`: a product a tap. What a tap reads is a stretch of memory, so nothing is gathered ahead of a product; where rows are of one
  length it is added up where it belongs, else row by row.
- `Filtered`: F(4, 3) or F(2, 3) for fp32 and fp64 with many channels, up to half of the products for some additions.
- `Joined`: one product over gathered taps for bf16 with few channels, whose products are so cheap, and so coarse, that each sum should
  be rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.filters import Filter
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.plan import Places, Stage, Tap, common_size, gather_rows
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.products import Factor, products_of

# From so many channels on minimal filtering saves more in products than its additions take.
FILTERED_FROM = 128


class Direct:
    """One product a tap.

    Args:
        weight: [C_out, C_in, k].
    """

    def __init__(self, weight: Tensor) -> None:
        # [k, C_in, C_out], the present position's first
        self.stacked = weight.permute(2, 1, 0).flip(0).contiguous()
        self.products = products_of(weight.dtype, weight.shape[0])
        self.factors, self.transposed = self.products.factors(self.stacked)

    def begin(self) -> None:
        """Set the weight's gradient to zero; `gradient` returns it, once."""
        self.summed = torch.zeros_like(self.stacked, dtype=torch.promote_types(self.stacked.dtype, torch.float32))
        self.sums = self.summed.unbind(0)

    def gradient(self) -> Tensor:
        """Return the weight's gradient [C_out, C_in, k], and keep nothing of it."""
        total = self.summed
        del self.summed, self.sums
        return total.flip(0).permute(2, 1, 0)

    def operand(self, h: Tensor, stage: Stage) -> Tensor:
        """Return a convolution's input [N_in, C] as this algorithm reads it."""
        return h

    def run(self, x: Tensor, bias: Tensor, stage: Stage) -> Tensor:
        """Convolve: [N_in, C] -> [N_out, C], in this algorithm's order."""
        return self._run_taps(x, bias, stage.taps)

    def _run_taps(self, x: Tensor, bias: Tensor, taps: Sequence[Tap], out: Tensor | None = None) -> Tensor:
        first, *others = taps
        u = self.products.times(gather_rows(x, first.read), self.factors[0], bias, out)
        for tap, factor in zip(others, self.factors[1:], strict=False):
            self._add(u, tap.dest, gather_rows(x, tap.read), factor)
        return u

    def differentiate(self, du: Tensor, x: Tensor, stage: Stage, *, dx: bool, dw: bool) -> Tensor | None:
        """Add the weight's gradient to the sums, and return the input's [N_in, C] if `dx`."""
        if not dx or stage.taps[0].size < stage.inputs:
            grad = du.new_zeros(stage.inputs, du.shape[1]) if dx else None
            self._differentiate_taps(du, x, stage.taps, grad, dw=dw)
            return grad
        grad = self.products.times(du, self.transposed[0])
        if dw:
            self.products.add_outer(self.sums[0], gather_rows(x, stage.taps[0].read), du)
        self._differentiate_taps(du, x, stage.taps, grad, dw=dw, first=1)
        return grad

    def _differentiate_taps(self, du: Tensor, x: Tensor, taps: Sequence[Tap], grad: Tensor | None, *, dw: bool, first: int = 0) -> None:
        """Add the gradients of the taps from the first one on to the sums, and to the input's where `grad` is given."""
        for number, tap in enumerate(taps[first:], first):
            part = gather_rows(du, tap.dest) if number else du
            if dw:
                self.products.add_outer(self.sums[number], gather_rows(x, tap.read), part)
            if grad is not None:
                self._add(grad, tap.read, part, self.transposed[number])

    def _add(self, into: Tensor, places: Places, x: Tensor, factor: Factor) -> None:
        if isinstance(places, slice):
            self.products.add(into[places], x, factor)
        else:
            into.index_add_(0, places, self.products.times(x, factor))

    def activate(self, n: Tensor, stage: Stage) -> Tensor:
        """Return ReLU(n) by distance; n is in this algorithm's order, and may be written over."""
        return n.relu_()

    def relu_backward(self, dh: Tensor, n: Tensor, stage: Stage) -> Tensor:
        """Return n's gradient from that of ReLU(n), which lies by distance; n may be written over."""
        grad: Tensor = torch.ops.aten.threshold_backward(dh, n, 0)
        return grad

    def relu_backward_from_output(self, dh: Tensor, operand: Tensor, stage: Stage) -> Tensor | None:
        """Return the same from the next convolution's operand, which begins with ReLU(n); None where that is too coarse for it."""
        grad: Tensor = torch.ops.aten.threshold_backward(dh, operand[: dh.shape[0]], 0)
        return grad


class Filtered(Direct):
    """Several outputs at once by minimal filtering algorithms (`cpu_filters`) up to the distances that all rows have, then a product a tap.

    All first outputs of an algorithm lie together, then all second ones …, then what the algorithm does not make (`Cut`).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.banks: dict[Filter, _Bank] = {}

    def begin(self) -> None:
        super().begin()
        for bank in self.banks.values():
            bank.sums = [torch.zeros_like(factor.matrix) for factor in bank.factors]

    def gradient(self) -> Tensor:
        for filter_, bank in self.banks.items():
            self.summed += filter_.tap_gradient(bank.sums)
            bank.sums = []
        return super().gradient()

    def operand(self, h: Tensor, stage: Stage) -> Tensor:
        cut = stage.cut
        missing = cut.read - h.shape[0] if cut else 0
        return torch.cat([h, h.new_zeros(missing, h.shape[1])]) if missing > 0 else h

    def run(self, x: Tensor, bias: Tensor, stage: Stage) -> Tensor:
        if (cut := stage.cut) is None:
            return super().run(x, bias, stage)
        factors, products = self._bank(cut.filter).factors, self.products
        operands = [made.view(-1, x.shape[1]) for made in cut.filter.operands(cut.inputs(x))]
        u = x.new_empty(stage.outputs, x.shape[1])
        outputs = cut.outputs(u)
        middle = [
            products.times(operand, factor, None if number else bias)
            for number, (operand, factor) in enumerate(zip(operands[1:-1], factors[1:-1], strict=True))
        ]
        cut.filter.combine(middle, outputs)
        products.add(outputs[0], operands[0], factors[0])
        products.add(outputs[-1], operands[-1], factors[-1])
        self._run_taps(x, bias, cut.rest, u[cut.made :])
        return u

    def differentiate(self, du: Tensor, x: Tensor, stage: Stage, *, dx: bool, dw: bool) -> Tensor | None:
        if (cut := stage.cut) is None:
            return super().differentiate(du, x, stage, dx=dx, dw=dw)
        bank, channels = self._bank(cut.filter), du.shape[1]
        made = cut.filter.product_gradients(cut.outputs(du))
        if dw:
            for into, operand, dproduct in zip(bank.sums, cut.filter.operands(cut.inputs(x)), made, strict=True):
                self.products.add_outer(into, operand.view(-1, channels), dproduct)
        grad: Tensor | None = None
        if dx:
            doperands = [self.products.times(dproduct, factor) for dproduct, factor in zip(made, bank.transposed, strict=True)]
            grad = du.new_empty(max(stage.inputs, cut.read), channels)
            grad[cut.read :].zero_()
            cut.filter.input_gradients([d.view(cut.uses, -1) for d in doperands], cut.input_gradients(grad))
        self._differentiate_taps(du[cut.made :], x, cut.rest, grad, dw=dw)
        return None if grad is None else grad[: stage.inputs]

    def activate(self, n: Tensor, stage: Stage) -> Tensor:
        if (cut := stage.cut) is None:
            return super().activate(n, stage)
        h = torch.empty_like(n)
        for by_distance, made in zip(cut.by_distance(h), cut.as_made(n), strict=True):
            torch.clamp_min(made, 0, out=by_distance)
        return h

    def relu_backward(self, dh: Tensor, n: Tensor, stage: Stage) -> Tensor:
        if (cut := stage.cut) is None:
            return super().relu_backward(dh, n, stage)
        for by_distance, made in zip(cut.by_distance(dh), cut.as_made(n), strict=True):
            torch.ops.aten.threshold_backward.grad_input(by_distance, made, 0, grad_input=made)
        return n

    def relu_backward_from_output(self, dh: Tensor, operand: Tensor, stage: Stage) -> Tensor | None:
        h = operand[: dh.shape[0]]
        if (cut := stage.cut) is None:
            return super().relu_backward_from_output(dh, h, stage)
        grad = torch.empty_like(dh)
        for of_dh, of_h, made in zip(cut.by_distance(dh), cut.by_distance(h), cut.as_made(grad), strict=True):
            torch.ops.aten.threshold_backward.grad_input(of_dh, of_h, 0, grad_input=made)
        return grad

    def _bank(self, filter_: Filter) -> _Bank:
        if filter_ not in self.banks:
            self.banks[filter_] = _Bank(*self.products.factors(filter_.matrices(self.stacked)))
        return self.banks[filter_]


@dataclass
class _Bank:
    """An algorithm's matrices as factors, their transposes', and the sums of their gradients."""

    factors: list[Factor]
    transposed: list[Factor]
    sums: list[Tensor] = field(default_factory=list)


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

    def relu_backward_from_output(self, dh: Tensor, operand: Tensor, stage: Stage) -> Tensor | None:
        return None

    def _gathered(self, x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(0, index).view(-1, self.forward.shape[0])


def select_algorithm(dtype: torch.dtype, channels: int, kernel_size: int) -> type[Direct]:
    """Return the fastest algorithm for a number type, width and number of taps."""
    if dtype not in (torch.float32, torch.float64):
        return Joined
    return Filtered if kernel_size == 3 and channels >= FILTERED_FROM else Direct


def _with_zeros(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in another number type with one row of zeros, and those that `common_size` adds."""
    made = torch.empty(common_size(x.shape[0] + 1), x.shape[1], dtype=dtype)
    made[: x.shape[0]] = x
    made[x.shape[0] :] = 0
    return made
