"""The convolution stack on a GPU, forward and backward: fused kernels, plain PyTorch, torch.compile, and what the shape allows at best.

Legend: N packed positions, B rows (users), L positions, C channels.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_teracon.bench.measure import Timing, alternate, circumstances, markdown_table
from dist_teracon.errors import RunError
from dist_teracon.kernels.masked_dilated_conv_stack import StackParameters, build_layout, masked_dilated_conv_stack

DILATIONS = (1, 4) * 4
ROWS, CHANNELS, TAPS = 1024, 256, 3
# an H100 SXM by its data sheet: bytes a second, and dense bf16 operations a second
BANDWIDTH, ARITHMETIC = 3.35e12, 989e12


@dataclass(frozen=True)
class Floor:
    """The least time that the shape allows, seconds: every tensor moved once at full bandwidth, or all products at full rate."""

    memory: float
    arithmetic: float

    @property
    def seconds(self) -> float:
        """Return the larger."""
        return max(self.memory, self.arithmetic)


def floor(positions: int, *, channels: int = CHANNELS, stages: int = 2 * len(DILATIONS), taps: int = TAPS) -> Floor:
    """Return the floor of forward and backward in bf16.

    A convolution reads its input and writes output and normalised values; every second one reads the residual. Backward, it reads du
    and the normalised values and writes du, every second one reads and writes the residual's gradient; the weights' gradient reads
    input and du.
    """
    moved = (3.5 + 4 + 2) * stages * positions * channels * 2
    products = 3 * 2 * stages * positions * taps * channels**2
    return Floor(moved / BANDWIDTH, products / ARITHMETIC)


def run_cuda(out: Path | None) -> None:
    """Measure and print a table, and write it to `out` where that is given.

    Raises:
        RunError: no GPU is visible.
    """
    require_gpu()
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "L=100": torch.full((ROWS,), 100),
        "L=30": torch.full((ROWS,), 30),
        "L=1…100": torch.randint(1, 101, (ROWS,), generator=generator),
    }
    rows = [row for name, lengths in shapes.items() for row in _measure(name, lengths, generator)]
    header = ["rows", "path", "median ms", "p20", "p80", "peak MiB", "floor ms (memory, arithmetic)", "times the floor"]
    what = f"Convolution stack, forward and backward, B={ROWS}, C={CHANNELS}, {len(DILATIONS)} blocks, bf16"
    where = f"{torch.cuda.get_device_name()}, {circumstances('torch', 'triton')}"
    text = "\n".join([f"{what}. {where}.", "", markdown_table(header, rows)])
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def require_gpu() -> None:
    """Raise RunError where no GPU is visible."""
    if not torch.cuda.is_available():
        raise RunError("bench kernels --device cuda: no NVIDIA GPU is visible here; --device cpu measures the CPU's path")


def _measure(name: str, lengths: Tensor, generator: torch.Generator) -> list[list[str]]:
    candidates = _candidates(lengths, generator)
    peaks = {}
    for path, run in candidates.items():
        run()  # compiles
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        peaks[path] = torch.cuda.max_memory_allocated() / 2**20
    timings = alternate(candidates, repeats=50, warm_up=5, clock=synchronised_clock)
    best = floor(int(lengths.sum()))
    return [_row(name, path, timing, peaks[path], best) for path, timing in timings.items()]


def _row(name: str, path: str, timing: Timing, peak: float, best: Floor) -> list[str]:
    times = [f"{1e3 * value:.2f}" for value in (timing.median, timing.quantile(0.2), timing.quantile(0.8))]
    least = f"{1e3 * best.seconds:.2f} ({1e3 * best.memory:.2f}, {1e3 * best.arithmetic:.2f})"
    return [name, path, *times, f"{peak:.0f}", least, f"{timing.median / best.seconds:.1f}"]


def synchronised_clock() -> float:
    """Return seconds, once the GPU has finished what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def _candidates(lengths: Tensor, generator: torch.Generator) -> dict[str, Callable[[], object]]:
    stages = 2 * len(DILATIONS)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to("cuda", torch.bfloat16).requires_grad_()

    weight = leaf(stages, CHANNELS, CHANNELS, TAPS, scale=(CHANNELS * TAPS) ** -0.5)
    vectors = [leaf(stages, CHANNELS) for _ in range(3)]
    parameters = StackParameters(weight, *vectors)
    masks = leaf(1, stages, CHANNELS)
    x = leaf(int(lengths.sum()), CHANNELS)
    padded = leaf(len(lengths), CHANNELS, int(lengths.max()))
    leaves = [weight, *vectors, masks]
    offsets = F.pad(lengths.cumsum(0), (1, 0)).cuda()
    tasks = torch.zeros(len(lengths), dtype=torch.int32, device="cuda")
    compiled = torch.compile(_eager)

    def fused() -> None:
        layout = build_layout(offsets, tasks, dilations=DILATIONS, kernel_size=TAPS)
        y = masked_dilated_conv_stack(x, layout, parameters, masks)
        torch.autograd.grad(y, [x, *leaves], torch.ones_like(y))

    def plain(stack: Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]) -> None:
        y = stack(padded, [weight, *vectors], masks)
        torch.autograd.grad(y, [padded, *leaves], torch.ones_like(y))

    return {"fused": fused, "eager": functools.partial(plain, _eager), "torch.compile": functools.partial(plain, compiled)}


def _eager(x_BCL: Tensor, parameters: Sequence[Tensor], masks_TKC: Tensor) -> Tensor:
    """The stack as PyTorch has it, rows padded to the longest."""
    weight, bias, norm_weight, norm_bias = parameters
    for block, dilation in enumerate(DILATIONS):
        h = x_BCL
        for stage, step in ((2 * block, dilation), (2 * block + 1, 2 * dilation)):
            u = F.conv1d(F.pad(h, ((TAPS - 1) * step, 0)), weight[stage], bias[stage], dilation=step)
            n = F.layer_norm(u.transpose(1, 2), (CHANNELS,), norm_weight[stage], norm_bias[stage], 1e-8)
            h = (torch.relu(n) * masks_TKC[0, stage]).transpose(1, 2)
        x_BCL = x_BCL + h
    return x_BCL
