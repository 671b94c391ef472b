"""Task heads and their losses: one linear layer a task, and sums that never hold more logits than fit.

Legend: E examples, C channels, Y labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits held at a time, as numbers; 2^25 of them in fp32 are 128 MiB.
LOGITS_AT_ONCE = 1 << 25


# Differences of logits of at most so many units of rounding of a row's largest logit count as none.
_ROUNDING = 32


class Head(nn.Module):
    """A linear layer from a representation to a task's labels; starts at N(0, 0.01) with biases of 0.1 (SPEC section 2)."""

    def __init__(self, channels: int, labels: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(labels, channels).normal_(0, 0.01, generator=generator))
        self.bias = nn.Parameter(torch.full((labels,), 0.1))

    @property
    def labels(self) -> int:
        """Number of labels |Y|."""
        return self.weight.shape[0]

    def forward(self, hidden_EC: Tensor) -> Tensor:
        """Return the logits [E, Y]."""
        return F.linear(hidden_EC, self.weight, self.bias)


def rows_at_once(labels: int) -> int:
    """Rows whose logits over `labels` may be held together."""
    return max(1, LOGITS_AT_ONCE // labels)


def cross_entropy_sum(head: Head, hidden_EC: Tensor, labels_E: Tensor) -> Tensor:
    """Sum of the examples' cross-entropies, exact over all labels; zero, and part of the graph, for no examples."""

    def part(hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(_wide(head(hidden)), labels, reduction="sum")

    return in_chunks(part, rows_at_once(head.labels), hidden_EC, labels_E)


def squared_error_sum(head: Head, hidden_EC: Tensor, teacher: Tensor, teacher_head: Head | None) -> Tensor:
    """Sum over examples and labels of (logits − teacher's logits)², differences at the level of rounding taken as zero.

    Args:
        head: The student's head.
        hidden_EC: The student's representations.
        teacher: The teacher's logits [E, Y], or its representations [E, C] where `teacher_head` is given.
        teacher_head: The teacher's frozen head, for labels too many to store (SPEC section 4).
    """

    def part(hidden: Tensor, target: Tensor) -> Tensor:
        wanted = target if teacher_head is None else teacher_head(target.to(teacher_head.weight.dtype))
        difference = _wide(head(hidden)) - wanted
        # what two orders of summation differ by says nothing, but Adam would turn even that gradient into whole steps of a past head
        rounding = _ROUNDING * torch.finfo(difference.dtype).eps * wanted.detach().abs().amax(dim=1, keepdim=True)
        return difference.masked_fill(difference.detach().abs() <= rounding, 0).square().sum()

    return in_chunks(part, rows_at_once(head.labels), hidden_EC, teacher)


def _wide(logits: Tensor) -> Tensor:
    """Logits in fp32 at least: sums of exponentials and squares need it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def in_chunks(part: Callable[[Tensor, Tensor], Tensor], rows: int, hidden: Tensor, other: Tensor) -> Tensor:
    """Sum `part` over chunks of so many rows, each chunk made again in the backward pass."""
    if hidden.shape[0] <= rows:
        return part(hidden, other)
    # recomputed in the backward pass, so that one chunk's logits are all that is ever held
    sums = [checkpoint(part, h, o, use_reentrant=False) for h, o in zip(hidden.split(rows), other.split(rows), strict=True)]
    return torch.stack(sums).sum()
