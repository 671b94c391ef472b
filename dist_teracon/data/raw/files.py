"""Raw files read once from front to back: decompressed, retried, check-summed, cut into blocks of whole lines."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.errors import DataError
from dist_teracon.io import PAUSES_S, open_as_it_is, redacted, with_retries

# What reading a damaged compressed file raises, by codec.
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowInvalid)
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_MAGIC = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
BLOCK = 1 << 20

_LONGEST_LINE = 64 << 20
_BOM = b"\xef\xbb\xbf"
_BOMS_16 = (b"\xff\xfe", b"\xfe\xff")
_NEWLINE = 10


def compression(name: str) -> str:
    """Return the ending of a compression that a file's name has, in small letters, or an empty string."""
    return next((ending for ending in COMPRESSIONS if name.lower().endswith(ending)), "")


def without_compression(name: str) -> str:
    """Return a file's name without the ending of a compression, which may be in capitals."""
    return name[: len(name) - len(compression(name))]


class RawInput(io.RawIOBase):
    """A file's bytes as they are stored, with their SHA-256; where a store fails midway, reading resumes at the same byte.

    Args:
        uri: The file.
        pauses: Seconds between the attempts at one read; local files get one attempt.

    Raises:
        DataError: there is no such file; from `readinto`: it still cannot be read after the last attempt.
    """

    def __init__(self, uri: str, *, pauses: tuple[float, ...] = PAUSES_S) -> None:
        super().__init__()
        self.uri = uri
        self.position = 0
        self._pauses = pauses
        self._digest = hashlib.sha256()
        self._file: IO[bytes] | None = None
        self._attempt(lambda: b"")

    def readable(self) -> bool:
        """Return that bytes can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes."""
        view = memoryview(buffer).cast("B")
        content = self._attempt(lambda: cast("IO[bytes]", self._file).read(len(view)))
        view[: len(content)] = content
        self._digest.update(content)
        self.position += len(content)
        return len(content)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()

    def finish(self) -> str:
        """Read what is left and return the SHA-256 of the whole file."""
        while self.read(1 << 20):
            pass
        return self._digest.hexdigest()

    def _attempt(self, read: Callable[[], bytes]) -> bytes:
        def attempt() -> bytes:
            try:
                if self._file is None:
                    file: IO[bytes] = open_as_it_is(self.uri)
                    file.seek(self.position)
                    self._file = file
                return bytes(read())
            except Exception:
                self._file = None
                raise

        try:
            return with_retries(self.uri, attempt, pauses=self._pauses, failure=self._failure)
        except FileNotFoundError:
            raise DataError(f"{self.uri}: no such file") from None
        except IsADirectoryError:
            raise DataError(f"{self.uri}: expected a file, got a folder") from None
        except OSError as error:
            raise DataError(self._failure(1, redacted(error))) from None

    def _failure(self, attempts: int, text: str) -> str:
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        return f"{self.uri}: cannot be read on at byte {self.position}{tries} ({text})"


@contextmanager
def open_raw(uri: str) -> Iterator[tuple[IO[bytes], RawInput]]:
    """Open a file for reading, decompressed by the name's ending; gives the stream and what lies below it."""
    with RawInput(uri) as raw:
        buffered = io.BufferedReader(raw, 1 << 20)
        yield decompressed(buffered, uri), raw


def decompressed(file: io.BufferedReader[RawInput], name: str) -> IO[bytes]:
    """Return a stream of a file's content, decompressed by the name's ending.

    Raises:
        DataError: the file does not begin as its name's ending requires, or is compressed and its name does not end so.
    """
    ending = compression(name)
    begin = file.peek(8)[:8]
    if ending and begin and not begin.startswith(_MAGIC[ending]):
        raise DataError(f"{name}: expected content compressed as the name ends ({ending}); rename the file, or compress it")
    if not ending and (found := next((key for key, magic in _MAGIC.items() if key != ".bz2" and begin.startswith(magic)), None)):
        raise DataError(f"{name}: the content is compressed, which its name does not show; rename the file to end in {found}")
    if ending == ".gz":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if ending == ".bz2":
        return cast("IO[bytes]", bz2.BZ2File(file))
    if ending == ".xz":
        return cast("IO[bytes]", lzma.LZMAFile(file))
    if ending == ".zst":
        return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
    return cast("IO[bytes]", file)


