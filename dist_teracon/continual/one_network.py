"""What methods with one backbone for all tasks share: a head a task, and past tasks' own weights that stay as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel
from dist_teracon.continual.method import Method, MethodContext, Phase
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task
from dist_teracon.models.heads import Head
from dist_teracon.models.network import Network


class OneNetwork(Method):
    """A network of one backbone and a head a task. A subclass says what else a task has, and what of it all trains.

    Attributes:
        network: Of the first task's backbone, as `make_network` builds it.
    """

    def __init__(self, context: MethodContext, settings: ConfigModel) -> None:
        super().__init__(context, settings)
        self.network = self.make_network()

    def make_network(self) -> Network:
        """Build the network without heads."""
        return Network(self.context.backbone(self.context.tasks[0]))

    @property
    def is_first(self) -> bool:
        """Whether the present task is the first one."""
        return len(self.learned) == 1

    def begin_task(self, task: Task) -> None:
        for past in self.learned:
            self.network.head(past).requires_grad_(False)
        self.learned.append(task.name)
        self.network.add_task(task.name, task.labels, generator=self.context.generator(f"task:{task.name}"), tied=self.context.ties(task))

    def own_parameters(self) -> set[str]:
        """Return the names of the present task's own parameters: its head, and its masks or modules where it has any."""
        names = (name for name, _ in self.network.named_parameters())
        return {name for name in names if self.network.role(name).task == self.learned[-1]}

    def trained_parameters(self) -> set[str]:
        """Return the names of what the present phase trains: the task's own, and in the first task's stage the backbone."""
        backbone = {f"backbone.{name}" for name, _ in self.network.backbone.named_parameters()} if self.is_first else set()
        return self.own_parameters() | backbone

    def parameter_groups(self, phase: Phase) -> list[dict[str, Any]]:
        trained = self.trained_parameters()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in trained)
        return super().parameter_groups(phase)

    def inserted(self, task: str) -> dict[str, Any]:
        """Return what makes the network a task's beside masks, as arguments of `Network.encode`: `weights`, `patch`; nothing for none."""
        return {}

    @property
    def masks_alone(self) -> bool:
        return type(self).inserted is OneNetwork.inserted

    def decay_parameters(self) -> set[str]:
        """In later stages the new head's alone: a pull towards zero would move weights that past tasks read."""
        return {name for name in super().decay_parameters() if self.is_first or self.role(name).part == "head"}

    def module(self) -> nn.Module:
        return self.network

    def model(self) -> nn.Module:
        return self.network

    def mask_index(self, task: str) -> int:
        return 0

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        return self.classification_losses(batch, self.network.encode(batch, None, **self.inserted(self.learned[-1])))

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.network.encode(batch, None, positions="last", **self.inserted(task))

    def head(self, task: str) -> Head:
        return self.network.head(task)


def without_dots(name: str) -> str:
    """Return a parameter's name as a part of another one."""
    return name.replace(".", "/")


def scale_gradient(parameter: nn.Parameter, factor: Tensor) -> None:
    """Multiply a parameter's gradient by a factor of its shape in every backward pass.

    An entry of factor 0 stays as it is, to the last bit: Adam's moments of it are zero, as an optimiser is made anew for every phase, as
    long as no weight decay acts on it.
    """
    kept = [factor]

    def scaled(gradient: Tensor) -> Tensor:
        # brought to where the engine has taken the parameter, once
        kept[0] = kept[0].to(gradient)
        return gradient * kept[0]

    parameter.register_hook(scaled)
