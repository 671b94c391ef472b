"""What an appended version leaves out, counted.

Legend: U users, N items of all their sequences.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.dataset import Dataset, Shard
from dist_teracon.data.moments import Moments
from dist_teracon.data.schema import UNSEEN_ITEM

Ragged = tuple[NDArray[np.int32], NDArray[np.int64]]


@dataclass
class LeftOut:
    """How much was left out, by reason."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, count: int) -> None:
        """Count; none is not noted."""
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count


def newer_events(
    before: Shard, rows: NDArray[np.int64], now: Ragged, rows_now: NDArray[np.int64], times: NDArray[np.int64] | None = None
) -> tuple[int, int]:
    """Return how many events users have now behind the end of their sequence of before, and how many ahead of it that are not in it.

    A sequence of now begins, after some items of before that have fallen out of it, with the rest of these: what stands behind the
    longest such rest, of the same times, is newer. Where there is none, as an event has come late, times tell, and without them how many
    of the events are not in the sequence of before; these are all newer only if none is in it.

    Args:
        before: Users and sequences of before.
        rows: int64 [U], rows of the users in it.
        now: Today's sequences, items by their index in the version before; −1 for those that it does not have.
        rows_now: int64 [U], the same users' rows in it.
        times: Of today's events, where both versions keep times.
    """
    values, offsets = now
    newer = late = 0
    for row, row_now in zip(rows.tolist(), rows_now.tolist(), strict=True):
        was, here = slice(*before.offsets[row : row + 2]), slice(*offsets[row_now : row_now + 2])
        old, new = before.values[was].tolist(), values[here].tolist()
        overlap = _overlap(old, new)
        timed = None if times is None or before.columns.times is None else (before.columns.times[was].tolist(), times[here].tolist())
        if timed is not None and overlap and timed[0][-overlap:] != timed[1][:overlap]:
            overlap = 0  # items alone have met by chance
        if overlap or not old or not new:
            newer += len(new) - overlap
        elif timed is not None:
            behind = sum(time > timed[0][-1] for time in timed[1])
            common = (Counter(timed[0]) & Counter(timed[1])).total()
            newer, late = newer + behind, late + len(new) - behind - common
        else:
            common = (Counter(old) & Counter(new)).total()
            newer, late = newer + (0 if common else len(new)), late + (len(new) - common if common else 0)
    return newer, late


def _overlap(old: list[int], new: list[int]) -> int:
    """Return the length of the longest end of `old` with which `new` begins."""
    rare = UNSEEN_ITEM in old or UNSEEN_ITEM in new  # which items are rare may have changed
    for length in range(min(len(old), len(new)), 0, -1):
        if rare and all(one == other or UNSEEN_ITEM in (one, other) for one, other in zip(old[-length:], new, strict=False)):
            return length
        if not rare and old[-length] == new[0] and old[-length:] == new[:length]:
            return length
    return 0


def labels_not_in(
    old: Dataset, new: Dataset, task: str, shard: int, rows: NDArray[np.int64], labels: NDArray[np.int32]
) -> int:  # fmt: skip
    """Return how many of some users' labels the version before does not have for them.

    Args:
        old, new: The version before, and the data set that the labels are of.
        task: The task, of the same name in both.
        shard: The shard.
        rows: int64 [E], of the labels' users in the version before.
        labels: int32 [E], by their index in `new`.
    """
    names = {name: index for index, name in enumerate(old.vocabulary(task)["label"].to_pylist())}
    index = np.array([names.get(name, -1) for name in new.vocabulary(task)["label"].to_pylist()], dtype=np.int64)
    there = old.labels(task, shard)
    known = np.repeat(there.users, np.diff(there.offsets)) * (len(names) + 1) + there.values
    return int((~np.isin(rows * (len(names) + 1) + index[labels], known) | (index[labels] < 0)).sum())


def moments_before(old: Dataset) -> dict[str, dict[str, int]]:
    """Return when rows of a version's tasks are predicted in the versions after it, as `source.moments`; nothing where no time is kept.

    Their labels and the histories before them stay as they are, so the moment does, too, whatever later users did later.
    """
    if not old.info.history.times or Moments.is_dated(old.info):
        return {}
    last, before = old.last_event(range(old.info.shards)), old.info.source.get("moments", {})
    return {"moments": {task.name: before.get(task.name, last) for task in old.info.tasks}}
