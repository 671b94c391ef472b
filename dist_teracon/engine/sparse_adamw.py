"""AdamW with row-sparse updates, as `torch.optim.SparseAdam`, with decoupled decay: for tables of which a batch reads few rows.

Dense Adam updates every row's moments and moves every row at each step, read or not; with tables of hundreds of thousands of rows that
is nearly all of a step (docs/scale.md). Here a parameter with a sparse gradient is updated only in the rows that the gradient holds:

- their moments, bias-corrected by the number of steps of the whole parameter, as torch's SparseAdam does;
- their weight decay: a row decays when it is read, so the decay of a rare row is as rare as its gradients.

Other rows keep value and moments. A parameter with a dense gradient gets torch's own AdamW. The state has the form of torch's, so it is
checkpointed like any other.

Legend: V rows, C columns, n rows of a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dist_teracon.engine.eager_adam import adam_step


class SparseAdamW(torch.optim.AdamW):
    """AdamW for dense gradients; for sparse ones, only in their rows."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step; a closure is not supported."""
        assert closure is None
        sparse = [
            (group, parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for _, parameter, _ in sparse:
            parameter.grad = None  # what is left is AdamW's
        adam_step(self)
        for group, parameter, gradient in sparse:
            self._advance(group, parameter, gradient.coalesce())

    def _advance(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] = state["step"].cpu() + 1  # a resumed one lies with the weights, and to read it there would wait for the device
        steps, (beta1, beta2), rate = float(state["step"]), group["betas"], float(group["lr"])
        rows, values_nC = gradient.indices()[0], gradient.values()
        first_nC = state["exp_avg"][rows].lerp_(values_nC, 1 - beta1)
        second_nC = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(values_nC, values_nC, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, first_nC)
        state["exp_avg_sq"].index_copy_(0, rows, second_nC)
        divisor = second_nC.sqrt_().div_(math.sqrt(1 - beta2**steps)).add_(group["eps"])
        moved = parameter[rows].mul_(1 - rate * group["weight_decay"]).addcdiv_(first_nC, divisor, value=-rate / (1 - beta1**steps))
        parameter.index_copy_(0, rows, moved)
