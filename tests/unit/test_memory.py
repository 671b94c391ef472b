"""Settings of the C library's memory."""

from __future__ import annotations

import pytest

from dist_teracon.memory import one_heap


def test_a_process_has_one_heap_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert one_heap() == {"MALLOC_ARENA_MAX": "1"}
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert one_heap() == {"MALLOC_ARENA_MAX": "4"}
