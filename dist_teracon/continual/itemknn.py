"""Item-based nearest neighbours: a label scores by how often users who have it also have the items of a history.

Sarwar et al., "Item-based collaborative filtering recommendation algorithms" (2001), on sets instead of ratings; the shrinkage is that of
Bell and Koren, "Improved neighborhood-based collaborative filtering" (2007). Nothing is trained, and the order of a history is not read. As
a method it is scored user by user like the others, so that comparisons have an interval for the difference.

Legend: B rows, R training rows, V items, Y labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


class ItemKnnSettings(ConfigModel):
    """Item-based nearest neighbours' settings.

    Attributes:
        neighbours: Items that speak for a label, those most similar to it.
        shrinkage: Added to the denominator of a similarity, so that what few users have in common counts less.
        own: Whether an item speaks for itself, where labels are the items; for data on which users take an item again.
    """

    neighbours: Annotated[Whole, Field(ge=1, le=1_000_000)] = 100
    shrinkage: Annotated[float, Field(ge=0, le=1e9)] = 10.0
    own: bool = False


@register
class ItemKnn(HeadsAlone):
    """A representation is which items a history has, [V]; a task's head has the similarities of its labels to the items, [Y, V]."""

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
        has[row[known], batch.values[known].long()] = 1.0
        return has


def similarities_of(dataset: Dataset, task: Task, options: ItemKnnSettings) -> Any:
    """Return how similar each label of a task is to the items, of each label's nearest ones: float64, sparse by row [Y, V].

    `n(y, v) / (√(n(y) · n(v)) + shrinkage)`: n(y) training rows that have the label, n(v) whose history has the item, n(y, v) both. Of
    equally similar items the first ones are taken.
    """
    from scipy.sparse import csr_matrix, vstack

    items, labels = dataset.info.items, task.labels
    parts = list(_training_rows(dataset, task))
    has_RV = vstack([_binary(values, offsets, items) for values, offsets, _, _ in parts], format="csr")
    is_RY = vstack([_binary(values, offsets, labels) for _, _, values, offsets in parts], format="csr")
    both_YV = (is_RY.T @ has_RV).tocsr()
    of_label, of_item = (np.asarray(matrix.sum(axis=0)).ravel() for matrix in (is_RY, has_RV))
    rows = np.repeat(np.arange(labels), np.diff(both_YV.indptr))
    similar = both_YV.data / (np.sqrt(of_label[rows] * of_item[both_YV.indices]) + options.shrinkage)
    if not options.own and (label_of := dataset.label_of_item(task.name)) is not None:
        similar = np.where(label_of[both_YV.indices] == rows, 0.0, similar)
    order = np.lexsort((both_YV.indices, -similar, rows))
    rank = np.arange(len(rows)) - both_YV.indptr[rows]
    kept = order[(rank < options.neighbours) & (similar[order] > 0)]
    return csr_matrix((similar[kept], (rows[kept], both_YV.indices[kept])), shape=(labels, items))


_Ragged = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]


def _training_rows(dataset: Dataset, task: Task) -> Iterator[_Ragged]:
    """Yield each shard's training rows: the known items of their histories, and their labels; of a next-item task every item is one."""
    behind = dataset.behind(task.name, Split.TRAIN)
    for index in range(dataset.info.shards):
        shard, train = dataset.shard(index), dataset.labels(task.name, index).of(Split.TRAIN)
        starts, ends = shard.offsets[train.users], shard.offsets[train.users + 1] - behind
        lengths = np.maximum(ends - starts, 0)
        values, offsets = shard.values[ragged.positions(starts, lengths)], ragged.offsets_of(lengths)
        values, offsets = ragged.keep(values, offsets, values >= FIRST_ITEM)
        if task.predicts_next:
            yield values, offsets, values - np.int32(FIRST_ITEM), offsets
        else:
            yield values, offsets, train.values, train.offsets


def _binary(values: NDArray[np.int32], offsets: NDArray[np.int64], width: int) -> Any:
    """Return which values each row has, float64, sparse by row [R, width]."""
    from scipy.sparse import csr_matrix

    found, offsets = ragged.distinct(values, offsets)
    return csr_matrix((np.ones(len(found)), found, offsets), shape=(len(offsets) - 1, width))
