"""CONURE: every task owns the weights that are left to it after pruning (docs/method.md, Systems)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel, Epochs, Share
from dist_teracon.continual.method import MethodContext, Phase
from dist_teracon.continual.one_network import OneNetwork, scale_gradient, without_dots
from dist_teracon.continual.registry import register
from dist_teracon.data.schema import Task
from dist_teracon.errors import ConfigError
from dist_teracon.models.backbone import Backbone
from dist_teracon.models.network import Network, Role

# owners are kept in a byte
MAX_TASKS = 255


class ConureSettings(ConfigModel):
    """CONURE's settings.

    Attributes:
        pruned: Share of the free weights of a matrix that a task gives back.
        retrain_epochs: Epochs at most after pruning; None for as many as before.
    """

    pruned: Share = 0.7
    retrain_epochs: Epochs | None = None


class _ConureNetwork(Network):
    """A network whose matrices' weights have owners.

    Attributes:
        owner: By matrix uint8 of its shape, the number of the task that owns a weight, from 1; 0 for a free one.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        parameters = dict(backbone.named_parameters())
        self.parts = tuple(part for layer in backbone.masked_layers() for part in layer.matrices)
        self.matrices = sorted({name for name, _ in self.parts})
        self.owner = nn.Module()
        for name in self.matrices:
            self.owner.register_buffer(without_dots(name), torch.zeros_like(parameters[name], dtype=torch.uint8, requires_grad=False))

    def owner_of(self, name: str) -> Tensor:
        """Return the owners of a matrix's weights."""
        return self.owner.get_buffer(without_dots(name))


@register
class Conure(OneNetwork):
    """Train, prune, retrain, freeze (Yuan et al., *One Person, One Model, One World: Learning Continual User Representation without
    Forgetting*, SIGIR 2021).

    A stage trains the free weights of the masked layers' matrices, with the weights of earlier tasks in use and unchanged; gives back the
    `pruned` share of least magnitude in each matrix, which become zero; and trains the kept ones again. They are then the task's, and
    frozen. A task computes with the weights owned up to it, all others zero. Embeddings, biases and LayerNorms train with the first task
    alone. So no past task ever changes, by a single bit. A stage has two phases of at most `epochs` each; the first one's best weights
    are pruned, and kept where no epoch of the second is better. Shares of the weights with 0.7 pruned: 30, 21, 14.7, 10.3, 7.2, 5.0 % …

    Memory a task: its head. Once, for all tasks: one byte a weight of these matrices. At most 255 tasks.

    Deviates from the paper: heads are learned by cross-entropy over all labels; a matrix of SASRec is pruned as a convolution is;
    free weights start at zero, as pruning left them, so that a new task starts with its predecessor's network.
    """

    name = "conure"
    Settings = ConureSettings
    network: _ConureNetwork

    def __init__(self, context: MethodContext, settings: ConureSettings) -> None:
        super().__init__(context, settings)
        self.options = settings
        self.trains: dict[str, Tensor] = {}

    @classmethod
    def check(cls, tasks: Sequence[Task], backbone: type[Backbone]) -> None:
        if len(tasks) > MAX_TASKS:
            raise ConfigError(f"tasks: method '{cls.name}' keeps a weight's owner in one byte, so it learns at most {MAX_TASKS} tasks")

    def make_network(self) -> Network:
        return _ConureNetwork(self.context.backbone(self.context.tasks[0]))

    def phases(self, task: Task) -> Sequence[Phase]:
        training, epochs = self.training(task), self.options.retrain_epochs
        again = training if epochs is None else training.model_copy(update={"epochs": epochs})
        return (Phase("train", (task,), training), Phase("retrain", (task,), again))

    def begin_phase(self, phase: Phase) -> None:
        if phase.name == "retrain":
            self._prune()
        trained = len(self.learned) if phase.name == "retrain" else 0
        self.trains = {name: self.network.owner_of(name) == trained for name in self.network.matrices}

    @torch.no_grad()
    def _prune(self) -> None:
        """Give the largest free weights of every matrix to the present task, and set the others to zero."""
        weights = dict(self.network.backbone.named_parameters())
        for name, index in self.network.parts:
            weight, owner = (value if index is None else value[index] for value in (weights[name].data, self.network.owner_of(name)))
            free = (owner == 0).flatten().nonzero().squeeze(1)
            magnitudes = weight.flatten()[free].abs()
            # stable, so that ties fall the same way everywhere
            order = magnitudes.argsort(descending=True, stable=True)
            kept = math.ceil(len(free) * (1 - self.options.pruned))
            owner.view(-1)[free[order[:kept]]] = len(self.learned)
            weight.masked_fill_(owner == 0, 0)

    def trained_parameters(self) -> set[str]:
        matrices = {f"backbone.{name}" for name in self.network.matrices if bool(self.trains[name].any())}
        others = {f"backbone.{name}" for name, _ in self.network.backbone.named_parameters() if name not in self.trains}
        return self.own_parameters() | matrices | (others if self.is_first else set())

    def is_pretrained(self, role: Role) -> bool:
        """Free weights are new ones: nothing that trains was trained before."""
        return False

    def gradient_hooks(self, phase: Phase) -> None:
        # a weight whose gradient is zero from the optimiser's first step on does not move
        for name, parameter in self.network.backbone.named_parameters():
            if name in self.trains and parameter.requires_grad:
                scale_gradient(parameter, self.trains[name])

    def inserted(self, task: str) -> dict[str, Any]:
        """Return a past task's effective weights; none for the present one, which uses all there are."""
        number = self.learned.index(task) + 1
        if number == len(self.learned):
            return {}
        weights = dict(self.network.backbone.named_parameters())
        found: dict[str, Tensor] = {}
        for name in self.network.matrices:
            owner = self.network.owner_of(name)
            found[name] = torch.where((owner > 0) & (owner <= number), weights[name], 0)
        return {"weights": found}
