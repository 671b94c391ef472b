"""Files by URI: open, atomic write, checksum.

Paths are URIs through fsspec (`data/x`, `file://…`, `memory://…`, `s3://…`). A reader never sees half a file: on a local disk a
file is written under a temporary name next to its target and renamed.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from uuid import uuid4

from fsspec.core import OpenFile, get_compression, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from dist_teracon.errors import DataError, TeraconError

_CHUNK = 1 << 20
_URI = re.compile(r"^([a-z][a-z0-9+.-]*)://(.*)$")


# Errors of the stores' client libraries that are no OSErrors, by the package of their class.
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "huggingface_hub", "requests", "urllib3")

# Seconds between the attempts at a store; local files get one attempt.
PAUSES_S = (0.2, 0.5, 1.0, 2.0)
# A store's client library asks again on its own, dozens of times: what went on failing for so long is given up at the second attempt.
PATIENCE_S = 10.0

# How a system answers that another process has a file's lock; every other error is the file system's.
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)

# How a system refuses to write more: no space is left, the quota is used up, the file would be too large.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


def is_store_error(error: BaseException) -> bool:
    """Return whether an error is a disk's or a store's, and not this program's."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS


def redacted(error: BaseException) -> str:
    """Return an error's text without what follows `?` in addresses, where signatures and tokens stand."""
    text = message_of(error) if isinstance(error, OSError) else str(error)
    return re.sub(r"\?[^\s\"']+", "?…", text or type(error).__name__)


def message_of(error: TeraconError | OSError) -> str:
    """Return an error's text for a person; of the operating system's the file, where it has one, and what is wrong with it."""
    if isinstance(error, TeraconError):
        return str(error)
    return f"{shown_path(Path(str(error.filename)))}: {reason_of(error)}" if error.filename else reason_of(error)


def reason_of(error: OSError) -> str:
    """Return what an error of the operating system says, without its number and its file."""
    full = error.errno == errno.ENOSPC or "No space left" in str(error)
    return "the disk is full" if full else error.strerror or str(error)


def retries_exhausted(*, attempts: int, since: float) -> bool:
    """Return whether to stop trying a store that still fails, though pauses are left; `since` is when the first attempt began."""
    return attempts > 1 and time.monotonic() - since > PATIENCE_S


def with_retries(
    uri: str, action: Callable[[], T], *, pauses: Sequence[float] = PAUSES_S, failure: Callable[[int, str], str] | None = None
) -> T:
    """Return `action()`, which works on a file; where its store fails, try again a few times.

    Args:
        uri: The file; a local one gets one attempt, and its errors are raised as they are.
        action: What to do; done anew at each attempt.
        pauses: Seconds between the attempts.
        failure: From the number of attempts and the last error's text to the text of the `DataError`.

    Raises:
        DataError: the store still fails after the last attempt.
    """
    began = time.monotonic()
    for attempts, pause in enumerate((*pauses, None), 1):
        try:
            return action()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
            raise
        except Exception as error:
            if is_local(uri) or not is_store_error(error):
                raise
            if pause is None or retries_exhausted(attempts=attempts, since=began):
                text = redacted(error)
                raise DataError(
                    f"{uri}: the store fails after {attempts} attempts ({text}); try again later"
                    if failure is None
                    else failure(attempts, text)
                ) from None
            time.sleep(pause)
    raise AssertionError


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


def is_local(uri: str) -> bool:
    """Return whether `uri` names a file on a local disk."""
    return (match := _URI.match(uri)) is None or match.group(1) in ("file", "local")


def local_path(uri: str) -> Path:
    """Return the path of a local URI; `~` at its beginning is the home folder."""
    match = _URI.match(uri)
    try:
        return Path(match.group(2)) if match else Path(uri).expanduser()
    except RuntimeError:  # `~name` of no user is a name as any
        return Path(uri)


def input_path(uri: str) -> str:
    """Return a folder's or a file's URI without `~`, `.` at its end and the like, so that names in it and its own can follow from it.

    Raises:
        DataError: a local one is not there.
    """
    if not is_local(uri):
        return uri
    path = local_path(uri)
    if not path.exists():
        raise DataError(f"{uri}: no such folder" + (" (a symbolic link to nothing)" if path.is_symlink() else ""))
    return str(path.resolve() if path.name in ("", "..") else path)