@dataclass(frozen=True)
class LineBlock:
    """Whole lines, each ending in a newline; `first` is the number of the first of them, from 1."""

    content: bytes
    first: int

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Positions of the newlines, int64 [lines]."""
        return np.flatnonzero(np.frombuffer(self.content, dtype=np.uint8) == _NEWLINE)


class _Transcoded:
    """A text in another encoding as UTF-8 bytes; bytes that are no such text become bytes that are not UTF-8 either."""

    def __init__(self, stream: IO[bytes], encoding: str, check_mark: Callable[[bytes], None]) -> None:
        codecs.register_error("dist-teracon-mark", lambda error: ("\udcff", getattr(error, "end", 0)))
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="dist-teracon-mark")
        self._check_mark: Callable[[bytes], None] | None = check_mark
        self._ended = False

    def read(self, size: int) -> bytes:
        """Return the next bytes, none at the end alone."""
        while not self._ended:
            chunk = self._stream.read(size)
            self._ended = not chunk
            if self._check_mark is not None:
                while len(chunk) < len(_BOM) and (more := self._stream.read(size)):
                    chunk += more
                self._check_mark(chunk)
                self._check_mark = None
            if text := self._decoder.decode(chunk, final=self._ended):
                return text.encode("utf-8", "surrogatepass")
        return b""


class LineBlocks:
    """A text file as blocks of whole lines in UTF-8; reads CRLF and CR, a byte-order mark and a missing final newline.

    After the last block `sha256` is that of the file as it is stored. `position` counts the stored bytes read so far.

    Args:
        uri: The file.
        size: Bytes that are read at once.
        encoding: The file's encoding.

    Raises:
        DataError: while iterating: no such file, a damaged one, a byte-order mark of another encoding, or a line longer than 64 MiB.
    """

    def __init__(self, uri: str, *, size: int = BLOCK, encoding: str = "utf-8") -> None:
        self.uri, self.size = uri, size
        self.sha256 = ""
        self.position = 0
        self._encoding = codecs.lookup(encoding).name

    def __iter__(self) -> Iterator[LineBlock]:
        line, carry = 1, b""
        with open_raw(self.uri) as (stored, raw):
            stream, start = self._decoded(stored), True
            while True:
                chunk = self._read(stream, line, carry)
                last = not chunk
                if start and chunk:
                    # a mark of three bytes may come in pieces
                    while len(chunk) < len(_BOM) and _BOM.startswith(chunk) and (more := self._read(stream, line, chunk)):
                        chunk += more
                    if stream is stored:
                        self._check_mark(chunk)
                    chunk, start = chunk.removeprefix(_BOM), False
                text = carry + chunk
                if b"\r" in text:
                    held = b"" if last or not text.endswith(b"\r") else b"\r"  # its newline may come next
                    text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
                else:
                    held = b""
                if last:
                    text += b"" if not text or text.endswith(b"\n") else b"\n"
                end = text.rfind(b"\n") + 1
                carry = text[end:] + held
                self.position = raw.position
                if end:
                    block = LineBlock(text[:end], line)
                    yield block
                    line += len(block.ends)
                if last:
                    break
                if len(carry) > _LONGEST_LINE:
                    raise DataError(f"{self.uri}:{line}: the line is longer than {_LONGEST_LINE >> 20} MiB; is this a text file?")
            self.sha256 = raw.finish()

    def _decoded(self, stream: IO[bytes]) -> IO[bytes] | _Transcoded:
        return stream if self._encoding in ("utf-8", "utf-8-sig") else _Transcoded(stream, self._encoding, self._check_mark)

    def _check_mark(self, begin: bytes) -> None:
        """Raise DataError where a file begins with the byte-order mark of another encoding than it is read in."""
        found = "utf-16" if begin.startswith(_BOMS_16) else "utf-8" if begin.startswith(_BOM) else None
        if found is None or self._encoding.startswith((found, "utf-32")):
            return
        raise DataError(
            f"{self.uri}: expected {self._encoding.upper()} text, got {found.upper()} (the file begins with its byte-order mark); "
            f"set `encoding: {found}` in the recipe, or convert the file"
        )

    def _read(self, stream: IO[bytes] | _Transcoded, line: int, carry: bytes) -> bytes:
        try:
            return stream.read(self.size)
        except DataError:
            raise
        except DAMAGE as error:
            at = line + carry.count(b"\n")
            raise DataError(f"{self.uri}:{at}: cannot be read on ({error}); was the file cut off?") from None
