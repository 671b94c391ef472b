"""`dist-teracon bench kernels`: the convolution stack, forward and backward, against plain eager convolutions over padded rows.

Legend: B rows, L positions of the longest, N packed positions, C channels, K convolutions.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import alternate, circumstances, markdown_table, median_ratio
from dist_teracon.errors import ConfigError
from dist_teracon.kernels.masked_dilated_conv_stack import Positions, StackParameters, build_layout, masked_dilated_conv_stack
from dist_teracon.kernels.masked_dilated_conv_stack.backends import gathered
from dist_teracon.memory import raise_malloc_thresholds

DILATIONS = (1, 4, 1, 4, 1, 4, 1, 4)
_EPS = 1e-8
_HEADER = ("rows", "channels", "positions", "dtype", "path", "median ratio to eager", "median ms", "p20 ms", "p80 ms")


@dataclass(frozen=True)
class Case:
    """Rows of random lengths in [shortest, longest]; eager pads them all to the longest."""

    rows: int
    shortest: int
    longest: int
    channels: int

    @property
    def label(self) -> str:
        """What the table calls it."""
        lengths = str(self.longest) if self.shortest == self.longest else f"{self.shortest}–{self.longest}"
        return f"{self.rows} × {lengths}"


CASES = (
    Case(64, 100, 100, 256),
    Case(64, 1, 100, 256),
    Case(64, 30, 30, 256),
    Case(64, 100, 100, 64),
    Case(256, 8, 30, 64),
    Case(512, 8, 30, 64),
)
TINY = (Case(3, 6, 6, 8), Case(3, 1, 6, 8))


def eager(x_BLC: Tensor, parameters: StackParameters, masks_KC: Tensor) -> Tensor:
    """The stack as it is commonly written: `Conv2d` on [B, C, 1, L], channels last and back around every convolution."""
    for block, d in enumerate(DILATIONS):
        h = x_BLC
        for stage, dilation in ((2 * block, d), (2 * block + 1, 2 * d)):
            weight = parameters.weight[stage][:, :, None]
            padded = F.pad(h.permute(0, 2, 1)[:, :, None], ((weight.shape[-1] - 1) * dilation, 0))
            u = F.conv2d(padded, weight, parameters.bias[stage], dilation=(1, dilation))[:, :, 0].permute(0, 2, 1)
            n = F.layer_norm(u, u.shape[-1:], parameters.norm_weight[stage], parameters.norm_bias[stage], _EPS)
            h = torch.relu(n) * masks_KC[stage]
        x_BLC = x_BLC + h
    return x_BLC


def candidates(case: Case, positions: Positions, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """Return each path's forward and backward pass, the packed paths' layout included."""
    generator = torch.Generator().manual_seed(0)
    stages, C = 2 * len(DILATIONS), case.channels

    def leaf(values: Tensor) -> Tensor:
        return values.to(dtype).requires_grad_()

    bound = 1 / (3 * C) ** 0.5
    parameters = StackParameters(
        leaf(torch.empty(stages, C, C, 3).uniform_(-bound, bound, generator=generator)),
        leaf(torch.zeros(stages, C)),
        leaf(torch.ones(stages, C)),
        leaf(torch.zeros(stages, C)),
    )
    masks = leaf(torch.rand(1, stages, C, generator=generator))
    lengths = torch.randint(case.shortest, case.longest + 1, (case.rows,), generator=generator)
    row_offsets = F.pad(lengths.cumsum(0), (1, 0))
    tasks = torch.zeros(case.rows, dtype=torch.int32)
    padded = leaf(torch.randn(case.rows, case.longest, C, generator=generator))
    packed = leaf(torch.randn(int(row_offsets[-1]), C, generator=generator))

    def plain() -> None:
        out = eager(padded, parameters, masks[0])
        (out if positions == "all" else out[:, -1]).square().sum().backward()

    def by(stack: Callable[..., Tensor]) -> Callable[[], None]:
        def run() -> None:
            layout = build_layout(row_offsets, tasks, dilations=DILATIONS, positions=positions)
            stack(packed, layout, parameters, masks, eps=_EPS).square().sum().backward()

        return run

    return {"eager": plain, "gathered": by(gathered.stack), "default": by(masked_dilated_conv_stack)}


def run_cpu(cases: Sequence[Case], repeats: int) -> str:
    """Return the table of CPU-seconds of this process."""
    rows = []
    for case in cases:
        for positions in ("last", "all"):
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                timings = alternate(candidates(case, positions, dtype), repeats=repeats)
                for path, timing in timings.items():
                    times = (f"{1e3 * value:.1f}" for value in (timing.median, timing.quantile(0.2), timing.quantile(0.8)))
                    ratio = f"{median_ratio(timings['eager'], timing):.2f}"
                    rows.append((case.label, str(case.channels), positions, name, path, ratio, *times))
    where = f"{circumstances('torch')}, {torch.get_num_threads()} threads, CPU-seconds, median of {repeats} alternations; layout included."
    return f"{where}\n\n{markdown_table(_HEADER, rows)}\n"


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench kernels", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=as_count, default=9, help="alternations that count")
    parser.add_argument("--by-kernel", action="store_true", help="on a GPU: the fused kernels alone, and where their time goes")
    parser.add_argument("--positions", choices=("all", "last"), help="with --by-kernel: these positions only")
    parser.add_argument("--threads", type=as_count, default=1, help="threads of torch on a CPU")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the table there as well")
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("bench kernels --device cuda: torch sees no CUDA device here; use --device cpu")
        if options.by_kernel:
            profile = importlib.import_module("dist_teracon.bench.kernels_profile")
            cases = [case for case in profile.CASES if options.positions in (None, case.positions)]
            profile.run_profile(options.save, repeats=options.repeats, cases=cases)
        else:
            importlib.import_module("dist_teracon.bench.kernels_cuda").run_cuda(options.save)
        return
    torch.set_num_threads(options.threads)
    raise_malloc_thresholds()  # as a process that trains
    table = run_cpu(TINY if options.tiny else CASES, options.repeats)
    print(table)
    if options.save is not None:
        options.save.write_text(table, encoding="utf-8")
