"""Popularity: every user gets the same ranking, by how often training saw a label; for profile tasks that is the majority class.

As a method it is scored user by user like the others, so that comparisons have an interval for the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dist_teracon.continual.heads_alone import HeadsAlone
from dist_teracon.continual.method import StageContext
from dist_teracon.continual.registry import register
from dist_teracon.data.batches import PackedBatch


@register
class Popularity(HeadsAlone):
    """A head a task whose biases are its training counts; nothing is trained."""

    name = "popularity"

    def prepare(self, context: StageContext) -> None:
        task = self.learned[-1]
        self.head(task).weight.zero_()
        self.head(task).bias.copy_(torch.from_numpy(context.dataset.train_counts(task)))

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.head(task).weight.new_zeros(batch.rows, 1)
