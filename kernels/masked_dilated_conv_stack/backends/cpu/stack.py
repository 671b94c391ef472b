"""The stack on a CPU as one function with a backward pass of its own, over groups of rows of one task.

Legend: N positions, B rows (users), C channels, T tasks, K convolutions (two a block).

A group's rows are of one task, so that its mask is part of LayerNorm's weight and bias, and lie so that a convolution's taps are
stretches of memory (`cpu_plan`, `cpu_convs`). Products take the batch's number type; sums, statistics and what is between products
are fp32 at least. What is kept for the backward pass is each convolution's input and output, and LayerNorm's two numbers a position.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist_teracon.kernels.masked_dilated_conv_stack.backends import gathered
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.convolutions import FILTERED_FROM, Direct, select_algorithm
from dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu.plan import Group, gather_rows, plan
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout
from dist_teracon.kernels.masked_dilated_conv_stack.reference import FrozenParameters, StackParameters

_logger = logging.getLogger(__name__)

# A group's activations at one stage, for each thread. Groups that fit a second-level cache lose more in calls and small products
# than they gain there (docs/kernels-cpu.md).
GROUP_BYTES = 1_600_000

# Of masks of frozen parameters: as shipped, at the last stage's scales, and all open.
_NORMS_KEPT = 4

# Masks count as no less: m·ReLU(a) is ReLU(m·a) for any m > 0 and its gradient for m is there, while m = 0 would lose it. No sum of
# numbers near 1 sees it, and products of two such values and a gradient stay above the denormal numbers, which are slow.
_LEAST_MASK = {torch.float32: 1e-12, torch.float64: 1e-40}


def stack(x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float) -> Tensor:
    """Run the residual blocks; same arguments and result as `reference.stack`, differentiable once.

    Raises:
        ValueError: the tensors are not on a CPU.
    """
    if x_NC.device.type != "cpu":
        raise ValueError(f"the backend 'cpu': expected tensors on a CPU, got {x_NC.device}; unset DIST_TERACON_KERNELS or choose another")
    kept = parameters.prepared if isinstance(parameters, FrozenParameters) else {}
    known = _Norms.kept(kept, masks_TKC, x_NC.dtype)
    if reason := _better_gathered(x_NC, None if known is not None else masks_TKC):
        _log_once(reason)
        return gathered.stack(x_NC, layout, parameters, masks_TKC, eps=eps)
    weights = [p if isinstance(p, Tensor) else torch.stack(list(p)) for p in parameters]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x_NC, masks_TKC, *weights)):
        out: Tensor = _Stack.apply(x_NC, masks_TKC, *weights, layout, eps)
        return out
    with torch.no_grad():
        if known is None:
            known = _Norms.made(masks_TKC, *weights[2:], dtype=x_NC.dtype)
            known.keep(kept)
        return _Run(layout, x_NC, known, weights, eps, kept).forward(x_NC, saved=None)


def _better_gathered(x_NC: Tensor, masks_TKC: Tensor | None) -> str:
    """Return why `gathered` is taken instead; nothing where it is not."""
    if masks_TKC is not None and bool((masks_TKC < 0).any()):
        return "negative masks"
    # products of so many channels are nearly all of a pass, and the batch's are cheaper together than a group's (docs/kernels-cpu.md)
    wide = x_NC.shape[1] >= FILTERED_FROM and x_NC.dtype not in (torch.float32, torch.float64)
    return f"{x_NC.dtype} of {FILTERED_FROM} channels and more" if wide else ""


@functools.cache
def _log_once(reason: str) -> None:
    _logger.info("masked_dilated_conv_stack on cpu: %s run by 'gathered'", reason)


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, masks: Tensor | None, w: Tensor, b: Tensor, g: Tensor, h: Tensor, layout: Layout, eps: float
    ) -> Tensor:
        saved: list[Tensor] = []
        ctx.run = _Run(layout, x, _Norms.made(masks, g, h, dtype=x.dtype), (w, b, g, h), eps)
        out = ctx.run.forward(x, saved)
        ctx.save_for_backward(x, masks, w, b, g, h, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, _, _, _, _, _, *saved = ctx.saved_tensors
        run, needed = ctx.run, ctx.needs_input_grad
        dx = run.backward(grads[0], saved, dx=needed[0], dw=needed[2])
        dmasks, dnorm_weight, dnorm_bias = run.norm_gradients()
        made = (dx, dmasks, run.weight_gradient() if needed[2] else None, run.dbias, dnorm_weight, dnorm_bias)
        return *(grad.to(x.dtype) if grad is not None and need else None for grad, need in zip(made, needed[:6], strict=True)), None, None


# saved a convolution: its input and output, LayerNorm's mean and 1/deviation [N, 1]
_PER_STAGE = 4


@dataclass(frozen=True)
class _Norms:
    """LayerNorm with the masks in it: since masks are not negative, m ⊙ ReLU(γ ⊙ n + β) is ReLU(mγ ⊙ n + mβ).

    Attributes:
        given, version: The masks as they came, and how often they had been written by then (`_times_written`).
        dtype: Of the batch.
        masks: [T, K, C] as they are used; None for none.
        weight, bias: γ, β: [K, C].
        scale, shift: m·γ, m·β: [T, K, C].
        scales, shifts: The same by task and convolution.
    """

    given: Tensor | None
    version: int | None
    dtype: torch.dtype
    masks: Tensor | None
    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor
    scales: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]

    @classmethod
    def made(cls, given: Tensor | None, weight: Tensor, bias: Tensor, *, dtype: torch.dtype) -> _Norms:
        """Put masks [T, K, C] into LayerNorm's weight and bias."""
        wide = torch.promote_types(dtype, torch.float32)
        masks = None if given is None else given.to(wide).clamp_min(_LEAST_MASK[wide])
        weight, bias = weight.to(wide), bias.to(wide)
        scale, shift = (p[None] if masks is None else (masks * p).contiguous() for p in (weight, bias))
        return cls(given, _times_written(given), dtype, masks, weight, bias, scale, shift, _each(scale), _each(shift))

    @staticmethod
    def kept(kept: dict[Any, Any], given: Tensor | None, dtype: torch.dtype) -> _Norms | None:
        """Return what was made of frozen parameters and these very masks, if it is there and they have not been written since."""
        for found in kept.get("norms", ()):
            if isinstance(found, _Norms) and found.given is given and found.dtype == dtype and found.version == _times_written(given):
                return found
        return None

    def keep(self, kept: dict[Any, Any]) -> None:
        """Keep this with the frozen parameters that it was made of; the last few are kept."""
        if self.version is not None:
            kept["norms"] = (self, *kept.get("norms", ())[: _NORMS_KEPT - 1])


