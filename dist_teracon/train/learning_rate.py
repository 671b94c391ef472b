"""How the learning rate goes over the steps of a phase: a factor on the rate of every parameter."""

from __future__ import annotations

import math

from dist_teracon.config.train import StageTraining


def rate_factor(training: StageTraining, step: int, *, total: int, cuts: int) -> float:
    """Return the factor on the learning rate of one step; it follows from the arguments alone, so a phase that goes on needs no more.

    Args:
        training: The stage's settings.
        step: Steps of the phase before this one.
        total: Steps that the phase takes at most.
        cuts: How often validation has stood still so far (`plateau`).
    """
    warmup = training.warmup_steps
    cut = float(training.plateau_factor**cuts) if training.schedule == "plateau" else 1.0
    if step < warmup:
        return cut * (step + 1) / warmup
    if training.schedule in ("constant", "plateau"):
        return cut
    left = max(0.0, 1 - (step - warmup) / max(1, total - warmup))
    return left if training.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
