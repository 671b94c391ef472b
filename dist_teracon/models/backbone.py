"""What a backbone is, and which there are; a new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dist_teracon.models.nextitnet import NextItNet

if TYPE_CHECKING:
    from dist_teracon.config import ModelConfig

# A backbone is a module with `channels` (C), `width` (W, numbers of a representation), `masks` (K, the masked layers of a task) and
# NextItNet's `forward`.
Backbone = NextItNet


def _nextitnet(model: ModelConfig, items: int, generator: torch.Generator) -> Backbone:
    return NextItNet(
        items=items,
        channels=model.channels,
        dilations=model.dilations,
        kernel_size=model.kernel_size,
        generator=generator,
        pooling=model.pooling,
        dropout=model.dropout,
    )


BACKBONES: dict[str, Callable[[Any, int, torch.Generator], Backbone]] = {"nextitnet": _nextitnet}


def make_backbone(model: ModelConfig, *, items: int, generator: torch.Generator, item_vectors: Tensor | None = None) -> Backbone:
    """Build the configured backbone with fresh weights, the items' from `item_vectors` [V, C] where there are any."""
    backbone = BACKBONES[model.backbone](model, items, generator)
    if item_vectors is not None:
        with torch.no_grad():
            backbone.items.copy_(item_vectors)
    return backbone
