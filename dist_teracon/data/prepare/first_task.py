"""The first task's labels: which of a user's own items are predicted, and which users or items are not."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.data.shard_source import ShardLabels, ShardRows


def next_labels(rows: ShardRows, length_limit: int) -> ShardLabels:
    """Return the first task's labels: the last item of each user who has two or more; an unseen one is never a target."""
    able = np.diff(rows.offsets) >= 2
    last = rows.values[rows.offsets[1:] - 1]
    able &= last >= 0
    if rows.next_users is not None:
        able &= rows.next_users
    if length_limit < 2:
        able[:] = False
    users = np.flatnonzero(able)
    return ShardLabels(users, last[users], np.arange(len(users) + 1, dtype=np.int64))


def last_three(rows: ShardRows, length_limit: int) -> tuple[ShardLabels, NDArray[np.int8]]:
    """Return the first task's labels under a split by `last`, and their splits: each user's last items.

    The last one is for the test, the one before for validation, and the one before that ends what is trained on. An example needs an item
    before its label; an unseen item is never a target.
    """
    labels, _ = _last_items(rows, length_limit, of=list(Split))
    if rows.next_users is not None:
        labels[~rows.next_users] = -1
    there = labels >= 0
    users = np.flatnonzero(there.any(axis=1))
    split = np.broadcast_to(np.array(list(Split), dtype=np.int8), there.shape)
    return ShardLabels(users, labels[there].astype(np.int32), ragged.offsets_of(there[users].sum(axis=1))), split[there]


def left_out(rows: ShardRows, length_limit: int, *, by_last: bool) -> Counter[str]:
    """Count why the first task lacks examples of those who take part in it.

    Args:
        rows: Of a shard.
        length_limit: Of the data set.
        by_last: Whether it is split by `last`, where a user has three examples.
    """
    labels, able = _last_items(rows, length_limit, of=list(Split) if by_last else [Split.TEST])
    takes_part = slice(None) if rows.next_users is None else rows.next_users
    labels, able = labels[takes_part], able[takes_part]
    it, last = ("it", "the item") if by_last else ("the last one", "the last item")
    found = {
        f"no item before {it}": np.count_nonzero(~able),
        f"{last} is unseen: never a target": np.count_nonzero(able & (labels < 0)),
    }
    return Counter({reason: int(count) for reason, count in found.items() if count})


def _last_items(rows: ShardRows, length_limit: int, *, of: list[Split]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the items that splits by `last` predict, by user and split [U, S], −1 for unseen or none; and whether one is before it."""
    lengths = np.minimum(np.diff(rows.offsets), length_limit)
    behind = np.array([SplitRule(by="last").behind(split) for split in of])  # of all: 2, 1, 0, the order of the items
    place = rows.offsets[1:, None] - 1 - behind
    able = lengths[:, None] - behind >= 2
    return np.where(able, rows.values[np.maximum(place, 0)] if len(rows.values) else -1, -1), able
