"""Soft masks from task embeddings and from relations between tasks (docs/method.md, Masks).

Legend: T tasks, K masked layers, C channels, s scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dist_teracon.data.batches import to_device

Relation = Literal["none", "per_channel", "dense"]
RelationInit = Literal["extend", "reinit"]
Gate = Literal["first", "all"]

EMBEDDING_LIMIT = 6.0


class TaskMasks(nn.Module):
    """The masks of every task learned so far.

    With one task, or without relations, `m = σ(s·e)`. With relations and n ≥ 2 tasks every task's mask, past ones included, is
    `m_k^t = σ(s·(g_t·e_k^t + w_{k,t}ᵀ X_{k,t} + b_{k,t}))`, `X_{k,t} = tanh(s·[e_k^t ; (e_k^j ; −e_k^j) for j ≠ t])`.
    `g_t` is 1 for the task first learned plainly; for the others as `gate` has it.

    Args:
        layers: K.
        channels: C.
        relation: `per_channel` shares w over channels, `dense` is one dense layer `R^{(2n−1)C} → R^C`, `none` leaves plain masks.
        relation_init: What a new task does to past relation layers: `extend` keeps them and adds columns of zeros, so that past
            masks stay as they were; `reinit` draws all anew, as the public implementation.
        gate: Whose own embedding enters its mask beside the relations (g = 1) where past layers are extended: the `first` task's, or
            `all`, so that a later task's mask can differ from channel to channel before its relations have learned to.
        embedding_range: Bounds of the uniform initial task embeddings.
        later_embedding_range: Those of the tasks after the first one; None for the same.
    """

    def __init__(
        self,
        *,
        layers: int,
        channels: int,
        relation: Relation = "per_channel",
        relation_init: RelationInit = "extend",
        gate: Gate = "first",
        embedding_range: tuple[float, float] = (0.0, 2.0),
        later_embedding_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.channels = layers, channels
        self.relation, self.relation_init, self.gate = relation, relation_init, gate
        self.embedding_range = embedding_range
        self.later_embedding_range = later_embedding_range or embedding_range
        self.embeddings = nn.ParameterList()  # a task: [K, C]
        self.weights = nn.ParameterList()  # a task: per_channel [K, 2n − 1], dense [K, C, (2n − 1)·C]; none while one task is known
        self.biases = nn.ParameterList()  # a task: per_channel [K], dense [K, C]

    @property
    def tasks(self) -> int:
        """Number of tasks n."""
        return len(self.embeddings)

    @staticmethod
    def task_of(name: str) -> int:
        """Return which task, counted from 0, a parameter (named as in `named_parameters`) belongs to."""
        return int(name.rpartition(".")[2])

    @property
    def related(self) -> bool:
        """Tell whether masks come from relations: they do from the second task on."""
        return self.relation != "none" and self.tasks >= 2

    def add_task(self, generator: torch.Generator) -> None:
        """Make room for one more task; past relation layers follow `relation_init`."""
        low, high = self.later_embedding_range if self.tasks else self.embedding_range
        embedding = torch.empty(self.layers, self.channels).uniform_(low, high, generator=generator)
        self.embeddings.append(nn.Parameter(embedding.to(self.embeddings[0].data) if self.tasks else embedding))
        if not self.related:
            return
        n = self.tasks
        weights, biases = [], []
        for task in range(n):
            past = task < n - 1
            # drawn in fp32 on the CPU whatever the module is, then brought to where and what the past weights are
            weight, bias = (value.to(self.embeddings[0].data) for value in self._fresh_relation(n, generator))
            if past and self.relation_init == "extend":
                # a plainly learned T1 has no relation layer yet: its w, b start at zero beside g = 1
                weight, bias = weight.zero_(), bias.zero_()
                if task < len(self.weights):
                    weight[..., : self.weights[task].shape[-1]] = self.weights[task].detach()
                    bias.copy_(self.biases[task].detach())
            weights.append(nn.Parameter(weight))
            biases.append(nn.Parameter(bias))
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)

    def _fresh_relation(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        columns = 2 * n - 1
        if self.relation == "dense":
            weight = torch.empty(self.layers, self.channels, columns * self.channels).normal_(0, 0.01, generator=generator)
            return weight, torch.full((self.layers, self.channels), 0.1)
        return torch.empty(self.layers, columns).normal_(0, 0.01, generator=generator), torch.full((self.layers,), 0.1)

    def forward(self, scales: Sequence[float]) -> Tensor:
        """Return the masks of all tasks, task t at scale `scales[t]`: [T, K, C] in the embeddings' dtype, at least fp32."""
        # the exponentials of s = 50 need more digits than bf16 has
        e_TKC = torch.stack([e.to(torch.promote_types(e.dtype, torch.float32)) for e in self.embeddings])
        s_T11 = to_device(torch.tensor(list(scales), dtype=e_TKC.dtype), e_TKC.device)[:, None, None]
        if not self.related:
            return torch.sigmoid(s_T11 * e_TKC)
        inner = self._related(e_TKC, scales)
        if self.relation_init == "extend":
            # g: 1 for the task first learned plainly, and for the others under `gate: all`
            inner = inner + e_TKC if self.gate == "all" else torch.cat([inner[:1] + e_TKC[:1], inner[1:]])
        return torch.sigmoid(s_T11 * inner)

    def _related(self, e_TKC: Tensor, scales: Sequence[float]) -> Tensor:
        """`wᵀX + b` of each task: [T, K, C]; with `a = tanh(s·e)`, tanh(−s·e) is −a and a pair of columns acts as w₊ − w₋."""
        if self.relation == "dense":
            squashed = {scale: torch.tanh(scale * e_TKC) for scale in set(scales)}
            return torch.stack([self._related_densely(task, squashed[scales[task]]) for task in range(self.tasks)])
        weight, bias = (torch.stack([value.to(e_TKC.dtype) for value in of]) for of in (self.weights, self.biases))
        folded = torch.cat([weight[..., :1], weight[..., 1::2] - weight[..., 2::2]], dim=2)
        folded_TKn = folded.gather(2, self._own_first(e_TKC.device)[:, None].expand(-1, self.layers, -1))
        parts, start = [], 0
        for scale, alike in itertools.groupby(scales):  # past tasks are at one scale: two products, however many there are
            stop = start + len(list(alike))
            parts.append(torch.einsum("tkn,nkc->tkc", folded_TKn[start:stop], torch.tanh(scale * e_TKC)))
            start = stop
        return torch.cat(parts) + bias[..., None]

    def _own_first(self, device: torch.device) -> Tensor:
        """Where the columns of task t have task j, int64 [T, n]: its own come first, the others' in their order."""
        other = torch.arange(self.tasks, device=device)
        task = other[:, None]
        return torch.where(other == task, 0, torch.where(other < task, other + 1, other))

    def _related_densely(self, task: int, a_TKC: Tensor) -> Tensor:
        """The same of one dense layer: [K, C]."""
        weight, bias = self.weights[task].to(a_TKC.dtype), self.biases[task].to(a_TKC.dtype)
        others = [j for j in range(self.tasks) if j != task]
        ordered = torch.stack([a_TKC[task], *(a_TKC[j] for j in others)])  # [n, K, C]; a list as an index would wait for a GPU
        columns = weight.view(self.layers, self.channels, 2 * self.tasks - 1, self.channels)
        folded = torch.cat([columns[:, :, :1], columns[:, :, 1::2] - columns[:, :, 2::2]], dim=2)  # [K, C, n, C]
        return torch.einsum("koni,nki->ko", folded, ordered) + bias


