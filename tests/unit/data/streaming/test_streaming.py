"""Preparation in blocks and partitions: the same bytes whatever their sizes, damage told, nothing half-visible, work resumed."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_teracon.console import NoProgress
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.raw import files as files_module
from dist_teracon.data.raw.files import LineBlocks
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.streaming import source as sequence_source
from dist_teracon.data.streaming import spill, vocabulary
from dist_teracon.data.streaming.source import _identify
from dist_teracon.data.streaming.spill import Partitioning
from dist_teracon.data.streaming.vocabulary import NumberCounts, NumberPlaces, by_count
from dist_teracon.data.synthetic.ttl import raw_files
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.hashing import stable_hash

PACKED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


def digest(folder: Path) -> dict[str, str]:
    """Return the checksum of every file of a data set."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Raw files of 400 users, some of them twice in a file, some in later files alone."""
    folder = tmp_path_factory.mktemp("ttl") / "raw"
    raw_files(str(folder), users=400)
    for path in folder.iterdir():
        lines = path.read_text().splitlines()
        extra = lines[5:25] + lines[7:12]
        if "pretrain" not in path.name:
            extra += [f"0,0,{n},77,{n + 1},,{n % 3}" for n in range(1, 30)]
        path.write_text("\n".join(lines + extra) + "\n")
    return folder


@pytest.fixture(scope="module")
def plain(raw, tmp_path_factory) -> Path:
    """The data set that preparation makes of the raw files as it is set up."""
    out = tmp_path_factory.mktemp("made") / "out"
    prepare("ttl", str(raw), str(out))
    return out


@pytest.fixture(scope="module")
def made(plain) -> dict[str, str]:
    return digest(plain)


@pytest.mark.parametrize("block", [1, 700, 4096, 1 << 22])
def test_the_size_of_a_block_changes_nothing(raw, made, tmp_path, block):
    if block == 1:  # every byte by itself takes long
        small = tmp_path / "small"
        small.mkdir()
        for path in raw.iterdir():
            (small / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[-60:]))
        raw = small
        prepare("ttl", str(raw), str(tmp_path / "whole"))
        made = digest(tmp_path / "whole")
    prepare("ttl", str(raw), str(tmp_path / "out"), block=block)
    assert digest(tmp_path / "out") == made


@pytest.mark.parametrize("partitions", [1, 2, 8, 64])
def test_the_number_of_partitions_changes_nothing(raw, made, tmp_path, partitions, monkeypatch):
    monkeypatch.setattr(Partitioning, "for_size", classmethod(lambda cls, size, shards: cls(partitions)))
    monkeypatch.setattr(spill, "_PENDING", 500)
    prepare("ttl", str(raw), str(tmp_path / "out"))
    assert digest(tmp_path / "out") == made


@pytest.mark.parametrize(("shards", "partitions"), [(1, 256), (3, 256), (4, 256), (11, 256), (11, 4)])  # the last has several a partition
def test_any_number_of_shards_holds_the_same_users(raw, plain, tmp_path, shards, partitions, read, monkeypatch):
    monkeypatch.setattr(spill, "_MOST_PARTITIONS", partitions)
    prepare("ttl", str(raw), str(tmp_path / "out"), shards=shards)
    found, want = read(tmp_path / "out"), read(plain)
    assert (found.labels, found.sequences) == (want.labels, want.sequences)


@pytest.mark.parametrize("ending", [*PACKED, "crlf", "cr", "bom", "no end"])
def test_however_a_text_is_packed_it_is_the_same(raw, made, tmp_path, ending):
    source = tmp_path / "packed"
    source.mkdir()
    for path in raw.iterdir():
        content = path.read_bytes()
        changed = {
            "crlf": content.replace(b"\n", b"\r\n"),
            "cr": content.replace(b"\n", b"\r"),
            "bom": b"\xef\xbb\xbf" + content,
            "no end": content.removesuffix(b"\n"),
        }
        if ending in PACKED:
            (source / (path.name + ending)).write_bytes(PACKED[ending](content))
        else:
            (source / path.name).write_bytes(changed[ending])
    prepare("ttl", str(source), str(tmp_path / "out"), block=1000)
    found = digest(tmp_path / "out")
    assert {name: sum_ for name, sum_ in found.items() if name != "dataset.json"} == {
        name: sum_ for name, sum_ in made.items() if name != "dataset.json"
    }


