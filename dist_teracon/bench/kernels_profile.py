"""The fused kernels on a GPU by themselves: the time of a call, the host's part in it, and the GPU's time kernel by kernel.

Legend: N packed positions, B rows (users), C channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_teracon.bench.kernels_cuda import CHANNELS, DILATIONS, ROWS, TAPS, require_gpu, synchronised_clock
from dist_teracon.bench.measure import alternate, circumstances, markdown_table
from dist_teracon.kernels.masked_dilated_conv_stack import Positions, StackParameters, build_layout, masked_dilated_conv_stack

KERNELS = ("forward_stage", "backward_stage", "weight_gradient", "sum_tiles")
_PROFILED = 10


@dataclass(frozen=True)
class Case:
    """Rows of random lengths in [shortest, longest], taking tasks in turn; their offsets on the host too, or on the GPU alone."""

    shortest: int
    longest: int
    positions: Positions
    tasks: int
    host: bool = True

    @property
    def label(self) -> str:
        """Its name in the table."""
        lengths = str(self.longest) if self.shortest == self.longest else f"{self.shortest}…{self.longest}"
        return (
            f"L={lengths}, {self.positions}, {self.tasks} task{'s' * (self.tasks > 1)}{'' if self.host else ', offsets on the GPU alone'}"
        )


CASES = (
    Case(100, 100, "all", 1),
    Case(30, 30, "all", 1),
    Case(30, 30, "all", 1, host=False),
    Case(1, 100, "all", 1),
    Case(100, 100, "last", 6),
    Case(30, 30, "last", 6),
)


def run_profile(out: Path | None, *, repeats: int = 50, cases: Sequence[Case] = CASES) -> None:
    """Measure and print a table, and write it to `out` where that is given.

    Raises:
        RunError: no GPU is visible.
    """
    require_gpu()
    header = ["rows", "median ms", "p20", "p80", "host ms", *(f"{kernel}, ms" for kernel in KERNELS), "other GPU work, ms"]
    rows = [_measure(case, repeats) for case in cases]
    what = f"Fused convolution stack, forward and backward, B={ROWS}, C={CHANNELS}, {len(DILATIONS)} blocks, bf16, layout included"
    text = f"{what}. {torch.cuda.get_device_name()}, {circumstances('torch', 'triton')}.\n\n{markdown_table(header, rows)}"
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def _measure(case: Case, repeats: int) -> list[str]:
    run = call(case, device="cuda", channels=CHANNELS, rows=ROWS)
    run()  # compiles
    timing = alternate({"": run}, repeats=repeats, warm_up=5, clock=synchronised_clock)[""]
    host = float(np.median([_host_seconds(run) for _ in range(repeats)]))
    times = [timing.median, timing.quantile(0.2), timing.quantile(0.8), host]
    by_kernel = _seconds_by_kernel(run)
    return [case.label, *(f"{1e3 * seconds:.2f}" for seconds in [*times, *(by_kernel[name] for name in (*KERNELS, ""))])]


def _host_seconds(run: Callable[[], object]) -> float:
    """Return how long a call keeps the host when the GPU has nothing else to do."""
    began = synchronised_clock()
    run()
    return time.perf_counter() - began


def _seconds_by_kernel(run: Callable[[], object]) -> dict[str, float]:
    """Return the GPU's seconds a call in each of our kernels, and under the empty name in all others."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        for _ in range(_PROFILED):
            run()
        torch.cuda.synchronize()
    seconds: dict[str, float] = dict.fromkeys((*KERNELS, ""), 0.0)
    for event in trace.events() or ():
        if event.device_type.name == "CUDA":
            kernel = next((kernel for kernel in KERNELS if kernel in event.name), "")
            seconds[kernel] += event.time_range.elapsed_us() / 1e6 / _PROFILED
    return seconds


def call(case: Case, *, device: str, channels: int, rows: int) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call of the stack, layout and backward pass included, on random values."""
    generator = torch.Generator().manual_seed(0)
    stages, dtype = 2 * len(DILATIONS), torch.bfloat16 if device == "cuda" else torch.float32

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device, dtype).requires_grad_()

    lengths = torch.randint(case.shortest, case.longest + 1, (rows,), generator=generator)
    host_offsets, host_tasks = F.pad(lengths.cumsum(0), (1, 0)), torch.arange(rows, dtype=torch.int32) % case.tasks
    offsets, tasks = host_offsets.to(device), host_tasks.to(device)
    on_host = {"host_row_offsets": host_offsets, "host_task_of_row": host_tasks} if case.host else {}
    weight = leaf(stages, channels, channels, TAPS, scale=(channels * TAPS) ** -0.5)
    vectors = [leaf(stages, channels) for _ in range(3)]
    parameters = StackParameters(weight, *vectors)
    masks = torch.rand(case.tasks, stages, channels, generator=generator).to(device, dtype).requires_grad_()
    x = leaf(int(lengths.sum()), channels)

    def run() -> tuple[Tensor, ...]:
        layout = build_layout(offsets, tasks, dilations=DILATIONS, kernel_size=TAPS, positions=case.positions, **on_host)
        y = masked_dilated_conv_stack(x, layout, parameters, masks)
        return torch.autograd.grad(y, [x, weight, *vectors, masks], torch.ones_like(y))

    return run
