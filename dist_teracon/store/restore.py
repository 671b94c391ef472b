"""A local folder made equal to a run's state on a store."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from dist_teracon import io
from dist_teracon.atomic import atomic_write
from dist_teracon.console import Log
from dist_teracon.store.manifest import Manifest, Part
from dist_teracon.store.objects import Objects
from dist_teracon.store.snapshot import Stamp, stamp_of, visible_files
from dist_teracon.store.view import inside, lost_lines

# Objects that are fetched at a time.
PARALLEL = 8
# What a run makes anew, or has an older one of: its loss is told and harms nothing.
_SPARE = ("/progress/", "/pseudo_labels/")


@dataclass
class Restored:
    """What came of a restore.

    Attributes:
        damaged: Keys of parts that are missing in the store or not as they were written.
        left_out: Paths of spare files that could not be brought.
        lost: Paths of needed files that could not be brought, with what is wrong.
        cuts: For logs with a damaged segment, how many bytes before it are sound.
        uploaded: Parts by the stamps of the files that were brought, or were there.
    """

    damaged: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    uploaded: dict[Stamp, Part] = field(default_factory=dict)


def is_needed(path: str, manifest: Manifest) -> bool:
    """Return whether a run that goes on reads a file: of finished stages the last one's weights, and no pseudo-labels."""
    above, found, rest = path.rpartition("stages/")
    if not found:
        return True
    stage, _, name = rest.partition("/")
    folder = f"{above}stages/"
    if f"{folder}{stage}/state.json" not in manifest.files:
        return True
    if name.startswith("pseudo_labels/") or name == "scores.parquet":
        return False
    finished = [
        other for other in manifest.files if other.startswith(folder) and other.endswith("/state.json") and "/progress/" not in other
    ]
    last = max(finished, key=lambda other: int(other.removeprefix(folder).partition("-")[0]))  # 100 comes after 99
    return name != "model.safetensors" or f"{folder}{stage}/state.json" == last


def restore_folder(
    objects: Objects, manifest: Manifest, folder: Path, *, keep: bool, log: Log, needed: Callable[[str, Manifest], bool] = is_needed
) -> Restored:  # fmt: skip
    """Bring what a manifest names to a folder.

    Args:
        objects: The run's objects.
        manifest: The state.
        folder: The run's on this machine.
        keep: Files that are there are newer than the manifest and stay as they are; else the folder becomes what the manifest names.
        log: Takes a line for each spare part that is damaged.
        needed: Which files to bring.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = Restored()
    if not keep:
        _remove_others(folder, manifest, done)
    there = {path.relative_to(folder).as_posix() for path in visible_files(folder)}
    missing = {
        path: part for path, part in manifest.files.items()
        if path not in there and needed(path, manifest) and not (keep and _was_dropped(path, there))
    }  # fmt: skip
    paths: dict[Part, list[str]] = {}  # several files may have the same content
    for path, part in missing.items():
        paths.setdefault(part, []).append(path)
    with ThreadPoolExecutor(PARALLEL) as pool:
        found = dict(zip(paths, pool.map(lambda entry: _bring(objects, entry[0], entry[1], folder, done), paths.items()), strict=True))
    for path, part in missing.items():
        if not (problem := found[part]):
            continue
        done.damaged.add(part.key)
        if any(spare in f"/{path}" for spare in _SPARE):
            done.left_out.add(path)
            log(f"warning: {objects.uri}/{part.key}: {problem}; it held {path}, which is made anew or has an older one")
        else:
            done.lost.append(f"{objects.uri}/{part.key}: {problem}; it held {path}")
    for path, segments in manifest.logs.items():
        if path not in there:
            _bring_log(objects, path, segments, folder, done, log)
    return done


def _bring(objects: Objects, part: Part, paths: list[str], folder: Path, done: Restored) -> str:
    """Fetch a part to the files that hold it; returns what is wrong with it, or nothing."""
    first, *others = (inside(folder, path) for path in paths)
    temporary = first.with_name(f".{first.name}.fetched")
    try:
        if objects.download(part.key, temporary) != part.sha256:
            temporary.unlink()
            return "the part was damaged since it was written"
    except FileNotFoundError:
        temporary.unlink(missing_ok=True)
        return "the part is missing"
    for other in others:
        with atomic_write(other) as target, temporary.open("rb") as source:
            shutil.copyfileobj(source, target)
        done.uploaded[stamp_of(other)] = part
    temporary.replace(first)
    done.uploaded[stamp_of(first)] = part
    return ""


def _bring_log(objects: Objects, path: str, segments: Iterable[Part], folder: Path, done: Restored, log: Log) -> None:
    target = inside(folder, path)
    temporary, end = target.with_name(f".{target.name}.fetched"), 0
    with temporary.open("wb") as file:
        for segment in segments:
            try:
                content = objects.read(segment.key)
            except FileNotFoundError:
                content = b""
            if hashlib.sha256(content).hexdigest() != segment.sha256:
                log(f"warning: {objects.uri}/{segment.key}: a part of the log {path} is missing or damaged; its events are lost")
                done.cuts.setdefault(path, end)
                content = lost_lines(segment.size)
            file.write(content)
            end += segment.size
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)


def _remove_others(folder: Path, manifest: Manifest, done: Restored) -> None:
    """Remove files that are not as the manifest has them; logs are brought anew."""
    for path in list(visible_files(folder)):
        part = manifest.files.get(path.relative_to(folder).as_posix())
        if part is None or path.stat().st_size != part.size or io.sha256(str(path)) != part.sha256:
            path.unlink()
        else:
            done.uploaded[stamp_of(path)] = part


def _was_dropped(path: str, there: set[str]) -> bool:
    """Return whether a file is of a checkpoint that this machine has removed since: its stage is finished, or has two newer ones."""
    stage, found, rest = path.partition("/progress/")
    if not found:
        return False
    if f"{stage}/state.json" in there:
        return True
    checkpoint = rest.partition("/")[0]
    kept = {name.removeprefix(f"{stage}/progress/").partition("/")[0] for name in there if name.startswith(f"{stage}/progress/")}
    return "-epoch-" in checkpoint and checkpoint not in kept and sum("-epoch-" in name for name in kept) > 1
