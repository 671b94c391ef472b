"""A store in a local folder, `folder:///path`, for tests of several processes: nothing about it is atomic but whole writes."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dist_teracon.store import objects


class FolderStore(LocalFileSystem):
    """A file system with a scheme of its own, so that it counts as a store."""

    protocol = "folder"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("folder://"))


def register() -> None:
    """Make the scheme known in this process; a new object is read back after a moment instead of seconds."""
    fsspec.register_implementation("folder", FolderStore, clobber=True)
    objects.SETTLE_S = 0.05
