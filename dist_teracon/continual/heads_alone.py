"""What methods share that count and train nothing: a head a task, filled from training examples, and no network."""

from __future__ import annotations

from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel
from dist_teracon.continual.method import Method, MethodContext, Phase
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task
from dist_teracon.models.heads import Head, head_key


class HeadsAlone(Method):
    """A method whose `prepare` fills the present task's head, `self.head(self.learned[-1])`, and whose `encode` needs no weights."""

    def __init__(self, context: MethodContext, settings: ConfigModel) -> None:
        super().__init__(context, settings)
        self.heads = nn.ModuleDict()

    @property
    def width(self) -> int:
        """Numbers of a representation."""
        return 1

    def begin_task(self, task: Task) -> None:
        self.learned.append(task.name)
        head = Head(self.width, task.labels, generator=self.context.generator(f"head:{task.name}"))
        self.heads[head_key(task.name)] = head.requires_grad_(False)

    def phases(self, task: Task) -> tuple[Phase, ...]:
        return ()

    def module(self) -> nn.Module:
        return self.heads

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        raise AssertionError(f"{self.name} has no phase to train")

    def mask_index(self, task: str) -> int:
        return 0

    def head(self, task: str) -> Head:
        head = self.heads[head_key(task)]
        assert isinstance(head, Head)
        return head

    def model(self) -> nn.Module:
        return self.heads
