"""Item-based nearest neighbours: a label scores by how often users who have it also have the items of a history.

Sarwar et al., "Item-based collaborative filtering recommendation algorithms" (2001), on sets instead of ratings; the shrinkage is that of
Bell and Koren, "Improved neighborhood-based collaborative filtering" (2007). Nothing is trained. As published the order of a history is not
read; with `decay` what came shortly before a label counts more, as in the neighbourhood methods for sequences that Ludewig and Jannach,
"Evaluation of session-based recommendation algorithms" (2018), found hard to beat. As a method it is scored user by user like the others,
so that comparisons have an interval for the difference.

Legend: B rows, R training rows, N events of their histories, V items, Y labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from dist_teracon.config.base import ConfigModel, Whole
from dist_teracon.continual.heads_alone import HeadsAlone
from dist_teracon.continual.method import MethodContext, StageContext
from dist_teracon.continual.registry import register
from dist_teracon.data import ragged
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import FIRST_ITEM, Split, Task
from dist_teracon.data.user_svd import need_sklearn
from dist_teracon.errors import ConfigError
from dist_teracon.models.backbone import Backbone

# Numbers of a task's table of labels by items, at most: 1 GiB.
_TABLE = 1 << 28
# Pairs of a label and an item before it that are held, 16 bytes each.
_PAIRS_AT_ONCE = 1 << 24
# An event that counts for less than this is not counted.
_LEAST_WEIGHT = 1e-3


class ItemKnnSettings(ConfigModel):
    """Item-based nearest neighbours' settings.

    Attributes:
        neighbours: Items that speak for a label, those most similar to it.
        shrinkage: Added to the denominator of a similarity, so that what few users have in common counts less.
        own: Whether an item speaks for itself, where labels are the items; for data on which users take an item again.
        decay: What an event counts, of what the one behind it does, in similarities and in the history that is read; 1: order is not read.
    """

    neighbours: Annotated[Whole, Field(ge=1, le=1_000_000)] = 100
    shrinkage: Annotated[float, Field(ge=0, le=1e9)] = 10.0
    own: bool = False
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0


@register
class ItemKnn(HeadsAlone):
    """A representation is which items a history has, or how much they count, [V]; a head has its labels' similarities to them, [Y, V]."""

    name = "itemknn"
    Settings = ItemKnnSettings
    adds_tasks = False

    def __init__(self, context: MethodContext, settings: ItemKnnSettings) -> None:
        super().__init__(context, settings)
        self.options = settings
        for task in context.tasks:
            if task.labels * context.num_items > _TABLE:
                raise ConfigError(
                    f"tasks: method '{self.name}' holds a number for each label and item, and task '{task.name}' has {task.labels} labels "
                    f"of {context.num_items} items; at most {_TABLE} numbers are held"
                )

    @classmethod
    def check(cls, tasks: Sequence[Task], backbone: type[Backbone]) -> None:
        need_sklearn(f"method '{cls.name}'")
        for task in tasks:
            if not task.ranks_labels:
                raise ConfigError(
                    f"tasks: method '{cls.name}' ranks items, and the labels of '{task.name}' are classes of a profile; leave it out, "
                    "or take `popularity`, which gives every user the majority class"
                )

    @property
    def width(self) -> int:
        return self.context.num_items

    def prepare(self, context: StageContext) -> None:
        head = self.head(self.learned[-1])
        similarities = similarities_of(context.dataset, context.dataset.info.task(self.learned[-1]), self.options)
        head.bias.zero_()
        head.weight.zero_()
        rows = np.repeat(np.arange(head.labels), np.diff(similarities.indptr))
        index = torch.from_numpy(rows), torch.from_numpy(similarities.indices.astype(np.int64))
        head.weight[index] = torch.from_numpy(similarities.data.astype(np.float32)).to(head.weight.device)

    @property
    def masks_alone(self) -> bool:
        return False

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        lengths = batch.row_offsets.diff()
        row = torch.repeat_interleave(torch.arange(batch.rows, device=lengths.device), lengths)
        known = batch.values >= FIRST_ITEM
        has = self.head(task).weight.new_zeros(batch.rows, self.context.num_items)
        places, decay = (row[known], batch.values[known].long()), self.options.decay
        if decay == 1:
            has[places] = 1.0
            return has
        behind = batch.row_offsets[1:][row] - 1 - torch.arange(len(row), device=row.device)
        return has.index_put_(places, _weights(decay, behind[known]).to(has), accumulate=True)


