"""Ranking metrics from counts: how many candidates score higher, how many the same (SPEC section 5).

Legend: E examples, Y labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

METRIC_CUTOFF = {"mrr@5": 5, "accuracy": 1}

# The rank of a score that is not a number; a task may have fewer labels than the cutoff.
_BELOW_ALL = 1 << 62


def count_candidates(logits_EY: Tensor, labels_E: Tensor) -> tuple[Tensor, Tensor]:
    """Count for each example the labels that score higher than its own, and the others that score the same: two int64 [E].

    A score that is not a number counts as higher, and an own score that is none has more above it than any cutoff reaches, so that
    a broken model never wins.
    """
    target = logits_EY.gather(1, labels_E[:, None])
    greater = logits_EY.shape[1] - (logits_EY <= target).sum(dim=1)
    greater = greater.masked_fill(target.isnan().squeeze(1), _BELOW_ALL)
    equal = (logits_EY == target).sum(dim=1) - 1
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
