"""Every variant of the stack's Triton kernels that a run can ask for, in the form in which Triton compiles them without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from dist_teracon.kernels.compile_table import Variant
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.tile_table import Device, Kernel, Tile, choose_tile

# what the compile gate goes through
DEVICES: tuple[Device, ...] = ("sm_80", "sm_86", "sm_90", "gfx942")
CHANNELS = (16, 64, 96, 128, 256, 320, 512)
Form = Literal["forward", "backward inner", "backward opening", "backward top", "weights"]
FORMS: tuple[Form, ...] = ("forward", "backward inner", "backward opening", "backward top", "weights")

_KERNEL: dict[Form, Kernel] = {
    "forward": "forward",
    "backward inner": "backward",
    "backward opening": "backward",
    "backward top": "backward",
    "weights": "weights",
}
# what a form switches on beside the choice between tasks and positions
_SWITCHES: dict[Form, dict[str, Any]] = {
    "forward": {"RESIDUAL": True, "KEPT": False, "SAVE": True},
    "backward inner": {"BESIDE": False, "READER": False, "WRITE": False, "NORM": True},
    "backward opening": {"BESIDE": True, "READER": False, "WRITE": True, "NORM": True},
    "backward top": {"BESIDE": True, "READER": False, "WRITE": False, "NORM": True},
    "weights": {},
}
_NUMBERS = {16: "bf16", 32: "fp32"}
# run-time arguments by kernel: T is the tensors' number type; the others are Triton's names
_ARGUMENTS: dict[Kernel, str] = {
    "forward": "source:*T weight:*T bias:*T norm_weight:*T norm_bias:*T masks:*T residual:*T out:*T normed:*T rstd:*fp32 "
    "index:*i32 before:*i32 order:*i32 kept:*i32 bounds:*i32 sources:i32 dilation:i32 tasks:i32 mask_stride:i32 eps:fp32",
    "backward": "du:*T weight:*T beside:*T norm_weight:*T norm_bias:*T masks:*T normed:*T rstd:*fp32 dx:*T du_below:*T sums:*fp32 "
    "index:*i32 after:*i32 order:*i32 reader:*i32 bounds:*i32 sources:i32 besides:i32 dilation:i32 tasks:i32 mask_stride:i32",
    "weights": "source:*T du:*T out:*fp32 index:*i32 before:*i32 table:*i64 stages:i32",
}
_UNALIGNED = {"sources", "besides", "dilation", "tasks", "stages", "eps", "rstd", "index"}


def make_variant(
    form: Form, device: Device, *, bits: int, channels: int, last: bool, kernel_size: int = 3, tile: Tile | None = None,
    precision: str = "ieee",
) -> Variant:  # fmt: skip
    """Describe one variant.

    Args:
        form: Which kernel in which place of the stack.
        device: What to compile for.
        bits: Of a number, 16 or 32.
        channels: C.
        last: Only what the last position sees, rows of several tasks; else all positions, rows of one.
        kernel_size: Taps.
        tile: Another tile than the table's.
        precision: Of fp32 products, `ieee` or `tf32`.
    """
    from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton import backward, forward, weights

    kernel = _KERNEL[form]
    function = {
        "forward": forward.forward_stage,
        "backward": backward.backward_stage,
        "weights": weights.weight_gradient,
    }[kernel]
    tile = tile or choose_tile(kernel, device, bits=bits, channels=channels, gather=last)
    constants: dict[str, Any] = {
        "C": channels, "TAPS": 0 if form == "backward top" else kernel_size, "GATHER": last, "PRECISION": precision,
        "ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner, **_SWITCHES[form],
    }  # fmt: skip
    if kernel == "weights":
        constants |= {"STEPS": 0}
    else:
        constants |= {"ORDERED": last, "MASKED": True, "TASKS_P": 8 if last else 2, "PARTS": tile.parts}
        constants |= {name: last for name in ("KEPT", "READER") if constants.get(name) is not None and form != "backward top"}
    arguments = dict(pair.split(":") for pair in _ARGUMENTS[kernel].replace("*T", f"*{_NUMBERS[bits]}").split())
    aligned = [name for name in arguments if name not in _UNALIGNED] if channels % 16 == 0 else []
    label = f"{form}, {'last' if last else 'all'}"
    return Variant(
        label, device, f"{_NUMBERS[bits]}, C={channels}", function, arguments, constants, tuple(aligned), tile.warps, tile.stages,
        f"{tile.rows}×{tile.columns}×{tile.inner}, {tile.parts} parts, {tile.warps} warps, {tile.stages} stages",
    )  # fmt: skip


def documented_variants() -> Iterator[Variant]:
    """Go through what docs/kernels.md lists: the model's width on every kind of device, on one of them in fp32 and the widest too."""
    shown: tuple[tuple[Device, int, int], ...] = (
        ("sm_90", 16, 256),
        ("sm_80", 16, 256),
        ("gfx942", 16, 256),
        ("sm_90", 16, 512),
        ("sm_90", 32, 256),
    )
    for device, bits, channels in shown:
        for form in FORMS:
            for last in (False, True):
                yield make_variant(form, device, bits=bits, channels=channels, last=last)
