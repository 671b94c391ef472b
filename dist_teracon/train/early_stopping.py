"""Early stopping on the validation score."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """The best validation score so far; a later equal score is no improvement.

    Attributes:
        best: None before the first score.
        best_epoch: Counted from 1; 0 for the weights before training.
        epochs_without_improvement: Since then, or since the last cut of the learning rate.
        cuts: How often the learning rate was cut because no epoch improved (`train.*.schedule: plateau`).
    """

    best: float | None = None
    best_epoch: int = 0
    epochs_without_improvement: int = 0
    cuts: int = 0

    def update(self, score: float | None, epoch: int) -> bool:
        """Take in an epoch's score; returns whether it is the best so far."""
        better = score is not None and (self.best is None or score > self.best)
        if better:
            self.best, self.best_epoch, self.epochs_without_improvement = score, epoch, 0
        else:
            self.epochs_without_improvement += 1
        return better

    def is_exhausted(self, patience: int) -> bool:
        """Return whether `patience` epochs in a row brought no improvement; a patience of 0 never ends."""
        return bool(patience and self.best is not None and self.epochs_without_improvement >= patience)

    def cut(self) -> None:
        """Note that the learning rate is cut, and give the smaller one as many epochs to improve."""
        self.cuts, self.epochs_without_improvement = self.cuts + 1, 0
