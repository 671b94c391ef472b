"""FineAll: fine-tunes all of the first task's single model on each later task apart (docs/method.md, Systems)."""

from __future__ import annotations

import copy

from dist_teracon.continual.method import Method
from dist_teracon.continual.registry import register
from dist_teracon.continual.sinmo import SinMo
from dist_teracon.data.schema import Task
from dist_teracon.models.network import Network, Role


@register
class FineAll(SinMo):
    """As SinMo, but every later network starts from the first task's backbone, all of which is fine-tuned.

    The first task's own network stays as it is, and no later task sees another: a copy is trained, at `pretrained_lr_scale`. Source: the
    transfer learning that Yuan et al., *Parameter-Efficient Transfer from Sequential Behaviors* (SIGIR 2020), call FineAll.

    Memory a task: a network and its head.

    Deviates: the head starts from a linear probe, and what is validated and kept is a running mean of weights, as in all systems here.
    """

    name = "fineall"

    def start(self, task: Task) -> Network:
        if len(self.learned) == 1:
            return super().start(task)
        return Network(copy.deepcopy(self.network(self.learned[0]).backbone))

    def is_pretrained(self, role: Role) -> bool:
        return Method.is_pretrained(self, role)
