"""The objects below a URI of a store: whole reads and writes, and a write that fails where the object is there already."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from dist_teracon import io
from dist_teracon.errors import RunError

# Stores without folders: nothing has to be made before an object is written.
_FLAT = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")
# Stores whose write with `mode="create"` is one request that the store itself refuses where the object is there.
_CONDITIONAL = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")
# Elsewhere a new object is read back after this pause: another writer's may have come between the look and the write.
SETTLE_S = 2.0
_CHUNK = 1 << 20
# Bytes that a store's client asks for at a time; several objects are read at once.
_BLOCK = 8 << 20


class Objects:
    """Objects by key below a URI; every operation is tried again a few times where the store fails (`io.with_retries`).

    Args:
        uri: As `s3://bucket/run`.

    Raises:
        RunError: no such kind of store, or its package is missing.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            self._store, root = url_to_fs(self.uri)
        except (ValueError, ImportError) as error:
            raise RunError(f"{uri}: this store cannot be reached ({error}); name a folder, or a URI as s3://bucket/run") from None
        self._root = root.rstrip("/")
        kinds = self._store.protocol if isinstance(self._store.protocol, tuple) else (self._store.protocol,)
        self._flat = any(kind in _FLAT for kind in kinds)
        self._conditional = any(kind in _CONDITIONAL for kind in kinds)

    def read(self, key: str) -> bytes:
        """Return an object.

        Raises:
            FileNotFoundError: it is not there.
            DataError: the store fails.
        """
        return io.with_retries(self.uri, lambda: bytes(self._store.cat_file(self._path(key))))

    def write(self, key: str, content: bytes) -> None:
        """Write an object, over one that is there."""
        io.with_retries(self.uri, lambda: self._pipe(key, content))

    def create(self, key: str, content: bytes) -> bool:
        """Write an object that is not there yet; returns False where it is, with another content.

        One request on stores that refuse it themselves (S3, Google Cloud Storage, Azure). Elsewhere: look, write, pause and read back,
        which two writers can pass both only where the store shows an object later than `SETTLE_S` after it was written.
        """
        return io.with_retries(self.uri, lambda: self._create(key, content))

    def _create(self, key: str, content: bytes) -> bool:
        if not self._conditional:
            if (there := self._content(key)) is not None:
                return there == content
            self._pipe(key, content)
            time.sleep(SETTLE_S)
            return self._content(key) == content
        try:
            self._pipe(key, content, mode="create")
        except FileNotFoundError:
            raise
        except OSError:
            # refused; or written, and the answer was lost on its way, so that the client's own second attempt was refused
            if (there := self._content(key)) is None:
                raise
            return there == content
        return True

    def upload(self, path: Path, key: str) -> None:
        """Copy a local file to the store."""

        def put() -> None:
            self._make_folder(key)
            self._store.put_file(str(path), self._path(key))

        io.with_retries(self.uri, put)

    def download(self, key: str, path: Path) -> str:
        """Copy an object to a local file, which is new; returns its SHA-256.

        Raises:
            FileNotFoundError: the object is not there.
            DataError: the store fails.
        """

        def get() -> str:
            digest = hashlib.sha256()
            with self._store.open(self._path(key), "rb", block_size=_BLOCK) as source, path.open("wb") as target:
                while block := source.read(_CHUNK):
                    digest.update(block)
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            return digest.hexdigest()

        return io.with_retries(self.uri, get)

    def sha256(self, key: str) -> str:
        """Return the SHA-256 of an object.

        Raises:
            FileNotFoundError: it is not there.
        """

        def read() -> str:
            digest = hashlib.sha256()
            with self._store.open(self._path(key), "rb", block_size=_BLOCK) as source:
                while block := source.read(_CHUNK):
                    digest.update(block)
            return digest.hexdigest()

        return io.with_retries(self.uri, read)

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the objects in a folder, as they are now; none where there is no such folder."""

        def listed() -> list[str]:
            self._store.invalidate_cache()  # another process may have written since
            try:
                found = self._store.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
            return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)

        return io.with_retries(self.uri, listed)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no mistake."""
        for key in keys:

            def remove(key: str = key) -> None:
                try:
                    self._store.rm_file(self._path(key))
                except FileNotFoundError:
                    return

            io.with_retries(self.uri, remove)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _content(self, key: str) -> bytes | None:
        try:
            self._store.invalidate_cache()
            return bytes(self._store.cat_file(self._path(key)))
        except FileNotFoundError:
            return None

    def _pipe(self, key: str, content: bytes, **options: Any) -> None:
        self._make_folder(key)
        self._store.pipe_file(self._path(key), content, **options)

    def _make_folder(self, key: str) -> None:
        if not self._flat:
            self._store.makedirs(self._path(key).rsplit("/", 1)[0], exist_ok=True)
