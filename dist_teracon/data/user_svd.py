"""Users as the leading singular directions of the TF-IDF matrix of their items: what a baseline and a model's inputs are made from.

Shapes: `U` users, `N` items of all sequences, `V` vocabulary, `D` directions.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from dist_teracon.errors import TeraconError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Rows of the sparse matrix that are projected at a time, so that the dense result in float64 stays small.
_CHUNK = 65_536


@dataclass(frozen=True)
class UserSvd:
    """What projects a user's items: nothing in it follows from other users than those that it was fitted on.

    Attributes:
        weights: float32 [V], inverse document frequencies: `ln((1 + U) / (1 + users with the item)) + 1`, 0 of an item that nobody had.
        directions: float32 [D, V], of length 1, ordered by their singular values.
    """

    weights: NDArray[np.float32]
    directions: NDArray[np.float32]

    @classmethod
    def fit(cls, values: NDArray[np.int32], offsets: NDArray[np.int64], *, items: int, dimension: int, seed: int) -> UserSvd:
        """Fit on users' sequences; the same on one machine for equal arguments.

        Args:
            values: int32 [N], items in 0 … items − 1, user by user.
            offsets: int64 [U + 1]; one user at least.
            items: Size of the vocabulary V.
            dimension: Largest number of directions; there are fewer where there are fewer users or items.
            seed: Seed of the randomised SVD.

        Raises:
            TeraconError: scikit-learn is not installed.
        """
        need_sklearn("a singular value decomposition of users' items")
        from sklearn.decomposition import TruncatedSVD

        counts_UV = _counts(values, offsets, items=items)
        users = len(offsets) - 1
        users_V = np.bincount(counts_UV.indices, minlength=items)
        weights = np.where(users_V > 0, np.log((1 + users) / (1 + users_V)) + 1, 0.0).astype(np.float32)
        size = min(dimension, users, items)
        with one_thread():
            svd = TruncatedSVD(n_components=size, algorithm="randomized", n_iter=7, random_state=seed % (1 << 32))
            svd.fit(_weighted(counts_UV, weights))
        return cls(weights, np.asarray(svd.components_, dtype=np.float32))

    def project(self, values: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return each user's row of counts times weights, divided by its length, along the directions: float32 [U, D]."""
        matrix_UV = _weighted(_counts(values, offsets, items=len(self.weights)), self.weights)
        values_UD = np.empty((matrix_UV.shape[0], len(self.directions)), dtype=np.float32)
        with one_thread():
            for start in range(0, len(values_UD), _CHUNK):
                values_UD[start : start + _CHUNK] = matrix_UV[start : start + _CHUNK] @ self.directions.T
        return values_UD


def _counts(values: NDArray[np.int32], offsets: NDArray[np.int64], *, items: int) -> csr_matrix:
    """Return how often each user has each item, [U, V]."""
    from scipy.sparse import csr_matrix

    ones_N = np.ones(len(values), dtype=np.float32)
    # Copied, as summing duplicates works in place and would otherwise rewrite the caller's sequences.
    counts_UV = csr_matrix((ones_N, values, offsets), shape=(len(offsets) - 1, items), copy=True)
    counts_UV.sum_duplicates()
    return counts_UV


def _weighted(counts_UV: csr_matrix, weights: NDArray[np.float32]) -> csr_matrix:
    """Return counts times weights, rows of length 1; changes the counts."""
    from sklearn.preprocessing import normalize

    counts_UV.data *= weights[counts_UV.indices]
    return normalize(counts_UV, norm="l2", copy=False)


def need_sklearn(what: str) -> None:
    """Raise TeraconError where scikit-learn, which something needs, is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise TeraconError(f"{what} needs scikit-learn, which is not installed; run: pip install 'dist-teracon[baselines]'") from None


def one_thread() -> AbstractContextManager[Any]:
    """Hold BLAS to one thread: sums in another order change the last digits, and with them a close choice of dimension."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return cast("AbstractContextManager[Any]", threadpool_limits(limits=1))
