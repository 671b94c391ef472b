"""Which rows stand in which batch.

The sequence of global batches depends on (seed, epoch) alone: each batch takes from every shard its share, so that all shards end
at the same step. A rank builds the rows of its own shards, may hold none of a batch, and counts over all ranks. For that it
needs one small number a row of all shards (how many examples it stands for), and keeps the order of its own shards alone.

Legend: S shards, R rows of a shard, T steps of an epoch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A shard of at most so many rows is shuffled row by row; a larger one in blocks of neighbours on disk, a window of them at a time.
WHOLE_SHUFFLE = 8192
_BLOCK, _WINDOW = 64, 1024

Counts = NDArray[Any]


def own_shards(shards: int, rank: int, world_size: int) -> range:
    """Return the shards that a rank owns; their number need not divide by the world size."""
    return range(rank, shards, world_size)


def shuffled_rows(rows: int, generator: np.random.Generator) -> NDArray[np.int32]:
    """Return a permutation of a shard's rows, int32 [R].

    Above `WHOLE_SHUFFLE` rows, blocks of 64 neighbouring rows are shuffled, and then the rows within windows of 16 such blocks, so
    that what is read within a short time lies in few places.
    """
    if rows <= WHOLE_SHUFFLE:
        return generator.permutation(rows).astype(np.int32)
    blocks = generator.permutation(-(-rows // _BLOCK)).astype(np.int32)
    order = (blocks[:, None] * np.int32(_BLOCK) + np.arange(_BLOCK, dtype=np.int32)).reshape(-1)
    order = order[order < rows]
    whole = rows // _WINDOW * _WINDOW
    windows = generator.permuted(order[:whole].reshape(-1, _WINDOW), axis=1).reshape(-1)
    return np.concatenate([windows, generator.permutation(order[whole:])])


def share_rows(work: NDArray[np.int64], owner: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """Return which rank computes each row of a step, so that work is even and few rows leave the rank that owns them.

    A rank keeps its longest rows, as far as they fit into an even share. What is left over goes, the longest first, to the rank that has
    least.

    Args:
        work: Of each row, as its length.
        owner: Each row's rank, from 0.
        ranks: Among how many.
    """
    share = -(-int(work.sum()) // ranks)
    order = np.lexsort((-work, owner))
    reached = np.cumsum(work[order])
    first = np.searchsorted(owner[order], np.arange(ranks))
    before = np.concatenate([[0], reached])[first]
    stays = reached - before[owner[order]] <= share
    rank_of = np.full(work.shape[0], -1, dtype=np.int64)
    rank_of[order[stays]] = owner[order[stays]]
    loads = np.bincount(owner[order[stays]], weights=work[order[stays]], minlength=ranks)
    left = order[~stays]
    least = [(int(load), rank) for rank, load in enumerate(loads)]
    heapq.heapify(least)
    for row in left[np.argsort(-work[left], kind="stable")].tolist():
        load, rank = least[0]
        rank_of[row] = rank
        heapq.heapreplace(least, (load + int(work[row]), rank))
    return rank_of


class BatchPlan:
    """The cut of one epoch into global batches.

    Each shard's rows are shuffled by (seed, epoch, shard). Step b ends in shard s where its examples reach
    `⌊E_s·b/T + s/S⌋`, whole rows being added until that is reached; the staggered s/S make the shares add up (Hermite's identity).

    Args:
        weights: A shard: integers [R], examples a row counts for.
        batch: Examples a global batch, at least.
        seed, epoch: What the order depends on.
        own: Shards whose rows will be asked for; the others' order is made again where it is needed. None for all.
    """

    def __init__(self, weights: Sequence[Counts], *, batch: int, seed: int, epoch: int, own: Iterable[int] | None = None) -> None:
        self._weights, self._seed, self.epoch = weights, seed, epoch
        total = int(sum(int(w.sum()) for w in weights))
        self.steps = max(1, -(-total // batch))
        self._placed = {shard: self._place(shard) for shard in (range(len(weights)) if own is None else own)}

    def rows(self, step: int, shard: int) -> NDArray[np.int32]:
        """Return an own shard's rows of a step."""
        return self.rows_between(step, step + 1, shard)[0]

    def rows_between(self, first: int, last: int, shard: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return an own shard's rows of the steps `first … last − 1`, in their order, and how many of them stand in each step."""
        order, cuts = self._placed[shard]
        ends = cuts[first : last + 1]
        return order[ends[0] : ends[-1]], np.diff(ends).astype(np.int64)

    def totals(self, counts: Sequence[Counts]) -> NDArray[np.int64]:
        """Return for each step the sum over all shards of a per-row count, int64 [T]."""
        result = np.zeros(self.steps, dtype=np.int64)
        for shard, count in enumerate(counts):
            order, cuts = self._placed.get(shard) or self._place(shard)
            reached = np.concatenate([[0], np.cumsum(count[order])])
            result += np.diff(reached[cuts])
        return result

    def _place(self, shard: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """A shard's rows in their order, and where each step begins in it: int32 [R] and [T + 1]."""
        weight, shards = self._weights[shard], len(self._weights)
        share = np.arange(self.steps + 1, dtype=np.int64)
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, self.epoch, shard])))
        order = shuffled_rows(weight.shape[0], generator)
        reached = np.cumsum(weight[order])
        examples = int(reached[-1]) if reached.size else 0
        # whole numbers all the way: floor(E·b/T + s/S) = (E·b·S + s·T) // (T·S)
        reach = np.minimum((examples * share * shards + shard * self.steps) // (self.steps * shards), examples)
        cuts = np.where(reach > 0, np.searchsorted(reached, reach, side="left") + 1, 0)
        cuts[-1] = weight.shape[0]
        return order, np.minimum(cuts, weight.shape[0]).astype(np.int32)
