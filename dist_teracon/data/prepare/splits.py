"""Splits by exact quotas in a keyed pseudo-random order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.hashing import mix64, stable_hash


def effective(rule: SplitRule) -> SplitRule:
    """Return the rule with the shares that hold: under cross-fitting the test window is 1/folds wide, the rest trains."""
    if rule.folds == 1:
        return rule
    test = 1 / rule.folds
    return replace(rule, test=test, train=1 - test - rule.validation)


class Cut:
    """A split by quotas in the order of keys; equal keys stay together, and over all folds each example is in the test window once.

    Args:
        keys: uint64 [N], pseudo-random, of all examples, in any order.
        rule: Shares, folds and fold; `by` and `seed` are not looked at.
    """

    def __init__(self, keys: NDArray[np.uint64], rule: SplitRule) -> None:
        self._ordered = np.sort(keys)
        count = len(keys)
        self._start, end = (count * fold // rule.folds for fold in (rule.fold, rule.fold + 1))
        self._test = end - self._start if rule.folds > 1 else round(count * rule.test)
        validation = round(count * rule.validation)
        self._held_out = round(count * (rule.test + rule.validation)) if rule.folds == 1 else self._test + validation

    def of(self, keys: NDArray[np.uint64]) -> NDArray[np.int8]:
        """Return the split of some of the examples, int8, values of `Split`."""
        rank = np.searchsorted(self._ordered, keys, side="left")  # of the first example with that key
        rank = (rank - self._start) % max(1, len(self._ordered))
        split = np.full(len(keys), Split.TRAIN, dtype=np.int8)
        split[rank < self._held_out] = Split.VALIDATION
        split[rank < self._test] = Split.TEST
        return split


def cut(keys: NDArray[np.uint64], rule: SplitRule) -> NDArray[np.int8]:
    """Split N examples in the order of their keys, int8 [N]; see `Cut`."""
    return Cut(keys, rule).of(keys)


def user_keys(user_hash: NDArray[np.uint64], rule: SplitRule) -> NDArray[np.uint64]:
    """Return the keys by which users are cut; users of one hash are split as one."""
    return mix64(user_hash, key=rule.seed)


def row_keys(task: str, user_hash: NDArray[np.uint64], position: NDArray[np.int64], rule: SplitRule) -> NDArray[np.uint64]:
    """Return the keys by which a task's examples are cut.

    Args:
        task: The task's name.
        user_hash: uint64 [E], of the example's user.
        position: int64 [E], of the example among its user's labels.
        rule: The split.
    """
    own = mix64(position.astype(np.uint64), key=stable_hash(f"{rule.seed}/{task}"))
    return mix64(user_hash ^ own, key=rule.seed)


def split_users(user_hash: NDArray[np.uint64], rule: SplitRule) -> NDArray[np.int8]:
    """Return the split of each user, int8 [U]."""
    return cut(user_keys(user_hash, rule), rule)