def compensated(gradient: Tensor, embedding: Tensor, *, scale: float, s_max: float) -> Tensor:
    """Return a task embedding's gradient freed of what the scale made of it (HAT, Serrà et al. 2018, section 2.5).

    `∂σ(s·e)/∂e = s·σ'(s·e)` nearly vanishes at a large s; what is returned is as if s had been 1, times s_max:
    `g · (s_max / s) · (cosh(s·e) + 1) / (cosh(e) + 1)`, with s·e within ±50.
    """
    e = embedding.detach().to(torch.promote_types(embedding.dtype, torch.float32))
    factor = (s_max / scale) * (torch.cosh((scale * e).clamp(-50, 50)) + 1) / (torch.cosh(e) + 1)
    return (gradient * factor).to(gradient.dtype)


def annealed_scale(batch: int, batches: int, *, s_max: float, paper: bool = False) -> float:
    """Return the mask scale at batch `batch` of `batches` of an epoch, or of all epochs it is annealed over (docs/method.md, Masks)."""
    if paper:
        progress = batch / batches
    elif batches == 1:
        return s_max
    else:
        progress = batch / (batches - 1)
    return 1 / s_max + (s_max - 1 / s_max) * progress


def clamp_embeddings(values: Tensor, _start: int) -> None:
    """Clamp task embeddings to ±`EMBEDDING_LIMIT` in place; an engine's `Edit`."""
    values.clamp_(-EMBEDDING_LIMIT, EMBEDDING_LIMIT)