def similarities_of(dataset: Dataset, task: Task, options: ItemKnnSettings) -> Any:
    """Return how similar each label of a task is to the items, of each label's nearest ones: float64, sparse by row [Y, V].

    `n(y, v) / (√(n(y) · n(v)) + shrinkage)`: n(y) training rows that have the label, n(v) whose history has the item, n(y, v) both; with
    `decay` n(y, v) is the sum of decayʲ over the events of v that lie before the label with j events between. Of equally similar items the
    first ones are taken.
    """
    from scipy.sparse import csr_matrix, vstack

    items, labels, parts = dataset.info.items, task.labels, list(_training_rows(dataset, task))
    has_RV = vstack([_binary(*part.known, items) for part in parts], format="csr")
    is_RY = vstack([_binary(*part.of_known, labels) for part in parts], format="csr")
    both_YV = is_RY.T @ has_RV if options.decay == 1 else sum(_in_order(part, labels, items, options.decay) for part in parts)
    both_YV = both_YV.tocsr()
    of_label, of_item = (np.asarray(matrix.sum(axis=0)).ravel() for matrix in (is_RY, has_RV))
    rows = np.repeat(np.arange(labels), np.diff(both_YV.indptr))
    similar = both_YV.data / (np.sqrt(of_label[rows] * of_item[both_YV.indices]) + options.shrinkage)
    if not options.own and (label_of := dataset.label_of_item(task.name)) is not None:
        similar = np.where(label_of[both_YV.indices] == rows, 0.0, similar)
    order = np.lexsort((both_YV.indices, -similar, rows))
    rank = np.arange(len(rows)) - both_YV.indptr[rows]
    kept = order[(rank < options.neighbours) & (similar[order] > 0)]
    return csr_matrix((similar[kept], (rows[kept], both_YV.indices[kept])), shape=(labels, items))


_Ragged = tuple[NDArray[np.int32], NDArray[np.int64]]


@dataclass(frozen=True)
class _Part:
    """The training rows of a shard.

    Attributes:
        history: int32 [N], items, the unseen one among them, row behind row; and where rows begin.
        labels: int32, labels row behind row; and where rows begin. None of a next-item task, of which every known item is one.
    """

    history: _Ragged
    labels: _Ragged | None

    @property
    def known(self) -> _Ragged:
        """The items of histories without the unseen one."""
        values, offsets = self.history
        return ragged.keep(values, offsets, values >= FIRST_ITEM)

    @property
    def of_known(self) -> _Ragged:
        """All labels of the rows."""
        if self.labels is not None:
            return self.labels
        values, offsets = self.known
        return values - np.int32(FIRST_ITEM), offsets


def _training_rows(dataset: Dataset, task: Task) -> Iterator[_Part]:
    """Yield each shard's training rows."""
    behind = dataset.behind(task.name, Split.TRAIN)
    for index in range(dataset.info.shards):
        shard, train = dataset.shard(index), dataset.labels(task.name, index).of(Split.TRAIN)
        starts, ends = shard.offsets[train.users], shard.offsets[train.users + 1] - behind
        lengths = np.maximum(ends - starts, 0)
        history = shard.values[ragged.positions(starts, lengths)], ragged.offsets_of(lengths)
        yield _Part(history, None if task.predicts_next else (train.values, train.offsets))


def _binary(values: NDArray[np.int32], offsets: NDArray[np.int64], width: int) -> Any:
    """Return which values each row has, float64, sparse by row [R, width]."""
    from scipy.sparse import csr_matrix

    found, offsets = ragged.distinct(values, offsets)
    return csr_matrix((np.ones(len(found)), found, offsets), shape=(len(offsets) - 1, width))


def _in_order(part: _Part, labels: int, items: int, decay: float) -> Any:
    """Return how much each item counts for each label over a shard's rows, float64, sparse by row [Y, V]."""
    from scipy.sparse import csr_matrix

    values, offsets = part.history
    lengths = np.diff(offsets)
    place = np.arange(len(values)) - np.repeat(offsets[:-1], lengths)
    if part.labels is not None:  # all of which come behind the history
        row = np.repeat(np.arange(len(lengths)), lengths)
        weight = _weights(decay, torch.from_numpy(lengths[row] - 1 - place)).numpy()
        counts = (values >= FIRST_ITEM) & (weight > 0)
        has_RV = csr_matrix((weight[counts], (row[counts], values[counts])), shape=(len(lengths), items))
        return (_binary(*part.labels, labels).T @ has_RV).tocsr()
    both, pairs, size = csr_matrix((labels, items)), list[tuple[Any, Any, Any]](), 0
    weights = [weight for weight in _weights(decay, torch.arange(int(lengths.max(initial=1)))).tolist() if weight]
    for between, counted in enumerate(weights):
        later = np.flatnonzero(place > between)
        label, item = values[later], values[later - between - 1]
        known = (label >= FIRST_ITEM) & (item >= FIRST_ITEM)
        pairs.append((np.full(int(known.sum()), counted), label[known] - np.int32(FIRST_ITEM), item[known]))
        size += len(pairs[-1][0])
        # adding to the sum passes over all of it, so many pairs are added at a time
        if size > _PAIRS_AT_ONCE or between + 1 == len(weights):
            added, rows, columns = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
            both = both + csr_matrix((added, (rows, columns)), shape=(labels, items))
            pairs, size = [], 0
    return both


def _weights(decay: float, between: Tensor) -> Tensor:
    """Return what events count that have so many others between them and the label, float64; 0 where it is next to nothing."""
    weights = decay ** between.double()
    return weights * (weights >= _LEAST_WEIGHT)
