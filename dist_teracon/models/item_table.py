"""Tables of which a batch reads few rows: the item embeddings, and what heads have in common with them.

Legend: N packed positions, C channels, V items.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class SparseTable(Protocol):
    """A module with a matrix of which a step may read few rows.

    Attributes:
        sparse: Whether the matrix's gradient holds the rows that were read alone, as the row-sparse optimiser takes it.
    """

    sparse: bool

    @property
    def num_rows(self) -> int:
        """Rows of the matrix."""


class ItemTable(nn.Module):
    """Item embeddings; a `SparseTable`. They start uniform in ±√(1/V), as published.

    Args:
        num_items: V, the reserved rows included.
        channels: C.
        generator: Source of the initial values.
    """

    def __init__(self, num_items: int, channels: int, *, generator: torch.Generator) -> None:
        super().__init__()
        bound = math.sqrt(1 / num_items)
        self.weight = nn.Parameter(torch.empty(num_items, channels).uniform_(-bound, bound, generator=generator))
        self.sparse = False

    @property
    def num_rows(self) -> int:
        """Number of items V."""
        return self.weight.shape[0]

    def forward(self, values: Tensor) -> Tensor:
        """Return the items' embeddings, [N, C]."""
        return torch.embedding(self.weight, values, sparse=self.sparse)

    def grow(self, rows: Tensor) -> None:
        """Append rows of new items [n, C]; the weight is a new parameter then."""
        weight = torch.cat([self.weight.detach(), rows.to(self.weight)])
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