def _times_written(masks: Tensor | None) -> int | None:
    """Return how often masks were written so far; None for a tensor that does not count it."""
    if masks is None:
        return 0
    return None if masks.is_inference() else masks._version


class _Run:
    """A pass over one batch: parameters as the products take them, and in the backward pass the gradients' sums.

    What was made of frozen parameters is in `kept`, or is put there.
    """

    def __init__(
        self, layout: Layout, x_NC: Tensor, norms: _Norms, weights: Sequence[Tensor], eps: float, kept: dict[Any, Any] | None = None
    ) -> None:  # fmt: skip
        weight, self.bias, *_ = weights
        self.layout, self.eps, self.dtype = layout, eps, x_NC.dtype
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.norm_weight, self.norm_bias, self.masks = norms.weight, norms.bias, norms.masks
        self.stages, self.channels = self.bias.shape
        self.scale, self.shift, self.scales, self.shifts = norms.scale, norms.shift, norms.scales, norms.shifts
        at_once = GROUP_BYTES * torch.get_num_threads() // (self.channels * x_NC.element_size())
        self.groups = plan(layout, positions_at_once=max(1, at_once))
        algorithm = select_algorithm(self.dtype, self.channels, layout.kernel_size)
        kept = {} if kept is None else kept
        if (key := ("cpu", algorithm, self.dtype)) not in kept:
            kept[key] = [algorithm(weight[stage]) for stage in range(self.stages)]
        self.convs: list[Direct] = kept[key]

    def forward(self, x_NC: Tensor, saved: list[Tensor] | None) -> Tensor:
        """Run all groups; what the backward pass needs is appended to `saved`."""
        rows = self.layout.packed if self.layout.positions == "all" else self.layout.rows
        out = x_NC.new_zeros(rows, self.channels)
        for group in self.groups:
            out.index_copy_(0, group.results, self._forward_group(group, x_NC, saved).to(self.dtype))
        return out

    def _forward_group(self, group: Group, x_NC: Tensor, saved: list[Tensor] | None) -> Tensor:
        x = x_NC.index_select(0, group.inputs).to(self.wide)
        for block, kept in enumerate(group.residual):
            h = x
            for number in (2 * block, 2 * block + 1):
                conv, stage = self.convs[number], group.stages[number]
                operand = conv.operand(h, stage)
                u = conv.run(operand, self.bias[number], stage)
                n, mean, rstd = self._normalise(u.to(self.wide), number, group)
                h = conv.activate(n, stage)
                if saved is not None:
                    saved += [operand, u, mean, rstd]
            x = h.add_(gather_rows(x, kept))
        return x

    def _normalise(self, u: Tensor, number: int, group: Group) -> tuple[Tensor, Tensor, Tensor]:
        """Return LayerNorm with the mask in it, its mean and 1/deviation."""
        of = self._task(group) * self.stages + number
        return torch.native_layer_norm(u, [self.channels], self.scales[of], self.shifts[of], self.eps)

    def _task(self, group: Group) -> int:
        return 0 if self.masks is None else group.task

    def backward(self, dout: Tensor, saved: Sequence[Tensor], *, dx: bool, dw: bool) -> Tensor | None:
        """Add up all gradients over the groups, and return the input's if `dx`."""
        self.dbias = torch.zeros(self.bias.shape, dtype=self.wide)
        self.dscale, self.dshift = torch.zeros_like(self.scale), torch.zeros_like(self.shift)
        self.dbiases, self.dscales, self.dshifts = self.dbias.unbind(0), _each(self.dscale), _each(self.dshift)
        for conv in self.convs if dw else ():
            conv.begin()
        grad = dout.new_zeros(self.layout.packed, self.channels) if dx else None
        each = self.stages * _PER_STAGE
        for place, group in enumerate(self.groups):
            of_input = self._backward_group(group, dout, saved[place * each : (place + 1) * each], dx=dx, dw=dw)
            if grad is not None and of_input is not None:
                grad.index_copy_(0, group.inputs, of_input.to(self.dtype))
        return grad

    def _backward_group(self, group: Group, dout: Tensor, saved: Sequence[Tensor], *, dx: bool, dw: bool) -> Tensor | None:
        dy = dout.index_select(0, group.results).to(self.wide)
        dh: Tensor | None = dy
        for number in reversed(range(self.stages)):
            assert dh is not None
            operand, u, mean, rstd = saved[number * _PER_STAGE : (number + 1) * _PER_STAGE]
            after = saved[(number + 1) * _PER_STAGE] if number % 2 == 0 else None
            du = self._backward_norm(group, number, dh, after, (u.to(self.wide), mean, rstd))
            dh = self.convs[number].differentiate(du, operand, group.stages[number], dx=dx or number > 0, dw=dw)
            if dh is None:
                break
            dh = dh.to(self.wide)
            if number % 2 == 0:
                kept = group.residual[number // 2]
                if isinstance(kept, slice):
                    dh[kept] += dy
                else:
                    dh.index_add_(0, kept, dy)
                dy = dh
        return dh

    def _backward_norm(
        self, group: Group, number: int, dh: Tensor, after: Tensor | None, norm: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:  # fmt: skip
        """Through ReLU and LayerNorm with the mask in it: the gradient of LayerNorm's input.

        `after` is the operand of the block's second convolution, for the first one; what the second one's ReLU gives is not kept.
        """
        of, (u, mean, rstd) = self._task(group) * self.stages + number, norm
        conv, stage = self.convs[number], group.stages[number]
        dn = None if after is None else conv.relu_backward_from_output(dh, after, stage)
        if dn is None:
            n, _, _ = self._normalise(u, number, group)  # again: cheaper than to keep
            dn = conv.relu_backward(dh, n, stage)
        du, dscale, dshift = torch.ops.aten.native_layer_norm_backward(
            dn, u, [self.channels], mean, rstd, self.scales[of], self.shifts[of], [True, True, True]
        )
        self.dscales[of].add_(dscale)
        self.dshifts[of].add_(dshift)
        self.dbiases[number].add_(du.sum(0))
        return du

    def norm_gradients(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the gradients of masks, LayerNorm's weight and its bias, from those of their products m·γ and m·β."""
        if self.masks is None:
            return None, self.dscale[0], self.dshift[0]
        return (
            self.norm_weight * self.dscale + self.norm_bias * self.dshift,
            (self.masks * self.dscale).sum(0),
            (self.masks * self.dshift).sum(0),
        )

    def weight_gradient(self) -> Tensor:
        """Return the weight's gradient [K, C, C, k]."""
        return torch.stack([conv.gradient() for conv in self.convs])


def _each(values_TKC: Tensor) -> tuple[Tensor, ...]:
    """Return a view for each task and convolution."""
    return values_TKC.view(-1, values_TKC.shape[-1]).unbind(0)
