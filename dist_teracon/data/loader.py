"""Batches of training rows and of rows to score, built from a rank's own shards.

A rank opens only its own shards. How many examples each row of the others stands for, four bytes a row, the ranks exchange through a
`Gather`; without one a rank reads the others' labels itself.

Legend: S shards, R rows of a shard, T steps of an epoch, E examples.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import record_function

from dist_teracon.data import ragged
from dist_teracon.data.batch_plan import BatchPlan, Counts, own_shards, share_rows
from dist_teracon.data.batches import Examples, PackedBatch, PackedRows, ragged_positions, take_rows
from dist_teracon.data.dataset import Dataset, Labels, Shard
from dist_teracon.data.event_columns import EventColumns
from dist_teracon.data.prefetch import prefetch
from dist_teracon.data.schema import FIRST_ITEM, Split, Task
from dist_teracon.hashing import mix64, stable_hash

# Rows built together; a call of numpy a shard costs as much for one row as for a hundred.
_ROWS_AT_ONCE = 4096

# Returns every rank's value, in the order of ranks.
Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class _ShardRows:
    """Training rows of a shard: users, and for each task what labels they have (`counts` int32 [R], flat `values` at `starts`)."""

    users: NDArray[np.int64]
    counts: list[NDArray[np.int32]]
    starts: list[NDArray[np.int64]]
    values: list[NDArray[np.int32]]


class TrainingLoader:
    """Batches of the training rows of one task, or of several learned jointly.

    Args:
        dataset: Where the rows are.
        tasks: The tasks; a next-item task stands alone and is trained at all positions.
        mask_index: Row of the mask table that these rows use.
        batch: Examples a global batch; sequences for a next-item task.
        seed: Seed of the order.
        rank, world_size: Whose rows are built.
        dropout_keys: Give every row a key for its dropout.
        shared_by: Ranks that share the rows of all their shards in each step by the rows' lengths, this one among them; each reads the
            shards of all of them. None: a rank builds the rows of its own shards.
        gather: How ranks exchange their rows' counts; None to read the other ranks' labels here.

    Raises:
        ValueError: a next-item task together with others.
    """

    def __init__(
        self, dataset: Dataset, tasks: Sequence[Task], *,
        mask_index: int, batch: int, seed: int, rank: int, world_size: int, gather: Gather | None = None, dropout_keys: bool = False,
        shared_by: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.dropout_keys = dropout_keys
        self.dataset, self.tasks, self.mask_index, self.batch, self.seed = dataset, tuple(tasks), mask_index, batch, seed
        self._next = any(task.predicts_next for task in tasks)
        if self._next and len(tasks) > 1:
            raise ValueError("a next-item task is trained at all positions and cannot be joined with others")
        self._behind = dataset.behind(tasks[0].name, Split.TRAIN) if self._next else 0
        self._ranks, self._rank = [rank] if shared_by is None else sorted(shared_by), rank
        owner = {shard: place for place, member in enumerate(self._ranks) for shard in own_shards(dataset.info.shards, member, world_size)}
        self._owner = dict(sorted(owner.items()))
        self._own = tuple(self._owner)
        self._rows = {shard: self._shard_rows(shard) for shard in self._own}
        self._counts = self._every_count(gather)

    def epoch(self, epoch: int, *, first: int = 0) -> Epoch:
        """Return this rank's shares of an epoch's global batches, empty ones included.

        Args:
            epoch: Which one; the order of rows follows from it and the seed.
            first: The step to begin with, where an epoch is taken up again in the middle.
        """
        if self._next:
            weights: list[Counts] = [np.ones(counts.shape[0], dtype=np.int8) for counts in self._counts[0]]
        else:
            weights = [np.sum(counts, axis=0) for counts in zip(*self._counts, strict=True)]
        plan = BatchPlan(weights, batch=self.batch, seed=self.seed, epoch=epoch, own=self._own)
        totals = [plan.totals(counts) for counts in self._counts]
        return Epoch(plan.steps, epoch, first, lambda step: self._build(plan, totals, step))

    def _every_count(self, gather: Gather | None) -> list[list[NDArray[np.int32]]]:
        """For each task and every shard, own or not, what its rows count for."""
        known = {shard: rows.counts for shard, rows in self._rows.items()}
        if gather is not None:
            known = {shard: counts for part in gather(known) for shard, counts in part.items()}
        for shard in range(self.dataset.info.shards):
            if shard not in known:
                known[shard] = self._shard_rows(shard).counts
        return [[known[shard][task] for shard in range(self.dataset.info.shards)] for task in range(len(self.tasks))]

    def _shard_rows(self, shard: int) -> _ShardRows:
        labels = [self.dataset.labels(task.name, shard).of(Split.TRAIN) for task in self.tasks]
        users = labels[0].users if len(labels) == 1 else np.unique(np.concatenate([part.users for part in labels]))
        if self._next:
            data, targets = self.dataset.shard(shard), self.dataset.next_targets(shard, behind=self._behind)
            return _ShardRows(users, [targets[users]], [data.offsets[users]], [data.values])
        counts, starts = [], []
        for part in labels:
            count = np.zeros(users.shape[0], dtype=np.int32)
            start = np.zeros(users.shape[0], dtype=np.int64)
            place = np.searchsorted(users, part.users)
            count[place], start[place] = part.counts, part.offsets[:-1]
            counts.append(count)
            starts.append(start)
        return _ShardRows(users, counts, starts, [part.values for part in labels])

    def _build(self, plan: BatchPlan, totals: list[NDArray[np.int64]], first: int) -> Iterator[PackedBatch]:
        """Yield the batches from a step on, some thousand rows being gathered together."""
        rows = sum(rows.users.shape[0] for rows in self._rows.values())
        together = max(1, _ROWS_AT_ONCE * plan.steps // max(1, rows))
        for begin in range(first, plan.steps, together):
            yield from self._build_steps(plan, totals, begin, min(begin + together, plan.steps))

    def _build_steps(self, plan: BatchPlan, totals: list[NDArray[np.int64]], begin: int, end: int) -> Iterator[PackedBatch]:
        picked, in_step = [], []
        for shard in self._own:
            rows, sizes = plan.rows_between(begin, end, shard)
            picked.append((shard, rows))
            in_step.append(np.repeat(np.arange(end - begin), sizes))
        step_of_row = _joined(in_step, np.int64)
        if len(self._ranks) > 1 and picked:
            picked, step_of_row = self._shared(picked, step_of_row, end - begin)
        # gathered shard by shard, they then lie step by step, the shards of a step in their order
        order = np.argsort(step_of_row, kind="stable")
        row_ends = np.concatenate([[0], np.cumsum(np.bincount(step_of_row, minlength=end - begin))])
        packed = self._sequences(picked, order)
        hashes = self._hashes(picked, order) if self.dropout_keys else None
        if self._next:
            packed, targets = _inputs_and_targets(packed, moments=self.dataset.moments is not None)
            examples = [(np.arange(targets.shape[0]), targets)]
        else:
            examples = [self._examples(task, picked, order) for task in range(len(self.tasks))]
        for number, step in enumerate(range(begin, end)):
            low, high = int(row_ends[number]), int(row_ends[number + 1])
            offsets = packed.offsets[low : high + 1]
            outputs = (int(offsets[0]), int(offsets[-1])) if self._next else (low, high)
            yield PackedBatch(
                values=torch.from_numpy(packed.values[offsets[0] : offsets[-1]]),
                row_offsets=torch.from_numpy(offsets - offsets[0]),
                task_of_row=torch.full((high - low,), self.mask_index, dtype=torch.int32),
                positions="all" if self._next else "last",
                examples=tuple(
                    _examples_between(task.name, index, labels, outputs, int(total[step]))
                    for task, (index, labels), total in zip(self.tasks, examples, totals, strict=True)
                ),
                epoch=plan.epoch,
                step=step,
                steps=plan.steps,
                dropout_key=None if hashes is None else self._dropout_key(hashes[low:high], plan.epoch, step),
            ).with_beside(packed.between(low, high))

    def _shared(
        self, picked: Sequence[tuple[int, NDArray[np.int32]]], step_of_row: NDArray[np.int64], steps: int
    ) -> tuple[list[tuple[int, NDArray[np.int32]]], NDArray[np.int64]]:
        """Return this rank's part of rows that several ranks share: in each step they have about the same number of positions."""
        lengths, owners = [], []
        for shard, rows in picked:
            users, offsets = self._rows[shard].users[rows], self.dataset.shard(shard).offsets
            lengths.append(offsets[users + 1] - offsets[users])
            owners.append(np.full(rows.shape[0], self._owner[shard], dtype=np.int64))
        work, owner = _joined(lengths, np.int64), _joined(owners, np.int64)
        own = np.zeros(work.shape[0], dtype=bool)
        by_step = np.argsort(step_of_row, kind="stable")
        for of_step in np.split(by_step, np.cumsum(np.bincount(step_of_row, minlength=steps))[:-1]):
            own[of_step] = share_rows(work[of_step], owner[of_step], len(self._ranks)) == self._ranks.index(self._rank)
        ends = np.cumsum([rows.shape[0] for _, rows in picked])
        parts = np.split(own, ends[:-1])
        return [(shard, rows[kept]) for (shard, rows), kept in zip(picked, parts, strict=True)], step_of_row[own]

    def _hashes(self, picked: Sequence[tuple[int, NDArray[np.int32]]], order: NDArray[np.int64]) -> NDArray[np.uint64]:
        parts = [self.dataset.shard(shard).user_hash[self._rows[shard].users[rows]] for shard, rows in picked]
        return _joined(parts, np.uint64)[order]

    def _dropout_key(self, hashes: NDArray[np.uint64], epoch: int, step: int) -> torch.Tensor:
        """Keys that depend on user and step alone; odd, so never the 0 of rows without dropout."""
        return torch.from_numpy(mix64(hashes, key=stable_hash(f"noise:{self.seed}:{epoch}:{step}")).view(np.int64) | 1)

    def _sequences(self, picked: Sequence[tuple[int, NDArray[np.int32]]], order: NDArray[np.int64]) -> PackedRows:
        parts = []
        for shard, rows in picked:
            data, users = self.dataset.shard(shard), self._rows[shard].users[rows]
            starts = data.offsets[users]
            columns = {"items": data.values, **{name: getattr(data.columns, name) for name in data.columns.names}}
            parts.append((columns, starts, data.offsets[users + 1] - self._behind - starts))
        gathered, offsets = _gather_ragged(parts, order)
        features, moments = self._features(picked, order), self._moments(picked, order)
        if not parts:  # a rank without shards
            return PackedRows(np.zeros(0, dtype=np.int32), offsets, EventColumns.empty(self.dataset.columns_read), features, moments)
        return PackedRows(gathered.pop("items"), offsets, EventColumns(**gathered), features, moments)

    def _moments(self, picked: Sequence[tuple[int, NDArray[np.int32]]], order: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """When rows are predicted, int64 [B], by the first task of which they have labels; None where it is not read."""
        if self.dataset.moments is None:
            return None
        parts = []
        for shard, rows in picked:
            when = np.zeros(rows.shape[0], dtype=np.int64)
            for task, counts in reversed(list(zip(self.tasks, self._rows[shard].counts, strict=True))):
                when[counts[rows] > 0] = self.dataset.moments.of(task, Split.TRAIN)
            parts.append(when)
        return _joined(parts, np.int64)[order]

    def _features(self, picked: Sequence[tuple[int, NDArray[np.int32]]], order: NDArray[np.int64]) -> NDArray[np.int32] | None:
        """Features of rows' users int32 [B, F], without what is closed to one of the tasks; None where none is read."""
        if not self.dataset.inputs_read.user:
            return None
        parts = [np.zeros((0, len(self.dataset.inputs_read.user)), dtype=np.int32)]
        for shard, rows in picked:
            values = self.dataset.user_features(shard, *(task.name for task in self.tasks))
            assert values is not None
            parts.append(values[self._rows[shard].users[rows]])
        return np.concatenate(parts)[order]

    def _examples(
        self, task: int, picked: Sequence[tuple[int, NDArray[np.int32]]], order: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The row that each example reads, ascending, and its label."""
        parts = []
        for shard, rows in picked:
            of_shard = self._rows[shard]
            parts.append(({"labels": of_shard.values[task]}, of_shard.starts[task][rows], of_shard.counts[task][rows].astype(np.int64)))
        gathered, offsets = _gather_ragged(parts, order)
        return np.repeat(np.arange(order.shape[0]), np.diff(offsets)), gathered.get("labels", np.zeros(0, dtype=np.int32))


class Epoch:
    """One epoch's batches, the next of them made while a step runs.

    Attributes:
        steps: Global batches of the whole epoch.
        epoch, step: Which epoch, and the step of the batch that comes next: all that it takes to go on from here
            (`TrainingLoader.epoch(epoch, first=step)`).
    """

    def __init__(self, steps: int, epoch: int, first: int, build: Callable[[int], Iterator[PackedBatch]]) -> None:
        self.steps, self.epoch, self.step = steps, epoch, first
        self._build = build

    def __iter__(self) -> Generator[PackedBatch]:
        batches = prefetch(self._build(self.step))
        try:
            while True:
                with _waiting_range():
                    batch = next(batches, None)
                if batch is None:
                    return
                self.step = batch.step + 1
                yield batch
        finally:
            batches.close()

    def state_dict(self) -> dict[str, int]:
        """Return where the epoch is."""
        return {"epoch": self.epoch, "step": self.step}


def _waiting_range() -> AbstractContextManager[Any]:
    """Return the profiler's range for the wait for a batch; none without a profiler, as one costs a third of a small batch's making."""
    enabled = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    return record_function("data") if enabled else nullcontext()


@dataclass(frozen=True)
class EvaluationBatches:
    """A rank's rows of a split, `batch` users of one shard at a time, each with its labels; its length is the number of batches.

    Attributes:
        dataset: The data set.
        task: Whose labels.
        mask_index: The task's.
        batch: Users at a time.
        labels: Of each of the rank's shards.
        without_last: Items at the end of a user's sequence that are not read: a next item's label, and what stands behind it.
        split: Whose labels they are.
        with_earlier: Give batches what the users took before, where the data set knows it.
    """

    dataset: Dataset
    task: Task
    mask_index: int
    batch: int
    labels: dict[int, Labels]
    without_last: int = 0
    split: Split = Split.TEST
    with_earlier: bool = False

    def __len__(self) -> int:
        return sum(-(-part.users.shape[0] // self.batch) for part in self.labels.values())

    def __iter__(self) -> Iterator[PackedBatch]:
        for shard, part in self.labels.items():
            data, features = self.dataset.shard(shard), self.dataset.user_features(shard, self.task.name)
            moments = self._moments(data, part)
            earlier = self.dataset.earlier_labels(self.task.name, shard) if self.with_earlier else None
            for first in range(0, part.users.shape[0], self.batch):
                users = part.users[first : first + self.batch]
                begin, end = part.offsets[first], part.offsets[first + users.shape[0]]
                rows = take_rows(data.values, data.offsets, users, without_last=self.without_last, columns=data.columns, features=features)
                if moments is not None:
                    rows = replace(rows, moments=moments[first : first + self.batch])
                index = torch.from_numpy(np.repeat(np.arange(users.shape[0]), part.counts[first : first + users.shape[0]]))
                labels = torch.from_numpy(part.values[begin:end].astype(np.int64))
                yield PackedBatch(
                    values=torch.from_numpy(rows.values),
                    row_offsets=torch.from_numpy(rows.offsets),
                    task_of_row=torch.full((rows.rows,), self.mask_index, dtype=torch.int32),
                    positions="last",
                    examples=(Examples(self.task.name, index, labels, 0),),
                    user_hash=data.user_hash[users],
                    earlier=None if earlier is None else ragged.take(*earlier, users),
                ).with_beside(rows)

    def _moments(self, data: Shard, part: Labels) -> NDArray[np.int64] | None:
        """When rows are predicted, int64 [B]: a next item when it came, other labels by the task and split; None where it is not read."""
        if self.dataset.moments is None:
            return None
        if self.task.predicts_next:
            assert data.columns.times is not None
            return data.columns.times[data.offsets[part.users + 1] - self.without_last]
        if part.period is not None and self.split == Split.TEST:
            return np.array(self.dataset.info.test_periods, dtype=np.int64)[part.period[part.offsets[:-1]]]
        return np.full(len(part.users), self.dataset.moments.of(self.task, self.split), dtype=np.int64)


def evaluation_batches(
    dataset: Dataset,
    task: Task,
    split: Split,
    *,
    mask_index: int,
    batch: int,
    rank: int,
    world_size: int,
    max_users: int | None,
    seed: int,
    gather: Gather | None = None,
    period: int | None = None,
    with_earlier: bool = False,
) -> EvaluationBatches:
    """Return this rank's rows of a split, `batch` users at a time, each with its labels; a next-item row without its last item.

    Of a test of several periods `period` takes one, counted from 0. With `max_users` the users are those with the least keyed hash, so the
    choice depends on neither batch nor world size. `with_earlier` as of `EvaluationBatches`.
    """
    own = own_shards(dataset.info.shards, rank, world_size)
    read = own if max_users is None or gather is not None else range(dataset.info.shards)
    labels = {shard: dataset.labels(task.name, shard).of(split, period=period) for shard in read}
    if max_users is not None:
        labels = _fewer_users(dataset, labels, max_users, seed, gather)
    without_last = int(task.predicts_next) + dataset.behind(task.name, split)
    return EvaluationBatches(dataset, task, mask_index, batch, {shard: labels[shard] for shard in own}, without_last, split, with_earlier)


def _fewer_users(dataset: Dataset, labels: dict[int, Labels], max_users: int, seed: int, gather: Gather | None) -> dict[int, Labels]:
    """Keep the `max_users` users of least keyed hash; those of one hash in the order of shards and rows."""
    key = stable_hash(f"evaluate:{seed}")
    hashed = [mix64(dataset.shard(shard).user_hash[part.users], key=key) for shard, part in labels.items()]
    shards = [np.full(part.users.shape[0], shard) for shard, part in labels.items()]
    rows = [np.arange(part.users.shape[0]) for part in labels.values()]
    least = _least(_joined(hashed, np.uint64), _joined(shards, np.int64), _joined(rows, np.int64), max_users)
    if gather is not None:
        hashes, places, row = (np.concatenate(parts) for parts in zip(*gather(least), strict=True))
        least = _least(hashes, places, row, max_users)
    fewer = {}
    for shard, part in labels.items():
        chosen = np.sort(least[2][least[1] == shard])
        counts = part.counts[chosen]
        positions = ragged_positions(part.offsets[chosen], counts)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        period = None if part.period is None else part.period[positions]
        fewer[shard] = Labels(part.users[chosen], part.values[positions], offsets, part.split[positions], period)
    return fewer


def _least(hashed: NDArray[Any], shards: NDArray[Any], rows: NDArray[Any], most: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    order = np.lexsort((rows, shards, hashed))[:most]
    return hashed[order], shards[order], rows[order]


def _gather_ragged(
    parts: Sequence[tuple[Mapping[str, NDArray[Any]], NDArray[np.int64], NDArray[np.int64]]], order: NDArray[np.int64]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Gather rows of several flat columns, each part given by starts and lengths, and lay them in `order`: the columns, and offsets."""
    lengths = _joined([part[2] for part in parts], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
    place = np.empty_like(lengths)
    place[order] = offsets[:-1]
    gathered = {name: np.empty(int(offsets[-1]), dtype=column.dtype) for name, column in (parts[0][0] if parts else {}).items()}
    first = 0
    for columns, starts, sizes in parts:
        there, here = ragged_positions(place[first : first + sizes.shape[0]], sizes), ragged_positions(starts, sizes)
        for name, column in columns.items():
            gathered[name][there] = column[here]
        first += sizes.shape[0]
    return gathered, offsets


def _inputs_and_targets(rows: PackedRows, *, moments: bool) -> tuple[PackedRows, NDArray[np.int32]]:
    """Whole sequences as the inputs of a next-item task, each without its last item, and the class that follows at each position.

    With `moments` a row is predicted when its last item came; the other positions, too, when what follows them did.
    """
    first = np.ones(rows.values.shape[0], dtype=bool)
    last = first.copy()
    first[rows.offsets[:-1]] = False
    last[rows.offsets[1:] - 1] = False
    inputs = PackedRows(rows.values[last], rows.offsets - np.arange(rows.offsets.shape[0]), rows.columns[last], rows.features)
    if moments:
        assert rows.columns.times is not None
        inputs = replace(inputs, moments=rows.columns.times[~last])
    return inputs, rows.values[first] - np.int32(FIRST_ITEM)


def _examples_between(task: str, index: NDArray[np.int64], labels: NDArray[np.int32], outputs: tuple[int, int], total: int) -> Examples:
    """The examples that read outputs `low … high − 1`, counted from `low`; a label below zero, of an item not known, is none."""
    low, high = outputs
    here = slice(*np.searchsorted(index, [low, high]).tolist())
    known = labels[here] >= 0
    return Examples(task, torch.from_numpy(index[here][known] - low), torch.from_numpy(labels[here][known].astype(np.int64)), total)


def _joined(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
