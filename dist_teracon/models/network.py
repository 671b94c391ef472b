"""The network put together: backbone M, masks m and heads G, `ŷ = G_i(M(x; m_i))` (SPEC section 1).

Legend: N packed positions, B rows (users), W numbers of a representation, C channels, T tasks, K masked layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dist_teracon.kernels.masked_dilated_conv_stack import Positions
from dist_teracon.models.backbone import Backbone
from dist_teracon.models.heads import Head
from dist_teracon.models.masks import TaskMasks


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

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that have a head, in the order in which they were added."""
        return list(self.heads)

    def add_task(self, name: str, labels: int, *, generator: torch.Generator) -> None:
        """Add a head, and a mask where there are masks."""
        if self.masks is not None:
            self.masks.add_task(generator)
        self.heads[name] = Head(self.backbone.output_dim, labels, generator=generator)

    def head(self, name: str) -> Head:
        """Return a task's head."""
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    def mask_table(self, scales: Sequence[float]) -> Tensor | None:
        """Return the masks [T, K, C], task t at `scales[t]`; None for a network without masks."""
        return None if self.masks is None else self.masks(scales)

    def forward(
        self,
        values: Tensor,
        row_offsets: Tensor,
        task_of_row: Tensor,
        masks_TKC: Tensor | None,
        *,
        positions: Positions,
        dropout_key: Tensor | None = None,
    ) -> Tensor:
        """Encode packed rows, each under its own task's mask: [N, W] or [B, W]; with dropout where a row has a noise key."""
        return self.backbone(values, row_offsets, task_of_row, masks_TKC, positions=positions, dropout_key=dropout_key)
