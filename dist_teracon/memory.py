"""Working memory of a process that makes and drops arrays of megabytes all the time."""

from __future__ import annotations

import ctypes

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
