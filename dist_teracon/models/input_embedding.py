"""What a network reads of side features: those of items beside the items' embeddings, those of users beside the representation.

Embeddings start at zero, so that a network begins as if every value were missing; they are added up over features.

Legend: N packed positions, B rows (users), C channels, V items, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_teracon.data.batches import Positions
from dist_teracon.data.input_features import MISSING

# In names of parameters: tables of values, which grow with values of later versions, and the items' values, which are the data set's.
VALUE_TABLES = "_features.tables."
ITEM_VALUES = "item_features.values"


@dataclass(frozen=True)
class InputSizes:
    """The features that a network reads.

    Attributes:
        user, item: Values of each feature of users and of items, the missing one included.
        item_values: int32 [V, F], those of the items; None where they are about to be loaded.
    """

    user: tuple[int, ...] = ()
    item: tuple[int, ...] = ()
    item_values: Tensor | None = field(default=None, compare=False)


NO_INPUTS = InputSizes()


def _tables(sizes: Sequence[int], channels: int) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.zeros(size, channels)) for size in sizes)


class ItemFeatures(nn.Module):
    """Embeddings of items' features, added to the items' own.

    Args:
        sizes: Values of each feature.
        channels: C.
        num_items: V.
        values: int32 [V, F]; None for all missing.

    Attributes:
        values: int32 [V, F], a buffer: it travels with the weights.
    """

    def __init__(self, sizes: Sequence[int], channels: int, *, num_items: int, values: Tensor | None) -> None:
        super().__init__()
        self.tables = _tables(sizes, channels)
        known = torch.full((num_items, len(sizes)), MISSING, dtype=torch.int32) if values is None else values.to(torch.int32)
        assert known.shape == (num_items, len(sizes)), "items' features of another shape than items"
        self.values: Tensor
        self.register_buffer("values", known.clone())

    def forward(self, items: Tensor) -> Tensor:
        """Return the sum of the features' embeddings of items of any shape: [*, C]."""
        own = F.embedding(items, self.values)
        parts = [F.embedding(own[..., place], table) for place, table in enumerate(self.tables)]
        return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]


class UserFeatures(nn.Module):
    """Embeddings of users' features, [C] numbers beside a representation.

    Args:
        sizes: Values of each feature.
        channels: C.
    """

    def __init__(self, sizes: Sequence[int], channels: int) -> None:
        super().__init__()
        self.tables = _tables(sizes, channels)

    def forward(self, values_BF: Tensor | None) -> Tensor:
        """Return the sum of the features' embeddings, [B, C]; nothing is read of a closed one.

        Raises:
            ValueError: the batch has no features of users.
        """
        if values_BF is None:
            raise ValueError("model.input_features: the model reads features of users, and the batch has none")
        total = self.tables[0].new_zeros(values_BF.shape[0], self.tables[0].shape[1])
        for place, table in enumerate(self.tables):
            own = values_BF[:, place]
            # also where all are closed the table takes part in the sum, with zeros
            total = total + F.embedding(own.clamp_min(MISSING), table) * (own >= MISSING).to(table.dtype)[:, None]
        return total

    def beside(self, values_BF: Tensor | None, row_offsets: Tensor, *, outputs: int, positions: Positions) -> Tensor:
        """Return what stands beside each output: [B, C] for `last`, for `all` [N, C], a row's at each of its positions."""
        own = self(values_BF)
        return own if positions == "last" else own.repeat_interleave(row_offsets.diff(), dim=0, output_size=outputs)
