"""The stack through the fused Triton kernels: one launch a convolution forward, one backward, one for the weights of all.

Legend: N packed positions, B rows (users), C channels, T tasks, K convolutions, k taps.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist_teracon.kernels.masked_dilated_conv_stack import reference
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.backward import backward_stage, sum_tiles
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.forward import forward_stage
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.plan import Plan, make_plan
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.tile_table import (
    Device,
    Kernel,
    Tile,
    choose_tile,
    device_class,
    weight_splits,
)
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.weights import weight_gradient
from dist_teracon.kernels.masked_dilated_conv_stack.layout import Layout
from dist_teracon.kernels.masked_dilated_conv_stack.reference import StackParameters


def stack(x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float) -> Tensor:
    """Run the residual blocks; same arguments and result as `reference.stack`.

    Raises:
        ValueError: a dtype other than float32, float16 and (on a GPU) bfloat16; parameters or masks of another dtype or on another
            device than x; an x that is not contiguous; more channels than the tile table has.
    """
    weight, bias, norm_weight, norm_bias = (p if isinstance(p, Tensor) else torch.stack(tuple(p)) for p in parameters)
    given = {"x": x_NC, "weight": weight, "bias": bias, "norm_weight": norm_weight, "norm_bias": norm_bias, "masks": masks_TKC}
    _check(given, layout)
    if layout.single_task is not None and masks_TKC is not None:
        masks_TKC = masks_TKC[layout.single_task : layout.single_task + 1]
    plan = make_plan(layout, tasks=None if masks_TKC is None else masks_TKC.shape[0])
    differentiated = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in given.values())
    y_NC: Tensor = _Stack.apply(x_NC, weight, bias, norm_weight, norm_bias, masks_TKC, plan, eps, differentiated)
    return reference.finish(y_NC, layout)


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, masks_TKC: Tensor | None,
        plan: Plan, eps: float, differentiated: bool,
    ) -> Tensor:  # fmt: skip
        vectors = _Vectors(
            bias.contiguous(), norm_weight.contiguous(), norm_bias.contiguous(), masks_TKC if masks_TKC is None else masks_TKC.contiguous()
        )
        work = _Work.of(plan, weight, x_NC)
        with _current(x_NC):
            y_NC, saved = _forward(work, x_NC, weight, vectors, eps=eps, save=differentiated)
        if differentiated:
            ctx.save_for_backward(weight, *vectors, *saved)
            ctx.work = work
        return y_NC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, norm_weight, norm_bias, masks_TKC, inputs, normed, rstd = ctx.saved_tensors
        work: _Work = ctx.work
        vectors = _Vectors(bias, norm_weight, norm_bias, masks_TKC)
        with _current(weight):
            dx, du, sums = _backward_data(work, grads[0].contiguous(), weight, vectors, normed, rstd, wanted=ctx.needs_input_grad[0])
            dweight = _backward_weight(work, inputs, du).to(weight.dtype) if ctx.needs_input_grad[1] else None
        p, q, d = sums.unbind(2)  # [K, T, C] each
        dmasks = None
        if masks_TKC is not None:
            if ctx.needs_input_grad[5]:
                dmasks = (norm_weight[:, None] * p + norm_bias[:, None] * q).transpose(0, 1).to(masks_TKC.dtype)
            p, q = p * masks_TKC.transpose(0, 1), q * masks_TKC.transpose(0, 1)
        dbias, dnorm_weight, dnorm_bias = (total.sum(1).to(bias.dtype) for total in (d, p, q))
        return dx, dweight, dbias, dnorm_weight, dnorm_bias, dmasks, None, None, None


class _Vectors(NamedTuple):
    """A stack's vectors a channel: [K, C] each, the masks [T, K, C]."""

    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    masks: Tensor | None

    def mask(self, stage: int) -> tuple[Tensor, int]:
        """Return the first task's mask of a stage, and how far apart the tasks' lie."""
        if self.masks is None:
            return self.bias, 0  # not read
        return self.masks[0, stage], self.masks.stride(0)


