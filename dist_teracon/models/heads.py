"""Task heads and their losses: one linear layer a task, and sums that never hold more logits than fit.

Legend: E examples, C channels, Y labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from dist_teracon.data.schema import FIRST_ITEM
from dist_teracon.hashing import plain_name
from dist_teracon.models.item_table import ItemTable

# Logits held at a time, as numbers; 2^25 of them in fp32 are 128 MiB.
LOGITS_AT_ONCE = 1 << 25


# Differences of logits of at most so many units of rounding of a row's largest logit count as none.
_ROUNDING = 32


class Head(nn.Module):
    """A linear layer from a representation to a task's labels; starts at N(0, 0.01) with biases of 0.1 (docs/method.md, The problem)."""

    def __init__(self, channels: int, labels: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(labels, channels).normal_(0, 0.01, generator=generator))
        self.bias = nn.Parameter(torch.full((labels,), 0.1))
        # set where the optimiser advances touched rows alone: gradients that come by `rows` then hold these rows
        self.sparse = False

    @property
    def labels(self) -> int:
        """Number of labels |Y|."""
        return self.weight.shape[0]

    @property
    def num_rows(self) -> int:
        """Number of labels |Y|, as a `SparseTable`."""
        return self.weight.shape[0]

    def rows(self, labels_E: Tensor) -> Tensor:
        """Return the weights of some labels [E, C]."""
        return F.embedding(labels_E, self.weight, sparse=self.sparse) if self.sparse else self.weight.index_select(0, labels_E)

    def forward(self, hidden_EC: Tensor) -> Tensor:
        """Return the logits [E, Y]."""
        return F.linear(hidden_EC, self.weight, self.bias)


class TiedHead(Head):
    """The first task's head with the items' own embeddings as its weights, and biases of its own (docs/method.md, Training).

    Label y is item `y + FIRST_ITEM`. The table is no part of this module: it is trained, frozen, stored and grown as the backbone's.

    Args:
        table: The items' embeddings.
        labels: |Y|.
    """

    def __init__(self, table: ItemTable, labels: int) -> None:
        nn.Module.__init__(self)
        self.bias = nn.Parameter(torch.full((labels,), 0.1))
        self._table = (table,)  # in a tuple, so that it is no child

    @property
    def table(self) -> ItemTable:
        """The items' embeddings."""
        return self._table[0]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The labels' weights [Y, C]; zero for labels of items that came after the table, as in an older stage of a run."""
        rows = self.table.weight[FIRST_ITEM : FIRST_ITEM + self.labels]
        later = self.labels - rows.shape[0]
        return F.pad(rows, (0, 0, 0, later)) if later else rows

    @property
    def labels(self) -> int:
        """Number of labels |Y|."""
        return self.bias.shape[0]

    @property
    def num_rows(self) -> int:
        """Number of labels |Y|, as a `SparseTable`."""
        return self.labels

    @property
    def sparse(self) -> bool:  # type: ignore[override]
        """As the table: both give their gradients to it."""
        return self.table.sparse

    def rows(self, labels_E: Tensor) -> Tensor:
        """Return the weights of some labels [E, C]."""
        return self.table(labels_E + FIRST_ITEM)


_EMPTY = nn.ModuleDict()


def head_key(task: str) -> str:
    """Return a task's key in a `ModuleDict` of heads: its name, unless that cannot be a module's attribute, as `v1.2` or `values`."""
    return plain_name(task) if "." in task or hasattr(_EMPTY, task) else task


