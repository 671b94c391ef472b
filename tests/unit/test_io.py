"""Files by URI, a data set opened for reading, and what a person sees of a long loop."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat

import numpy as np
import pytest

from dist_teracon import console as console_module
from dist_teracon import io
from dist_teracon.atomic import atomic_folder, atomic_write, write_json
from dist_teracon.data import open as opening
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.open import open_dataset
from dist_teracon.data.prepare import pipeline
from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.data.synthetic import six_tasks
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.locks import exclusive_lock

# -- writing


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "value.json"
    write_json(path, {"a": [1, 2.5, None, "ü"]})
    assert io.read_json(str(path)) == {"a": [1, 2.5, None, "ü"]}
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["value.json"]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_or_folder_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "results.json", {})
        with atomic_folder(tmp_path / "set"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "results.json").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == 0o777 & ~umask


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "set") as folder:
        (folder / "a").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "set") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "set").exists()
    assert (tmp_path / "set" / "a").read_text() == "x"
    with pytest.raises(DataError, match="is there already"), atomic_folder(tmp_path / "set"):
        pass


def test_a_full_disk_is_named_by_the_file_that_was_written(tmp_path):
    with pytest.raises(OSError, match="No space") as told, atomic_write(tmp_path / "results.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert io.message_of(told.value) == f"{tmp_path}/results.json: the disk is full"
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_system_have_no_number():
    denied = PermissionError(errno.EACCES, "Permission denied", "/sets/dataset.json")
    assert io.message_of(denied) == io.redacted(denied) == "/sets/dataset.json: Permission denied"
    assert io.message_of(DataError("x: no such file")) == "x: no such file"


@pytest.mark.parametrize(("number", "said"), [(errno.EWOULDBLOCK, "in use by me"), (errno.ENOLCK, "{}: its file system has no locks")])
def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, number, said):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "lock").write_text("me")
    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        pytest.raises(DataError, match=said.format(tmp_path)),
        exclusive_lock(tmp_path / "lock", lambda note: DataError(f"in use by {note}")),
    ):
        pass


# -- reading


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"cut.json: not valid JSON"):
        io.read_json(str(tmp_path / "cut.json"))
    with pytest.raises(DataError, match="no such file"):
        io.read_bytes(str(tmp_path / "none"))
    with pytest.raises(DataError, match="no such folder"):
        io.list_folder(str(tmp_path / "none"))


def test_local_and_other_uris(tmp_path):
    assert [io.is_local(uri) for uri in ("a/b", "/a", "file:///a", "s3://b/c", "memory://a")] == [True, True, True, False, False]
    assert str(io.local_path("file:///a/b")) == "/a/b"
    assert io.join("s3://bucket/", "a", "b") == "s3://bucket/a/b"
    (tmp_path / "x").write_bytes(b"abc")
    assert io.sha256(f"file://{tmp_path}/x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# -- a data set


def test_a_data_set_changed_under_its_reader_is_refused(make_dataset, tmp_path):
    whole = make_dataset()
    folder = tmp_path / "set"
    shutil.copytree(whole.uri, folder)
    path = folder / "tasks" / "likes" / "shard-00002.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    changed = Dataset(str(folder))
    assert changed.labels("likes", 1).users.tolist() == whole.labels("likes", 1).users.tolist()
    with pytest.raises(DataError, match=r"shard-00002.parquet: the file is not the one that was prepared"):
        changed.labels("likes", 2)
    with pytest.raises(DataError, match=r"has no task 'like'; did you mean 'likes'\?"):
        changed.info.task("like")
    with pytest.raises(DataError, match="no data set there"):
        Dataset(str(tmp_path))


def test_labels_of_a_split_are_those_of_its_rows(make_dataset):
    dataset = make_dataset()
    for shard in range(dataset.info.shards):
        labels = dataset.labels("likes", shard)
        parts = [labels.of(split) for split in Split]
        assert sorted(np.concatenate([np.repeat(part.users, part.counts) for part in parts])) == sorted(
            np.repeat(labels.users, labels.counts)
        )
        for split, part in zip(Split, parts, strict=True):
            assert (part.split == split).all()
            assert (part.counts > 0).all()
            assert part.offsets[-1] == len(part.values) == (labels.split == split).sum()


def test_training_counts(make_dataset):
    dataset = make_dataset()
    counts = np.zeros(8, dtype=int)
    for shard in range(dataset.info.shards):
        np.add.at(counts, dataset.labels("likes", shard).of(Split.TRAIN).values, 1)
    assert dataset.train_counts("likes").tolist() == counts.tolist()
    assert counts.sum() == dataset.info.task("likes").examples[Split.TRAIN]


# -- a data set by name

NAME = "synthetic:six-tasks-v1?users=200"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_synthetic_set_is_prepared_once(cache, monkeypatch):
    told = []
    first = open_dataset(NAME, log=told.append)
    assert first.info.users == 200
    assert len(told) == 1
    monkeypatch.setattr(six_tasks, "parse_synthetic", lambda uri: pytest.fail("prepared again"))
    assert open_dataset(NAME, log=told.append).info.fingerprint == first.info.fingerprint
    assert len(told) == 1


def test_another_process_that_was_faster_is_no_error(cache, monkeypatch):
    made = six_tasks.parse_synthetic

    def while_another_writes(uri):
        tables = made(uri)
        pipeline.write_dataset(tables, str(cache / "synthetic-six-tasks-v1-users-200"), SplitRule())
        return tables

    monkeypatch.setattr(six_tasks, "parse_synthetic", while_another_writes)
    assert open_dataset(NAME).info.users == 200
    assert [entry.name for entry in cache.iterdir()] == ["synthetic-six-tasks-v1-users-200"]


def test_an_unknown_synthetic_set_leaves_nothing(cache):
    with pytest.raises(ConfigError):
        open_dataset("synthetic:seven-tasks")
    assert not cache.exists()


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.delenv("DIST_TERACON_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(opening.cache_folder()) == "/somewhere/dist-teracon"
    monkeypatch.setenv("DIST_TERACON_CACHE", "/else")
    assert str(opening.cache_folder()) == "/else"


# -- what a person sees


def test_one_process_speaks_for_all(capsys):
    for active in (True, False):
        console = console_module.Console(active=active)
        console.log("hello")
        assert list(console.track(iter(range(5)), 5, "loop")) == [0, 1, 2, 3, 4]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d hello\n", capsys.readouterr().err)


def test_a_long_loop_tells_of_itself_in_plain_lines(capsys, monkeypatch):
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(console_module.time, "monotonic", lambda: float(next(now)))
    assert list(console_module.Console().track(iter("abcde"), 5, "loop")) == list("abcde")
    lines = [line[len("2026-01-01 00:00:00 ") :].replace("\u00a0", " ") for line in capsys.readouterr().err.splitlines()]
    assert lines == ["loop: 2/5, 0.1/s, 1 min left", "loop: 4/5, 0.1/s, 20 s left"]


def test_a_local_name_may_have_two_colons(tmp_path):
    """They chain file systems in URIs of stores alone."""
    folder = tmp_path / "a::b"
    with atomic_folder(folder) as new:
        (new / "x.json").write_text("1")
    assert io.exists(str(folder)) and io.is_folder(str(folder)) and io.list_folder(str(folder)) == ["x.json"]
    assert io.read_json(str(folder / "x.json")) == 1
    assert io.sha256(str(folder / "x.json")) == hashlib.sha256(b"1").hexdigest()
    assert io.filesystem_of(f"file://{folder}")[1] == str(folder)
