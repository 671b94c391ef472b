"""A run's folder at one moment, kept for an upload while the run goes on.

Files of a run appear whole and are replaced, never changed, so a hard link keeps what a name stood for. Logs only grow, so a length keeps
them. Hidden names (temporary files, locks) are left out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dist_teracon.store.manifest import Part
from dist_teracon.store.view import everything

LOG = "events.jsonl"
# A folder of files that grow and follow from the log: copied for people, no part of a run's state.
VIEWS = "tensorboard"

# What tells that a file is still the same one.
Stamp = tuple[int, int, int]


@dataclass
class Snapshot:
    """A folder at one moment.

    Attributes:
        known: Parts of the files that are in the store already, by path.
        new: Where the content of the other files is kept, with their stamps, by path.
        logs: Lengths of the logs in bytes, by path.
        views: Files that are copied for people, and their lengths, by path.
        staging: The folder that holds `new`.
    """

    staging: Path
    known: dict[str, Part] = field(default_factory=dict)
    new: dict[str, tuple[Path, Stamp]] = field(default_factory=dict)
    logs: dict[str, int] = field(default_factory=dict)
    views: dict[str, tuple[Path, int]] = field(default_factory=dict)

    def drop(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self.staging, ignore_errors=True)


def take_snapshot(
    folder: Path, staging: Path, uploaded: Mapping[Stamp, Part], *, wanted: Callable[[str], bool] = everything
) -> Snapshot:  # fmt: skip
    """Keep what a folder holds now.

    Args:
        folder: The run's.
        staging: A new folder on the same disk.
        uploaded: Parts of files that are in the store, by stamp.
        wanted: Which files to look at, by path.
    """
    snapshot = Snapshot(staging)
    for path in visible_files(folder):
        name = path.relative_to(folder).as_posix()
        if not wanted(name):
            continue
        if VIEWS in path.relative_to(folder).parts[:-1]:
            snapshot.views[name] = path, path.stat().st_size
            continue
        if path.name == LOG:
            snapshot.logs[name] = path.stat().st_size
            continue
        try:
            stamp = stamp_of(path)
            if (part := uploaded.get(stamp)) is not None:
                snapshot.known[name] = part
                continue
            kept = staging / str(len(snapshot.new))
            staging.mkdir(parents=True, exist_ok=True)
            _keep(path, kept)
        except FileNotFoundError:  # another rank of this machine has replaced it in this moment
            continue
        snapshot.new[name] = kept, stamp
    return snapshot


def stamp_of(path: Path) -> Stamp:
    """Return what tells a file from a later one."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder but those with a hidden name, or in a folder with one."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _keep(path: Path, kept: Path) -> None:
    try:
        os.link(path, kept)
    except FileNotFoundError:
        raise
    except OSError:  # no links on this file system
        shutil.copyfile(path, kept)
