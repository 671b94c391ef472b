"""What a backbone reads of events beside their items: embeddings of types, and of the time since the event before and to what follows.

They are added to the items' embeddings and start at zero, so that a network begins as the one without them.

Legend: N packed positions, B rows (users), C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_teracon.config.model import EventFeature
from dist_teracon.data.event_columns import NO_TIME

# By feature, the column of events that it reads (`DatasetInfo.history.names`).
COLUMN_OF: dict[EventFeature, str] = {"gaps": "times", "types": "types", "recency": "times"}
# The feature that reads when a row is predicted (`PackedBatch.moments`).
RECENCY: EventFeature = "recency"

# A gap of s seconds is in bucket 1 + the number of binary digits of s: 0, 1, 2–3, 4–7, … seconds; the last one is of 34 years and more.
_DIGITS = 31
GAP_BUCKETS = 2 + _DIGITS
# Bucket of a row's first event, and of those whose time or the time before is not known.
NO_GAP = 0


def log_buckets(seconds: Tensor, unknown: Tensor) -> Tensor:
    """Return the bucket of each number of seconds, int64, below `GAP_BUCKETS`: `NO_GAP` where unknown; what is below 0 is as 0."""
    powers = 1 << torch.arange(_DIGITS, dtype=torch.int64, device=seconds.device)
    return torch.where(unknown, NO_GAP, 1 + torch.bucketize(torch.where(unknown, 0, seconds), powers, right=True))


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
    return log_buckets(times_N - before_N, unknown_N)


def times_behind(times_N: Tensor, row_offsets: Tensor, moments_B: Tensor) -> Tensor:
    """Return when what follows each event was: the next event of its row, behind a row's last one the row's moment; int64 [N].

    Args:
        times_N: int64, seconds, `NO_TIME` for unknown.
        row_offsets: int64 [B + 1].
        moments_B: int64, seconds: when each row is predicted; `NO_TIME` for unknown.
    """
    total = times_N.shape[0]
    behind_N = torch.cat([times_N[1:], times_N.new_full((min(1, total),), NO_TIME)])
    # one more place, for empty rows at the begin; nothing here waits for a GPU
    last_N = torch.zeros(total + 1, dtype=torch.bool, device=times_N.device).index_fill_(0, row_offsets[1:], True)[1:]
    return torch.where(last_N, moments_B.repeat_interleave(row_offsets.diff(), output_size=total), behind_N)


def recency_buckets(times_N: Tensor, row_offsets: Tensor, moments_B: Tensor) -> Tensor:
    """Return the bucket of the time from each event to what follows it (`times_behind`): int64 [N].

    What is behind an event and not after it, as a moment before the row's last event, is taken as of the same moment.
    """
    behind_N = times_behind(times_N, row_offsets, moments_B)
    return log_buckets(behind_N - times_N, (times_N == NO_TIME) | (behind_N == NO_TIME))


class EventEmbedding(nn.Module):
    """Embeddings of events' gaps, types and recency, [N, C].

    Args:
        features: Which there are, one at least.
        channels: C.
        num_types: Types, the unknown one included; for `types`.

    Attributes:
        gap_weight: [`GAP_BUCKETS`, C]; None without `gaps`.
        type_weight: [types, C]; None without `types`.
        recency_weight: [`GAP_BUCKETS`, C]; None without `recency`.
    """

    def __init__(self, features: Sequence[EventFeature], channels: int, *, num_types: int) -> None:
        super().__init__()
        self.features = tuple(features)
        self.gap_weight = nn.Parameter(torch.zeros(GAP_BUCKETS, channels)) if "gaps" in features else None
        self.type_weight = nn.Parameter(torch.zeros(num_types, channels)) if "types" in features else None
        self.recency_weight = nn.Parameter(torch.zeros(GAP_BUCKETS, channels)) if "recency" in features else None

    def forward(
        self, times_N: Tensor | None, types_N: Tensor | None, row_offsets: Tensor, moments_B: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """Return what is added to the items' embeddings.

        Args:
            times_N: int64, seconds.
            types_N: int32.
            row_offsets: int64 [B + 1].
            moments_B: int64, seconds: when each row is predicted; for `recency`.

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
        if self.recency_weight is not None:
            if times_N is None or moments_B is None:
                raise ValueError("model.event_features: 'recency' reads times of events and of predictions; the batch has not both")
            parts.append(F.embedding(recency_buckets(times_N, row_offsets, moments_B), self.recency_weight))
        return functools.reduce(torch.add, parts)
