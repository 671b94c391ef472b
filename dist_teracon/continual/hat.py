"""HAT: hard attention to the task (docs/method.md, Systems).

Legend: T tasks, K masked layers, C channels, s scale, a the cumulative mask.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dist_teracon.config.base import ConfigModel, Real, Weight
from dist_teracon.continual.method import MethodContext, Phase
from dist_teracon.continual.one_network import OneNetwork, scale_gradient
from dist_teracon.continual.registry import register
from dist_teracon.data.batches import PackedBatch
from dist_teracon.engine.contract import Engine
from dist_teracon.models.backbone import Backbone, LayerParameters
from dist_teracon.models.masks import EMBEDDING_LIMIT, TaskMasks, annealed_scale, clamp_embeddings, compensated
from dist_teracon.models.network import Network

Unguarded = Literal["frozen", "free"]


class HatSettings(ConfigModel):
    """HAT's settings.

    Attributes:
        s_max: Largest scale of the masks, and that of inference.
        annealing: `epoch`: from 1/s_max at an epoch's first batch to s_max at its last; `paper`: short of s_max.
        embedding_range: Bounds of initial task embeddings.
        mask_regulariser: Weight λ of the share of channels, among those that no past task holds, that the present one opens.
        gradient_compensation: Undo in the embeddings' gradient what the annealed scale does to it.
        norms: LayerNorms after the first stage, which no mask guards.
        embeddings: Item and position embeddings after the first stage, which no mask guards.
    """

    s_max: Annotated[Real, Field(ge=1, le=10_000)] = 50.0
    annealing: Literal["epoch", "paper"] = "epoch"
    embedding_range: tuple[Real, Real] = (-2.0, 2.0)
    mask_regulariser: Weight = 0.75
    gradient_compensation: bool = True
    norms: Unguarded = "frozen"
    embeddings: Unguarded = "frozen"

    @model_validator(mode="after")
    def _range_ascends(self) -> HatSettings:
        low, high = self.embedding_range
        if not -EMBEDDING_LIMIT <= low <= high <= EMBEDDING_LIMIT:
            raise ValueError(f"embedding_range ascends within ±{EMBEDDING_LIMIT:g}, not {list(self.embedding_range)}")
        return self


class _HatNetwork(Network):
    """A network with plain masks and what past tasks hold: `cumulative` a, [K, C]."""

    cumulative: Tensor

    def __init__(self, backbone: Backbone, embedding_range: tuple[float, float]) -> None:
        masks = TaskMasks(
            layers=backbone.num_masked_layers, channels=backbone.channels, relation="none", embedding_range=embedding_range
        )  # fmt: skip
        super().__init__(backbone, masks)
        self.register_buffer("cumulative", torch.zeros(backbone.num_masked_layers, backbone.channels))


@register
class Hat(OneNetwork):
    """Hard attention to the task (Serra et al., *Overcoming Catastrophic Forgetting with Hard Attention to the Task*, ICML 2018).

    A task has a mask `m = σ(s·e)` on every masked layer; its embedding and its head are its own and stay as they are after its stage.
    What past tasks open is held: `a ← max(a, m(s_max))` after each stage. In later stages the gradient of a weight from channel j of the
    masked layer that it reads to channel i is multiplied by `1 − min(a_i, a_j)`, that of a bias by `1 − a_i`. The residual stream and
    inner units have no mask: their a is taken as 1. So on SASRec, after the first task, only the sub-layers' output matrices train, in
    free channels. The loss has `λ·Σ m(1 − a)/Σ(1 − a)`.

    No mask guards LayerNorms and embeddings. `frozen` (the default) trains them with the first task alone; with `free` every task trains
    them, and past tasks drift with them.

    Memory a task: 4·K·C bytes of embeddings, and its head; once 4·K·C for a.

    Deviates from the paper: transformer and convolution blocks with residual connections instead of plain layers; embeddings start from
    U(−2, 2) instead of N(0, 1), so that as many channels start closed, and `s_max` is 50 as TERACON's, where the paper's images had 400
    (docs/method.md, Systems). LayerNorm takes its statistics over all channels, also those that a task's mask closes: so even with all of
    it frozen, past outputs are not exactly what they were, though no weight that is held has moved. Adam divides by a gradient's own size,
    so factors that are not exactly 0 slow a weight hardly; with the paper's plain gradient descent they are its rate.
    """

    name = "hat"
    Settings = HatSettings
    network: _HatNetwork

    def __init__(self, context: MethodContext, settings: HatSettings) -> None:
        self.options = settings
        super().__init__(context, settings)
        self.scale = settings.s_max
        self.factors: dict[str, Tensor] = {}

    def make_network(self) -> Network:
        return _HatNetwork(self.context.backbone(self.context.tasks[0]), self.options.embedding_range)

    @torch.no_grad()
    def end_task(self) -> None:
        cumulative = self.network.cumulative
        cumulative.copy_(torch.maximum(cumulative, self.masks()[-1].to(cumulative)))

    # -- training

    def begin_phase(self, phase: Phase) -> None:
        self.factors = {} if self.is_first else gradient_factors(self.network.backbone, self.network.cumulative)

    def trained_parameters(self) -> set[str]:
        names = {f"backbone.{name}" for name, _ in self.network.backbone.named_parameters() if self.is_first or self._trains(name)}
        return names | self.own_parameters()

    def _trains(self, name: str) -> bool:
        """Return whether a parameter of the backbone trains after the first stage."""
        if name in self.factors:
            return bool(self.factors[name].any())
        norms = self.network.backbone.norm_parameters()
        return (self.options.norms if name in norms else self.options.embeddings) == "free"

    def gradient_hooks(self, phase: Phase) -> None:
        parameters = dict(self.network.backbone.named_parameters())
        for name, factor in self.factors.items():
            if parameters[name].requires_grad:
                scale_gradient(parameters[name], factor)
        if self.options.gradient_compensation:
            embedding = self._masks.embeddings[-1]
            embedding.register_hook(lambda gradient: compensated(gradient, embedding, scale=self.scale, s_max=self.options.s_max))

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        self.scale = annealed_scale(batch.step, batch.steps, s_max=self.options.s_max, paper=self.options.annealing == "paper")
        masks = self.network.mask_table([self.options.s_max] * (len(self.learned) - 1) + [self.scale])
        assert masks is not None
        terms = self.classification_losses(batch, self.network.encode(batch, masks))
        if self.options.mask_regulariser:
            opened = opened_share(masks[-1], self.network.cumulative.to(masks))
            terms["masks"] = self.whole_term(self.options.mask_regulariser * opened, batch)
        return terms

    def project(self, engine: Engine) -> None:
        engine.edit_masters([self._masks.embeddings[-1]], clamp_embeddings)

    # -- inference

    def mask_index(self, task: str) -> int:
        return self.learned.index(task)

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.network.encode(batch, self.masks(), positions="last")

    def masks(self) -> Tensor:
        table = self.network.mask_table([self.options.s_max] * len(self.learned))
        assert table is not None
        return table

    @property
    def _masks(self) -> TaskMasks:
        assert self.network.masks is not None
        return self.network.masks


def opened_share(mask_KC: Tensor, cumulative_KC: Tensor) -> Tensor:
    """Return `Σ m(1 − a)/Σ(1 − a)`, over all layers together: the share that a mask opens of what no past task holds; 0 where all is held.

    Args:
        mask_KC: m of the present task.
        cumulative_KC: a; 0 in the first stage, so that the share is the mean of m.
    """
    free_KC = 1 - cumulative_KC
    return (mask_KC * free_KC).sum() / free_KC.sum().clamp_min(torch.finfo(free_KC.dtype).tiny)


def gradient_factors(backbone: Backbone, cumulative_KC: Tensor) -> dict[str, Tensor]:
    """Return what the gradients of the backbone's matrices and biases are multiplied by, by name: 1 − min(a_i, a_j), and 1 − a_i.

    Args:
        backbone: Its masked layers; a of what no mask is on is 1.
        cumulative_KC: a.
    """
    parameters, factors = dict(backbone.named_parameters()), {}
    layers = backbone.masked_layers()
    for layer in layers:
        for name, _ in (*layer.matrices, *layer.biases):
            factors[name] = torch.zeros_like(parameters[name], requires_grad=False)
    for k, layer in enumerate(layers):
        held_C, (matrix, bias) = cumulative_KC[k], _outputs(layer)
        into = _slice(factors, matrix)
        reads_C = torch.ones_like(held_C) if layer.reads is None else cumulative_KC[layer.reads]
        if layer.reads is None:
            free = (1 - held_C).view(-1, *[1] * (into.dim() - 1))
        else:
            free = 1 - torch.minimum(held_C[:, None], reads_C[None, :])
            free = free.view(*free.shape, *[1] * (into.dim() - 2))
        into.copy_(free.expand_as(into))
        if bias is not None:
            _slice(factors, bias).copy_(1 - held_C)
    return factors


def _outputs(layer: LayerParameters) -> tuple[tuple[str, int | None], tuple[str, int | None] | None]:
    """Return the matrix, and its bias, whose rows are the masked channels."""
    return layer.matrices[-1], layer.biases[-1] if layer.biases else None


def _slice(values: dict[str, Tensor], part: tuple[str, int | None]) -> Tensor:
    name, index = part
    return values[name] if index is None else values[name][index]
