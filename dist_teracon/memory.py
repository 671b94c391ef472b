"""Working memory of a process that makes and drops arrays of megabytes all the time."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def raise_malloc_thresholds() -> None:
    """Let the C library hand freed blocks of up to 32 MB out again instead of giving them back to the system.

    Pages that the system takes back come again zeroed, one fault each, which costs more than the arithmetic on them. Up to 256 MB that are
    free at the heap's end stay with the process, for as long as it lives. Where there is no glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def one_heap() -> dict[str, str]:
    """Return the environment of a process that computes in another thread than its first.

    glibc gives each thread a heap of its own, of 64 MB at a time, to which `raise_malloc_thresholds` does not reach: large arrays then come
    from the system anew each time. With one heap for all they are kept. What the user has set stays.
    """
    return {"MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1")}
