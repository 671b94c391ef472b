"""Splits by exact quotas in a keyed pseudo-random order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.data.tables import mix64, stable_hash


def effective(rule: SplitRule) -> SplitRule:
    """Return the rule with the shares that hold: under cross-fitting the test window is 1/folds wide, the rest trains."""
    if rule.folds == 1:
        return rule
    test = 1 / rule.folds
    return replace(rule, test=test, train=1 - test - rule.validation)


def cut(keys: NDArray[np.uint64], rule: SplitRule) -> NDArray[np.int8]:
    """Split N examples in the order of their keys; equal keys stay together.

    Over all folds each example is in the test window once.

    Args:
        keys: uint64 [N], pseudo-random.
        rule: Shares, folds and fold; `by` and `seed` are not looked at.

    Returns:
        int8 [N], values of `Split`.
    """
    count = len(keys)
    ordered = np.sort(keys)
    rank = np.searchsorted(ordered, keys, side="left")  # of the first example with that key
    start, end = (count * fold // rule.folds for fold in (rule.fold, rule.fold + 1))
    test = end - start if rule.folds > 1 else round(count * rule.test)
    held_out = round(count * (rule.test + rule.validation)) if rule.folds == 1 else test + round(count * rule.validation)
    rank = (rank - start) % max(1, count)
    split = np.full(count, Split.TRAIN, dtype=np.int8)
    split[rank < held_out] = Split.VALIDATION
    split[rank < test] = Split.TEST
    return split


def split_users(user_hash: NDArray[np.uint64], rule: SplitRule) -> NDArray[np.int8]:
    """Return the split of each user, int8 [U]; users of one hash are split as one."""
    return cut(mix64(user_hash, key=rule.seed), rule)


def split_rows(task: str, user_hash: NDArray[np.uint64], position: NDArray[np.int64], rule: SplitRule) -> NDArray[np.int8]:
    """Return the split of each example of a task, int8 [E].

    Args:
        task: The task's name.
        user_hash: uint64 [E], of the example's user.
        position: int64 [E], of the example among its user's labels.
        rule: The split.
    """
    own = mix64(position.astype(np.uint64), key=stable_hash(f"{rule.seed}/{task}"))
    return cut(mix64(user_hash ^ own, key=rule.seed), rule)
