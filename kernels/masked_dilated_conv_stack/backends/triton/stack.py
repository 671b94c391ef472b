"""The stack through the fused Triton kernels: one launch a convolution forward, one backward, one for the weights of all.

Legend: N packed positions, B rows (users), C channels, T tasks, K convolutions, k taps.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist_teracon.kernels.masked_dilated_conv_stack import reference
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.backward import backward_stage, sum_tiles
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.forward import forward_stage
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.launch import Buffer, Launcher, current_stream
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

_launch_forward, _launch_backward, _launch_sums, _launch_weights = (
    Launcher(function) for function in (forward_stage, backward_stage, sum_tiles, weight_gradient)
)


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
            dx, du, sums = _backward_data(work, grads[0].contiguous(), weight, vectors, normed, rstd, needed=ctx.needs_input_grad[0])
            dweight = _backward_weight(work, inputs, du, weight.dtype) if ctx.needs_input_grad[1] else None
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

    def mask_buffer(self) -> tuple[Buffer, int]:
        """Return the first task's masks [K, C], and how far apart the tasks' lie."""
        if self.masks is None:
            return Buffer(self.bias), 0  # not read
        return Buffer(self.masks[0]), self.masks.stride(0)


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
        return cls(plan, weight.shape[1], weight.shape[3], _device(x_NC.device), x_NC.element_size() * 8, precision)

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
    spare = Buffer(plan.table)  # stands for what a variant does not read
    sources, by_taps, saved_normed, saved_rstd = Buffer(inputs), Buffer(by_tap), Buffer(normed), Buffer(rstd)
    bias, norm_weight, norm_bias = Buffer(vectors.bias), Buffer(vectors.norm_weight), Buffer(vectors.norm_bias)
    mask, mask_stride = vectors.mask_buffer()
    index, before = _buffer(plan.forward, spare), _buffer(plan.before, spare)
    stream, gather = current_stream(x_NC), plan.forward is not None
    source = block_input = out = (Buffer(x_NC), 0)
    for stage in range(stages):
        own = plan.first_output[stage]
        if save and stage + 1 < stages:
            out = sources, plan.first_input[stage + 1]
        else:
            out = Buffer(x_NC.new_empty(plan.outputs[stage], channels)), 0
        closes = stage % 2 == 1
        kept = plan.kept[stage // 2] if closes else None
        group = plan.groups[stage]
        _launch_forward(
            (_tiles(plan.outputs[stage], tile, plan.tasks), 1, 1),
            (
                source, (by_taps, stage), (bias, stage), (norm_weight, stage), (norm_bias, stage), (mask, stage), block_input, out,
                (saved_normed, own if save else 0), (saved_rstd, own if save else 0),
                (index, own if gather else 0), (before, 0), (_buffer(group.order, spare), 0), (_buffer(kept, spare), 0),
                (Buffer(group.bounds), 0),
            ),
            (plan.inputs[stage], plan.dilations[stage], plan.tasks, mask_stride, eps),
            {
                "RESIDUAL": closes, "KEPT": kept is not None, "SAVE": save,
                **work.constants(tile, taps=work.kernel_size, gather=gather, order=group.order, masks=vectors.masks),
            },
            stream,
        )  # fmt: skip
        source = out
        if closes:
            block_input = out
    return out[0].tensor, (inputs, normed, rstd)


def _backward_data(
    work: _Work, dy: Tensor, weight: Tensor, vectors: _Vectors, normed: Tensor, rstd: Tensor, *, needed: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return dx where it is needed, du of all stages [ΣN_out, C], and the sums P, Q and D fp32 [K, T, 3, C] (see backward.py)."""
    plan, channels, stages = work.plan, work.channels, len(work.plan.inputs)
    tile = work.tile("backward")
    by_tap = weight.permute(0, 3, 1, 2).contiguous()  # [K, k, C_out, C_in]
    du = torch.empty_like(normed)
    tiles = _tiles(max(plan.outputs), tile, plan.tasks)
    sums = rstd.new_empty(stages, tiles, 3, channels)
    spare, gather, stream = Buffer(plan.table), plan.backward is not None, current_stream(dy)
    by_taps, all_du, all_normed, all_rstd, all_sums = Buffer(by_tap), Buffer(du), Buffer(normed), Buffer(rstd), Buffer(sums)
    norm_weight, norm_bias = Buffer(vectors.norm_weight), Buffer(vectors.norm_bias)
    mask, mask_stride = vectors.mask_buffer()
    index, after, beside = _buffer(plan.backward, spare), _buffer(plan.after, spare), Buffer(dy)
    # `stage` is the convolution that is transposed; above the last there is none, and dy alone reaches its LayerNorm
    for stage in range(stages, -1 if needed else 0, -1):
        top, opens, below = stage == stages, stage % 2 == 0, max(0, stage - 1)
        own = plan.first_output[below]
        positions = plan.outputs[-1] if top else plan.inputs[stage]
        reader = None if top or not opens else plan.reader[stage // 2]
        group = plan.groups[below] if stage else plan.ungrouped
        dx = Buffer(dy.new_empty(positions, channels)) if opens and not top else beside
        _launch_backward(
            (_tiles(positions, tile, plan.tasks if stage else 1), 1, 1),
            (
                (all_du, 0 if top else plan.first_output[stage]), (by_taps, min(stage, stages - 1)), (beside, 0),
                (norm_weight, below), (norm_bias, below), (mask, below), (all_normed, own), (all_rstd, own), (dx, 0), (all_du, own),
                (all_sums, below), (index, plan.first_input[stage]) if gather and not top else (spare, 0), (after, 0),
                (_buffer(group.order, spare), 0), (_buffer(reader, spare), 0), (Buffer(group.bounds), 0),
            ),
            (
                0 if top else plan.outputs[stage], beside.tensor.shape[0], 0 if top else plan.dilations[stage],
                plan.tasks if stage else 1, mask_stride,
            ),
            {
                "BESIDE": opens, "READER": reader is not None, "WRITE": opens and not top, "NORM": stage > 0,
                **work.constants(tile, taps=0 if top else work.kernel_size, gather=gather, order=group.order, masks=vectors.masks),
            },
            stream,
        )  # fmt: skip
        beside = dx
    summed = sums.new_empty(stages, plan.tasks, 3, channels)
    block = min(256, 1 << (3 * channels - 1).bit_length())
    _launch_sums(
        (stages, plan.tasks, -(-3 * channels // block)),
        ((all_sums, 0), (Buffer(plan.bounds), 0), (Buffer(summed), 0)),
        (plan.tasks, tiles),
        {"C": channels, "TASKS_P": max(2, 1 << (plan.tasks - 1).bit_length()), "ROWS": tile.rows, "GROUP": 16, "BLOCK": block},
        stream,
    )
    return beside.tensor if needed else None, du, summed


def _backward_weight(work: _Work, inputs: Tensor, du: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of all weights [K, C_out, C_in, k], summed in fp32."""
    plan, channels, stages, taps = work.plan, work.channels, len(work.plan.inputs), work.kernel_size
    tile = work.tile("weights")
    most = max(plan.outputs)
    splits = weight_splits(work.device, tile, channels=channels, stages=stages, kernel_size=taps, positions=most)
    partial = torch.empty(splits, stages, taps, channels, channels, dtype=torch.float32, device=du.device)
    across = -(-channels // tile.rows) * -(-channels // tile.columns)
    spare = Buffer(plan.table)
    _launch_weights(
        (across * taps, stages, splits),
        (
            (Buffer(inputs), 0), (Buffer(du), 0), (Buffer(partial), 0), (_buffer(plan.forward, spare), 0), (_buffer(plan.before, spare), 0),
            (spare, 0),
        ),
        (stages,),
        {
            "C": channels, "TAPS": taps, "GATHER": plan.forward is not None, "PRECISION": work.precision,
            "STEPS": max(1, -(-most // (splits * tile.inner))) if work.device == "interpreter" else 0,
            "ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner, "num_warps": tile.warps, "num_stages": tile.stages,
        },
        current_stream(du),
    )  # fmt: skip
    # at once to the weights' dtype and order, where both change
    return partial.sum(0).permute(0, 3, 2, 1).to(dtype, memory_format=torch.contiguous_format).contiguous()


def _buffer(tensor: Tensor | None, spare: Buffer) -> Buffer:
    return spare if tensor is None else Buffer(tensor)


def _tiles(positions: int, tile: Tile, tasks: int) -> int:
    """How many tiles hold the positions, whichever tasks they are of; some may stay empty."""
    return -(-positions // tile.rows) + tasks - 1


def _current(x_NC: Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's GPU the one that launches go to."""
    return torch.cuda.device(x_NC.device) if x_NC.is_cuda else nullcontext()


@functools.cache
def _device(device: torch.device) -> Device:
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    return device_class(*torch.cuda.get_device_capability(device))


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _check(given: dict[str, Tensor | None], layout: Layout) -> None:
    """Refuse what the kernels would read wrongly."""
    x_NC = given["x"]
    assert x_NC is not None
    if x_NC.dtype not in _DTYPES:
        raise ValueError(f"x: expected float32, bfloat16 or float16 for the Triton kernels, got {x_NC.dtype}")
    if x_NC.dtype == torch.bfloat16 and not x_NC.is_cuda:
        raise ValueError("x: expected float32 on a CPU, got torch.bfloat16, whose products Triton's interpreter gets wrong")
    if not x_NC.is_contiguous():
        raise ValueError(f"x: expected a contiguous tensor, got strides {x_NC.stride()} of shape {tuple(x_NC.shape)}")
    for name, value in given.items():
        if value is not None and value.dtype != x_NC.dtype:
            raise ValueError(f"{name}: expected {x_NC.dtype} as of x, got {value.dtype}")
        if value is not None and value.device != x_NC.device:
            raise ValueError(f"{name}: expected {x_NC.device} as of x, got {value.device}")
    if layout.row_offsets.device != x_NC.device:
        raise ValueError(f"layout: expected {x_NC.device} as of x, got {layout.row_offsets.device}")