def test_a_task_in_parts_is_one_task(tmp_path, raw, read):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    for number, name in enumerate(("pretrain", "age"), 1):
        lines = (raw / f"original_desen_{name}.csv").read_text().splitlines(keepends=True)
        (whole / f"task{number}_{name}.csv").write_text("".join(lines))
        (parts / f"task{number}_{name}").mkdir()
        for part, start in enumerate(range(0, len(lines), 50)):
            (parts / f"task{number}_{name}" / f"part-{part}.csv").write_text("".join(lines[start : start + 50]))
    one, other = (prepare("sequence-csv", str(folder), str(tmp_path / f"{folder.name}-out")) for folder in (whole, parts))
    assert one.files == other.files
    assert one.tasks == other.tasks


def test_rare_items_are_unseen(raw, tmp_path, read):
    info = prepare("ttl", str(raw), str(tmp_path / "out"), min_count=3)
    plain = prepare("ttl", str(raw), str(tmp_path / "plain"))
    counts: dict[str | None, int] = {}
    for items in read(tmp_path / "plain").sequences.values():
        for item in items:
            counts[item] = counts.get(item, 0) + 1
    assert info.items == 2 + sum(count >= 3 for count in counts.values()) < plain.items
    rare = {user: [item if counts[item] >= 3 else None for item in items] for user, items in read(tmp_path / "plain").sequences.items()}
    assert read(tmp_path / "out").sequences == rare
    with pytest.raises(ConfigError, match="--min-count: expected 1 or more"):
        prepare("ttl", str(raw), str(tmp_path / "no"), min_count=0)
    with pytest.raises(DataError, match="--min-count: no item occurs 100000 times"):
        prepare("ttl", str(raw), str(tmp_path / "no"), min_count=100_000)


# -- who is who


@given(st.lists(st.lists(st.integers(0, 6), max_size=12), min_size=1, max_size=4))
def test_users_are_hash_and_occurrence_in_order_of_appearance(files):
    rows: dict[tuple[int, int], int] = {}
    users, first = [], []
    for file in files:
        for place, key in enumerate(file):
            user = (key, file[:place].count(key) + 1)
            if rows.setdefault(user, len(rows)) == len(first):
                first.append(len(users))
            users.append(rows[user])
    user_of_record, first_record, occurrence = _identify([np.array(file, dtype=np.uint64) for file in files])
    assert user_of_record.tolist() == users
    assert first_record.tolist() == first
    assert occurrence.tolist() == [occurrence for _, occurrence in rows]


@mock.patch.object(vocabulary, "_DENSE", 1 << 10)  # plain arrays of 2²⁴ take long to fill
@given(st.lists(st.lists(st.integers(0, 40) | st.integers(2**10 - 2, 2**31 - 1), max_size=20), max_size=5), st.integers(1, 3))
def test_vocabularies_of_small_and_large_numbers(parts, least):
    counts = NumberCounts()
    for part in parts:
        counts.add(np.array(part, dtype=np.int32))
    flat = [value for part in parts for value in part]
    want = sorted((value for value in set(flat) if flat.count(value) >= least), key=lambda value: (-flat.count(value), value))
    assert by_count(*counts.found(), min_count=least).tolist() == want
    places = NumberPlaces(np.array(want, dtype=np.int64))
    asked = [*flat, 0, 7, 2**10, 2**31 - 1]
    assert places.of(np.array(asked, dtype=np.int32)).tolist() == [want.index(value) if value in want else -1 for value in asked]


