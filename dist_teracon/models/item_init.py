"""Initial item vectors: from which items occur together, by a truncated SVD of their positive pointwise mutual information, and from
vectors that a user hands in, by a linear map that is learned on the former.

Items that occur with the same users get near vectors before any training, which a network learns only slowly from few users
(docs/log). Levy and Goldberg, "Neural word embedding as implicit matrix factorization" (2014).

Legend: V items, n items with a given vector, D numbers of it, C channels, P pairs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.data import ragged
from dist_teracon.data.batches import take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.item_vectors_file import ItemVectors
from dist_teracon.data.schema import FIRST_ITEM, Split, Task
from dist_teracon.errors import DataError
from dist_teracon.hashing import mix64, stable_hash

# Pairs of items at most so many positions apart count.
WINDOW = 16
# Pairs held at a time; users beyond what that allows are left out, the same ones at any order of shards.
PAIRS = 1 << 25
# Entries' standard deviation: below that of the network's other inputs at their start, which are of size 1.
SCALE = 0.3
_ITERATIONS = 4
# From so many items on, directions are sought with half as many passes over the matrix, which is symmetric, over items that occur alone:
# 646 thousand items take about two minutes of one core (docs/scale.md).
LARGE = 100_000
_PASSES = 5
# Directions sought beyond those returned, which makes the last ones of these accurate.
_MORE = 10
# Weight of the penalty in a linear map from given vectors, as a share of the vectors' mean square.
RIDGE = 1e-2
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class LinearMap:
    """A map from given vectors to rows of an item table, by ridge regression with an intercept.

    Attributes:
        weights: float64 [D, C].
        x_mean, y_mean: float64 [D] and [C].
        explained: Share of the rows' variance that it explains on the items that it was learned on.
    """

    weights: Tensor
    x_mean: Tensor
    y_mean: Tensor
    explained: float

    @classmethod
    def fit(cls, x: Tensor, y: Tensor) -> LinearMap:
        """Learn the map from given vectors [n, D] and rows [n, C], in float64 and part by part."""
        x_mean, y_mean = x.mean(0, dtype=torch.float64), y.mean(0, dtype=torch.float64)
        parts = [slice(first, first + _ROWS_AT_ONCE) for first in range(0, len(x), _ROWS_AT_ONCE)]
        square = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        product = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
        for part in parts:
            centred = x[part].double() - x_mean
            square += centred.T @ centred
            product += centred.T @ (y[part].double() - y_mean)
        penalty = RIDGE * square.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        weights = torch.linalg.solve(square + penalty * torch.eye(x.shape[1], dtype=torch.float64), product)
        left = whole = 0.0
        for part in parts:
            centred = y[part].double() - y_mean
            whole += float(centred.square().sum())
            left += float((centred - (x[part].double() - x_mean) @ weights).square().sum())
        return cls(weights, x_mean, y_mean, 1 - left / whole if whole > 0 else 0.0)

    def apply(self, x: Tensor) -> Tensor:
        """Return the rows of given vectors, float64 [·, C]."""
        return (x.double() - self.x_mean) @ self.weights + self.y_mean


def given_vectors(given: ItemVectors, cooccurring: Tensor, *, uri: str) -> tuple[Tensor, dict[str, Any]]:
    """Return item vectors float32 [V, C] of which those of items with a given vector follow from it.

    The map to C numbers is learned on the items with a given vector that training users took: from it to their vectors of co-occurrence.
    So an item that nobody took yet begins where items of similar texts are taken. What is mapped has the standard deviation of the others;
    items without a given vector keep their vector of co-occurrence.

    Args:
        given: The given vectors.
        cooccurring: Of `cooccurrence_vectors`, [V, C].
        uri: Where the given ones are from, for messages.

    Returns:
        The vectors, and facts for people: how many items have a given vector, and what the map explains.

    Raises:
        DataError: no item that training users took has a given vector.
    """
    items, vectors = torch.from_numpy(given.items), torch.from_numpy(given.vectors)
    taken = (cooccurring[items] != 0).any(dim=1)
    if not bool(taken.any()):
        raise DataError(
            f"{uri}: none of its {given.items.size + given.unknown} vectors is of an item that the first task's training users took "
            f"({given.unknown} are of items that the data set does not have); are the ids those of the raw data?"
        )
    learned = LinearMap.fit(vectors[taken], cooccurring[items[taken]])
    rows, result = learned.apply(vectors), cooccurring.clone()
    spread = float(rows.std()) if rows.numel() > 1 else 0.0
    result[items] = (rows * (SCALE / spread) if spread > 0 else rows).float()
    known = cooccurring.shape[0] - FIRST_ITEM
    facts = {
        "items": known, "given": given.items.size, "share": round(given.items.size / max(1, known), 4), "unknown": given.unknown,
        "width": vectors.shape[1], "learned_from": int(taken.sum()), "explained": round(learned.explained, 4),
    }  # fmt: skip
    return result, facts


def cooccurrence_vectors(dataset: Dataset, task: Task, channels: int, *, seed: int) -> Tensor:
    """Return item vectors float32 [V, C] from the sequences of a task's training users; rows of items that do not occur in them are zero.

    Args:
        dataset: The data set.
        task: Whose training users are read.
        channels: C; dimensions beyond the matrix's rank are zero.
        seed: Of the randomised SVD, and of the choice of users where there are too many.
    """
    num_items = dataset.info.items
    codes, counts = _pairs(dataset, task, seed)
    first, second = codes // num_items, codes % num_items
    by_item = np.bincount(first, weights=counts, minlength=num_items)
    information = np.log(counts * counts.sum() / (by_item[first] * by_item[second])) if codes.size else np.zeros(0)
    kept = information > 0
    matrix = first[kept], second[kept], information[kept].astype(np.float32)
    width = min(channels, num_items)
    vectors = torch.zeros(num_items, channels)
    occurs = torch.from_numpy(by_item > 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_hash(f"{seed}:item-vectors") >> 1)
        if num_items < LARGE:
            vectors[:, :width] = _directions(*matrix, num_items, width)
            vectors[~occurs] = 0
        else:
            number = np.cumsum(by_item > 0) - 1
            occurring = int(occurs.sum())
            width = min(width, occurring)
            vectors[occurs, :width] = _symmetric_directions(number[matrix[0]], number[matrix[1]], matrix[2], occurring, width)
    spread = float(vectors[occurs].std()) if kept.any() else 0.0
    return vectors * (SCALE / spread) if spread > 0 else vectors


def _directions(first: NDArray[np.int64], second: NDArray[np.int64], values: NDArray[np.float32], num_items: int, width: int) -> Tensor:
    """Return [V, width] the matrix's leading right singular vectors, each times the root of its singular value."""
    index = torch.from_numpy(np.stack([first, second]))
    matrix = torch.sparse_coo_tensor(index, torch.from_numpy(values), (num_items, num_items), check_invariants=False).coalesce()
    _, strength, right = torch.svd_lowrank(matrix, q=min(num_items, width + _MORE), niter=_ITERATIONS)
    return right[:, :width] * strength[:width].sqrt()


