"""What each stage did to every earlier task: the matrix R, forward and backward transfer (docs/method.md, Evaluation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Score = float | None
Matrix = Sequence[Sequence[Score]]


@dataclass(frozen=True)
class Transfer:
    """A change a task, in percent and absolute; None where there is nothing to compare or the base is zero."""

    percent: list[Score]
    absolute: list[Score]


def _change(pairs: Sequence[tuple[Score, Score]]) -> Transfer:
    percent: list[Score] = []
    absolute: list[Score] = []
    for after, before in pairs:
        difference = None if after is None or before is None else after - before
        absolute.append(difference)
        percent.append(difference / before * 100 if difference is not None and before else None)
    return Transfer(percent, absolute)


def backward_transfer(scores: Matrix) -> Transfer:
    """`BWT_i = (R(M,i) − R(i,i)) / R(i,i) · 100` for every task but the last, whose entry is None."""
    pairs = [(scores[-1][i], scores[i][i]) for i in range(len(scores) - 1)]
    return _change([*pairs, (None, None)])


def forward_transfer(scores: Matrix, single_task: Sequence[Score]) -> Transfer:
    """`FWT_i = (R(i,i) − R̄(i)) / R̄(i) · 100` for every task but the first, whose entry is None."""
    return _change([(None, None), *((scores[i][i], single_task[i]) for i in range(1, len(scores)))])
