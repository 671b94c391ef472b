"""Low-rank experts: every later task adds matrices of low rank to the first task's frozen network (docs/method.md, Systems).

Legend: S slices of a stacked parameter, O rows of a matrix, I its columns (inputs times taps), r rank.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel, Whole
from dist_teracon.continual.method import MethodContext
from dist_teracon.continual.one_network import OneNetwork, without_dots
from dist_teracon.continual.registry import register
from dist_teracon.data.schema import Task
from dist_teracon.models.backbone import Backbone
from dist_teracon.models.heads import head_key
from dist_teracon.models.network import Network, Role


class LowRankSettings(ConfigModel):
    """The low-rank experts' settings.

    Attributes:
        rank: r, of each matrix; less where a matrix has fewer rows or columns.
        earlier: A task also weighs the experts of earlier tasks.
    """

    rank: Annotated[Whole, Field(ge=1, le=4096)] = 4
    earlier: bool = True


class _Experts(nn.Module):
    """A task's experts `B·A`, one a matrix, and its weights of earlier tasks' experts.

    Args:
        matrices: The frozen matrices [S, O, I] by key. A starts as their leading right singular vectors, B at zero, so that a task starts
            with the network as it is and moves at first in the directions of its input that matter most to it.
        rank: r.
        earlier: Keys of earlier tasks that have experts.
        started: A starts as it does; else at zero, where it is about to be loaded and the matrices may hold anything.
    """

    def __init__(self, matrices: dict[str, Tensor], rank: int, earlier: list[str], *, started: bool) -> None:
        super().__init__()
        self.right, self.left = nn.ParameterDict(), nn.ParameterDict()
        self.gates = nn.ModuleDict()
        for key, matrix_SOI in matrices.items():
            slices, rows, columns = matrix_SOI.shape
            r = min(rank, rows, columns)
            right_SrI = matrix_SOI.new_zeros(slices, r, columns)
            if started:
                right_SrI.copy_(torch.linalg.svd(matrix_SOI, full_matrices=False).Vh[:, :r])
            self.right[key] = nn.Parameter(right_SrI)
            self.left[key] = nn.Parameter(matrix_SOI.new_zeros(slices, rows, r))
        for task in earlier:
            self.gates[task] = nn.ParameterDict({key: nn.Parameter(m.new_zeros(m.shape[0], 1, 1)) for key, m in matrices.items()})

    def product(self, key: str) -> Tensor:
        """Return what the task's own expert adds to a matrix: [S, O, I]."""
        return torch.bmm(self.left[key], self.right[key])


class _ExpertNetwork(Network):
    """A network with experts, a set for every task but the first."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        parts = {part for layer in backbone.masked_layers() for part in layer.matrices}
        # by name, whether the parameter is a stack of matrices
        self.stacked = {name: index is not None for name, index in sorted(parts, key=lambda part: part[0])}
        self.experts = nn.ModuleDict()

    def role(self, name: str) -> Role:
        part, _, rest = name.partition(".")
        return Role("patch", self.task_of(rest.partition(".")[0])) if part == "experts" else super().role(name)

    def matrices(self) -> dict[str, Tensor]:
        """Return the frozen matrices [S, O, I] by key."""
        own = dict(self.backbone.named_parameters())
        return {without_dots(name): _as_matrices(own[name].detach(), stacked=stacked) for name, stacked in self.stacked.items()}


@register
class LowRank(OneNetwork):
    """Low-rank experts (beyond the published comparison; after LoRA, Hu et al., 2022, and its starts from singular vectors).

    The first task trains the network. Then all of it is frozen, embeddings, biases and LayerNorms included. A later task t computes with
    `W + B_t·A_t + Σ_j g_tj·B_j·A_j` for every matrix W of the masked layers, j running over the later tasks learned before it: it trains
    B_t, A_t, one number g_tj a matrix (from 0), and its head. No past task changes.

    Memory a task: r·(O + I) numbers a matrix, one more for each earlier task with experts, and its head, 4 bytes each.
    """

    name = "lowrank"
    plain_first_network = ""
    Settings = LowRankSettings
    network: _ExpertNetwork

    def __init__(self, context: MethodContext, settings: LowRankSettings) -> None:
        super().__init__(context, settings)
        self.options = settings

    def make_network(self) -> Network:
        return _ExpertNetwork(self.context.backbone(self.context.tasks[0]))

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if not self.is_first:
            earlier = [head_key(past) for past in self.learned[1:-1]] if self.options.earlier else []
            self.network.experts[head_key(task.name)] = _Experts(
                self.network.matrices(), self.options.rank, earlier, started=not self.context.for_use
            )

    def inserted(self, task: str) -> dict[str, Any]:
        """Return a task's effective weights; none for the first, which has the network as it is."""
        if task == self.learned[0]:
            return {}
        own = self._experts(task)
        found: dict[str, Tensor] = {}
        frozen = dict(self.network.backbone.named_parameters())
        for name in self.network.stacked:
            key = without_dots(name)
            added_SOI = own.product(key)
            for past, gates in own.gates.items():
                added_SOI = added_SOI + gates.get_parameter(key) * self._experts(self.network.task_of(past)).product(key)
            weight = frozen[name].detach()
            found[name] = weight + added_SOI.reshape(weight.shape)
        return {"weights": found}

    def _experts(self, task: str) -> _Experts:
        experts = self.network.experts[head_key(task)]
        assert isinstance(experts, _Experts)
        return experts


def _as_matrices(weight: Tensor, *, stacked: bool) -> Tensor:
    return weight.flatten(2) if stacked else weight.flatten(1)[None]
