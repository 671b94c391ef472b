"""How many users of each past task are replayed: ρ from the similarity of masks (docs/method.md, Retention).

Legend: T tasks, K masked layers, C channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dist_teracon.hashing import stable_hash

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


def normalised(rates: Sequence[float]) -> list[float]:
    """Return each rate's share of their sum; where all are 0 they count the same."""
    total = sum(rates)
    return [rate / total for rate in rates] if total > 0 else [1 / max(1, len(rates))] * len(rates)


def divide_budget(rates: Sequence[float], rows: int, *, offset: float, parts: int | None = None) -> list[int]:
    """Divide the rows of a step among past tasks in proportion to ρ: their sum is `rows`, and over steps each has exactly its share.

    Rows are cut into equal parts, each of one task. Shares lie end to end on a line of length `parts`, and a task gets the points
    `offset, offset + 1, …` that fall on its share (systematic sampling): its share of the parts rounded up or down. So over offsets spread
    evenly in [0, 1) a task's mean is its share, also where that is less than a part.

    Args:
        rates: ρ of each past task; where all are 0 they count the same.
        rows: Rows of all tasks together; with `parts` a multiple of them.
        offset: In [0, 1), from `rotation`.
        parts: How many, and so of how many past tasks a step has rows at most; None for as many as rows.
    """
    parts = parts or rows
    assert rows % parts == 0
    ends = itertools.accumulate(parts * share for share in normalised(rates))
    # sums and differences of floats may end beside a whole number, so the ends of the line are set
    points = [0, *(min(parts, max(0, math.ceil(end - offset))) for end in ends)]
    points[-1] = parts
    return [(after - before) * (rows // parts) for before, after in itertools.pairwise(points)]


def rotation(seed: int, epoch: int, step: int) -> float:
    """Return the offset of a step in [0, 1), the same in every process and after a resume.

    Steps of an epoch go on by the golden ratio, which spreads any number of successive ones almost evenly; epochs start at random.
    """
    start = stable_hash(f"rotation:{seed}:{epoch}") / 2.0**64
    return (start + step * (math.sqrt(5) - 1) / 2) % 1.0


class OnItsWay:
    """A small tensor that is copied to the host while the device computes; reading it waits for the copy.

    Args:
        value: On any device.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if value.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def tolist(self) -> list[float]:
        """Return the numbers, once they are whole: the host may be steps ahead of the device."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._value.tolist()
        return numbers
