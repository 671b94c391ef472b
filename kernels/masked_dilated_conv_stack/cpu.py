"""The stack on a CPU as one function with a backward pass of its own, over groups of rows whose activations stay in the cache.

Legend: N packed positions, B rows (users), C channels, T tasks, K convolutions (two a block), k taps.

Between matrix products a batch's activations would travel to memory and back for every small operation; a group's are still in the
cache. The products are those of `cpu_convs.Paired`: fp32 or fp64, three taps. Other kernel sizes, and bf16, whose rounding error the
rearranged sums would raise by a third, run by `gathered`. What is kept for the backward pass is each block's input, each convolution's
output, and LayerNorm's two numbers a position.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist_teracon.kernels.masked_dilated_conv_stack import gathered
from dist_teracon.kernels.masked_dilated_conv_stack.cpu_convs import Paired
from dist_teracon.kernels.masked_dilated_conv_stack.cpu_plan import RowsPlan, plan
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout
from dist_teracon.kernels.masked_dilated_conv_stack.reference import StackParameters

_logger = logging.getLogger(__name__)

# A group's activations at one stage. Smaller ones stay in a second-level cache, but lose more in small products than they gain there
# (docs/kernels-cpu.md).
GROUP_BYTES = 8_000_000

# Rows of one task that follow one another are normalised together; with more runs than this the calls cost more than they save.
MOST_RUNS = 64

# Masks count as no less: m·ReLU(a) is ReLU(m·a) for any m > 0 and its gradient for m is there, while m = 0 would lose it. No sum of
# numbers near 1 sees it, and products of two such values and a gradient stay above the denormal numbers, which are slow.
_LEAST_MASK = {torch.float32: 1e-12, torch.float64: 1e-40}


def stack(x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float) -> Tensor:
    """Run the residual blocks; same arguments and result as `reference.stack`, differentiable once.

    Raises:
        ValueError: the tensors are not on a CPU.
    """
    if x_NC.device.type != "cpu":
        raise ValueError(f"the backend 'cpu' takes tensors on a CPU, not on {x_NC.device}; unset DIST_TERACON_KERNELS or name another")
    if not _paired(x_NC.dtype, layout.kernel_size) or not _foldable(layout, masks_TKC):
        return gathered.stack(x_NC, layout, parameters, masks_TKC, eps=eps)
    weights = [p if isinstance(p, Tensor) else torch.stack(list(p)) for p in parameters]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x_NC, masks_TKC, *weights)):
        out: Tensor = _Stack.apply(x_NC, masks_TKC, *weights, layout, eps)
        return out
    with torch.no_grad():
        return _Run(layout, x_NC, masks_TKC, weights, eps).forward(x_NC, saved=None)


def _foldable(layout: Layout, masks: Tensor | None) -> bool:
    """Whether masks can be part of LayerNorm's weight and bias: none is negative, and tasks come in few runs of rows."""
    if masks is None or layout.task_of_row is None:
        return masks is None or not bool((masks < 0).any())
    if "runs" not in layout.plans:
        layout.plans["runs"] = 1 + int((layout.task_of_row.diff() != 0).sum())
    return bool(layout.plans["runs"] <= MOST_RUNS) and not bool((masks < 0).any())


@functools.cache
def _paired(dtype: torch.dtype, kernel_size: int) -> bool:
    if kernel_size == 3 and dtype in (torch.float32, torch.float64):
        return True
    _logger.info("masked_dilated_conv_stack on cpu: %s with %d taps runs by 'gathered'; 'cpu' takes fp32 and 3 taps", dtype, kernel_size)
    return False


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, masks: Tensor | None, w: Tensor, b: Tensor, g: Tensor, h: Tensor, layout: Layout, eps: float
    ) -> Tensor:
        saved: list[Tensor] = []
        out = _Run(layout, x, masks, (w, b, g, h), eps).forward(x, saved)
        ctx.save_for_backward(x, masks, w, b, g, h, *saved)
        ctx.layout, ctx.eps = layout, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, masks, *rest = ctx.saved_tensors
        run = _Run(ctx.layout, x, masks, rest[:4], ctx.eps)
        wanted = ctx.needs_input_grad
        dx = run.backward(grads[0], rest[4:], dx=wanted[0], dw=wanted[2])
        dmasks, dnorm_weight, dnorm_bias = run.norm_gradients()
        made = (dx, dmasks, run.weight_gradient() if wanted[2] else None, run.dbias, dnorm_weight, dnorm_bias)
        return *(None if grad is None or not want else grad.to(x.dtype) for grad, want in zip(made, wanted[:6], strict=True)), None, None


