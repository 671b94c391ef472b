"""Locks of local files and folders, by which processes keep out of each other's way; they end with the process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_teracon.errors import DataError, TeraconError
from dist_teracon.io import shown_path

# How a system answers that another process has a file's lock; every other error is the file system's.
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def exclusive_lock(path: Path, busy: Callable[[str], TeraconError], *, note: str = "") -> Iterator[Callable[[], bool]]:
    """Hold a lock on a local file, which is made if it is not there; it is released when the process ends, however it ends.

    What it gives tells whether the file at `path` still is the one that is locked: its folder may be renamed or removed meanwhile.

    Args:
        path: The file.
        busy: From the note of the process that holds the lock to the error to raise.
        note: Who holds it, for others; written into the file.

    Raises:
        TeraconError: `busy`, where another process holds it.
        DataError: the file system has no locks.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                place = shown_path(path.parent)
                raise DataError(
                    f"{place}: its file system has no locks ({error.strerror}), without which two processes could write there at once; "
                    "name a folder on another one"
                ) from None
            file.seek(0)
            raise busy(file.read(4096)) from None
        file.truncate(0)
        file.write(note)
        file.flush()
        yield lambda: _is_at(path, file.fileno())


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; returns False where another process has it.

    A file system without locks locks nothing.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