def output_folder(uri: str) -> Path:
    """Return where a local folder really lies that is to be written, whether it is there or not.

    Raises:
        DataError: it is a file or lies below one, or a symbolic link on the way leads to nothing.
    """
    path = local_path(uri).absolute()
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            link = "" if part == path else f"{part} "
            raise DataError(
                f"{uri}: {link}is a symbolic link to {part.readlink()}, which is not there; make that folder or remove the link"
            )
        if part.exists():
            if not part.is_dir():
                raise DataError(f"{uri}: is a file; name a folder" if part == path else f"{uri}: {part} is a file; name another folder")
            break
    return path.resolve()


_WORKING = re.compile(r"\..+\.(preparing|appending|drawing|new-[^.]*|[0-9a-f]{32})")


def shown_path(path: Path) -> Path:
    """Return a path for a person: the folder that holds it, where it is one of the hidden ones that work is done in."""
    for place, part in enumerate(path.parts):
        if _WORKING.fullmatch(part):
            return Path(*path.parts[:place])
    return path


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


def join(folder: str, *parts: str) -> str:
    """Append path parts to a folder's URI."""
    return "/".join((folder.rstrip("/") or "/", *parts))


def filesystem_of(uri: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URI, and the path there; in a local path `::` is no chain of file systems, but a part of a name."""
    if is_local(uri):
        return LocalFileSystem(), str(local_path(uri).absolute())
    filesystem, path = url_to_fs(uri)
    return filesystem, str(path)


def open_as_it_is(uri: str) -> IO[bytes]:
    """Open a URI for reading its bytes, without decompression."""
    filesystem, path = filesystem_of(uri)
    return cast("IO[bytes]", filesystem.open(path, "rb"))


def open_binary(uri: str) -> IO[bytes]:
    """Open a URI for reading bytes, decompressing by the name's ending (`.gz`, `.bz2`, `.xz`, `.zst`).

    Raises:
        DataError: there is no such file.
    """
    try:
        if uri.endswith(".zst"):
            return _zstd(open_as_it_is(uri))
        filesystem, path = filesystem_of(uri)
        return cast("IO[bytes]", OpenFile(filesystem, path, "rb", compression=get_compression(path, "infer")).open())
    except FileNotFoundError:
        raise DataError(f"{uri}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{uri}: expected a file, got a folder") from None


def _zstd(file: IO[bytes]) -> IO[bytes]:
    """Decompress by Arrow, as fsspec's own way needs one more package."""
    import pyarrow as pa

    return cast("IO[bytes]", io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")))


def exists(uri: str) -> bool:
    """Return whether a file or folder is there."""
    filesystem, path = filesystem_of(uri)
    return bool(filesystem.exists(path))


def is_folder(uri: str) -> bool:
    """Return whether a folder is there."""
    filesystem, path = filesystem_of(uri)
    return bool(filesystem.isdir(path))


def list_folder(uri: str) -> list[str]:
    """Return the sorted names of what lies in a folder.

    Raises:
        DataError: there is no such folder.
    """
    filesystem, path = filesystem_of(uri)
    if not filesystem.isdir(path):
        raise DataError(f"{uri}: is a file; name a folder" if filesystem.exists(path) else f"{uri}: no such folder")
    return sorted(Path(str(entry)).name for entry in filesystem.ls(path, detail=False))


def read_bytes(uri: str) -> bytes:
    """Return a file's bytes."""

    def read() -> bytes:
        with open_binary(uri) as file:
            return file.read()

    return with_retries(uri, read)


def put(path: Path, uri: str) -> None:
    """Copy a local file to a store."""
    filesystem, target = filesystem_of(uri)

    def write() -> None:
        filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        filesystem.put_file(str(path), target)

    with_retries(uri, write)


def copy_folder(folder: Path, uri: str, *, last: str = "") -> None:
    """Copy a local folder's files to a folder or URI, that of path `last` at the end; a local file appears whole or not at all."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == last):
        if is_local(uri):
            with atomic_write(local_path(uri) / name) as file, (folder / name).open("rb") as source:
                shutil.copyfileobj(source, file)
        else:
            put(folder / name, join(uri, name))


def read_json(uri: str) -> Any:
    """Return a JSON file's value.

    Raises:
        DataError: no such file, or no JSON in it; the text names file and line.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise DataError(f"{uri}: not valid JSON ({error}); was the file cut off?") from None


def sha256(uri: str) -> str:
    """Return the SHA-256 of a file's bytes as a hexadecimal string."""
    digest = hashlib.sha256()
    with open_as_it_is(uri) as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


class HashedFile:
    """Passes on what is written to a file and hashes it on the way, so that it need not be read again.

    Args:
        file: Open for writing; stays open.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of what was written so far as a hexadecimal string."""
        return self._digest.hexdigest()


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
