"""The local cache: columns of a data set's files as flat arrays on a local disk, mapped into memory on first use.

A file's arrays lie in `flat-1/<first two>/<SHA-256 of the file>/<column>.npy` below the cache folder. The checksum is the key, so
versions of a data set share what they have in common, and what is in the cache is what was prepared: a hit reads nothing of the
data set itself. An entry appears whole; where several processes make one, the first wins and the others drop theirs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.errors import DataError

_FORMAT = "flat-1"

# Another process may throw away a damaged entry just as this one has mended it.
_ATTEMPTS = 3

Columns = Mapping[str, NDArray[Any]]


def cache_folder() -> Path:
    """Where local copies of data lie: `$DIST_TERACON_CACHE`, else the user's cache folder.

    Raises:
        DataError: the user has none.
    """
    if folder := os.environ.get("DIST_TERACON_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dist-teracon"
    except RuntimeError:
        raise DataError("there is no home folder for copies of data sets; name a folder for them in DIST_TERACON_CACHE") from None


def cached_columns(sha256: str, names: Sequence[str], make: Callable[[], Columns], *, folder: Path) -> dict[str, NDArray[Any]]:
    """Map a file's columns from the cache; `make` returns them where they are not there or not whole.

    Args:
        sha256: Of the file that the columns come from.
        names: The columns.
        make: Reads the file.
        folder: The cache folder.

    Raises:
        DataError: they are not in the cache, and it cannot be written.
    """
    entry = folder / _FORMAT / sha256[:2] / sha256
    for _ in range(_ATTEMPTS):
        there = entry.is_dir()
        try:
            return _map(entry, names)
        except (OSError, ValueError, EOFError):
            if there:  # entries appear whole, so this one was cut off behind our back; whoever has it mapped keeps it
                shutil.rmtree(entry, ignore_errors=True)
        columns = make()
        try:
            _write(entry, columns)
        except OSError as error:
            raise DataError(
                f"{io.shown_path(folder)}: copies of data sets cannot be kept there ({io.reason_of(error)}); name another folder for "
                "them in DIST_TERACON_CACHE"
            ) from None
    return _map(entry, names)


def _map(entry: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    # a plain view: every slice of a memmap object would pay for its subclass, and an empty file cannot be mapped
    return {name: np.asarray(np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in names}


def _write(entry: Path, columns: Columns) -> None:
    temporary = entry.with_name(f".{entry.name}.{uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        for name, values in columns.items():
            with (temporary / f"{name}.npy").open("xb") as file:
                np.save(file, np.ascontiguousarray(values), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