@dataclass(frozen=True)
class _Work:
    """What all launches of a call share."""

    plan: Plan
    channels: int
    kernel_size: int
    device: Device
    bits: int
    precision: str

    @classmethod
    def of(cls, plan: Plan, weight: Tensor, x_NC: Tensor) -> _Work:
        precision = "tf32" if x_NC.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
        return cls(plan, weight.shape[1], weight.shape[3], _device(x_NC), x_NC.element_size() * 8, precision)

    def tile(self, kernel: Kernel) -> Tile:
        return choose_tile(kernel, self.device, bits=self.bits, channels=self.channels, gather=self.plan.forward is not None)

    def constants(self, tile: Tile, *, taps: int, gather: bool, order: Tensor | None, masks: Tensor | None) -> dict[str, Any]:
        """Return the compile-time arguments that forward and backward have in common."""
        return {
            "C": self.channels, "TAPS": taps, "GATHER": gather, "ORDERED": order is not None, "MASKED": masks is not None,
            "TASKS_P": max(2, 1 << (self.plan.tasks - 1).bit_length()), "PRECISION": self.precision,
            "ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner, "PARTS": tile.parts,
            "num_warps": tile.warps, "num_stages": tile.stages,
        }  # fmt: skip


def _forward(
    work: _Work, x_NC: Tensor, weight: Tensor, vectors: _Vectors, *, eps: float, save: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return the output, and where `save` every stage's input, normalised values and their scale."""
    plan, channels, stages = work.plan, work.channels, len(work.plan.inputs)
    tile = work.tile("forward")
    by_tap = weight.permute(0, 3, 2, 1).contiguous()  # [K, k, C_in, C_out]
    inputs = x_NC.new_empty(plan.first_input[-1] if save else 0, channels)
    normed = x_NC.new_empty(plan.first_output[-1] if save else 0, channels)
    rstd = x_NC.new_empty(normed.shape[0], dtype=torch.float32)
    if save:
        inputs[: plan.inputs[0]] = x_NC  # beside the other stages' inputs, so that one launch can read them all
    source = block_input = x_NC
    for stage in range(stages):
        own = slice(plan.first_output[stage], plan.first_output[stage + 1])
        if save and stage + 1 < stages:
            out = inputs[plan.first_input[stage + 1] : plan.first_input[stage + 2]]
        else:
            out = x_NC.new_empty(plan.outputs[stage], channels)
        closes = stage % 2 == 1
        kept = plan.kept[stage // 2] if closes else None
        group = plan.groups[stage]
        mask, stride = vectors.mask(stage)
        gather = plan.forward is not None
        spare = plan.table  # stands for what a variant does not read
        forward_stage[(_tiles(plan.outputs[stage], tile, plan.tasks),)](
            source, by_tap[stage], vectors.bias[stage], vectors.norm_weight[stage], vectors.norm_bias[stage], mask,
            block_input, out, normed[own], rstd[own],
            plan.forward[own] if plan.forward is not None else spare, plan.before if plan.before is not None else spare,
            group.order if group.order is not None else spare, kept if kept is not None else spare, group.bounds,
            plan.inputs[stage], plan.dilations[stage], plan.tasks, stride, eps,
            RESIDUAL=closes, KEPT=kept is not None, SAVE=save,
            **work.constants(tile, taps=work.kernel_size, gather=gather, order=group.order, masks=vectors.masks),
        )  # fmt: skip
        source = out
        if closes:
            block_input = out
    return source, (inputs, normed, rstd)


def _backward_data(
    work: _Work, dy: Tensor, weight: Tensor, vectors: _Vectors, normed: Tensor, rstd: Tensor, *, wanted: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return dx where it is wanted, du of all stages [ΣN_out, C], and the sums P, Q and D fp32 [K, T, 3, C] (see triton_backward)."""
    plan, channels, stages = work.plan, work.channels, len(work.plan.inputs)
    tile = work.tile("backward")
    by_tap = weight.permute(0, 3, 1, 2).contiguous()  # [K, k, C_out, C_in]
    du = torch.empty_like(normed)
    tiles = _tiles(max(plan.outputs), tile, plan.tasks)
    sums = rstd.new_empty(stages, tiles, 3, channels)
    gather, spare = plan.backward is not None, plan.table
    # `stage` is the convolution that is transposed; above the last there is none, and dy alone reaches its LayerNorm
    for stage in range(stages, -1 if wanted else 0, -1):
        top, opens, below = stage == stages, stage % 2 == 0, max(0, stage - 1)
        own = slice(plan.first_output[below], plan.first_output[below + 1])
        above = slice(0, 0) if top else slice(plan.first_output[stage], plan.first_output[stage + 1])
        positions = plan.outputs[-1] if top else plan.inputs[stage]
        reader = None if top or not opens else plan.reader[stage // 2]
        group = plan.groups[below] if stage else plan.ungrouped
        mask, stride = vectors.mask(below)
        dx = dy.new_empty(positions, channels) if opens and not top else dy
        backward_stage[(_tiles(positions, tile, plan.tasks if stage else 1),)](
            du[above], by_tap[min(stage, stages - 1)], dy, vectors.norm_weight[below], vectors.norm_bias[below], mask,
            normed[own], rstd[own], dx, du[own], sums[below],
            plan.backward[plan.first_input[stage] :] if plan.backward is not None and not top else spare,
            plan.after if plan.after is not None else spare, group.order if group.order is not None else spare,
            reader if reader is not None else spare, group.bounds,
            0 if top else plan.outputs[stage], dy.shape[0], 0 if top else plan.dilations[stage], plan.tasks if stage else 1, stride,
            BESIDE=opens, READER=reader is not None, WRITE=opens and not top, NORM=stage > 0,
            **work.constants(tile, taps=0 if top else work.kernel_size, gather=gather, order=group.order, masks=vectors.masks),
        )  # fmt: skip
        dy = dx
    summed = sums.new_empty(stages, plan.tasks, 3, channels)
    block = min(256, 1 << (3 * channels - 1).bit_length())
    sum_tiles[(stages, plan.tasks, -(-3 * channels // block))](
        sums, plan.bounds, summed, plan.tasks, tiles,
        C=channels, TASKS_P=max(2, 1 << (plan.tasks - 1).bit_length()), ROWS=tile.rows, GROUP=16, BLOCK=block,
    )  # fmt: skip
    return dy if wanted else None, du, summed


def _backward_weight(work: _Work, inputs: Tensor, du: Tensor) -> Tensor:
    """Return the gradient of all weights: fp32 [K, C_out, C_in, k]."""
    plan, channels, stages, taps = work.plan, work.channels, len(work.plan.inputs), work.kernel_size
    tile = work.tile("weights")
    most = max(plan.outputs)
    splits = weight_splits(work.device, tile, channels=channels, stages=stages, kernel_size=taps, positions=most)
    partial = torch.empty(splits, stages, taps, channels, channels, dtype=torch.float32, device=du.device)
    across = -(-channels // tile.rows) * -(-channels // tile.columns)
    weight_gradient[(across * taps, stages, splits)](
        inputs, du, partial, plan.forward if plan.forward is not None else plan.table,
        plan.before if plan.before is not None else plan.table, plan.table, stages,
        C=channels, TAPS=taps, GATHER=plan.forward is not None, PRECISION=work.precision,
        STEPS=max(1, -(-most // (splits * tile.inner))) if work.device == "interpreter" else 0,
        ROWS=tile.rows, COLUMNS=tile.columns, INNER=tile.inner,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial.sum(0).permute(0, 3, 2, 1).contiguous()


def _tiles(positions: int, tile: Tile, tasks: int) -> int:
    """How many tiles hold the positions, whichever tasks they are of; some may stay empty."""
    return -(-positions // tile.rows) + tasks - 1


def _current(x_NC: Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's GPU the one that launches go to."""
    return torch.cuda.device(x_NC.device) if x_NC.is_cuda else nullcontext()


def _device(x_NC: Tensor) -> Device:
    if x_NC.device.type == "cpu":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    return device_class(*torch.cuda.get_device_capability(x_NC.device))


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _check(given: dict[str, Tensor | None], layout: Layout) -> None:
    """Refuse what the kernels would read wrongly."""
    x_NC = given["x"]
    assert x_NC is not None
    if x_NC.dtype not in _DTYPES:
        raise ValueError(f"x: float32, bfloat16 or float16 is wanted by the Triton kernels, not {x_NC.dtype}")
    if x_NC.dtype == torch.bfloat16 and not x_NC.is_cuda:
        raise ValueError("x: float32 is wanted on a CPU, not torch.bfloat16, whose products Triton's interpreter gets wrong")
    if not x_NC.is_contiguous():
        raise ValueError(f"x: a contiguous tensor is wanted, not strides {x_NC.stride()} of shape {tuple(x_NC.shape)}")
    for name, value in given.items():
        if value is not None and value.dtype != x_NC.dtype:
            raise ValueError(f"{name}: {x_NC.dtype} as x has is wanted, not {value.dtype}")
        if value is not None and value.device != x_NC.device:
            raise ValueError(f"{name}: {x_NC.device} where x lies is wanted, not {value.device}")
    if layout.row_offsets.device != x_NC.device:
        raise ValueError(f"layout: {x_NC.device} where x lies is wanted, not {layout.row_offsets.device}")