def _symmetric_directions(
    first: NDArray[np.int64], second: NDArray[np.int64], values: NDArray[np.float32], num_items: int, width: int
) -> Tensor:
    """Return the same of a large symmetric matrix whose entries are sorted by row, by subspace iteration."""
    if not values.size:
        return torch.zeros(num_items, width)
    row_ends = ragged.offsets_of(np.bincount(first, minlength=num_items))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(
            torch.from_numpy(row_ends), torch.from_numpy(second), torch.from_numpy(values), (num_items, num_items), check_invariants=False
        )
    image = torch.randn(num_items, min(num_items, width + _MORE))
    for _ in range(_PASSES):
        basis = torch.linalg.qr(image).Q
        image = matrix @ basis
    strength, rotation = torch.linalg.eigh(basis.T @ image)
    leading = strength.abs().argsort(descending=True)[:width]
    return (basis @ rotation[:, leading]) * strength[leading].abs().sqrt()


def _pairs(dataset: Dataset, task: Task, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count ordered pairs of different known items within the window: codes `first · V + second` [P], counts [P]."""
    num_items, found = dataset.info.items, []
    for values, offsets in _sequences(dataset, task, seed):
        row = np.repeat(np.arange(offsets.shape[0] - 1), np.diff(offsets))
        long = values.astype(np.int64)
        for distance in range(1, min(WINDOW, long.shape[0] - 1) + 1):
            a, b = long[:-distance], long[distance:]
            counted = (row[:-distance] == row[distance:]) & (a != b) & (a >= FIRST_ITEM) & (b >= FIRST_ITEM)
            found += [a[counted] * num_items + b[counted], b[counted] * num_items + a[counted]]
    codes, counts = np.unique(np.concatenate(found) if found else np.zeros(0, np.int64), return_counts=True)
    return codes, counts.astype(np.float64)


def _sequences(dataset: Dataset, task: Task, seed: int) -> list[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Return the training users' sequences, shard by shard; at most as many as the pairs allow, by a hash of the user."""
    # whichever task is the first: what the next-item task is tested on is in no vector
    kept, behind = [], dataset.info.split.behind(Split.TRAIN)
    picked = [(dataset.shard(shard), dataset.labels(task.name, shard).of(Split.TRAIN).users) for shard in range(dataset.info.shards)]
    if behind:
        picked = [(data, users[data.offsets[users + 1] - data.offsets[users] > behind]) for data, users in picked]
    events = sum(int((data.offsets[users + 1] - data.offsets[users]).sum()) for data, users in picked)
    share = min(1.0, PAIRS / max(1, 2 * WINDOW * events))
    for data, users in picked:
        # the hash's upper 53 bits, which a float64 holds exactly
        place = (mix64(data.user_hash[users], key=stable_hash(f"item-vectors:{seed}")) >> np.uint64(11)).astype(np.float64) / 2.0**53
        rows = take_rows(data.values, data.offsets, users[place < share] if share < 1 else users, without_last=behind)
        kept.append((rows.values, rows.offsets))
    return kept
