"""The network put together: backbone M, masks m and heads G, `ŷ = G_i(M(x; m_i))` (docs/method.md, The problem).

Legend: N packed positions, B rows (users), W numbers of a representation, C channels, T tasks, K masked layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dist_teracon.data.batches import PackedBatch, Positions
from dist_teracon.models.backbone import Backbone, Patch
from dist_teracon.models.heads import Head, TiedHead, head_key
from dist_teracon.models.masks import TaskMasks


@dataclass(frozen=True)
class Role:
    """What a parameter is for.

    Attributes:
        part: The shared backbone, or a task's head, mask or inserted modules.
        task: Whose; None for the backbone.
    """

    part: Literal["backbone", "head", "mask", "patch"]
    task: str | None


class Network(nn.Module):
    """One backbone, the masks of every task (or none) and a head a task.

    Args:
        backbone: M.
        masks: The tasks' masks; None for a network without.
    """

    def __init__(self, backbone: Backbone, masks: TaskMasks | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.masks = masks
        self.heads = nn.ModuleDict()
        self._task_of: dict[str, str] = {}  # by a head's key

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that have a head, in the order in which they were added."""
        return list(self._task_of.values())

    def add_task(self, name: str, labels: int, *, generator: torch.Generator, tied: bool = False) -> None:
        """Add a head, and a mask where there are masks.

        Args:
            name: The task's.
            labels: |Y|.
            generator: Source of the initial values.
            tied: The head's weights are the items' embeddings (`TiedHead`).
        """
        if self.masks is not None:
            self.masks.add_task(generator)
        self._task_of[head_key(name)] = name
        head = (
            TiedHead(self.backbone.item_embedding, labels) if tied else Head(self.backbone.output_dim, labels, generator=generator)
        )  # fmt: skip
        self.heads[head_key(name)] = head

    def head(self, name: str) -> Head:
        """Return a task's head."""
        head = self.heads[head_key(name)]
        assert isinstance(head, Head)
        return head

    def task_of(self, key: str) -> str:
        """Return the task of a head's key (`head_key`)."""
        return self._task_of[key]

    def mask_table(self, scales: Sequence[float]) -> Tensor | None:
        """Return the masks [T, K, C], task t at `scales[t]`; None for a network without masks."""
        with record_function("masks"):
            return None if self.masks is None else self.masks(scales)

    def encode(
        self, batch: PackedBatch, masks_TKC: Tensor | None, *,
        positions: Positions | None = None, weights: Mapping[str, Tensor] | None = None, patch: Patch | None = None,
    ) -> Tensor:  # fmt: skip
        """Encode a batch, each row under its own task's mask: [N, W] or [B, W].

        Args:
            batch: Packed rows; with dropout where they have keys.
            masks_TKC: [T, K, C] or None.
            positions: Which outputs are needed, by default those that the batch's examples read.
            weights: Effective weights: what parameters of the backbone are in this pass, by their name in it; gradients flow through.
            patch: What goes behind the masked layers, see `Backbone.transform_patched`.
        """
        chosen = batch.positions if positions is None else positions
        options: dict[str, Any] = {"positions": chosen, "dropout_key": batch.dropout_key, "patch": patch}
        with record_function("encode"):
            if not weights:
                return self.backbone.encode(batch.sequences, masks_TKC, **options)
            hidden: Tensor = torch.func.functional_call(self.backbone, dict(weights), (batch.sequences, masks_TKC), options)
            return hidden

    def role(self, name: str) -> Role:
        """Return what a parameter is for.

        Args:
            name: As of `named_parameters`.
        """
        part, _, rest = name.partition(".")
        if part == "backbone":
            return Role("backbone", None)
        if part == "heads":
            return Role("head", self.task_of(rest.rpartition(".")[0]))
        assert part == "masks" and self.masks is not None, name
        return Role("mask", self.tasks[self.masks.task_of(rest)])
