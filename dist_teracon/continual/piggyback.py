"""Piggyback: a binary mask a weight over the first task's frozen network (docs/method.md, Systems)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel, Real
from dist_teracon.continual.method import MethodContext
from dist_teracon.continual.one_network import OneNetwork, without_dots
from dist_teracon.continual.registry import register
from dist_teracon.data.schema import Task
from dist_teracon.models.backbone import Backbone
from dist_teracon.models.heads import head_key
from dist_teracon.models.network import Network, Role


class PiggybackSettings(ConfigModel):
    """Piggyback's settings.

    Attributes:
        initial: What real masks start at.
        threshold: A weight takes part where its real mask is above.
    """

    initial: Annotated[Real, Field(gt=0, le=1)] = 0.01
    threshold: Annotated[Real, Field(ge=0, le=1)] = 0.005

    @model_validator(mode="after")
    def _all_weights_at_first(self) -> PiggybackSettings:
        if self.initial <= self.threshold:
            raise ValueError(f"initial: expected more than threshold ({self.threshold:g}), so that a task starts with all weights")
        return self


class _PiggybackNetwork(Network):
    """A network with binary masks over the matrices of its masked layers.

    Attributes:
        real: The present task's real masks, by matrix; none where no task is learned.
        bits: By task and matrix, finished tasks' masks, eight weights a byte (uint8).
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.matrices = sorted({name for layer in backbone.masked_layers() for name, _ in layer.matrices})
        self.real = nn.ParameterDict()
        self.bits = nn.ModuleDict()
        self.present = ""

    def role(self, name: str) -> Role:
        return Role("mask", self.present) if name.startswith("real.") else super().role(name)


@register
class Piggyback(OneNetwork):
    """Binary masks over frozen weights (Mallya et al., *Piggyback: Adapting a Single Network to Multiple Tasks by Learning to Mask
    Weights*, ECCV 2018).

    The first task trains the network. Then all of it is frozen, embeddings, biases and LayerNorms included. A later task has a real mask
    a weight of the masked layers' matrices, and computes with `W ⊙ [mask > threshold]`; the gradient passes the threshold as if it were
    not there. Masks start above the threshold, so a task starts with the first one's network. Its head is its own. No past task changes.

    Memory a task: one bit a weight of these matrices, and its head.

    Deviates from the paper: nothing is pruned beforehand; weight decay does not act on masks. The published comparison trained masks at a
    learning rate of 1e-4.
    """

    name = "piggyback"
    plain_first_network = ""
    Settings = PiggybackSettings
    network: _PiggybackNetwork

    def __init__(self, context: MethodContext, settings: PiggybackSettings) -> None:
        super().__init__(context, settings)
        self.options = settings

    def make_network(self) -> Network:
        return _PiggybackNetwork(self.context.backbone(self.context.tasks[0]))

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        network = self.network
        network.present = task.name
        if not self.is_first:
            weights = dict(network.backbone.named_parameters())
            network.real = nn.ParameterDict(
                {without_dots(name): nn.Parameter(torch.full_like(weights[name], self.options.initial)) for name in network.matrices}
            )

    @torch.no_grad()
    def end_task(self) -> None:
        network = self.network
        if not self.is_first:
            kept = nn.Module()
            for name in network.matrices:
                kept.register_buffer(without_dots(name), packed_bits(network.real[without_dots(name)] > self.options.threshold))
            network.bits[head_key(self.learned[-1])] = kept
            network.real = nn.ParameterDict()

    def inserted(self, task: str) -> dict[str, Any]:
        """Return a task's effective weights; none for the first, which has the network as it is."""
        if task == self.learned[0]:
            return {}
        frozen = dict(self.network.backbone.named_parameters())
        found: dict[str, Tensor] = {}
        for name in self.network.matrices:
            weight = frozen[name].detach()
            if head_key(task) in self.network.bits:
                bits = self.network.bits[head_key(task)].get_buffer(without_dots(name))
                found[name] = torch.where(unpacked_bits(bits, weight.shape), weight, 0)
            else:
                found[name] = weight * _Binary.apply(self.network.real[without_dots(name)], self.options.threshold)
        return {"weights": found}


class _Binary(torch.autograd.Function):
    """1 above a threshold, else 0; the gradient passes straight through."""

    @staticmethod
    def forward(_ctx: Any, real: Tensor, threshold: float) -> Tensor:
        return (real > threshold).to(real)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


def packed_bits(values: Tensor) -> Tensor:
    """Return booleans as uint8 [⌈n / 8⌉], the first in the lowest bit."""
    flat = torch.nn.functional.pad(values.flatten().to(torch.uint8), (0, -values.numel() % 8)).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def unpacked_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return the booleans that `packed_bits` packed."""
    flat = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return flat.flatten()[: math.prod(shape)].view(shape).bool()
