"""SinMo: one model a task, from scratch; also the denominator of forward transfer (docs/method.md, Systems)."""

from __future__ import annotations

from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel
from dist_teracon.continual.method import Method, MethodContext
from dist_teracon.continual.registry import SINGLE_TASK, register
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task
from dist_teracon.models.heads import Head, head_key
from dist_teracon.models.network import Network, Role


@register
class SinMo(Method):
    """A network of its own for every task, without masks: what a platform has that builds one model a task.

    Every task starts from new weights, its items' vectors from who of its own users took which; nothing is frozen, and nothing of one task
    reaches another. Source: the single-task models of Kim et al., *Task Relation-aware Continual User Representation Learning* (KDD 2023).

    Memory a task: a network and its head.

    Deviates: dropout, pooling, running mean of weights, linear probe and selection are those of all systems here.
    """

    name = SINGLE_TASK
    plain_first_network = "{task}."

    def __init__(self, context: MethodContext, settings: ConfigModel) -> None:
        super().__init__(context, settings)
        self.networks = nn.ModuleDict()

    def begin_task(self, task: Task) -> None:
        self.learned.append(task.name)
        network = self.start(task)
        network.add_task(task.name, task.labels, generator=self.context.generator(f"task:{task.name}"), tied=self.context.ties(task))
        self.networks[head_key(task.name)] = network

    def start(self, task: Task) -> Network:
        """Return the network that a task starts from, without its head."""
        return Network(self.context.backbone(task))

    def module(self) -> nn.Module:
        return self.network(self.learned[-1])

    def is_pretrained(self, role: Role) -> bool:
        return False

    def network(self, task: str) -> Network:
        """Return a task's network."""
        network = self.networks[head_key(task)]
        assert isinstance(network, Network)
        return network

    def network_of(self, task: str) -> Network:
        return self.network(task)

    def mask_index(self, task: str) -> int:
        return 0

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        network = self.network(self.learned[-1])
        return self.classification_losses(batch, network.encode(batch, None))

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.network(task).encode(batch, None, positions="last")

    def head(self, task: str) -> Head:
        return self.network(task).head(task)

    def model(self) -> nn.Module:
        return self.networks
