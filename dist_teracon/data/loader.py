"""Which rows stand in which batch, and the batches themselves.

The sequence of global batches depends on (seed, epoch) alone: each batch takes from every shard its share, so that all shards end
at the same step. A rank builds the rows of its own shards, may hold none of a batch, and knows every global count.

Legend: S shards, R rows of a shard, T steps of an epoch, E examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dist_teracon.data.batches import Examples, PackedBatch, PackedRows, concatenate, ragged_positions, take_rows
from dist_teracon.data.schema import FIRST_ITEM, Split, Task
from dist_teracon.data.shards import Dataset, Labels
from dist_teracon.data.tables import mix64, stable_hash


def own_shards(shards: int, rank: int, world_size: int) -> range:
    """Return the shards that a rank owns; their number need not divide by the world size."""
    return range(rank, shards, world_size)


class BatchPlan:
    """The cut of one epoch into global batches.

    Each shard's rows are shuffled by (seed, epoch, shard). Step b ends in shard s where its examples reach
    `⌊E_s·b/T + s/S⌋`, whole rows being added until that is reached; the staggered s/S make the shares add up (Hermite's identity).

    Args:
        weights: A shard: int64 [R], examples a row counts for.
        batch: Examples wanted a global batch.
        seed, epoch: What the order depends on.
    """

    def __init__(self, weights: Sequence[NDArray[np.int64]], *, batch: int, seed: int, epoch: int) -> None:
        total = int(sum(int(w.sum()) for w in weights))
        self.steps = max(1, -(-total // batch))
        shards = len(weights)
        self.order: list[NDArray[np.int64]] = []
        self.cuts: list[NDArray[np.int64]] = []
        share = np.arange(self.steps + 1, dtype=np.int64)
        for shard, weight in enumerate(weights):
            generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, shard])))
            order = generator.permutation(weight.shape[0])
            reached = np.cumsum(weight[order])
            examples = int(reached[-1]) if reached.size else 0
            # whole numbers all the way: floor(E·b/T + s/S) = (E·b·S + s·T) // (T·S)
            wanted = np.minimum((examples * share * shards + shard * self.steps) // (self.steps * shards), examples)
            cuts = np.where(wanted > 0, np.searchsorted(reached, wanted, side="left") + 1, 0)
            cuts[-1] = weight.shape[0]
            self.order.append(order)
            self.cuts.append(np.minimum(cuts, weight.shape[0]))

    def rows(self, step: int, shard: int) -> NDArray[np.int64]:
        """Return a shard's rows of a step."""
        return self.order[shard][self.cuts[shard][step] : self.cuts[shard][step + 1]]

    def totals(self, counts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Return for each step the sum over all shards of a per-row count, int64 [T]."""
        result = np.zeros(self.steps, dtype=np.int64)
        for shard, count in enumerate(counts):
            reached = np.concatenate([[0], np.cumsum(count[self.order[shard]])])
            result += np.diff(reached[self.cuts[shard]])
        return result


@dataclass(frozen=True)
class _ShardRows:
    """Training rows of a shard: users, and for each task what labels they have (`counts` [R], flat `values` at `starts`)."""

    users: NDArray[np.int64]
    counts: list[NDArray[np.int64]]
    starts: list[NDArray[np.int64]]
    values: list[NDArray[np.int64]]


class TrainingLoader:
    """Batches of the training rows of one task, or of several learned jointly.

    Args:
        dataset: Where the rows are.
        tasks: The tasks; a next-item task stands alone and is trained at all positions.
        slot: Row of the mask table that these rows use.
        batch: Examples a global batch; sequences for a next-item task.
        seed: Seed of the order.
        rank, world_size: Whose rows are built.
        noise: Give every row a key for its dropout.

    Raises:
        ValueError: a next-item task together with others.
    """

    def __init__(
        self, dataset: Dataset, tasks: Sequence[Task], *, slot: int, batch: int, seed: int, rank: int, world_size: int, noise: bool = False
    ) -> None:  # fmt: skip
        self.noise = noise
        self.dataset, self.tasks, self.slot, self.batch, self.seed = dataset, tuple(tasks), slot, batch, seed
        self._next = any(task.kind == "next" for task in tasks)
        if self._next and len(tasks) > 1:
            raise ValueError("a next-item task is trained at all positions and cannot be joined with others")
        self._own = own_shards(dataset.info.shards, rank, world_size)
        self._rows = [self._shard_rows(shard) for shard in range(dataset.info.shards)]
        self.rows = sum(rows.users.shape[0] for rows in self._rows)

    def training_users(self, shard: int) -> NDArray[np.int64]:
        """Return the rows of a shard's users that have training examples, int64 [R]."""
        return self._rows[shard].users

    def plan(self, epoch: int) -> BatchPlan:
        """Return an epoch's cut into batches."""
        weights = [np.ones_like(rows.users) if self._next else np.sum(rows.counts, axis=0) for rows in self._rows]
        return BatchPlan(weights, batch=self.batch, seed=self.seed, epoch=epoch)

    def epoch(self, epoch: int) -> Iterator[PackedBatch]:
        """Yield this rank's share of every global batch of an epoch, empty shares included."""
        plan = self.plan(epoch)
        totals = [plan.totals([rows.counts[task] for rows in self._rows]) for task in range(len(self.tasks))]
        for step in range(plan.steps):
            yield self._build(plan, step, [int(total[step]) for total in totals], f"noise:{self.seed}:{epoch}:{step}")

    def _shard_rows(self, shard: int) -> _ShardRows:
        labels = [self.dataset.labels(task.name, shard).of(Split.TRAIN) for task in self.tasks]
        users = labels[0].users if len(labels) == 1 else np.unique(np.concatenate([part.users for part in labels]))
        if self._next:
            return self._next_rows(shard, users)
        counts, starts = [], []
        for part in labels:
            count = np.zeros(users.shape[0], dtype=np.int64)
            start = np.zeros(users.shape[0], dtype=np.int64)
            place = np.searchsorted(users, part.users)
            count[place], start[place] = part.counts, part.offsets[:-1]
            counts.append(count)
            starts.append(start)
        return _ShardRows(users, counts, starts, [part.values for part in labels])

    def _next_rows(self, shard: int, users: NDArray[np.int64]) -> _ShardRows:
        """Targets of a next-item row are the items after its first; items that the vocabulary does not know are none."""
        data = self.dataset.shard(shard)
        known = np.concatenate([[0], np.cumsum(data.values >= FIRST_ITEM)])
        counts = known[data.offsets[users + 1]] - known[data.offsets[users] + 1]
        return _ShardRows(users, [counts], [data.offsets[users]], [data.values.astype(np.int64) - FIRST_ITEM])

    def _build(self, plan: BatchPlan, step: int, totals: list[int], noise: str) -> PackedBatch:
        picked = [(shard, plan.rows(step, shard)) for shard in self._own]
        parts: list[PackedRows] = []
        for shard, rows in picked:
            data = self.dataset.shard(shard)
            parts.append(take_rows(data.values, data.offsets, self._rows[shard].users[rows], without_last=self._next))
        packed = concatenate(parts)
        if self._next:
            examples: tuple[Examples, ...] = (self._next_examples(picked, totals[0]),)
        else:
            examples = tuple(self._examples(task, picked, total) for task, total in enumerate(totals))
        return PackedBatch(
            values=torch.from_numpy(packed.values),
            row_offsets=torch.from_numpy(packed.offsets),
            task_of_row=torch.full((packed.rows,), self.slot, dtype=torch.int32),
            positions="all" if self._next else "last",
            examples=examples,
            step=step,
            steps=plan.steps,
            noise_key=self._noise_keys(picked, noise) if self.noise else None,
        )

    def _noise_keys(self, picked: Sequence[tuple[int, NDArray[np.int64]]], noise: str) -> torch.Tensor:
        """Keys that depend on user and step alone; odd, so never the 0 of rows without dropout."""
        key = stable_hash(noise)
        hashes = [self.dataset.shard(shard).user_hash[self._rows[shard].users[rows]] for shard, rows in picked]
        return _tensor([mix64(part, key=key).view(np.int64) | 1 for part in hashes])

    def _examples(self, task: int, picked: Sequence[tuple[int, NDArray[np.int64]]], total: int) -> Examples:
        index, labels, first = [], [], 0
        for shard, rows in picked:
            of_shard = self._rows[shard]
            counts = of_shard.counts[task][rows]
            index.append(np.repeat(np.arange(rows.shape[0]) + first, counts))
            labels.append(of_shard.values[task][ragged_positions(of_shard.starts[task][rows], counts)])
            first += rows.shape[0]
        return Examples(self.tasks[task].name, _tensor(index), _tensor(labels), total)

    def _next_examples(self, picked: Sequence[tuple[int, NDArray[np.int64]]], total: int) -> Examples:
        classes = []
        for shard, rows in picked:
            data, users = self.dataset.shard(shard), self._rows[shard].users[rows]
            starts = data.offsets[users] + 1
            classes.append(self._rows[shard].values[0][ragged_positions(starts, data.offsets[users + 1] - starts)])
        labels = _tensor(classes)
        index = torch.nonzero(labels >= 0).squeeze(1)  # rows lie in the same order, each without its last item
        return Examples(self.tasks[0].name, index, labels[index], total)


def evaluation_batches(
    dataset: Dataset, task: Task, split: Split, *, slot: int, batch: int, rank: int, world_size: int, max_users: int | None, seed: int
) -> Iterator[PackedBatch]:
    """Yield this rank's rows of a split, `batch` users at a time, each with its labels; a next-item row without its last item.

    With `max_users` the users are those with the least keyed hash, so the choice depends on neither batch nor world size.
    """
    labels = [dataset.labels(task.name, shard).of(split) for shard in range(dataset.info.shards)]
    if max_users is not None:
        labels = _fewer_users(dataset, labels, max_users, seed)
    for shard in own_shards(dataset.info.shards, rank, world_size):
        data, part = dataset.shard(shard), labels[shard]
        for first in range(0, part.users.shape[0], batch):
            users = part.users[first : first + batch]
            begin, end = part.offsets[first], part.offsets[first + users.shape[0]]
            rows = take_rows(data.values, data.offsets, users, without_last=task.kind == "next")
            index = np.repeat(np.arange(users.shape[0]), part.counts[first : first + users.shape[0]])
            yield PackedBatch(
                values=torch.from_numpy(rows.values),
                row_offsets=torch.from_numpy(rows.offsets),
                task_of_row=torch.full((rows.rows,), slot, dtype=torch.int32),
                positions="last",
                examples=(Examples(task.name, torch.from_numpy(index), torch.from_numpy(part.values[begin:end].copy()), 0),),
                user_hash=data.user_hash[users],
            )


def _fewer_users(dataset: Dataset, labels: Sequence[Labels], max_users: int, seed: int) -> list[Labels]:
    key = stable_hash(f"evaluate:{seed}")
    hashes = [mix64(dataset.shard(shard).user_hash[part.users], key=key) for shard, part in enumerate(labels)]
    everyone = np.concatenate(hashes)
    if everyone.shape[0] <= max_users:
        return list(labels)
    # users of one group have one hash; a stable order keeps the number exact and smaller sets nested
    chosen = np.zeros(everyone.shape[0], dtype=bool)
    chosen[np.argsort(everyone, kind="stable")[:max_users]] = True
    ends: list[int] = np.cumsum([hashed.shape[0] for hashed in hashes]).tolist()
    fewer = []
    for part, inside in zip(labels, np.split(chosen, ends[:-1]), strict=True):
        rows = np.flatnonzero(inside)
        counts = part.counts[rows]
        positions = ragged_positions(part.offsets[rows], counts)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        fewer.append(Labels(part.users[rows], part.values[positions], offsets, part.split[positions]))
    return fewer


def _tensor(parts: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))
