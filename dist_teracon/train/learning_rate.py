"""How the learning rate goes over the steps of a phase: a factor on the rate of every parameter."""

from __future__ import annotations

import math
import sys

from dist_teracon.config.train import StageTraining
from dist_teracon.console import Log
from dist_teracon.engine.contract import Engine
from dist_teracon.train.early_stopping import EarlyStopping


class LearningRate:
    """The learning rate of a phase: set before a step, and lowered where validation stands still.

    Args:
        training: The stage's settings.
        limit: Steps that the phase takes at most, whatever its epochs; None for no such limit.
        log: Receives lines.

    Attributes:
        value: The rate of the last step, before the factors of single parameters.
    """

    def __init__(self, training: StageTraining, limit: int | None, log: Log) -> None:
        self._training, self._limit, self._log = training, limit, log
        self.value = training.learning_rate

    def before_step(self, engine: Engine, step: int, *, steps_of_epoch: int, cuts: int) -> None:
        """Set the rate of the step that comes, where it is not the same for all.

        Args:
            engine: Takes the step.
            step: Steps of the phase before it.
            steps_of_epoch: Of each epoch.
            cuts: How often the rate was cut so far.
        """
        training = self._training
        if training.schedule == "constant" and step > training.warmup_steps:
            return
        total = min(training.epochs * steps_of_epoch, self._limit or sys.maxsize)
        if not step and training.warmup_steps > total:
            self._log(
                f"warmup_steps {training.warmup_steps:,} are more than its {total:,} steps: the learning rate does not reach its value"
            )
        factor = rate_factor(training, step, total=total, cuts=cuts)
        engine.scale_rates(factor)
        self.value = factor * training.learning_rate

    def cut_if_due(self, stopping: EarlyStopping, epoch: int) -> None:
        """Lower the rate instead of ending the phase after an epoch, where the schedule says so."""
        training = self._training
        if training.schedule != "plateau" or stopping.cuts >= training.plateau_cuts or epoch >= training.epochs:
            return
        if stopping.is_exhausted(training.patience):
            stopping.cut()
            rate = training.learning_rate * training.plateau_factor**stopping.cuts
            self._log(f"no better score for {training.patience} epochs: learning rate {rate:.3g}")


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
