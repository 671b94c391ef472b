"""A bias of attention by time: what a place attends to depends on how long before it that was (docs/method.md, Backbones).

Legend: B rows (users), L the longest row, Q places that attend, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_teracon.data.event_columns import NO_TIME
from dist_teracon.models.event_embedding import GAP_BUCKETS, log_buckets

# Numbers of a mask that are held at a time; 2^24 of them in fp32 are 64 MiB.
_NUMBERS_AT_ONCE = 1 << 24


def rows_at_once(heads: int, length: int) -> int:
    """Return how many rows are attended to together, so that their masks fit."""
    return max(1, _NUMBERS_AT_ONCE // (heads * length * length))


class TimeBias(nn.Module):
    """One number a layer, head and bucket of the logarithm of the time between two events; all start at zero.

    Args:
        layers: Layers of attention.
        heads: H of each.
    """

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, GAP_BUCKETS, heads))

    def forward(self, query_times_BQ: Tensor, key_times_BL: Tensor, layer: int) -> Tensor:
        """Return what is added to a layer's logits, [B, H, Q, L].

        Args:
            query_times_BQ, key_times_BL: int64, seconds, `NO_TIME` for unknown, which has a number of its own.
            layer: Which.
        """
        query, key = query_times_BQ[:, :, None], key_times_BL[:, None]
        buckets_BQL = log_buckets(query - key, (query == NO_TIME) | (key == NO_TIME))
        return F.embedding(buckets_BQL, self.weight[layer]).permute(0, 3, 1, 2)


def causal_places(bias_BHLL: Tensor) -> Tensor:
    """Return a bias as a mask under which a place reads nothing behind itself."""
    length = bias_BHLL.shape[-1]
    ahead = torch.ones(length, length, dtype=torch.bool, device=bias_BHLL.device).triu(1)
    return bias_BHLL.masked_fill(ahead, float("-inf"))


def padded_places(bias_BHQL: Tensor, inside_BL: Tensor) -> Tensor:
    """Return a bias as a mask under which nothing behind a row's end is read."""
    return bias_BHQL.masked_fill(~inside_BL[:, None, None], float("-inf"))
