"""A read-only view of a run on a store: the files of one manifest, as a local folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from dist_teracon.atomic import atomic_folder
from dist_teracon.errors import DataError, RunError
from dist_teracon.store.manifest import Manifest, Part, newest_manifests
from dist_teracon.store.objects import Objects

# A writer removes what two newer manifests do not name; a reader that was overtaken begins again.
_ATTEMPTS = 5


def everything(_path: str) -> bool:
    """Take every file."""
    return True


def place_name(uri: str) -> str:
    """Return a folder's name for a URI: its last part, and a hash of the whole."""
    whole = uri.rstrip("/")
    return f"{whole.rsplit('/', 1)[-1]}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"


def fetch_view(uri: str, folder: Path, *, wanted: Callable[[str], bool] = everything) -> Path:
    """Bring the newest state of a run on a store to this machine, and return the local folder that holds it.

    What is there is not fetched again; a state's folder appears whole, and is never changed after that.

    Args:
        uri: Of the run.
        folder: Where views of runs lie; each gets a folder of its own.
        wanted: Which files to bring, by their path in the run's folder, as `stages/01-next/model.safetensors`.

    Raises:
        RunError: there is no run, or a part of it is damaged.
    """
    objects = Objects(uri)
    for attempt in range(_ATTEMPTS):
        manifests, problems = newest_manifests(objects)
        if not manifests:
            raise RunError(problems[0] if problems else f"{uri}: is no run (there is no manifest in {uri}/manifests)")
        try:
            return _view_of(objects, manifests[0], folder / place_name(uri), wanted)
        except FileNotFoundError as error:
            if attempt + 1 == _ATTEMPTS or newest_manifests(objects)[0][0].number == manifests[0].number:
                raise RunError(f"{uri}: a part of the run is missing ({error})") from None
    raise AssertionError


def _view_of(objects: Objects, manifest: Manifest, folder: Path, wanted: Callable[[str], bool]) -> Path:
    files = {path: part for path, part in manifest.files.items() if wanted(path)}
    logs = {path: segments for path, segments in manifest.logs.items() if wanted(path)}
    chosen = hashlib.sha256("\n".join(sorted([*files, *logs])).encode()).hexdigest()
    target = folder / f"{manifest.number:08d}-{manifest.checksum[:12]}-{chosen[:8]}"
    if target.is_dir():
        return target
    try:
        with atomic_folder(target) as view:
            for path, part in files.items():
                _fetch(objects, part, inside(view, path))
            for path, segments in logs.items():
                _fetch_log(objects, segments, inside(view, path))
    except (DataError, OSError):
        if not target.is_dir():  # another process has made it meanwhile
            raise
    return target


def _fetch(objects: Objects, part: Part, path: Path) -> None:
    if objects.download(part.key, path) != part.sha256:
        raise RunError(f"{objects.uri}/{part.key}: was damaged since it was written; it holds {path.name} of the run")


def _fetch_log(objects: Objects, segments: tuple[Part, ...], path: Path) -> None:
    with path.open("wb") as log:
        for segment in segments:
            content = objects.read(segment.key)
            log.write(content if hashlib.sha256(content).hexdigest() == segment.sha256 else lost_lines(segment.size))
        log.flush()
        os.fsync(log.fileno())


def lost_lines(size: int) -> bytes:
    """Return what stands for a damaged segment of a log: one line of the same length, so that what follows keeps its place."""
    line = b'{"event": "lost"}'
    return line + b" " * (size - len(line) - 1) + b"\n" if size > len(line) else b"\n" * size


def inside(folder: Path, path: str) -> Path:
    """Return where a manifest's path lies in a folder.

    Raises:
        RunError: it would lie outside.
    """
    target = folder / path
    if path.startswith("/") or ".." in path.split("/"):
        raise RunError(f"{path}: a manifest names a file outside of the run")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
