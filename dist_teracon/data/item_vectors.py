"""Initial item vectors from which items occur together: a truncated SVD of their positive pointwise mutual information.

Items that the same users take get near vectors before any training, which a network learns only slowly from few users
(docs/experiments.md). Levy and Goldberg, "Neural word embedding as implicit matrix factorization" (2014).

Legend: V items, C channels, P pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.data.batches import take_rows
from dist_teracon.data.schema import FIRST_ITEM, Split, Task
from dist_teracon.data.shards import Dataset
from dist_teracon.data.tables import mix64, stable_hash

# Pairs of items at most so many positions apart count.
WINDOW = 16
# Pairs held at a time; users beyond what that allows are left out, the same ones at any order of shards.
PAIRS = 1 << 25
# Entries' standard deviation: below that of the network's other inputs at their start, which are of size 1.
SCALE = 0.3
_ITERATIONS = 4


def cooccurrence_vectors(dataset: Dataset, task: Task, channels: int, *, seed: int) -> Tensor:
    """Return item vectors float32 [V, C] from the sequences of a task's training users; rows of items they never took are zero.

    Args:
        dataset: The data set.
        task: Whose training users are read.
        channels: C; dimensions beyond the rank of what is known are zero.
        seed: Of the randomised SVD, and of the choice of users where there are too many.
    """
    items = dataset.info.items
    codes, counts = _pairs(dataset, task, seed)
    first, second = codes // items, codes % items
    by_item = np.bincount(first, weights=counts, minlength=items)
    information = np.log(counts * counts.sum() / (by_item[first] * by_item[second])) if codes.size else np.zeros(0)
    kept = information > 0
    index = torch.from_numpy(np.stack([first[kept], second[kept]]))
    values = torch.from_numpy(information[kept].astype(np.float32))
    matrix = torch.sparse_coo_tensor(index, values, (items, items), check_invariants=False).coalesce()
    width = min(channels, items)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_hash(f"{seed}:item-vectors") >> 1)
        _, strength, right = torch.svd_lowrank(matrix, q=min(items, width + 10), niter=_ITERATIONS)
    vectors = torch.zeros(items, channels)
    vectors[:, :width] = right[:, :width] * strength[:width].sqrt()
    taken = torch.from_numpy(by_item > 0)
    vectors[~taken] = 0
    spread = float(vectors[taken].std()) if kept.any() else 0.0
    return vectors * (SCALE / spread) if spread > 0 else vectors


def _pairs(dataset: Dataset, task: Task, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count ordered pairs of different known items within the window: codes `first · V + second` [P], counts [P]."""
    items, found = dataset.info.items, []
    for values, offsets in _sequences(dataset, task, seed):
        row = np.repeat(np.arange(offsets.shape[0] - 1), np.diff(offsets))
        long = values.astype(np.int64)
        for distance in range(1, min(WINDOW, long.shape[0] - 1) + 1):
            a, b = long[:-distance], long[distance:]
            counted = (row[:-distance] == row[distance:]) & (a != b) & (a >= FIRST_ITEM) & (b >= FIRST_ITEM)
            found += [a[counted] * items + b[counted], b[counted] * items + a[counted]]
    codes, counts = np.unique(np.concatenate(found) if found else np.zeros(0, np.int64), return_counts=True)
    return codes, counts.astype(np.float64)


def _sequences(dataset: Dataset, task: Task, seed: int) -> list[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Return the training users' sequences, shard by shard; at most as many as the pairs allow, by a hash of the user."""
    kept = []
    picked = [(dataset.shard(shard), dataset.labels(task.name, shard).of(Split.TRAIN).users) for shard in range(dataset.info.shards)]
    events = sum(int((data.offsets[users + 1] - data.offsets[users]).sum()) for data, users in picked)
    share = min(1.0, PAIRS / max(1, 2 * WINDOW * events))
    for data, users in picked:
        # the hash's upper 53 bits, which a float64 holds exactly
        place = (mix64(data.user_hash[users], key=stable_hash(f"item-vectors:{seed}")) >> np.uint64(11)).astype(np.float64) / 2.0**53
        rows = take_rows(data.values, data.offsets, users[place < share] if share < 1 else users)
        kept.append((rows.values, rows.offsets))
    return kept
