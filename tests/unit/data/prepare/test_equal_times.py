"""Events of one time are counted, as are those that are there twice, and files that run from new to old are named."""

from __future__ import annotations

import numpy as np
import pytest

from dist_teracon.data.prepare.equal_times import EqualTimes, count_equal_times, note_equal_times
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.sources.base import Events


def coded(names: str) -> Categorical:
    known = sorted(set(names))
    return Categorical(np.array([known.index(name) for name in names], dtype=np.int32), known)


def made(users: str, items: str, times: list[int] | None, kinds: str | None = None) -> tuple[Events, np.ndarray]:
    """Return events in the order of the file, and their places user by user in time."""
    moments = None if times is None else np.array(times) * 10**9
    events = Events(coded(users), coded(items), None, None if kinds is None else coded(kinds), None, moments)
    keys = (events.user.codes,) if moments is None else (moments, events.user.codes)
    return events, np.lexsort(keys)


@pytest.mark.parametrize(
    ("users", "items", "times", "kinds", "found"),
    [
        ("aabb", "wxyz", [1, 2, 1, 2], None, EqualTimes(0, 0, False)),  # of two users
        ("aaab", "wxyw", [1, 1, 2, 1], None, EqualTimes(2, 0, False)),
        ("aaaa", "wxwx", [1, 1, 1, 2], None, EqualTimes(3, 1, False)),  # not side by side
        ("aaaa", "wwww", [1, 1, 1, 2], "vvbv", EqualTimes(3, 1, False)),  # of another type
        ("aaaa", "wxyz", [3, 2, 1, 1], None, EqualTimes(2, 0, True)),
        ("aaaa", "wxyz", [3, 2, 1, 0], None, EqualTimes(0, 0, False)),  # sorted by their times, whatever the files
    ],
)
def test_counts_by_hand(users: str, items: str, times: list[int], kinds: str | None, found: EqualTimes) -> None:
    assert count_equal_times(*made(users, items, times, kinds)) == found


def test_what_may_have_to_be_mended_is_told() -> None:
    said: list[str] = []
    note = note_equal_times(*made("aaaa", "wxyy", [3, 2, 1, 1]), logs={}, log=said.append)
    assert note == {"equal_times": {"events": 2, "again": 1, "backwards": True}}
    again, order = said
    assert "1 of 4 events of histories are there again (user, item, time are the same)" in again
    assert order.startswith("warning: history: 2 of 4 events")
    assert "the files run from new to old" in order
    assert note_equal_times(*made("aaaa", "wxyz", None), logs={}, log=said.append) == {}
    assert note_equal_times(*made("aaaa", "wxyz", [1, 2, 3, 4]), logs={}, log=said.append) == {}
    assert len(said) == 2
