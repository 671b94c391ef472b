"""The fused stack against fp64 autograd of the reference, on cases that are a few numbers each; run as a script it serves them.

`TRITON_INTERPRET=1 python stack_cases.py` reads a case a line (JSON) and answers each with a line: Triton's interpreter must be on
before Triton is imported, and the compiler's tests need it off, so it has a process of its own.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack import StackParameters, build_layout, reference

NAMES = ("x", "weight", "bias", "norm_weight", "norm_bias", "masks")


@dataclass(frozen=True)
class Case:
    """A problem for the stack.

    Attributes:
        lengths: Of the rows.
        channels, kernel_size, dilations, positions: Of the stack.
        tasks: Rows take them in turn; 1 for one task (the second of two), 0 for no masks.
        clear: LayerNorm's parameters keep every pre-activation far from zero, so that no rounding turns a ReLU over.
        again: Run twice, to compare the bits.
        dtype, device: What the fused kernels compute in and on.
    """

    lengths: tuple[int, ...]
    channels: int = 16
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2)
    positions: str = "all"
    tasks: int = 3
    seed: int = 0
    clear: bool = False
    again: bool = False
    dtype: str = "float32"
    device: str = "cpu"


def problem(case: Case) -> tuple[list[Tensor | None], Any]:
    """Return the leaves in fp64, their values such that the case's dtype holds them, and the layout."""
    generator = torch.Generator().manual_seed(case.seed)
    dtype = getattr(torch, case.dtype)
    stages, C, k = 2 * len(case.dilations), case.channels, case.kernel_size

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    norm_weight, norm_bias = 1 + 0.3 * draw(stages, C), draw(stages, C)
    if case.clear:
        norm_weight, norm_bias = 0.05 + 0.02 * torch.rand(stages, C, dtype=torch.float64, generator=generator), 2 * norm_bias.sign()
    masks = torch.rand(max(2, case.tasks), stages, C, dtype=torch.float64, generator=generator) if case.tasks else None
    leaves = [draw(sum(case.lengths), C), draw(stages, C, C, k) / (C * k) ** 0.5, draw(stages, C), norm_weight, norm_bias, masks]
    rounded = [None if leaf is None else leaf.to(case.device, dtype).double() for leaf in leaves]
    rows = len(case.lengths)
    task_of_row = torch.ones(rows, dtype=torch.int32) if case.tasks == 1 else torch.arange(rows, dtype=torch.int32) % max(1, case.tasks)
    row_offsets = torch.tensor([0, *case.lengths]).cumsum(0)
    layout = build_layout(
        row_offsets.to(case.device), task_of_row.to(case.device), dilations=case.dilations, kernel_size=k, positions=case.positions
    )
    return rounded, layout


def differentiate(stack: Any, leaves: list[Tensor | None], layout: Any, dtype: torch.dtype, weights: Tensor | None) -> dict[str, Tensor]:
    """Return the output and the gradient of every leaf; `weights` is the gradient at the output."""
    given = [None if leaf is None else leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    out = stack(given[0], layout, StackParameters(*given[1:5]), given[5], eps=1e-8)
    assert weights is not None
    there = [(name, leaf) for name, leaf in zip(NAMES, given, strict=True) if leaf is not None]
    gradients = torch.autograd.grad(out, [leaf for _, leaf in there], weights.to(out.dtype))
    return {"output": out.detach()} | {name: gradient for (name, _), gradient in zip(there, gradients, strict=True)}


def fused(leaves: list[Tensor | None], layout: Any, dtype: torch.dtype, weights: Tensor) -> dict[str, Tensor]:
    """Run the fused kernels with all fresh memory full of NaN, so that what they do not write is seen."""
    from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton import stack as triton_stack

    torch.use_deterministic_algorithms(True)  # with it `torch.empty` fills with NaN, and what is not deterministic raises
    try:
        assert torch.empty(3, device=weights.device).isnan().all()
        return differentiate(triton_stack.stack, leaves, layout, dtype, weights)
    finally:
        torch.use_deterministic_algorithms(False)


def compare(case: Case) -> dict[str, Any]:
    """Run a case.

    Returns:
        `errors`: by name, the norm of the difference over the norm of what is right.
        `same`: whether a second run gave the same bits (`again`).
    """
    leaves, layout = problem(case)
    dtype = getattr(torch, case.dtype)
    shape = (len(case.lengths) if case.positions == "last" else sum(case.lengths), case.channels)
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(case.device, dtype).double()
    right = differentiate(reference.stack, leaves, layout, torch.float64, weights)
    first, *others = (fused(leaves, layout, dtype, weights) for _ in range(1 + case.again))
    errors = {name: float((first[name].double() - value).norm() / value.norm().clamp_min(1e-30)) for name, value in right.items()}
    return {"errors": errors, "same": all(torch.equal(first[name], other[name]) for other in others for name in right)}


def serve() -> None:
    """Answer cases until the input ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            answer = compare(Case(**{key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(line).items()}))
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


def as_line(case: Case) -> str:
    """Return the line that asks for a case."""
    return json.dumps(asdict(case)) + "\n"


if __name__ == "__main__":
    serve()
