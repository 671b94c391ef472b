"""What a backbone reads of events beside their items: embeddings of the time since the event before, and of types.

They are added to the items' embeddings and start at zero, so that a network begins as the one without them.

Legend: N packed positions, B rows (users), C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_teracon.config.model import EventFeature
from dist_teracon.data.event_columns import NO_TIME

# By feature, the column of events that it reads (`DatasetInfo.history.names`).
COLUMN_OF: dict[EventFeature, str] = {"gaps": "times", "types": "types"}

# A gap of s seconds is in bucket 1 + the number of binary digits of s: 0, 1, 2–3, 4–7, … seconds; the last one is of 34 years and more.
_DIGITS = 31
GAP_BUCKETS = 2 + _DIGITS
# Bucket of a row's first event, and of those whose time or the time before is not known.
NO_GAP = 0


def columns_of(features: Sequence[EventFeature]) -> tuple[str, ...]:
    """Return which columns of events some features read."""
    return tuple(COLUMN_OF[feature] for feature in features)


def gap_buckets(times_N: Tensor, row_offsets: Tensor) -> Tensor:
    """Return the bucket of the time between each event and the one before it in its row: int64 [N], below `GAP_BUCKETS`.

    An event before the one before it, as in rows that are not in order, is taken as of the same moment.

    Args:
        times_N: int64, seconds, `NO_TIME` for unknown.
        row_offsets: int64 [B + 1].
    """
    before_N = torch.cat([times_N.new_full((min(1, times_N.shape[0]),), NO_TIME), times_N[:-1]])
    # one more place, for empty rows at the end; nothing here waits for a GPU
    first = torch.zeros(times_N.shape[0] + 1, dtype=torch.bool, device=times_N.device).index_fill_(0, row_offsets[:-1], True)
    unknown_N = (times_N == NO_TIME) | (before_N == NO_TIME) | first[:-1]
    gap_N = torch.where(unknown_N, 0, times_N - before_N)
    powers = 1 << torch.arange(_DIGITS, dtype=torch.int64, device=times_N.device)
    return torch.where(unknown_N, NO_GAP, 1 + torch.bucketize(gap_N, powers, right=True))


class EventEmbedding(nn.Module):
    """Embeddings of events' gaps and types, [N, C].

    Args:
        features: Which there are, one at least.
        channels: C.
        num_types: Types, the unknown one included; for `types`.

    Attributes:
        gap_weight: [`GAP_BUCKETS`, C]; None without `gaps`.
        type_weight: [types, C]; None without `types`.
    """

    def __init__(self, features: Sequence[EventFeature], channels: int, *, num_types: int) -> None:
        super().__init__()
        self.features = tuple(features)
        self.gap_weight = nn.Parameter(torch.zeros(GAP_BUCKETS, channels)) if "gaps" in features else None
        self.type_weight = nn.Parameter(torch.zeros(num_types, channels)) if "types" in features else None

    def forward(self, times_N: Tensor | None, types_N: Tensor | None, row_offsets: Tensor) -> Tensor:
        """Return what is added to the items' embeddings.

        Args:
            times_N: int64, seconds.
            types_N: int32.
            row_offsets: int64 [B + 1].

        Raises:
            ValueError: a column that is read is not there.
        """
        parts: list[Tensor] = []
        if self.gap_weight is not None:
            if times_N is None:
                raise ValueError("model.event_features: 'gaps' reads times of events, and the batch has none")
            parts.append(F.embedding(gap_buckets(times_N, row_offsets), self.gap_weight))
        if self.type_weight is not None:
            if types_N is None:
                raise ValueError("model.event_features: 'types' reads types of events, and the batch has none")
            parts.append(F.embedding(types_N, self.type_weight))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]
