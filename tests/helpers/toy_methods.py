"""Two methods of other shapes than the shipped ones, each one class behind the contract; the trainer is left alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel
from dist_teracon.continual.method import Method, MethodContext, Phase
from dist_teracon.continual.registry import register
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task
from dist_teracon.engine.contract import Engine
from dist_teracon.models.backbone import make_backbone
from dist_teracon.models.heads import Head
from dist_teracon.models.network import Network


class _OneNetwork(Method):
    """A network without masks for all tasks."""

    def __init__(self, context: MethodContext, settings: ConfigModel) -> None:
        super().__init__(context, settings)
        self.network = Network(make_backbone(context.model, num_items=context.num_items, generator=context.generator("backbone")))

    def _add_head(self, task: Task) -> None:
        self.network.add_task(task.name, task.labels, generator=self.context.generator(f"head:{task.name}"))

    def module(self) -> nn.Module:
        return self.network

    def mask_index(self, task: str) -> int:
        return 0

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        return self.classification_losses(batch, self.network.encode(batch, None))

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.network.encode(batch, None, positions="last")

    def head(self, task: str) -> Head:
        return self.network.head(task)

    def model(self) -> nn.Module:
        return self.network


@register
class ToyConure(_OneNetwork):
    """CONURE's shape: a task trains the free convolution weights, keeps the largest third of them, trains these again and owns them.

    `owner` holds for each convolution weight the task that owns it, 0 for free; weights of later owners are zero at inference.
    """

    name = "toy-conure"

    def __init__(self, context: MethodContext, settings: ConfigModel) -> None:
        super().__init__(context, settings)
        conv = self.network.backbone.conv_weight
        self.network.register_buffer("owner", torch.zeros_like(conv))

    def begin_task(self, task: Task) -> None:
        self.learned.append(task.name)
        self._add_head(task)

    def phases(self, task: Task) -> Sequence[Phase]:
        training = self.training(task)
        return (
            Phase("train", (task,), training),
            Phase("prune", (task,), training.model_copy(update={"epochs": 0})),
            Phase("retrain", (task,), training),
        )

    def begin_phase(self, phase: Phase) -> None:
        if phase.name == "prune":
            self._prune()
        self.changing = self._changing(phase.name)
        self.fixed = self.network.backbone.conv_weight.detach().clone()

    @torch.no_grad()
    def _prune(self) -> None:
        conv, owner = self.network.backbone.conv_weight, self.network.owner
        for weight, owned in zip(conv, owner, strict=True):
            free = owned == 0
            kept = math.ceil(int(free.sum()) * 0.3)
            threshold = weight[free].abs().sort(descending=True).values[kept - 1]
            owned[free & (weight.abs() >= threshold)] = len(self.learned)
            weight[owned == 0] = 0

    def _changing(self, phase: str) -> Tensor:
        """Which convolution weights a phase trains: [K, C, C, k], 1 or 0."""
        owned = self.network.owner == (0 if phase == "train" else len(self.learned))
        return owned.float()

    def parameter_groups(self, phase: Phase) -> list[dict[str, Any]]:
        first, current = len(self.learned) == 1, self.network.head(self.learned[-1])
        self.network.requires_grad_(first)
        self.network.backbone.conv_weight.requires_grad_(True)
        for past in self.learned[:-1]:
            self.network.head(past).requires_grad_(False)
        current.requires_grad_(True)
        return super().parameter_groups(phase)

    def gradient_hooks(self, phase: Phase) -> None:
        changing = self.changing
        self.network.backbone.conv_weight.register_hook(lambda gradient: gradient * changing.to(gradient.dtype))

    def project(self, engine: Engine) -> None:
        """Adam's momentum must not move what is fixed either."""
        changing, fixed = self.changing.flatten(), self.fixed.flatten()

        def put_back(values: Tensor, start: int) -> None:
            still = changing[start : start + values.numel()] == 0
            values[still] = fixed[start : start + values.numel()][still].to(values.dtype)

        engine.edit_masters([self.network.backbone.conv_weight], put_back)

    @torch.no_grad()
    def end_task(self) -> None:
        self.network.backbone.conv_weight[self.network.owner == 0] = 0

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        """Encode with the weights owned up to `task`; in training the present task uses all."""
        owner, number = self.network.owner, self.learned.index(task) + 1
        seen = (owner <= number) if number == len(self.learned) else (owner > 0) & (owner <= number)
        weights = {"conv_weight": self.network.backbone.conv_weight * seen}
        hidden: Tensor = torch.func.functional_call(self.network.backbone, weights, (batch.sequences, None), {"positions": "last"})
        return hidden


@register
class ToyMtl(_OneNetwork):
    """MTL's shape: the second stage learns all later tasks jointly, and nothing is left for the later stages."""

    name = "toy-mtl"

    def begin_task(self, task: Task) -> None:
        self.learned.append(task.name)
        if len(self.learned) == 1:
            self._add_head(task)
        if len(self.learned) == 2:
            for joint in self.context.tasks[1:]:
                self._add_head(joint)

    def phases(self, task: Task) -> Sequence[Phase]:
        if len(self.learned) > 2:
            return ()
        return (Phase("train", (task,) if len(self.learned) == 1 else self.context.tasks[1:], self.training(task)),)

    def parameter_groups(self, phase: Phase) -> list[dict[str, Any]]:
        self.network.head(self.context.tasks[0].name).requires_grad_(len(self.learned) == 1)
        return super().parameter_groups(phase)
