"""Where a preparation works: a hidden folder next to its result, held by one process, kept when that process is killed."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_teracon import io
from dist_teracon.atomic import copy_folder, place_folder
from dist_teracon.console import Log
from dist_teracon.errors import DataError
from dist_teracon.locks import exclusive_lock

_KEY = "key"


@dataclass(frozen=True)
class Workspace:
    """A working folder.

    Attributes:
        root: The folder; on the disk of a local `out`, else among the system's temporary files.
        out: Folder or URI of the result.
        shown: How messages name the result.
    """

    root: Path
    out: str
    shown: str

    @property
    def spill(self) -> Path:
        """Where rows wait for their shards."""
        return self.root / "spill"

    @property
    def dataset(self) -> Path:
        """Where the result grows."""
        return self.root / "dataset"

    def publish(self) -> None:
        """Move the result to its place: by one rename on a local disk, file by file and `dataset.json` last to a store."""
        if not io.is_local(self.out):
            copy_folder(self.dataset, self.out, last="dataset.json")
            return
        place_folder(self.dataset, io.output_folder(self.out), last="dataset.json")


@contextmanager
def workspace(out: str, key: str, log: Log, *, shown: str | None = None) -> Iterator[Workspace]:
    """Hold the working folder of `out`; it is removed afterwards unless the process is stopped from outside.

    Args:
        out: Folder or URI of the result.
        key: What the work is made from; of work with another key nothing is kept.
        log: Receives a line when work that was stopped goes on.
        shown: How messages name the result; `out` where None.

    Raises:
        DataError: another process holds it.
    """
    if io.is_local(out):
        target = io.output_folder(out)
        root = target.with_name(f".{target.name}.preparing")
    else:
        root = Path(tempfile.gettempdir()) / f"dist-teracon-{hashlib.sha256(out.encode()).hexdigest()[:16]}.preparing"
    root.mkdir(parents=True, exist_ok=True)
    name = shown or out
    busy = DataError(f"{name}: another process prepares it at this moment; wait for it")
    with exclusive_lock(root / "lock", lambda _: busy):
        work = Workspace(root, out, name)
        resumed = (root / _KEY).exists() and (root / _KEY).read_text() == key and (work.spill / "state.json").exists()
        shutil.rmtree(work.dataset, ignore_errors=True)
        if resumed:
            log(f"{name}: goes on from rows that were read before")
        else:
            for entry in root.iterdir():
                if entry.name != "lock":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            (root / _KEY).write_text(key)
        work.spill.mkdir(exist_ok=True)
        work.dataset.mkdir()
        try:
            yield work
        except (KeyboardInterrupt, SystemExit):  # stopped from outside
            raise
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def folder_beside(out: str, kind: Literal["appending", "drawing"]) -> Iterator[Path]:
    """Hold a folder for what a result is made of: on the result's disk, as it may be larger than the system's temporary files.

    It is removed afterwards unless the process is stopped from outside; then the next one removes what it has left, but for another
    preparation's working folder in it.

    Raises:
        DataError: another process holds it.
    """
    if not io.is_local(out):
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    target = io.output_folder(out)
    root = target.with_name(f".{target.name}.{kind}")
    root.mkdir(parents=True, exist_ok=True)
    busy = DataError(f"{out}: another process prepares it at this moment; wait for it")
    with exclusive_lock(root / "lock", lambda _: busy):
        for entry in root.iterdir():
            if not entry.name.startswith(".") and entry.is_dir():
                shutil.rmtree(entry)
        try:
            yield root
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        shutil.rmtree(root, ignore_errors=True)
