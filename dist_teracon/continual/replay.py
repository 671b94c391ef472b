"""The rows of past tasks that batches replay, drawn from a task's pool of users (docs/method.md, Retention).

Legend: n rows, d numbers of a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.continual.target_store import Store
from dist_teracon.data.batches import PackedRows, concatenate, take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.hashing import stable_hash


class ReplayStream:
    """The rows of one past task in the order in which batches draw them, the same at any world size.

    Args:
        dataset: Where the sequences are.
        pool: `pool_of_users`, of own shards at least.
        targets: From `open_store`; None where a teacher answers online.
        key: Distinguishes streams.
        seed: Seed of the order.
        shards: The shards that this rank owns.
        sizes: Rows of every shard's pool, where `pool` holds those of own shards alone.
        task: The past task's name: rows have the features that are open to it.
        moment: When the rows are predicted; None where it is not read.
    """

    def __init__(
        self,
        dataset: Dataset,
        pool: Sequence[NDArray[np.int64]],
        targets: Store | None,
        *,
        key: str,
        seed: int,
        shards: range,
        sizes: Sequence[int] | None = None,
        task: str,
        moment: int | None = None,
    ) -> None:
        self.task, self.moment = task, moment
        self.dataset, self.pool, self.targets = dataset, pool, targets
        self.seed, self.key, self.shards = seed, stable_hash(key), shards
        self.starts = np.concatenate([[0], np.cumsum([len(rows) for rows in pool] if sizes is None else sizes)])
        self.begin_epoch(1)

    @property
    def size(self) -> int:
        """Rows of the whole pool."""
        return int(self.starts[-1])

    def begin_epoch(self, epoch: int) -> None:
        """Shuffle anew."""
        self.epoch, self.passes, self.position = epoch, 0, 0
        self._shuffle()

    def _shuffle(self) -> None:
        sequence = np.random.SeedSequence([self.seed, self.key, self.epoch, self.passes])
        self.order = np.random.Generator(np.random.PCG64(sequence)).permutation(self.size)

    def state_dict(self) -> dict[str, int]:
        """Return where the stream is."""
        return {"epoch": self.epoch, "passes": self.passes, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.epoch, self.passes, self.position = state["epoch"], state["passes"], state["position"]
        self._shuffle()

    def draw(self, count: int) -> tuple[PackedRows, Tensor | None, int]:
        """Draw the next `count` rows of the stream, at most the pool.

        Returns:
            This rank's rows among them, their targets [n, d] (None for an online teacher), and how many were drawn over all ranks.
        """
        count = min(count, self.size)
        if self.position + count > self.size:
            self.passes, self.position = self.passes + 1, 0
            self._shuffle()
        drawn = self.order[self.position : self.position + count]
        self.position += count
        # where no row is drawn, a backbone reads columns without events, and features of nobody
        width = len(self.dataset.inputs_read.user)
        parts = [PackedRows.none(self.dataset.columns_read, features=width, moments=self.moment is not None)]
        own: list[tuple[int, NDArray[np.int64]]] = []
        for shard in self.shards:
            local = drawn[(drawn >= self.starts[shard]) & (drawn < self.starts[shard + 1])] - self.starts[shard]
            data = self.dataset.shard(shard)
            features = self.dataset.user_features(shard, self.task)
            rows = take_rows(data.values, data.offsets, self.pool[shard][local], columns=data.columns, features=features)
            if self.moment is not None:
                rows = replace(rows, moments=np.full(rows.rows, self.moment, dtype=np.int64))
            parts.append(rows)
            own.append((shard, local))
        targets = None if self.targets is None else torch.from_numpy(self.targets.take(own))
        return concatenate(parts), targets, count
