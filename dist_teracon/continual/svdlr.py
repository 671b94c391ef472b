"""SVD with logistic regression: the line of reference for profile tasks, and popularity for the others.

A history is the truncated SVD of its items by TF-IDF, fitted on the first task's training users (`models/history_features.py`, `svd`), and
a profile task a multinomial logistic regression on its leading directions, as many as validation chooses. It is what anyone would try
first, and what the baseline beside a run's profile scores is, which is fitted on the users of the profile tasks; as a method it is scored
user by user like the others, so that comparisons have an interval for the difference.

Legend: B rows, D directions, Y labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel
from dist_teracon.continual.heads_alone import HeadsAlone
from dist_teracon.continual.method import MethodContext, StageContext
from dist_teracon.continual.registry import register
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.loader import evaluation_batches
from dist_teracon.data.schema import Split, Task
from dist_teracon.data.user_svd import need_sklearn
from dist_teracon.errors import TeraconError
from dist_teracon.evaluate.baseline_table import SVD_USERS
from dist_teracon.evaluate.baselines import DIMENSIONS, best_classifier
from dist_teracon.evaluate.metrics import metrics_of
from dist_teracon.models.backbone import Backbone
from dist_teracon.models.history_features import HistoryFeatures
from dist_teracon.models.history_start import history_start

# By which the number of directions is chosen.
_METRIC = "accuracy"
_ROWS_AT_ONCE = 4096


@register
class SvdLogisticRegression(HeadsAlone):
    """A representation is a history's D standardised directions, [B, D]; a profile task's head the regression's weights."""

    name = "svdlr"
    adds_tasks = False

    def __init__(self, context: MethodContext, settings: ConfigModel) -> None:
        super().__init__(context, settings)
        self.model_config = context.model.model_copy(update={"history_features": ("svd",), "history_svd": max(DIMENSIONS)})
        self.numbers = HistoryFeatures(["svd"], num_items=context.num_items, directions=max(DIMENSIONS))
        self.whole = nn.ModuleDict({"heads": self.heads, "numbers": self.numbers})

    @classmethod
    def check(cls, tasks: Sequence[Task], backbone: type[Backbone]) -> None:
        need_sklearn(f"method '{cls.name}'")

    @property
    def width(self) -> int:
        return max(DIMENSIONS)

    def module(self) -> nn.Module:
        return self.whole

    def model(self) -> nn.Module:
        return self.whole

    @property
    def masks_alone(self) -> bool:
        return False

    def prepare(self, context: StageContext) -> None:
        task = context.dataset.info.task(self.learned[-1])
        problem, fitted = "", None
        if context.runtime.is_main:  # processors of two kinds may differ in last digits
            try:
                if len(self.learned) == 1:
                    start = history_start(context.dataset, task, self.model_config, seed=self.context.seed)
                    assert start.factors is not None
                    self.numbers.load_state_dict({"shift": start.shift, "scale": start.scale, "factors": start.factors})
                # of items' size, and the same for all tasks
                fitted = self.numbers.state_dict() if len(self.learned) == 1 else None, *self._head_of(context, task)
            except TeraconError as error:
                problem = str(error)
        context.runtime.raise_on_all_ranks(problem)
        ((numbers, weight, bias),) = [part for part in context.runtime.gather(fitted) if part is not None]
        if numbers is not None:
            self.numbers.load_state_dict(numbers)
        self.head(task.name).weight.copy_(weight)
        self.head(task.name).bias.copy_(bias)

    def _head_of(self, context: StageContext, task: Task) -> tuple[Tensor, Tensor]:
        """Return a task's weight [Y, D] and bias [Y]: of a ranking its training counts, as `popularity` has them."""
        if task.ranks_labels:
            return torch.zeros(task.labels, self.width), torch.from_numpy(context.dataset.train_counts(task.name)).float()
        train, validation = (self._examples(context, task, split) for split in (Split.TRAIN, Split.VALIDATION))
        (metric,) = metrics_of(task, [_METRIC])
        found = best_classifier(metric, train, validation, classes=task.labels)
        context.log(f"{task.name}: {found.dimensions} directions")
        context.event("svd_logistic_regression", task=task.name, dimensions=found.dimensions, validation_score=found.validation_score)
        weight, bias = found.weights(task.labels)
        padded = torch.zeros(task.labels, self.width)
        padded[:, : found.dimensions] = torch.from_numpy(weight)
        return padded, torch.from_numpy(bias)

    def _examples(self, context: StageContext, task: Task, split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the directions of a split's users and their labels, of at most `SVD_USERS` users."""
        batches = evaluation_batches(
            context.dataset, task, split,
            mask_index=0, batch=_ROWS_AT_ONCE, rank=0, world_size=1, max_users=SVD_USERS, seed=self.context.seed,
        )  # fmt: skip
        known = int(self.numbers.factors_known[:, 1:].any(dim=0).sum())  # there are fewer than D where users or items are few
        values, labels = [np.zeros((0, known), np.float32)], [np.zeros(0, np.int64)]
        for batch in batches:
            (examples,) = batch.examples
            values.append(self.encode(batch, task.name)[examples.index, :known].numpy())
            labels.append(examples.labels.numpy())
        return np.concatenate(values), np.concatenate(labels)

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.numbers(batch.sequences, positions="last")
