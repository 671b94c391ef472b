"""Every file of a run or of a data set, held against the checksums that its writer noted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dist_teracon import io
from dist_teracon.continual.target_store import damage_of
from dist_teracon.data.schema import info_from_json, input_file, read_dataset_info, vocabulary_file
from dist_teracon.errors import DataError, RunError, TeraconError
from dist_teracon.store.manifest import Manifest, is_run, newest_manifests
from dist_teracon.store.objects import Objects
from dist_teracon.train.run_folder import RunFolder


def verify(uri: str) -> Iterator[tuple[str, str]]:
    """Check a run or a data set, on a disk or on a store.

    Yields:
        Each file that was checked and what is wrong with it, empty where nothing is.

    Raises:
        RunError: there is neither a run nor a data set.
    """
    if io.is_local(uri) and RunFolder(folder := io.local_path(uri).expanduser()).exists:
        yield from _verify_run(folder)
    elif io.exists(io.join(uri, "dataset.json")):
        yield from _verify_dataset(uri)
    elif not io.is_local(uri) and is_run(uri):
        yield from _verify_stored_run(uri)
    else:
        raise RunError(f"{uri}: expected a run (config.yaml) or a data set (dataset.json), found neither")


def _verify_dataset(uri: str) -> Iterator[tuple[str, str]]:
    description = io.join(uri, "dataset.json")
    try:
        info = read_dataset_info(uri)
    except DataError as error:
        yield description, str(error)
        return
    yield description, ""
    for path, entry in info.files.items():
        where = io.join(uri, path)
        try:
            yield where, "" if io.sha256(where) == entry.sha256 else "is not as it was prepared"
        except (OSError, DataError) as error:
            yield where, f"cannot be read ({type(error).__name__})"


def _verify_stored_run(uri: str) -> Iterator[tuple[str, str]]:
    """Check every part that the newest state names, and that each stage and checkpoint names the same files as the state does."""
    objects = Objects(uri)
    manifests, problems = newest_manifests(objects)
    for problem in problems:
        yield problem.partition(": ")[0], problem
    if not manifests:
        return
    newest = manifests[0]
    yield f"{uri}/{newest.key}", ""
    entries = [*newest.files.items(), *((path, part) for path, segments in newest.logs.items() for part in segments)]
    for path, part in entries:
        where = f"{uri}/{path} ({part.key})"
        try:
            yield where, "" if objects.sha256(part.key) == part.sha256 else "was damaged since it was written"
        except FileNotFoundError:
            yield where, "is missing"
    for path in newest.files:
        if path.endswith("/state.json"):
            yield from _verify_named(objects, newest, path)


def _verify_named(objects: Objects, manifest: Manifest, path: str) -> Iterator[tuple[str, str]]:
    try:
        named = json.loads(objects.read(manifest.files[path].key)).get("files", {})
    except (FileNotFoundError, ValueError, AttributeError):
        return  # told above
    for name, sha256 in named.items():
        part = manifest.files.get(f"{path.removesuffix('state.json')}{name}")
        if part is None or part.sha256 != sha256:
            yield f"{objects.uri}/{path}", f"{name} is not the file that was written with this state"


def _verify_run(path: Path) -> Iterator[tuple[str, str]]:
    folder = RunFolder(path)
    config = folder.config()
    yield str(path / "config.yaml"), "" if folder.config_is_whole() else "was damaged or changed since it was written"
    info = info_from_json(folder.dataset_json())
    yield str(path / "dataset.json"), ""
    tasks = config.tasks or tuple(task.name for task in info.tasks)
    for name in ("items", *tasks):
        if (copy := path / vocabulary_file(name)).exists():
            yield str(copy), "" if folder.vocabulary(name) is not None else "is not the data set's; it is renewed when the run goes on"
    for name in info.inputs.names:
        if (copy := path / input_file(name)).exists():
            yield str(copy), "" if folder.input_values(name) is not None else "is not the data set's; it is renewed when the run goes on"
    yield str(path / "events.jsonl"), _events_problem(path / "events.jsonl")
    if gap := folder.missing_stage(tasks):
        yield gap, "is missing, though later stages are there"
    for position, task in enumerate(tasks):
        stage = folder.stage(position, task)
        try:
            yield from stage.check()
        except TeraconError as error:
            yield str(stage.path / "state.json"), str(error)
        for shard in sorted(stage.path.glob("pseudo_labels/*/*.arrow")):
            yield str(shard), damage_of(shard)
    if RunFolder(path / "single-task").exists:
        yield from _verify_run(path / "single-task")


def _events_problem(path: Path) -> str:
    if not path.exists():
        return "is missing"
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except ValueError:
                return f"line {number} is no JSON"
    return ""