# saved a block: its input [N_in, C], and of both convolutions the output [N_out, C] and LayerNorm's mean and 1/deviation [N_out, 1]
_PER_BLOCK = 7


class _Run:
    """A pass over one batch: parameters as the products take them, and in the backward pass the gradients' sums."""

    def __init__(self, layout: Layout, x_NC: Tensor, masks: Tensor | None, weights: Sequence[Tensor], eps: float) -> None:
        weight, self.bias, self.norm_weight, self.norm_bias = weights
        self.layout, self.eps = layout, eps
        self.masks = None if masks is None else masks.clamp_min(_LEAST_MASK[masks.dtype])
        self.stages, self.channels = self.bias.shape
        # [T, K, C]: since masks are not negative, m ⊙ ReLU(γ ⊙ n + β) is ReLU(mγ ⊙ n + mβ)
        self.scale, self.shift = (p[None] if self.masks is None else self.masks * p for p in (self.norm_weight, self.norm_bias))
        at_once = max(1, GROUP_BYTES // (self.channels * x_NC.element_size()))
        self.parts = plan(layout, positions_at_once=at_once)
        self.matrices = [Paired.matrices(weight[stage]) for stage in range(self.stages)]

    def forward(self, x_NC: Tensor, saved: list[Tensor] | None) -> Tensor:
        """Run all groups; what the backward pass needs is appended to `saved`."""
        outputs = [self._forward_group(part, x_NC[part.start : part.stop], saved) for part in self.parts]
        if self.layout.positions == "all":
            return torch.cat(outputs) if outputs else x_NC.clone()
        out = x_NC.new_zeros(self.layout.rows, self.channels)
        for part, y in zip(self.parts, outputs, strict=True):
            rows = out[part.first : part.last]
            rows.copy_(y) if part.group.filled is None else rows.index_copy_(0, part.group.filled, y)
        return out

    def _forward_group(self, part: RowsPlan, x: Tensor, saved: list[Tensor] | None) -> Tensor:
        for block, kept in enumerate(part.group.residual):
            h = x
            if saved is not None:
                saved.append(x)
            for stage in (2 * block, 2 * block + 1):
                u = part.group.convs[stage].run(h, self.matrices[stage]).add_(self.bias[stage])
                h, mean, rstd = self._activate(part, stage, u)
                if saved is not None:
                    saved += [u, mean, rstd]
            x = (x if kept is None else x.index_select(0, kept[0])) + h
        return x

    def backward(self, dout: Tensor, saved: Sequence[Tensor], *, dx: bool, dw: bool) -> Tensor | None:
        """Add up all gradients over the groups, and return the input's if wanted."""
        wide = torch.promote_types(dout.dtype, torch.float32)  # sums over groups

        def zeros(like: Tensor) -> Tensor:
            return torch.zeros(like.shape, dtype=wide)

        self.dmatrices = [zeros(m) for m in self.matrices] if dw else None
        self.dbias, self.dscale, self.dshift = (zeros(p) for p in (self.bias, self.scale, self.shift))
        inputs = []
        for number, part in enumerate(self.parts):
            if self.layout.positions == "all":
                dy = dout[part.start : part.stop]
            else:
                dy = dout[part.first : part.last]
                dy = dy if part.group.filled is None else dy.index_select(0, part.group.filled)
            at = number * (self.stages // 2) * _PER_BLOCK
            inputs.append(self._backward_group(part, dy.contiguous(), saved[at : at + (self.stages // 2) * _PER_BLOCK], dx=dx))
        if not dx:
            return None
        return torch.cat([grad for grad in inputs if grad is not None]) if inputs else dout.new_zeros(0, self.channels)

    def _backward_group(self, part: RowsPlan, dy: Tensor, saved: Sequence[Tensor], *, dx: bool) -> Tensor | None:
        for block in reversed(range(len(part.group.residual))):
            x, u1, mean1, rstd1, u2, mean2, rstd2 = saved[block * _PER_BLOCK : (block + 1) * _PER_BLOCK]
            first, second = 2 * block, 2 * block + 1
            h1 = self._activate(part, first, u1)[0]  # again: cheaper than to keep
            h2 = self._activate(part, second, u2)[0]
            du2 = self._backward_norm(part, second, dy, h2, (u2, mean2, rstd2))
            dh1 = self._backward_conv(part, second, du2, h1, dx=True)
            assert dh1 is not None
            du1 = self._backward_norm(part, first, dh1, h1, (u1, mean1, rstd1))
            dblock = self._backward_conv(part, first, du1, x, dx=dx or block > 0)
            if dblock is None:
                return None
            kept = part.group.residual[block]
            if kept is not None:
                dy = torch.cat([dy, dy.new_zeros(1, self.channels)]).index_select(0, kept[1])
            dy = dblock.add_(dy)
        return dy

    def _backward_norm(self, part: RowsPlan, stage: int, dh: Tensor, h: Tensor, norm: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Through ReLU and LayerNorm with the mask in it; `h` is what they gave."""
        made = []
        for start, stop, task in self._runs(part, stage):
            u, mean, rstd = (saved[start:stop] for saved in norm)
            du, dscale, dshift = torch.ops.aten.native_layer_norm_backward(
                torch.ops.aten.threshold_backward(dh[start:stop], h[start:stop], 0),
                u,
                [self.channels],
                mean,
                rstd,
                self.scale[task, stage],
                self.shift[task, stage],
                [True, True, True],
            )
            self.dscale[task, stage] += dscale
            self.dshift[task, stage] += dshift
            made.append(du)
        together = _joined(made, dh)
        self.dbias[stage] += together.sum(0)
        return together

    def _backward_conv(self, part: RowsPlan, stage: int, du: Tensor, x: Tensor, *, dx: bool) -> Tensor | None:
        into = None if self.dmatrices is None else self.dmatrices[stage]
        return part.group.convs[stage].differentiate(du, x, self.matrices[stage], into, dx=dx)

    def _activate(self, part: RowsPlan, stage: int, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return m ⊙ ReLU(LayerNorm(u)), and LayerNorm's mean and 1/deviation."""
        runs = self._runs(part, stage)
        normalised = [self._normalise(u[start:stop], stage, task) for start, stop, task in runs]
        if len(normalised) == 1:
            h, mean, rstd = normalised[0]
            return h.relu_(), mean, rstd
        h = torch.empty_like(u)
        for (start, stop, _), (n, _, _) in zip(runs, normalised, strict=True):
            torch.clamp_min(n, 0, out=h[start:stop])
        return h, _joined([mean for _, mean, _ in normalised], u[:, :1]), _joined([rstd for _, _, rstd in normalised], u[:, :1])

    def _runs(self, part: RowsPlan, stage: int) -> Sequence[tuple[int, int, int]]:
        return part.tasks[stage] if self.masks is not None else ((0, part.group.rows[stage].shape[0], 0),)

    def _normalise(self, u: Tensor, stage: int, task: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(u, [self.channels], self.scale[task, stage], self.shift[task, stage], self.eps)

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
        assert self.dmatrices is not None
        return torch.stack([Paired.weight_gradient(grad) for grad in self.dmatrices])


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    if not parts:
        return torch.empty_like(like)
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
