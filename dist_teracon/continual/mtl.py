"""MTL: all tasks after the first are learned jointly, in one stage (docs/method.md, Systems)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel
from dist_teracon.continual.method import Method, MethodContext, Phase
from dist_teracon.continual.registry import register
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task
from dist_teracon.errors import ConfigError
from dist_teracon.models.backbone import Backbone
from dist_teracon.models.heads import Head, head_key
from dist_teracon.models.network import Network, Role


class MtlSettings(ConfigModel):
    """MTL's settings.

    Attributes:
        start: The joint network starts from the first task's backbone, or from fresh weights (`scratch`).
    """

    start: Literal["first", "scratch"] = "first"


class _Networks(nn.Module):
    """The first task's network, and the one of all later tasks once there is a second."""

    def __init__(self, first: Network) -> None:
        super().__init__()
        self.first = first
        self.joint: Network | None = None


@register
class Mtl(Method):
    """Joint learning: hard parameter sharing, one backbone and a head a task (Caruana, 1997). No continual learner: a reference line.

    The first task's network is trained as every method's and stays apart. The second stage learns all later tasks together: a user's
    labels of all of them share one pass, and labels that a user does not have are no part of the loss, which is the sum over tasks of the
    mean over the batch's examples. Later stages train nothing. The second stage's settings hold (`train.second`, and `train.by_task` of
    the task that comes second); weights are selected by the mean of the tasks' validation scores. So the order of later tasks does not
    matter, and no task can be added to a finished run.

    Memory: two networks, and a head a task.

    Deviates from the published comparison where `start` is `first`: it trained from scratch, without the first task.
    """

    name = "mtl"
    plain_first_network = "first."
    stages_stand_alone = False
    Settings = MtlSettings
    adds_tasks: ClassVar[bool] = False

    def __init__(self, context: MethodContext, settings: MtlSettings) -> None:
        super().__init__(context, settings)
        self.start = settings.start
        self.networks = _Networks(Network(context.backbone(context.tasks[0])))
        # in an order of their own, so that the sum of the loss does not depend on the configuration's
        self.together = tuple(sorted(context.tasks[1:], key=lambda task: task.name))

    @classmethod
    def check(cls, tasks: Sequence[Task], backbone: type[Backbone]) -> None:
        for task in tasks[1:]:
            if task.predicts_next:
                raise ConfigError(
                    f"tasks: method '{cls.name}' learns all tasks after the first jointly, and the next-item task '{task.name}' is trained "
                    "at all positions, so it cannot be joined with others; put it first"
                )

    @classmethod
    def trained_with(cls, task: str, tasks: Sequence[str]) -> Sequence[str]:
        return (task,) if task == tasks[0] else tuple(tasks[1:])

    def begin_task(self, task: Task) -> None:
        self.learned.append(task.name)
        if len(self.learned) == 1:
            self._add_head(self.networks.first, task)
        elif len(self.learned) == 2:
            self.networks.joint = Network(
                copy.deepcopy(self.networks.first.backbone)
                if self.start == "first"
                else self.context.backbone(self.context.tasks[0], stage=task)
            )
            for joint in self.together:
                self._add_head(self.networks.joint, joint)

    def _add_head(self, network: Network, task: Task) -> None:
        network.add_task(task.name, task.labels, generator=self.context.generator(f"task:{task.name}"), tied=self.context.ties(task))

    def phases(self, task: Task) -> Sequence[Phase]:
        if len(self.learned) > 2:
            return ()
        return (Phase("train", (task,) if len(self.learned) == 1 else self.together, self.training(task)),)

    def module(self) -> nn.Module:
        return self.networks.joint or self.networks.first

    def is_pretrained(self, role: Role) -> bool:
        return self.start == "first" and super().is_pretrained(role)

    def decay_parameters(self) -> set[str]:
        """As every method's, with the heads of all joint tasks."""
        network = self._network(self.learned[-1])
        return {f"backbone.{name}" for name in network.backbone.decay_parameters()} | {
            f"heads.{head_key(task)}.weight" for task in network.tasks
        }

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        return self.classification_losses(batch, self._network(self.learned[-1]).encode(batch, None))

    def mask_index(self, task: str) -> int:
        return 0

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self._network(task).encode(batch, None, positions="last")

    def head(self, task: str) -> Head:
        return self._network(task).head(task)

    def model(self) -> nn.Module:
        return self.networks

    def network_of(self, task: str) -> Network:
        return self._network(task)

    def _network(self, task: str) -> Network:
        network = self.networks.first if task == self.context.tasks[0].name else self.networks.joint
        assert network is not None
        return network
