"""Popularity: every user gets the same ranking, by how often training saw a label; for profile tasks that is the majority class.

As a method it is scored user by user like the others, so that comparisons have an interval for the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel
from dist_teracon.continual.method import Method, MethodContext, Phase, StageContext
from dist_teracon.continual.registry import register
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task
from dist_teracon.models.heads import Head, head_key


@register
class Popularity(Method):
    """A head a task whose biases are its training counts; nothing is trained."""

    name = "popularity"

    def __init__(self, context: MethodContext, settings: ConfigModel) -> None:
        super().__init__(context, settings)
        self.heads = nn.ModuleDict()

    def begin_task(self, task: Task) -> None:
        self.learned.append(task.name)
        head = Head(1, task.labels, generator=self.context.generator(f"head:{task.name}"))
        self.heads[head_key(task.name)] = head.requires_grad_(False)

    def prepare(self, context: StageContext) -> None:
        task = self.learned[-1]
        self.head(task).weight.zero_()
        self.head(task).bias.copy_(torch.from_numpy(context.dataset.train_counts(task)))

    def phases(self, task: Task) -> tuple[Phase, ...]:
        return ()

    def module(self) -> nn.Module:
        return self.heads

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        raise AssertionError("popularity has no phase to train")

    def mask_index(self, task: str) -> int:
        return 0

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.head(task).weight.new_zeros(batch.rows, 1)

    def head(self, task: str) -> Head:
        head = self.heads[head_key(task)]
        assert isinstance(head, Head)
        return head

    def model(self) -> nn.Module:
        return self.heads
