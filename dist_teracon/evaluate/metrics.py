"""Ranking metrics from counts: how many candidates score higher, how many the same (SPEC section 5).

Legend: E examples, Y labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

METRIC_CUTOFF = {"mrr@5": 5, "accuracy": 1}

# The rank of a score that is not a number; a task may have fewer labels than the cutoff.
_BELOW_ALL = 1 << 62


# Labels compared at a time: several examples of one row share its logits, and only so many of them are laid out an example.
_LABELS_AT_ONCE = 1 << 16


def count_candidates(logits_BY: Tensor, labels_E: Tensor, *, rows_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Count for each example the labels that score higher than its own, and the others that score the same: two int64 [E].

    A score that is not a number counts as higher, and an own score that is none has more above it than any cutoff reaches, so that
    a broken model never wins.

    Args:
        logits_BY: Scores of rows.
        labels_E: The examples' labels.
        rows_E: The row that each example reads; None where examples and rows are the same.
    """
    labels = logits_BY.shape[1]
    rows = torch.arange(labels_E.shape[0], device=logits_BY.device) if rows_E is None else rows_E
    target = logits_BY[rows, labels_E][:, None]
    greater, equal = torch.full_like(labels_E, labels), torch.full_like(labels_E, -1)
    shared = rows_E is not None and not torch.equal(rows, torch.arange(logits_BY.shape[0], device=rows.device))
    for piece in logits_BY.split(_LABELS_AT_ONCE, dim=1):
        compared = piece[rows] if shared else piece
        # in 32 bits, which takes a third less time
        greater -= (compared <= target).sum(dim=1, dtype=torch.int32)
        equal += (compared == target).sum(dim=1, dtype=torch.int32)
    greater = greater.masked_fill(target.isnan().squeeze(1), _BELOW_ALL)
    return greater, equal.clamp_min(0)


def reciprocal_rank(greater_E: Tensor, equal_E: Tensor, *, cutoff: int) -> Tensor:
    """Expected reciprocal rank over the random order of ties, zero below the cutoff: float64 [E].

    The rank is uniform on `g + 1 … g + e + 1`, so the mean is `(H(min(g + e + 1, cutoff)) − H(min(g, cutoff))) / (e + 1)` with H the
    harmonic numbers. With cutoff 1 this is the expected accuracy.
    """
    steps = torch.arange(1, cutoff + 1, dtype=torch.float64, device=greater_E.device)
    harmonic = torch.cat([steps.new_zeros(1), torch.cumsum(1 / steps, 0)])
    low, high = greater_E.clamp_max(cutoff), (greater_E + equal_E + 1).clamp_max(cutoff)
    return (harmonic[high] - harmonic[low]) / (equal_E + 1)
