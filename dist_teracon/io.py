"""Files by URI: paths, opening, reading, checksums, and stores that fail for a while.

Paths are URIs through fsspec (`data/x`, `file://…`, `memory://…`, `s3://…`). How local files are written is in `atomic`, their locks in
`locks`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

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
