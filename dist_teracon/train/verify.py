"""Every file of a run or of a data set, held against the checksums that its writer noted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dist_teracon import io
from dist_teracon.continual.pseudo_labels import damage_of
from dist_teracon.data.schema import info_from_json, read_dataset_info
from dist_teracon.errors import DataError, RunError, TeraconError
from dist_teracon.train.run_folder import RunFolder


def verify(uri: str) -> Iterator[tuple[str, str]]:
    """Check a run folder, or a data set anywhere.

    Yields:
        Each file that was checked and what is wrong with it, empty where nothing is.

    Raises:
        RunError: there is neither a run nor a data set.
    """
    if io.is_local(uri) and RunFolder(folder := io.local_path(uri).expanduser()).exists:
        yield from _verify_run(folder)
    elif io.exists(io.join(uri, "dataset.json")):
        yield from _verify_dataset(uri)
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


def _verify_run(path: Path) -> Iterator[tuple[str, str]]:
    folder = RunFolder(path)
    config = folder.config()
    yield str(path / "config.yaml"), ""
    info = info_from_json(folder.dataset_json())
    yield str(path / "dataset.json"), ""
    tasks = config.tasks or tuple(task.name for task in info.tasks)
    yield str(path / "events.jsonl"), _events_problem(path / "events.jsonl")
    if gap := folder.missing_stage(tasks):
        yield gap, "is missing, though later stages are finished"
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