# -- lines


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"", b"\xef\xbb\xbf", b"bc"]), max_size=25), st.integers(1, 9))
def test_lines_are_those_of_pythons_own_reader(tmp_path, pieces, size):
    path = tmp_path / "text"
    path.write_bytes(b"".join(pieces))
    want = [line.rstrip("\n") for line in io.TextIOWrapper(io.BytesIO(path.read_bytes()), encoding="utf-8-sig")]
    blocks, lines = LineBlocks(str(path), size=size), []
    for block in blocks:
        assert block.first == len(lines) + 1
        lines += block.content.decode().split("\n")[:-1]
    assert lines == want
    assert blocks.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_line_without_end_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "_LONGEST_LINE", 5000)
    (tmp_path / "x").write_bytes(b"1,2\n" + b"7" * 20_000)
    with pytest.raises(DataError, match=r"x:2: the line is longer than"):
        list(LineBlocks(str(tmp_path / "x"), size=1000))


# -- damage


@pytest.mark.parametrize("ending", PACKED)
def test_packed_files_that_were_cut_off(raw, tmp_path, ending):
    source = tmp_path / "packed"
    source.mkdir()
    for path in raw.iterdir():
        content = PACKED[ending](path.read_bytes())
        (source / (path.name + ending)).write_bytes(content[: len(content) // 2] if "gender" in path.name else content)
    with pytest.raises(DataError, match=rf"original_desen_gender\.csv\{ending}:\d+: cannot be read on .*was the file cut off\?"):
        prepare("ttl", str(source), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_malformed_rows_are_told_one_by_one(raw, tmp_path):
    source = tmp_path / "raw"
    source.mkdir()
    for path in raw.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    bad = {10: b"5,x,,1", 20: b"5,\xff\xfe,,1", 30: b"0,0,,1", 31: b"4,4", 32: b"4,4", 40: b"", 50: b"0,5,,99999999999"}
    path = source / "original_desen_age.csv"
    lines = path.read_bytes().splitlines()
    rows = len(lines)
    for line, text in sorted(bad.items()):
        lines.insert(line - 1, text)
    path.write_bytes(b"\n".join(lines))
    info = prepare("ttl", str(source), str(tmp_path / "out"), max_bad_rows=0.05, block=300)
    told = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["file"]) for entry in told] == [(line, "original_desen_age.csv") for line in sorted(bad) if bad[line]]
    assert [entry["reason"] for entry in told][:2] == [
        "a field that is not a whole number of 0 or more, or padding (0) after the first item", "bytes that are not UTF-8 text",
    ]  # fmt: skip
    assert told[0]["text"] == "5,x,,1"
    assert info.notes["malformed_rows"]["no ',,' with targets"] == 2
    assert sum(info.notes["malformed_rows"].values()) + info.task("age").users == rows + len(bad) - 1
    assert str(tmp_path) not in (tmp_path / "out" / "rejected.jsonl").read_text()


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u2029", "\x1e"])
def test_a_told_row_is_one_line_to_every_reader(tmp_path, raw, separator):
    source = tmp_path / "raw"
    source.mkdir()
    for path in raw.iterdir():
        (source / path.name).write_bytes(path.read_bytes() + (f"5,é{separator}6,,1\n".encode() if "age" in path.name else b""))
    prepare("ttl", str(source), str(tmp_path / "out"), max_bad_rows=0.9)
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["text"] == f"5,é{separator}6,,1"


def test_only_some_rows_of_a_kind_are_told(tmp_path, raw):
    source = tmp_path / "raw"
    source.mkdir()
    for path in raw.iterdir():
        (source / path.name).write_bytes(path.read_bytes() + (b"x\n" * 250 if "age" in path.name else b""))
    prepare("ttl", str(source), str(tmp_path / "out"), max_bad_rows=0.9)
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 100


class Flaky(MemoryFileSystem):
    """A store whose reads fail now and then."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    failures = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if mode != "rb":
            return file
        content, failing = file.getvalue(), type(self)

        class Reader(io.BytesIO):
            def read(self, size: int = -1) -> bytes:
                if failing.failures > 0 and self.tell() > 100:
                    failing.failures -= 1
                    raise OSError("connection reset")
                return super().read(min(size, 500) if size > 0 else size)

        return Reader(content)


@pytest.fixture
def flaky(raw, monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    for path in raw.iterdir():
        with fsspec.open(f"flaky://raw/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    monkeypatch.setattr("dist_teracon.io.time.sleep", lambda _: None)
    yield Flaky
    Flaky.failures = 0
    Flaky.store.clear()


def test_a_store_that_fails_midway_is_asked_again(flaky, made, tmp_path):
    flaky.failures = 3
    prepare("ttl", "flaky://raw", str(tmp_path / "out"))
    assert flaky.failures == 0
    assert digest(tmp_path / "out")["users/shard-00000.parquet"] == made["users/shard-00000.parquet"]
    assert digest(tmp_path / "out")["dataset.json"] == made["dataset.json"]


def test_a_store_that_goes_on_failing_is_told(flaky, tmp_path):
    flaky.failures = 1000
    with pytest.raises(DataError, match=r"flaky://raw/.*: cannot be read on at byte \d+ after 5 attempts \(connection reset\)"):
        prepare("ttl", "flaky://raw", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_store_whose_client_was_patient_is_asked_once_more(flaky, tmp_path, monkeypatch):
    monkeypatch.setattr("dist_teracon.io.PATIENCE_S", -1.0)
    flaky.failures = 1000
    with pytest.raises(DataError, match=r"cannot be read on at byte \d+ after 2 attempts"):
        prepare("ttl", "flaky://raw", str(tmp_path / "out"))


def test_a_full_disk_is_told_and_leaves_nothing(raw, tmp_path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for target, name in ((spill.Spill, "_write"), (sequence_source.SequenceSource, "iter_shards")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            with pytest.raises(DataError, match="the disk is full; nothing was written to"):
                prepare("ttl", str(raw), str(tmp_path / "out"))
        assert list(tmp_path.iterdir()) == []


# -- stopped and resumed


def test_what_was_read_is_not_read_again_after_a_kill(raw, made, tmp_path):
    """The process is killed while it writes shards; the next one starts from the spilled rows."""
    code = f"""
    import os
    from dist_teracon.data.prepare import pipeline as module
    module.write_dataset_files = lambda *arguments, **options: os._exit(9)
    module.prepare("ttl", {str(raw)!r}, {str(tmp_path / "out")!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".out.preparing"]
    said: list[str] = []
    shown = mock.Mock(spec=NoProgress)
    prepare("ttl", str(raw), str(tmp_path / "out"), log=said.append, progress=shown)
    assert any("goes on from rows that were read before" in line for line in said)
    assert "reading" not in {call.args[0] for call in shown.update.call_args_list}
    assert digest(tmp_path / "out") == made
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_read_for_something_else_is_not_used(raw, tmp_path):
    folder = tmp_path / ".out.preparing" / "spill"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    (tmp_path / ".out.preparing" / "key").write_text("another")
    prepare("ttl", str(raw), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_at_once_do_not_mix(raw, tmp_path):
    from dist_teracon.data.prepare.workspace import workspace

    with workspace(str(tmp_path / "out"), "x", lambda _: None), pytest.raises(DataError, match="another process prepares it"):
        prepare("ttl", str(raw), str(tmp_path / "out"))


def test_a_recipe_names_items_and_lengths_of_a_stream(raw, tmp_path, read):
    recipe = parse_recipe({"history": {"length": 4, "min_count": 2}, "tasks": {"age": {"kind": "item"}}})
    info = prepare("ttl", str(raw), str(tmp_path / "out"), recipe=recipe)
    assert info.length_limit == 4
    assert max(map(len, read(tmp_path / "out").sequences.values())) == 4
    assert [(task.name, task.kind) for task in info.tasks] == [("watching", "next"), ("age", "item")]


def test_the_hash_of_a_user_is_that_of_the_text(raw, tmp_path, read):
    prepare("ttl", str(raw), str(tmp_path / "out"))
    back = read(tmp_path / "out")
    for user, items in back.sequences.items():
        assert int(user.split("-")[0], 16) == stable_hash(",".join(map(str, items)))
