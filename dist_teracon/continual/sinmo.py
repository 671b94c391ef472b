"""SinMo: one model a task, from scratch; also the denominator of forward transfer (SPEC section 6)."""

from __future__ import annotations

from torch import Tensor, nn

from dist_teracon.config import Frozen
from dist_teracon.continual.method import Method, Setup, register
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task
from dist_teracon.models.heads import Head
from dist_teracon.models.network import Network


@register
class SinMo(Method):
    """A network of its own for every task, without masks."""

    name = "sinmo"

    def __init__(self, setup: Setup, settings: Frozen) -> None:
        super().__init__(setup, settings)
        self.networks = nn.ModuleDict()

    def begin_task(self, task: Task) -> None:
        self.learned.append(task.name)
        network = self.start(task)
        network.add_task(task.name, task.labels, generator=self.setup.generator(f"head:{task.name}"))
        self.networks[task.name] = network

    def start(self, task: Task) -> Network:
        """Return the network that a task starts from, without its head."""
        return Network(self.setup.backbone(task))

    def module(self) -> nn.Module:
        return self.networks[self.learned[-1]]

    def is_earlier(self, name: str) -> bool:
        return False

    def network(self, task: str) -> Network:
        """Return a task's network."""
        network = self.networks[task]
        assert isinstance(network, Network)
        return network

    def slot(self, task: str) -> int:
        return 0

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        network = self.network(self.learned[-1])
        hidden = network(batch.values, batch.row_offsets, batch.task_of_row, None, positions=batch.positions, noise_key=batch.noise_key)
        return self.class_terms(batch, hidden)

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.network(task)(batch.values, batch.row_offsets, batch.task_of_row, None, positions="last")

    def head(self, task: str) -> Head:
        return self.network(task).head(task)

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.networks.state_dict().items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.networks.load_state_dict(tensors)
