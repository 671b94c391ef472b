"""The files of a run that inference reads: a local folder as it is; a run on a store, written there or copied, through the local cache.

Of a copied run the small files come at every load, and a stage's weights only where the cache does not hold them yet.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from dist_teracon import io
from dist_teracon.atomic import atomic_path
from dist_teracon.data.cache import cache_folder
from dist_teracon.errors import DataError, RunError
from dist_teracon.train.run_folder import RunFolder
from dist_teracon.train.stage_folder import FORMAT_VERSION

_SMALL = ("config.yaml", "dataset.json", "additions.json")


def local_run(uri: str, stage: int | None) -> Path:
    """Return a local folder that holds what inference reads of a run.

    Args:
        uri: The run's folder or URI.
        stage: Which stage's weights, counted from 1; None for the last finished one.

    Raises:
        RunError: there is no run, or a newer version of this program has written it.
    """
    if io.is_local(uri):
        path = io.local_path(uri).expanduser()
        _check(str(path), path)
        return path
    if io.is_folder(io.join(uri, "manifests")):  # a run that was written on the store
        return _view(uri, stage)
    path = cache_folder() / "runs" / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:32]
    _fetch(uri, path, stage)
    _check(uri, path)
    return path


def _view(uri: str, stage: int | None) -> Path:
    """Return the newest state of a run that was written on a store, with the weights of one stage."""

    def small(path: str) -> bool:
        of_stage = path.startswith("stages/") and path.endswith("/state.json") and path.count("/") == 2
        return path in _SMALL or path.startswith("vocab/") or of_stage

    path = RunFolder.open_for_reading(uri, wanted=small).path
    _check(uri, path)
    finished = sorted(state.parent.name for state in path.glob("stages/*/state.json"))
    chosen = finished[-1:] if stage is None else [name for name in finished if name.startswith(f"{stage:02d}-")]
    weights = {f"stages/{name}/model.safetensors" for name in chosen}
    return RunFolder.open_for_reading(uri, wanted=lambda path: path in weights or small(path)).path


def _check(shown: str, path: Path) -> None:
    """Check that a folder is a run that this version reads.

    Raises:
        RunError: it is not.
    """
    if not (path / "config.yaml").exists():
        what = "is no run (config.yaml is missing)" if path.exists() else "no such run"
        raise RunError(f"{shown}: {what}; expected the folder that `dist-teracon train --run` wrote")
    if not (path / "dataset.json").exists():
        raise RunError(f"{shown}: dataset.json is missing; was the run copied in part? copy it again")
    for state in sorted(path.glob("stages/*/state.json")):
        try:
            version = json.loads(state.read_bytes()).get("format_version", FORMAT_VERSION)
        except (ValueError, AttributeError):
            continue  # damage is told where the stage is read
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise RunError(
                f"{shown}: was written by a newer version of dist-teracon (format {version} of {state.parent.name}; this one reads "
                f"{FORMAT_VERSION}); install that version"
            )


def _fetch(uri: str, path: Path, stage: int | None) -> None:
    """Bring a run's small files, its vocabularies and the weights of one stage into the cache."""
    filesystem, root = io.filesystem_of(uri)
    root = str(root).rstrip("/")
    try:
        there = {str(name)[len(root) + 1 :] for name in filesystem.find(root)}
    except FileNotFoundError:
        there = set()
    if "config.yaml" not in there:
        raise RunError(f"{uri}: is no run (config.yaml is missing); expected a copy of the folder that `dist-teracon train --run` wrote")
    states = sorted(name for name in there if PurePosixPath(name).match("stages/*/state.json"))
    small = [name for name in _SMALL if name in there] + states
    kept = [*path.glob("stages/*/state.json"), path / "additions.json"]
    for old in kept:
        if str(old.relative_to(path)) not in there:
            old.unlink(missing_ok=True)
    for name in small:
        _copy(uri, path, name)
    files: dict[str, Any] = io.read_json(str(path / "dataset.json")).get("files", {})
    for name in sorted(name for name in there if PurePosixPath(name).match("vocab/*.parquet")):
        _copy_if_new(uri, path, name, files.get(name, {}).get("sha256"))
    chosen = states[-1:] if stage is None else [name for name in states if name.split("/")[1].startswith(f"{stage:02d}-")]
    for name in chosen:
        weights = f"{name.rpartition('/')[0]}/model.safetensors"
        if weights in there:
            state: dict[str, Any] = io.read_json(str(path / name))
            _copy_if_new(uri, path, weights, state.get("files", {}).get("model.safetensors"))


def _copy_if_new(uri: str, path: Path, name: str, sha256: str | None) -> None:
    if sha256 is None or not (path / name).exists() or io.sha256(str(path / name)) != sha256:
        _copy(uri, path, name)


def _copy(uri: str, path: Path, name: str) -> None:
    """Copy a file of a store into the cache, where it appears whole."""
    source = io.join(uri, name)
    filesystem, remote = io.filesystem_of(source)
    with atomic_path(path / name) as temporary:
        try:
            io.with_retries(source, lambda: filesystem.get_file(remote, str(temporary)))
        except FileNotFoundError:
            raise DataError(f"{source}: no such file; is the run being copied just now?") from None
