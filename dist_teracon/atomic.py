"""Local files and folders that appear whole or not at all: written under a temporary name next to their place and renamed."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from dist_teracon.errors import DataError
from dist_teracon.io import is_local, join, local_path, put

# How a system refuses to write more: no space is left, the quota is used up, the file would be too large.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to a local file; what is written there is renamed once it is whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # not mkstemp, whose files only their owner may read: others read reports and results
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL and not error.filename:
            error.filename = str(path)  # a write that fails does not name its file
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a local file under a temporary name and rename it once it is whole and on disk."""
    with atomic_path(path) as temporary, temporary.open("xb") as file:
        yield file


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; keys keep their order, so equal values give equal bytes."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")


@contextmanager
def atomic_folder(path: Path, *, last: str = "") -> Iterator[Path]:
    """Fill a local folder under a temporary name next to `path` and move it there once it is whole.

    What processes that were killed have left of it is removed.

    Args:
        path: Where it goes, no symbolic link.
        last: The entry that makes it whole; see `place_folder`.

    Raises:
        DataError: `path` is there already and not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: is there already; name a new folder or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.new-*"):
        _remove_if_left(left)
    temporary, held = _held_folder(path)
    try:
        yield temporary
        place_folder(temporary, path, last=last)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(held)


def _held_folder(path: Path) -> tuple[Path, int]:
    """Make a temporary folder that other processes can see to be in use while the file descriptor is open."""
    while True:
        # not mkdtemp, whose folders are their owner's alone
        temporary = path.with_name(f".{path.name}.new-{uuid4().hex}")
        temporary.mkdir()
        held = os.open(temporary, os.O_RDONLY)
        with suppress(OSError):  # not every file system has locks of folders
            fcntl.flock(held, fcntl.LOCK_EX)
        if temporary.exists():  # else another process took it for one that was left, in the moment before it was held
            return temporary, held
        os.close(held)


def _remove_if_left(folder: Path) -> None:
    """Remove a temporary folder that no process holds."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass
    finally:
        os.close(held)


def remove_temporary_folders(folder: Path) -> None:
    """Remove what killed processes have left of `atomic_folder`s in a folder; those that a process holds stay."""
    for path in folder.glob(".*.new-*"):
        _remove_if_left(path)


_TEMPORARY_FILE = re.compile(r"\.(.+)\.[0-9a-f]{32}")


def remove_temporary_files(folder: Path, *, of: Collection[str] | None = None) -> None:
    """Remove what killed processes have left of files in a folder that only the caller writes at this moment.

    Args:
        folder: A local folder.
        of: Names of the files whose temporary ones are removed; None for all.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        match = _TEMPORARY_FILE.fullmatch(path.name)
        if match and (of is None or match.group(1) in of) and path.is_file():
            path.unlink(missing_ok=True)


def place_folder(folder: Path, target: Path, *, last: str = "") -> None:
    """Move a finished local folder to its place, which is not there or empty; what is in it appears at once.

    Only where the place itself has to stay, as the working directory or a mounted disk, are the entries moved one by one, `last` at the
    end.
    """
    if target.exists():
        if target == Path.cwd() or os.path.ismount(target):
            _fill(folder, target, last)
            return
        target.rmdir()
    folder.replace(target)


def _fill(folder: Path, target: Path, last: str) -> None:
    try:
        for entry in sorted(folder.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
            entry.replace(target / entry.name)
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_folder(folder, str(target), last=last)
        shutil.rmtree(folder)


def copy_folder(folder: Path, uri: str, *, last: str = "") -> None:
    """Copy a local folder's files to a folder or URI, that of path `last` at the end; a local file appears whole or not at all."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == last):
        if is_local(uri):
            with atomic_write(local_path(uri) / name) as file, (folder / name).open("rb") as source:
                shutil.copyfileobj(source, file)
        else:
            put(folder / name, join(uri, name))
