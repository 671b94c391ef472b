"""Which users a stage replays for a past task, and how many (docs/method.md, Retention)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Split
from dist_teracon.hashing import mix64, stable_hash

# `pool: auto` keeps every training user of a task of at most so many, and else a share of so many times the largest ρ, or of what a floor
# of rows draws in an epoch.
SMALL_TASK = 100_000
HEADROOM = 4


def pool_of_users(
    dataset: Dataset, task: str, past: str, *, seed: int, share: float, shards: Iterable[int] | None = None
) -> list[NDArray[np.int64]]:
    """Choose the users to replay for a past task: for each shard the rows of `task`'s training users whose keyed hash lies in `share`.

    Rows are ordered by hash, so a smaller pool is the beginning of a larger one. Where `shards` are named, as those that a rank owns,
    only they are opened, and the others' rows are left empty.
    """
    key = stable_hash(f"{task}:{past}:{seed}")
    pool = [np.zeros(0, dtype=np.int64)] * dataset.info.shards
    for shard in range(dataset.info.shards) if shards is None else shards:
        users = dataset.labels(task, shard).of(Split.TRAIN).users
        hashed = mix64(dataset.shard(shard).user_hash[users], key=key)
        order = np.lexsort((users, hashed))
        inside = hashed[order] < np.uint64(min(share * 2.0**64, 2.0**64 - 2048)) if share < 1 else slice(None)
        pool[shard] = users[order][inside]
    return pool


def covered_rate(largest_rate: float, *, batch: int, minimum: int) -> float:
    """Return the share of a batch that a past task's rows can be before an epoch draws rows of its pool again.

    Args:
        largest_rate: The largest ρ, to which the pools are made.
        batch: Examples a step.
        minimum: Least rows of a past task a step.
    """
    return max(HEADROOM * largest_rate, minimum / batch)


def pool_share(setting: float | str, *, users: int, largest_rate: float, batch: int, minimum: int, max_steps: int | None) -> float:
    """Resolve `pool: auto`: all of a small task's users, else `covered_rate`, cut to what `max_steps` can draw."""
    if not isinstance(setting, str):
        return float(setting)
    covered = covered_rate(largest_rate, batch=batch, minimum=minimum)
    share = 1.0 if users <= SMALL_TASK else min(1.0, covered)
    if max_steps is not None and users:
        drawn = max_steps * max(1.0, covered * batch)
        share = min(share, max(drawn / users, min(1.0, 100 / users)))
    return share


@dataclass(frozen=True)
class PastPool:
    """The users whom a stage replays for a past task.

    Attributes:
        task: The past task's name.
        mask_index: Its row of the teacher's mask table.
        rows: `pool_of_users`, of own shards at least.
        moment: When their rows are predicted, as those of the new task, whose rows they are; None where it is not read.
    """

    task: str
    mask_index: int
    rows: Sequence[NDArray[np.int64]]
    moment: int | None = None
