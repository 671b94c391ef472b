"""Items made ahead by a thread: the same items, errors where they belong, nothing left behind."""

from __future__ import annotations

import threading
import time

import pytest

from dist_teracon.data.prefetch import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_items_come_in_their_order_and_the_thread_ends():
    assert list(prefetch(iter(range(100)), depth=3)) == list(range(100))
    assert not threads()


def test_some_are_made_before_they_are_wanted_and_no_more():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    found = prefetch(items(), depth=2)
    assert next(found) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert made == [0, 1, 2, 3]  # one handed out, two ready, one waiting for room
    found.close()


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        raise KeyError("broken")

    found = prefetch(items())
    assert next(found) == 1
    with pytest.raises(KeyError, match="broken"):
        next(found)
    assert not threads()


def test_leaving_early_ends_the_thread_and_closes_what_made_the_items():
    closed = []

    def items():
        try:
            yield from range(10**9)
        finally:
            closed.append(True)

    for item in prefetch(items()):
        if item == 5:
            break
    assert not threads()
    assert closed == [True]
