"""How many users of each past task are replayed: ρ from the similarity of masks (docs/method.md, Retention).

Legend: T tasks, K masked layers, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Strategy = Literal["formula", "minimum", "all"]


def sampling_rates(mask_KC: Tensor, past_TKC: Tensor, *, constant: float) -> Tensor:
    """Return ρ of the current task against each past one: `1 − (1/K) Σ_k σ(c·cos(m_k^i, m̃_k^j))`, [T].

    Args:
        mask_KC: The current task's masks.
        past_TKC: The past tasks' masks.
        constant: c.
    """
    cosine = torch.nn.functional.cosine_similarity(mask_KC[None], past_TKC, dim=-1, eps=1e-12)
    return 1 - torch.sigmoid(constant * cosine).mean(dim=1)


def apply_strategy(rates: list[float], strategy: Strategy) -> list[float]:
    """Turn the formula's rates into those that are used: as they are, the least one for all, or 1 (docs/method.md, Retention)."""
    if not rates or strategy == "formula":
        return rates
    return [min(rates)] * len(rates) if strategy == "minimum" else [1.0] * len(rates)


def sample_size(rate: float, batch: int, *, minimum: int) -> int:
    """Return the rows of a past task in a global batch of `batch` rows: `max(minimum, round(ρ·B))`."""
    return max(minimum, round(rate * batch))
