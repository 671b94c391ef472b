"""What the tables of experiments count."""

from __future__ import annotations

from dist_teracon.compare.experiments import epochs_so_far
from dist_teracon.report.events import Epoch


def epochs(*phases: int) -> list[Epoch]:
    """The scores of phases of so many epochs, each with one of its start."""
    return [
        Epoch(2, f"phase {number}", epoch, {}, 0.5, "mrr@5", best=False)
        for number, count in enumerate(phases)
        for epoch in range(count + 1)
    ]


def test_the_start_of_a_second_phase_is_no_epoch() -> None:
    assert epochs_so_far(epochs(3)) == [0, 1, 2, 3]
    assert epochs_so_far(epochs(2, 3, 1)) == [0, 1, 2, 2, 3, 4, 5, 5, 6]
    assert epochs_so_far([]) == []
