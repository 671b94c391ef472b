"""Times and types for the users of `six-tasks-v1` that tell of their labels (`times=1`); items and labels stay as they are.

A user's gaps are log-normal around a mean that follows from the latent direction that decides `profile-2`; an event's type is drawn with
weights that follow from the latent dimensions that decide `profile-8`. Sequences tell of both too, less surely.

Shapes: `U` users, `N` events, `D` latent dimensions, `K` types.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.event_columns import EventColumns

TYPES = ("view", "cart", "buy", "share")
_BEGIN_S = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())
_YEAR_S = 365 * 86_400
_MEAN_LOG_S, _BY_USER, _BY_EVENT = 7.0, 1.5, 1.0  # logarithms of seconds: about 18 minutes
_LONGEST_S = 30 * 86_400
_BY_TYPE = 1.5
# Random streams that nothing else of the data set takes.
_GAPS, _TYPES, _BEGINS = 9, 10, 11


def draw_event_columns(
    direction_U: NDArray[np.float64], weights_UK: NDArray[np.float64], lengths_U: NDArray[np.int64],
    stream: Callable[[int], np.random.Generator],
) -> EventColumns:  # fmt: skip
    """Draw when and of which type every event is; the first users are the same however many there are.

    Args:
        direction_U: What the mean of a user's gaps follows from, of size 1.
        weights_UK: What the types of a user's events follow from, of size 1, K as many as `TYPES`.
        lengths_U: Events a user.
        stream: Gives the random stream of a key.
    """
    user_N, events = np.repeat(np.arange(len(lengths_U)), lengths_U), int(lengths_U.sum())
    log_N = _MEAN_LOG_S + _BY_USER * direction_U[user_N] + _BY_EVENT * stream(_GAPS).standard_normal(events)
    gap_N = np.minimum(np.exp(log_N), _LONGEST_S).astype(np.int64)
    begin_U = _BEGIN_S + (_YEAR_S * stream(_BEGINS).random(len(lengths_U))).astype(np.int64)
    ends_N = np.cumsum(gap_N)
    first_U = np.cumsum(lengths_U) - lengths_U
    times_N = begin_U[user_N] + ends_N - ends_N[first_U][user_N]  # a user's first event is at the begin
    share_UK = np.cumsum(np.exp(_BY_TYPE * weights_UK), axis=1)
    uniform_N = stream(_TYPES).random(events) * share_UK[user_N, -1]
    types_N = 1 + (share_UK[user_N] <= uniform_N[:, None]).sum(axis=1).clip(max=len(TYPES) - 1)
    return EventColumns(times_N, types_N.astype(np.int32))
