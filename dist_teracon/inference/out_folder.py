"""A folder of results on a disk or a store: files appear whole, a manifest makes them visible, a stopped job goes on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import finalize

from dist_teracon import io
from dist_teracon.atomic import atomic_path, remove_temporary_files
from dist_teracon.errors import DataError, RunError
from dist_teracon.locks import try_lock

BEGUN = ".begun.json"


class OutFolder:
    """A folder that one job fills.

    Args:
        uri: Where it is; it need not exist.
        manifest: Name of the file that is written last.
    """

    def __init__(self, uri: str, manifest: str) -> None:
        self.uri, self._manifest = uri.rstrip("/") or "/", manifest
        self._lock: finalize[..., OutFolder] | None = None

    def claim(self, settings: dict[str, Any]) -> bool:
        """Begin to fill the folder, or go on with it; returns whether it is finished already.

        Args:
            settings: What decides over the content.

        Raises:
            RunError: another process fills the folder, or it holds something else; nothing in it is changed.
        """
        self._hold()
        finished = self.exists(self._manifest)
        there = self.read_json(self._manifest)["settings"] if finished else self.read_json(BEGUN) if self.exists(BEGUN) else None
        settings = json.loads(json.dumps(settings))
        if there is None:
            if io.exists(self.uri) and (not io.is_folder(self.uri) or io.list_folder(self.uri)):
                raise RunError(f"{self.uri}: is there already and holds something else; name a new folder")
            self.write_json(BEGUN, settings)
        elif there != settings:
            differ = [key for key in {**there, **settings} if there.get(key) != settings.get(key)]
            shown = "; ".join(f"{key} was {_short(there.get(key))} and is now {_short(settings.get(key))}" for key in differ)
            raise RunError(f"{self.uri}: holds the export of something else ({shown}); name a new folder")
        return finished

    def _hold(self) -> None:
        """Hold a local folder for as long as it is filled, and remove what a killed process has left of its first file.

        The lock is one of the folder itself, so that nothing is left in it.
        """
        if not io.is_local(self.uri):
            return
        folder = io.local_path(self.uri)
        if folder.exists() and not folder.is_dir():
            return  # refused by the caller
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        self._lock = finalize(self, os.close, descriptor)
        if not try_lock(descriptor):
            self._release()
            raise RunError(f"{self.uri}: another process is writing there; wait for it or name another folder")
        remove_temporary_files(folder, of=(BEGUN,))

    def _release(self) -> None:
        if self._lock is not None:
            self._lock()

    def exists(self, name: str) -> bool:
        """Return whether a file is there."""
        return io.exists(io.join(self.uri, name))

    def read_json(self, name: str) -> Any:
        """Return a JSON file's value."""
        return io.read_json(io.join(self.uri, name))

    def write(self, name: str, fill: Callable[[Path], None]) -> dict[str, Any]:
        """Write a file, which appears whole; returns its bytes and SHA-256.

        Args:
            name: Path within the folder.
            fill: Writes the file at a local path.
        """
        if io.is_local(self.uri):
            with atomic_path(io.local_path(self.uri) / name) as path:
                fill(path)
                return _entry(path)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "part"
            fill(path)
            io.put(path, io.join(self.uri, name))
            return _entry(path)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.write(name, lambda path: _dump(path, value))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, and remove what was needed to go on."""
        self.write_json(self._manifest, manifest)
        filesystem, root = io.filesystem_of(self.uri)
        for name in (BEGUN, ".progress"):
            path = f"{str(root).rstrip('/')}/{name}"
            if filesystem.exists(path):
                filesystem.rm(path, recursive=True)
        self._release()


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": io.sha256(str(path))}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}…"


def write_file(uri: str, fill: Callable[[Path], None]) -> None:
    """Write one file on a disk or a store; it appears whole.

    Raises:
        DataError: it is there already.
    """
    if io.exists(uri):
        raise DataError(f"{uri}: is there already; name a new file or remove it")
    if io.is_local(uri):
        with atomic_path(io.local_path(uri)) as path:
            fill(path)
        return
    folder, _, name = uri.rpartition("/")
    OutFolder(folder, "").write(name, fill)
