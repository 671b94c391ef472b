"""Reading a run from a store: the newest manifest's files, checked, in a folder that does not change."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import uuid4

import pytest

from dist_teracon.errors import RunError
from dist_teracon.store.manifest import Manifest, Part
from dist_teracon.store.objects import Objects
from dist_teracon.store.view import fetch_view
from dist_teracon.train.run_folder import RunFolder


@pytest.fixture
def objects() -> Objects:
    return Objects(f"memory://bucket/{uuid4().hex}/run")


def stored(objects: Objects, content: bytes, key: str | None = None) -> Part:
    sha256 = hashlib.sha256(content).hexdigest()
    objects.write(key or f"parts/{sha256}", content)
    return Part(key or f"parts/{sha256}", sha256, len(content))


def commit(objects: Objects, number: int, files: dict[str, bytes], log: tuple[bytes, ...] = ()) -> Manifest:
    segments = tuple(stored(objects, content, f"logs/events/{number}-{index}") for index, content in enumerate(log))
    manifest = Manifest(number, "id", {path: stored(objects, content) for path, content in files.items()}, {"events.jsonl": segments})
    assert objects.create(manifest.key, manifest.to_bytes())
    return manifest


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_view_holds_the_newest_state_and_an_older_view_stays(objects: Objects, tmp_path: Path) -> None:
    commit(objects, 1, {"config.yaml": b"a", "stages/01-x/state.json": b"1"}, (b"one\n",))
    first = fetch_view(objects.uri, tmp_path)
    commit(objects, 2, {"config.yaml": b"a", "stages/01-x/state.json": b"2"}, (b"one\n", b"two\n"))
    second = RunFolder.open_for_reading(objects.uri, tmp_path).path
    assert content(first) == {"config.yaml": b"a", "stages/01-x/state.json": b"1", "events.jsonl": b"one\n"}
    assert content(second) == {"config.yaml": b"a", "stages/01-x/state.json": b"2", "events.jsonl": b"one\ntwo\n"}


def test_only_what_is_wanted_is_brought_and_brought_once(objects: Objects, tmp_path: Path) -> None:
    manifest = commit(objects, 1, {"config.yaml": b"a", "stages/01-x/model.safetensors": b"weights"})
    objects.delete([manifest.files["stages/01-x/model.safetensors"].key])  # would be missed if it were asked for
    view = fetch_view(objects.uri, tmp_path, wanted=lambda path: path == "config.yaml")
    assert content(view) == {"config.yaml": b"a"}
    objects.delete([manifest.files["config.yaml"].key])
    assert fetch_view(objects.uri, tmp_path, wanted=lambda path: path == "config.yaml") == view


def test_a_damaged_part_is_refused_by_name_and_leaves_no_view(objects: Objects, tmp_path: Path) -> None:
    part = commit(objects, 1, {"config.yaml": b"a", "model.safetensors": b"weights"}).files["model.safetensors"]
    objects.write(part.key, b"weighty")
    with pytest.raises(RunError, match=rf"{part.key}: was damaged.*model\.safetensors"):
        fetch_view(objects.uri, tmp_path)
    assert content(tmp_path) == {}
    objects.delete([part.key])
    with pytest.raises(RunError, match="a part of the run is missing"):
        fetch_view(objects.uri, tmp_path)


def test_a_lost_segment_of_a_log_keeps_its_place(objects: Objects, tmp_path: Path) -> None:
    lines = (b'{"event": "run", "time": 1}\n', b'{"event": "stage", "time": 2}\n')
    first = commit(objects, 1, {}, lines).logs["events.jsonl"][0]
    objects.write(first.key, b"x" * first.size)
    log = (fetch_view(objects.uri, tmp_path) / "events.jsonl").read_bytes()
    assert log == b'{"event": "lost"}' + b" " * (first.size - 18) + b"\n" + lines[1]


def test_the_manifest_before_a_damaged_one_counts(objects: Objects, tmp_path: Path) -> None:
    commit(objects, 1, {"config.yaml": b"a"})
    second = commit(objects, 2, {"config.yaml": b"b"})
    objects.write(second.key, second.to_bytes().replace(b'"number": 2', b'"number": 3'))
    assert content(fetch_view(objects.uri, tmp_path))["config.yaml"] == b"a"
    objects.write(second.key, second.to_bytes()[:40])
    assert content(fetch_view(objects.uri, tmp_path))["config.yaml"] == b"a"


def test_where_no_run_is_one_error_says_so(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run"):
        fetch_view(objects.uri, tmp_path)
    with pytest.raises(RunError, match="cannot be reached"):
        fetch_view("nosuch://bucket/run", tmp_path)


def test_a_manifest_cannot_name_a_file_outside_of_the_view(objects: Objects, tmp_path: Path) -> None:
    commit(objects, 1, {"../../escaped": b"x"})
    with pytest.raises(RunError, match="outside of the run"):
        fetch_view(objects.uri, tmp_path / "cache")
    assert not list(tmp_path.rglob("escaped"))


def test_create_is_won_once(objects: Objects) -> None:
    assert objects.create("lease/1", b"mine")
    assert objects.create("lease/1", b"mine")  # an answer that was lost: the same content is one's own
    assert not objects.create("lease/1", b"theirs")
    assert objects.read("lease/1") == b"mine"
