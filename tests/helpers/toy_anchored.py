"""A toy method, as docs/extending.md shows it: fine-tuning that is pulled back to the weights of the stage before."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel
from dist_teracon.continual.method import Method, MethodContext, Phase
from dist_teracon.continual.registry import register
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task
from dist_teracon.models.heads import Head
from dist_teracon.models.network import Network


class AnchoredSettings(ConfigModel):
    strength: Annotated[float, Field(ge=0)] = 0.01


@register
class Anchored(Method):
    """One network without masks for all tasks; the loss has `strength · ‖W − W of the stage before‖²` of the layers' matrices."""

    name = "anchored"
    Settings = AnchoredSettings
    network: Network

    def __init__(self, context: MethodContext, settings: AnchoredSettings) -> None:
        super().__init__(context, settings)
        self.strength = settings.strength
        self.anchors: dict[str, Tensor] = {}

    def begin_task(self, task: Task) -> None:
        if not self.learned:
            self.network = Network(self.context.backbone(task))
        self.network.heads.requires_grad_(False)  # past heads stay as they are
        self.network.add_task(task.name, task.labels, generator=self.context.generator(f"head:{task.name}"))
        self.learned.append(task.name)

    def begin_phase(self, phase: Phase) -> None:
        if len(self.learned) > 1:
            matrices = {name for layer in self.network.backbone.masked_layers() for name, _ in layer.matrices}
            values = dict(self.network.backbone.named_parameters())
            self.anchors = {name: values[name].detach().clone() for name in sorted(matrices)}

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        terms = self.classification_losses(batch, self.network.encode(batch, None))
        if self.anchors:
            values = dict(self.network.backbone.named_parameters())
            squares = [(values[name] - anchor.to(values[name])).square().sum() for name, anchor in self.anchors.items()]
            terms["anchor"] = self.whole_term(self.strength * torch.stack(squares).sum(), batch)
        return terms

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.network.encode(batch, None, positions="last")

    def head(self, task: str) -> Head:
        return self.network.head(task)

    def mask_index(self, task: str) -> int:
        return 0  # there are no masks

    def module(self) -> nn.Module:
        return self.network

    def model(self) -> nn.Module:
        return self.network
