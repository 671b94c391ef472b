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
    """As SinMo, but every later network starts from the first task's backbone."""

    name = "fineall"

    def start(self, task: Task) -> Network:
        if len(self.learned) == 1:
            return super().start(task)
        return Network(copy.deepcopy(self.network(self.learned[0]).backbone))

    def is_pretrained(self, role: Role) -> bool:
        return Method.is_pretrained(self, role)