def rows_at_once(labels: int) -> int:
    """Rows whose logits over `labels` may be held together."""
    return max(1, LOGITS_AT_ONCE // labels)


def cross_entropy_sum(head: Head, hidden_EC: Tensor, labels_E: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Sum of the examples' cross-entropies, exact over all labels; zero, and part of the graph, for no examples.

    Args:
        head: The head.
        hidden_EC: Representations.
        labels_E: Targets, int64.
        smoothing: Share of a target's weight that is spread evenly over all labels.
    """

    def part(logits_BY: Tensor, start: int, gradient: bool) -> tuple[Tensor, Tensor | None]:
        labels = labels_E[start : start + logits_BY.shape[0], None]
        scores = torch.log_softmax(logits_BY, dim=1)
        total = (smoothing - 1) * scores.gather(1, labels).sum()
        if smoothing:
            total = total - smoothing * scores.mean(1).sum()
        if not gradient:
            return total, None
        d = scores.exp_()  # softmax − the smoothed one-hot
        if smoothing:
            d -= smoothing / d.shape[1]
        return total, d.scatter_add_(1, labels, d.new_full(labels.shape, smoothing - 1))

    return _sum_over_chunks(head, hidden_EC, part)


def squared_error_sum(head: Head, hidden_EC: Tensor, teacher: Tensor, teacher_head: Head | None) -> Tensor:
    """Sum over examples and labels of (logits − teacher's logits)², differences at the level of rounding taken as zero.

    Args:
        head: The student's head.
        hidden_EC: The student's representations.
        teacher: The teacher's logits [E, Y], or its representations [E, C] where `teacher_head` is given.
        teacher_head: The teacher's frozen head, for labels too many to store (docs/method.md, Retention).
    """

    def part(logits_BY: Tensor, start: int, gradient: bool) -> tuple[Tensor, Tensor | None]:
        target = teacher[start : start + logits_BY.shape[0]]
        if teacher_head is not None:
            target = F.linear(target.to(teacher_head.weight.dtype), teacher_head.weight.detach(), teacher_head.bias.detach())
        target = target.to(logits_BY.dtype)
        difference = logits_BY.sub_(target)
        difference.masked_fill_(difference.abs() <= _rounding(target, stored=teacher.dtype), 0)
        flat = difference.view(-1)
        return flat.dot(flat), difference.mul_(2) if gradient else None

    return _sum_over_chunks(head, hidden_EC, part)


def gram_of(head: Head) -> Tensor:
    """Return the Gram matrix `WᵀW` of a head's weights, float32 [C, C]: distances between logits without the logits."""
    channels = head.weight.shape[1]
    total = head.weight.new_zeros(channels, channels, dtype=torch.float64)
    for rows_YC in head.weight.detach().split(rows_at_once(channels)):
        wide = rows_YC.double()
        total += wide.t() @ wide
    return total.float()


def squared_distance_sum(gram_CC: Tensor, hidden_EC: Tensor, teacher_EC: Tensor) -> Tensor:
    """Sum over examples and labels of (logits − teacher's logits)² where both have one frozen head: `Σ (h − h̃) G (h − h̃)ᵀ`.

    The bias cancels, and a row costs C² instead of C · |Y| (docs/method.md, Retention). Differences at the level of rounding are taken as
    zero, as in `squared_error_sum`.

    Args:
        gram_CC: The head's Gram matrix G (`gram_of`).
        hidden_EC: The student's representations h.
        teacher_EC: The teacher's h̃.
    """
    with record_function("heads"):
        hidden = _wide(hidden_EC)
        target = teacher_EC.to(hidden.dtype)
        difference = hidden - target
        difference = difference.masked_fill(difference.detach().abs() <= _rounding(target, stored=teacher_EC.dtype), 0)
        return ((difference @ gram_CC.to(hidden.dtype)) * difference).sum()


def _rounding(target_EC: Tensor, *, stored: torch.dtype) -> Tensor:
    """Return for each row up to where a difference to its target means nothing.

    Two orders of summation differ by this much, and a target that was kept as float16 by one of its units; Adam would turn even that
    gradient into whole steps of a past head.
    """
    unit = _ROUNDING * torch.finfo(target_EC.dtype).eps
    low, high = torch.aminmax(target_EC, dim=1, keepdim=True)
    return max(unit, torch.finfo(stored).eps if stored == torch.float16 else 0.0) * torch.maximum(high, -low)


# From a chunk's logits, fp32 at least, and the place of its first example to its part of a sum, and the logits' gradient if asked for.
_Part = Callable[[Tensor, int, bool], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class _Gradients:
    """Where a sum's gradients are added up; None where one is not needed. The weight's and the bias's are fp32 at least."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _sum_over_chunks(head: Head, hidden_EC: Tensor, part: _Part) -> Tensor:
    with record_function("heads"):
        if torch.is_grad_enabled() and any(t.requires_grad for t in (hidden_EC, head.weight, head.bias)):
            total: Tensor = _HeadSum.apply(hidden_EC, head.weight, head.bias, part)
            return total
        with torch.no_grad():
            return _add_chunks(hidden_EC, head.weight, head.bias, part, None)


def _add_chunks(hidden: Tensor, weight: Tensor, bias: Tensor, part: _Part, into: _Gradients | None) -> Tensor:
    """Add up a sum chunk by chunk; while a chunk's logits are there, its gradients are made of them."""
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    rows = rows_at_once(weight.shape[0])
    for start in range(0, hidden.shape[0], rows):
        h = hidden[start : start + rows]
        value, d = part(_wide(F.linear(h, weight, bias)), start, into is not None)
        total += value
        if into is None or d is None:
            continue
        narrow = d.to(h.dtype)
        if into.hidden is not None:
            torch.mm(narrow, weight, out=into.hidden[start : start + rows])
        if into.weight is not None:
            into.weight.add_(narrow.t() @ h) if narrow is not d else into.weight.addmm_(d.t(), h)
        if into.bias is not None:
            into.bias.add_(d.sum(0))
    return total


class _HeadSum(torch.autograd.Function):
    """A sum with its gradients made in the forward pass: no logits are kept, and none computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, part: _Part) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        into = _Gradients(
            torch.empty_like(hidden) if of_hidden else None,
            torch.zeros_like(weight, dtype=wide) if of_weight else None,
            torch.zeros_like(bias, dtype=wide) if of_bias else None,
        )
        total = _add_chunks(hidden, weight, bias, part, into)
        ctx.save_for_backward(into.hidden, into.weight, into.bias)
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if made is None else (made * grads[0]).to(ctx.dtype) for made in ctx.saved_tensors), None


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
