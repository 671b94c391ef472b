"""A folder and its states on a store: what is sent, kept, removed, brought back; no training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from dist_teracon.errors import DataError, RunError
from dist_teracon.store import mirror as mirror_module
from dist_teracon.store.commits import send_files
from dist_teracon.store.manifest import newest_manifests
from dist_teracon.store.mirror import Mirror, Patience
from dist_teracon.store.objects import Objects
from dist_teracon.store.restore import is_needed
from dist_teracon.store.view import fetch_view

SHORT = Patience(lease_s=0.5, store_s=5.0, pseudo_labels_s=0.1, at_stop_s=2.0)


@pytest.fixture
def uri() -> str:
    return f"memory://bucket/{uuid4().hex}/run"


@contextmanager
def mirrored(uri: str, folder: Path, *, patience: Patience = SHORT, said: list[str] | None = None) -> Iterator[Mirror]:
    mirror = Mirror(uri, folder, patience=patience, log=[].append if said is None else said.append)
    mirror.open()
    failed = True
    try:
        yield mirror
        failed = False
    finally:
        mirror.close(failed=failed)


def put(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(content)
        temporary.replace(path)


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_text() for path in files}
    return {name: text for name, text in named.items() if not any(part.startswith(".") for part in name.split("/"))}


def stored(uri: str, tmp_path: Path) -> dict[str, str]:
    return content(fetch_view(uri, tmp_path / "views"))


def parts(uri: str) -> int:
    return len(Objects(uri).names("parts"))


def test_a_state_is_seen_whole_and_two_are_kept(uri: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with mirrored(uri, here) as mirror:
        for number in range(5):
            put(here, config="same", results=f"{number}", stages__01__progress__phase=f"checkpoint {number}")
            mirror.commit(wait=True)
            assert stored(uri, tmp_path)["results"] == f"{number}"
        assert parts(uri) == 1 + 2 + 2  # the configuration, and two states of the others
        assert len(Objects(uri).names("manifests")) == 2
    assert not list((here / ".uploads").iterdir())


def test_what_is_not_changed_makes_no_state(uri: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with mirrored(uri, here) as mirror:
        put(here, config="a")
        mirror.commit(wait=True)
        before = newest_manifests(Objects(uri))[0]
        mirror.commit(wait=True)
        assert newest_manifests(Objects(uri))[0] == before


def test_checkpoints_leave_a_state_with_the_folder_and_other_files_stay(uri: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with mirrored(uri, here) as mirror:
        put(here, results="a", stages__01__progress__phase="checkpoint")
        mirror.commit(wait=True)
        (here / "results").unlink()  # as a cleaner of temporary files would
        (here / "stages/01/progress/phase").unlink()
        put(here, stages__01__state="finished")
        mirror.commit(wait=True)
    assert stored(uri, tmp_path) == {"results": "a", "stages/01/state": "finished"}


def test_an_empty_machine_gets_the_newest_state_and_a_folder_of_another_one_is_made_equal_to_it(uri: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with mirrored(uri, one) as mirror:
        put(one, config="a", results="1", old="x")
        mirror.commit(wait=True)
    with mirrored(uri, other) as mirror:
        assert content(other) == {"config": "a", "results": "1", "old": "x"}
        put(other, results="2")
        mirror.commit(wait=True)
    put(one, results="stray", more="stray")
    with mirrored(uri, one):
        assert content(one) == {"config": "a", "results": "2", "old": "x"}


def test_the_machine_that_wrote_last_keeps_what_was_not_sent(uri: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with mirrored(uri, here) as mirror:
        put(here, config="a", results="1")
        mirror.commit(wait=True)
    put(here, results="2", more="b")  # a kill came before the next commit
    (here / "config").unlink()
    with mirrored(uri, here) as mirror:
        assert content(here) == {"config": "a", "results": "2", "more": "b"}
        mirror.commit(wait=True)
    assert stored(uri, tmp_path) == {"config": "a", "results": "2", "more": "b"}


def test_a_manifest_whose_process_died_before_it_noted_it_is_ones_own(uri: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with mirrored(uri, here) as mirror:
        put(here, results="1")
        mirror.commit(wait=True)
        commits = mirror._commits
        assert commits is not None
        commits.write_mark = lambda pending="": type(commits).write_mark(commits, pending) if pending else None  # type: ignore[method-assign]
        put(here, results="2")
        mirror.commit(wait=True)
    put(here, results="3")
    with mirrored(uri, here):
        assert content(here) == {"results": "3"}


def test_a_log_grows_by_segments_and_is_replaced_from_a_cut_on(uri: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    log = here / "events.jsonl"
    with mirrored(uri, here) as mirror:
        log.write_text("one\n")
        mirror.commit(wait=True)
        log.write_text("one\ntwo\nhal")
        mirror.commit(wait=True)
        assert stored(uri, tmp_path)["events.jsonl"] == "one\ntwo\n"
        assert [segment.size for segment in newest_manifests(Objects(uri))[0][0].logs["events.jsonl"]] == [4, 4]
    with mirrored(uri, tmp_path / "other") as mirror:
        log = tmp_path / "other/events.jsonl"
        assert log.read_text() == "one\ntwo\n"
        log.write_text("one\nTWO\nthree\n")
        mirror.cut_log("events.jsonl", 4)
        mirror.commit(wait=True)
        log.write_text("one\nTWO\nthree\nfour\n")
        mirror.commit(wait=True)
    assert stored(uri, tmp_path)["events.jsonl"] == "one\nTWO\nthree\nfour\n"
    assert [segment.size for segment in newest_manifests(Objects(uri))[0][0].logs["events.jsonl"]] == [4, 10, 5]


def test_a_damaged_segment_is_told_and_replaced(uri: str, tmp_path: Path) -> None:
    here, said = tmp_path / "here", []
    here.mkdir()
    with mirrored(uri, here) as mirror:
        for lines in ('{"event": "a", "time": 1}\n', '{"event": "a", "time": 1}\n{"event": "b", "time": 2}\n'):
            (here / "events.jsonl").write_text(lines)
            mirror.commit(wait=True)
    first = newest_manifests(Objects(uri))[0][0].logs["events.jsonl"][0]
    Objects(uri).write(first.key, b"x" * first.size)
    with mirrored(uri, tmp_path / "other", said=said) as mirror:
        assert (tmp_path / "other/events.jsonl").read_text().splitlines()[1] == '{"event": "b", "time": 2}'
        mirror.commit(wait=True)
    assert "events are lost" in said[0]
    with mirrored(uri, tmp_path / "third", said=(again := [])):
        assert (tmp_path / "third/events.jsonl").read_bytes() == (tmp_path / "other/events.jsonl").read_bytes()
    assert again == []


def test_parts_that_no_state_names_are_removed_when_the_run_is_taken_up(uri: str, tmp_path: Path) -> None:
    with mirrored(uri, tmp_path / "here") as mirror:
        put(tmp_path / "here", config="a")
        mirror.commit(wait=True)
    Objects(uri).write("parts/orphan", b"sent by a process that was killed")
    with mirrored(uri, tmp_path / "here"):
        assert parts(uri) == 1


def test_a_process_that_had_the_run_before_cannot_commit_any_more(uri: str, tmp_path: Path) -> None:
    slow = Mirror(uri, tmp_path / "one", patience=Patience(lease_s=60, store_s=5, pseudo_labels_s=60, at_stop_s=0.1))
    slow.open()
    put(tmp_path / "one", config="a")
    slow.commit(wait=True)
    objects = Objects(uri)
    newest = max(objects.names("lease"))
    objects.write(f"lease/{newest}", objects.read(f"lease/{newest}").replace(b'"released": false', b'"released": true'))
    with mirrored(uri, tmp_path / "two"):
        put(tmp_path / "one", config="stale")
        with pytest.raises(RunError, match="was taken over by"):
            slow.commit(wait=True)
        assert stored(uri, tmp_path) == {"config": "a"}
    slow.close(failed=True)


def test_even_without_a_look_at_the_lease_a_stale_manifest_is_refused(uri: str, tmp_path: Path) -> None:
    with mirrored(uri, tmp_path / "one") as mirror:
        put(tmp_path / "one", config="a")
        mirror.commit(wait=True)
        commits = mirror._commits
        assert commits is not None
        commits._check = lambda: None  # the lease was looked at just before it was lost
        Objects(uri).write(f"manifests/{commits.base.number + 1:08d}.json", b"{}")
        put(tmp_path / "one", config="stale")
        with pytest.raises(RunError, match="another process has written this run meanwhile"):
            mirror.commit(wait=True)
        mirror._error = None


def test_of_states_that_wait_for_the_store_the_newest_is_sent(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away, write, states = threading.Event(), Objects.create, []

    def create(self: Objects, key: str, content: bytes) -> bool:
        if away.is_set():
            raise DataError("away")
        states.extend([key] if key.startswith("manifests") else [])
        return write(self, key, content)

    monkeypatch.setattr(Objects, "create", create)
    monkeypatch.setattr(mirror_module, "_BACKOFF_S", (0.05,))
    here, said = tmp_path / "here", []
    with mirrored(uri, here, said=said) as mirror:
        away.set()
        for number in range(6):
            put(here, results=f"{number}")
            mirror.commit(wait=False)
        threading.Timer(0.3, away.clear).start()
        mirror.commit(wait=True)
    assert len(states) == 1
    assert stored(uri, tmp_path) == {"results": "5"}
    assert [line.split()[-1] for line in said] == ["again", "again"]


def test_shards_of_pseudo_labels_are_sent_while_the_run_goes_on(uri: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with mirrored(uri, here) as mirror:
        put(here, config="a")
        mirror.commit(wait=True)
        put(here, config="b", stages__02__pseudo_labels__next__shard="c")
        wanted = {"config": "a", "stages/02/pseudo_labels/next/shard": "c"}
        deadline = threading.Event()
        for _ in range(50):
            if stored(uri, tmp_path) == wanted:
                break
            deadline.wait(0.1)
        assert stored(uri, tmp_path) == wanted


def test_files_that_another_machine_has_sent_are_part_of_the_state(uri: str, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", next__shard="c")
    with mirrored(uri, tmp_path / "here") as mirror:
        put(tmp_path / "here", config="a")
        mirror.add_files(send_files(uri, tmp_path / "elsewhere", below="stages/02/pseudo_labels"))
        mirror.commit(wait=True)
        put(tmp_path / "here", config="b")
        mirror.commit(wait=True)
    assert stored(uri, tmp_path) == {"config": "b", "stages/02/pseudo_labels/next/shard": "c"}


def test_of_finished_stages_only_the_last_ones_weights_are_needed(uri: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    names = ("state.json", "model.safetensors", "pseudo_labels/next/shard.arrow", "scores.parquet", "timing.json")
    with mirrored(uri, here) as mirror:
        for stage in ("01-a", "02-b"):
            put(here, **{f"stages/{stage}/{name}": f"{stage} {name}" for name in names})
        put(here, **{"stages/03-c/pseudo_labels/a/shard.arrow": "x", "stages/03-c/progress/phase-0-epoch-00001/state.json": "y"})
        mirror.commit(wait=True)
    newest = newest_manifests(Objects(uri))[0][0]
    left_out = {path for path in newest.files if not is_needed(path, newest)}
    assert left_out == {
        "stages/01-a/model.safetensors", "stages/01-a/pseudo_labels/next/shard.arrow", "stages/01-a/scores.parquet",
        "stages/02-b/pseudo_labels/next/shard.arrow", "stages/02-b/scores.parquet",
    }  # fmt: skip
    with mirrored(uri, tmp_path / "other") as mirror:
        assert set(content(tmp_path / "other")) == set(newest.files) - left_out
        put(tmp_path / "other", results="1")
        mirror.commit(wait=True)
    assert set(stored(uri, tmp_path)) == {*newest.files, "results"}  # what was not brought is still part of the state


def test_variables_that_are_no_seconds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TERACON_LEASE_S", "soon")
    with pytest.raises(RunError, match="DIST_TERACON_LEASE_S=soon: expected a positive number of seconds"):
        Patience.from_environment()
