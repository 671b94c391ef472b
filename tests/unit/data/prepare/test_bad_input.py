"""Bad input: one clear message with its place, and nothing half-written."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_teracon.data.prepare.pipeline import prepare, write_dataset
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.schema import SplitRule
from dist_teracon.errors import ConfigError, DataError, TeraconError
from dist_teracon.hashing import stable_hash

ML_100K = str(Path(__file__).parents[4] / "configs" / "recipes" / "ml-100k.yaml")


def refused(raw: Path, said: str, *, error: type[TeraconError] = DataError, recipe: Any = ML_100K, **options: Any) -> str:
    """Prepare and return what is said; nothing but the raw folder may lie beside it afterwards."""
    before = sorted(path.name for path in raw.parent.iterdir())
    with pytest.raises(error, match=said) as caught:
        prepare("recbole", str(raw), str(raw.parent / "refused"), recipe=recipe, **options)
    assert sorted(path.name for path in raw.parent.iterdir()) == before
    return str(caught.value)


def put(path: Path, line: int, text: str) -> None:
    """Put a line before line `line` (from 1)."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[: line - 1], text, *lines[line - 1 :]]) + "\n")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("1\t2\t3", "wrong number of columns"),
        ("1\t2\t3\t880000000\t9", "wrong number of columns"),
        ("1\t2\tgood\t880000000", "rating:float is not a number"),
        ("1\t2\tinf\t880000000", "rating:float is not a number"),
        ("1\t2\t3\tyesterday", "timestamp:float is not a time"),
        ("1\t2\t3\t2020-13-45", "timestamp:float is not a time"),
        ("1\t2\t3\t", "empty timestamp:float"),
        ("\t2\t3\t880000000", "empty user_id:token"),
        ("1\t\t3\t880000000", "empty item_id:token"),
    ],
)
@pytest.mark.parametrize("blank", [False, True])
def test_a_malformed_row_is_named_by_file_line_and_kind(atomic, row, kind, blank):
    put(atomic / "ml.inter", 17, row)
    if blank:  # blank lines do not count as rows, but as lines
        put(atomic / "ml.inter", 9, "")
    text = refused(atomic, kind, max_bad_rows=0.0)
    assert f"ml.inter:{17 + blank}" in text
    assert "--max-bad-rows 0 allows 0" in text


def test_malformed_rows_within_the_share_are_counted_by_kind_and_left_out(atomic, tmp_path, read):
    clean = prepare("recbole", str(atomic), str(tmp_path / "clean"), recipe=ML_100K)
    for line, row in ((5, "1\t2"), (40, "3\t4"), (77, "1\t2\tx\t880000000"), (400, "1\t2\t3\t4\t5")):
        put(atomic / "ml.inter", line, row)
    said: list[str] = []
    info = prepare("recbole", str(atomic), str(tmp_path / "out"), recipe=ML_100K, max_bad_rows=0.01, log=said.append)
    assert info.notes["malformed_rows"] == {"rating:float is not a number": 1, "wrong number of columns": 3}
    assert [line for line in said if "left out" in line] == [
        "left out malformed rows: 1 × rating:float is not a number", "left out malformed rows: 3 × wrong number of columns",
    ]  # fmt: skip
    assert info.files == clean.files
    text = refused(atomic, "4 of", max_bad_rows=0.0001)
    assert "3 × wrong number of columns, first at" in text
    assert "ml.inter:5: '1\\t2'" in text
    assert "1 × rating:float is not a number, first at" in text
    assert "ml.inter:77: 'x'" in text


def test_a_user_who_comes_twice_keeps_the_first_values(atomic, tmp_path, read):
    clean = prepare("recbole", str(atomic), str(tmp_path / "clean"), recipe=ML_100K)
    put(atomic / "ml.user", 30, "7\t20\tM\tstudent\t1")
    info = prepare("recbole", str(atomic), str(tmp_path / "out"), recipe=ML_100K)
    assert info.files == clean.files
    assert info.notes["conflicting"] == {"age": 1, "gender": 1}  # 17, F and student before


def test_an_attribute_that_is_no_number(atomic):
    lines = (atomic / "ml.user").read_text().splitlines()
    lines[12] = "12\told\tM\tartist\t1"
    (atomic / "ml.user").write_text("\n".join(lines))
    assert "ml.user:13: 'old'" in refused(atomic, "1 × age is not a number")


def test_missing_folders_files_and_columns(atomic, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        prepare("recbole", str(tmp_path / "none"), str(tmp_path / "out"), recipe=ML_100K)
    users = (atomic / "ml.user").read_text()
    (atomic / "ml.user").write_text("")
    refused(atomic, r"ml\.user: is empty")
    (atomic / "ml.user").write_text(users.splitlines()[0] + "\n")
    refused(atomic, r"ml\.user: has no rows")
    (atomic / "ml.user").write_text(users.replace("user_id:token", "user:token"))
    refused(atomic, r"ml\.user:1: no column 'user_id'; did you mean 'user'\?")
    (atomic / "ml.user").write_text(users.replace("age:token", "age"))
    refused(atomic, r"ml\.user:1: column 'age': expected `name:type`")
    (atomic / "ml.user").write_text(users.replace("age:token", "gender:token"))
    refused(atomic, r"ml\.user:1: column 'gender:token' stands there more than once")
    (atomic / "ml.user").unlink()
    refused(atomic, r"tasks\.age\.attribute: the source has no attributes of users", error=ConfigError)
    (atomic / "other.inter").write_text("")
    refused(atomic, r"expected one file \*\.inter, got ml\.inter, other\.inter; `files: ")
    (atomic / "other.inter").unlink()
    (atomic / "ml.inter").unlink()
    refused(atomic, r"no \*\.inter file there")


def test_bytes_that_are_not_text(atomic, tmp_path):
    clean = prepare("recbole", str(atomic), str(tmp_path / "clean"), recipe=ML_100K)
    path = atomic / "ml.inter"
    lines = path.read_bytes().splitlines()
    lines.insert(49, b"1\t\xff\xfe\t3\t880000000")
    path.write_bytes(b"\n".join(lines))
    text = refused(atomic, "1 × bytes that are not UTF-8 text, first at", max_bad_rows=0.0)
    assert "ml.inter:50: '1\\t\ufffd\ufffd\\t3" in text
    info = prepare("recbole", str(atomic), str(tmp_path / "out"), recipe=ML_100K, max_bad_rows=0.01)
    assert info.notes["malformed_rows"] == {"bytes that are not UTF-8 text": 1}
    assert info.files == clean.files
    path.write_bytes(b"\n".join([b"\xe9" + lines[0], *lines[1:]]))
    refused(atomic, r"ml\.inter:1: the names of the columns are not utf-8 text")


def test_a_file_in_another_encoding_or_form_than_its_name_says(atomic):
    path = atomic / "ml.inter"
    text = path.read_text()
    path.write_text(text, encoding="utf-16")
    refused(atomic, r"ml\.inter: expected UTF-8 text, got UTF-16")
    path.unlink()
    (atomic / "ml.inter.gz").write_text(text)
    refused(atomic, r"ml\.inter\.gz: expected content compressed as the name ends \(\.gz\)")


def test_a_file_that_was_cut_off(atomic):
    whole = gzip.compress((atomic / "ml.inter").read_bytes())
    (atomic / "ml.inter").unlink()
    (atomic / "ml.inter.gz").write_bytes(whole[: len(whole) // 2])
    refused(atomic, "cut off")


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "events.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"events\.parquet: cannot be read as Parquet"):
        prepare("events", str(tmp_path / "raw"), str(tmp_path / "out"), recipe=parse_recipe({}))


@pytest.mark.parametrize(
    ("recipe", "said", "error"),
    [
        ({"columns": {"value": "stars"}}, r"columns\.value: .*ml\.inter has no column 'stars'", ConfigError),
        ({"history": {"events": {"type": "x"}}}, r"history\.events\.type: the events have no column of types", ConfigError),
        ({"history": {"events": {"value": "> 9"}}}, "history: no user has 1 or more events; 0 of", DataError),
        ({"history": {"events": {"from": "2020-01-01"}}}, "they run from 1997-11-20 to 1997-11-20", DataError),
        ({"history": {"min_count": 10_000}}, r"history\.min_count: no item occurs 10000 times", DataError),
        ({"tasks": {"t": {"kind": "item", "label": "clas"}}}, r"tasks\.t\.label: .* no column 'clas'; did you mean 'class'", ConfigError),
        ({"tasks": {"t": {"kind": "item", "label": "class"}}}, "task 't': expected two labels or more", DataError),
        ({"tasks": {"t": {"kind": "item", "events": {"value": "> 9"}}}}, "task 't': no user of 80 has a label", DataError),
        ({"tasks": {"agee": {"kind": "profile"}}}, r"tasks\.agee\.attribute: .* no column 'agee'; did you mean 'age'", ConfigError),
        ({"tasks": {"age": {"kind": "profile", "bins": [90]}}}, "task 'age': expected two labels or more", DataError),
        ({"split": {"train": 0.998, "validation": 0.001, "test": 0.001}}, "task 'next': has no validation example", DataError),
    ],
)
def test_recipes_that_do_not_fit_the_data(atomic, recipe, said, error):
    refused(atomic, said, error=error, recipe=parse_recipe(recipe))


def test_options_that_cannot_be(atomic):
    refused(atomic, "--recipe: format 'recbole' requires a recipe", error=ConfigError, recipe=None)
    refused(atomic, "--max-bad-rows: expected a share", error=ConfigError, max_bad_rows=1.5)
    with pytest.raises(ConfigError, match=r"format: no format 'recbol'; did you mean 'recbole'\?"):
        prepare("recbol", str(atomic), str(atomic.parent / "out"), recipe=ML_100K)


def tables(**changes: Any) -> Tables:
    """Return tables of 60 users with three items each and one task."""
    ids = [f"u{user}" for user in range(60)]
    values = np.arange(180, dtype=np.int32) % 5
    sequences = SequenceTable(ids, np.array([stable_hash(user) for user in ids], dtype=np.uint64), values, np.arange(0, 181, 3))
    labels = LabelTable("t", "item", ["a", "b"], np.arange(60), np.arange(60, dtype=np.int32) % 2, np.arange(61))
    fields: dict[str, Any] = {"sequences": sequences, "labels": [labels]}
    for name, value in changes.items():
        part = "sequences" if hasattr(sequences, name) else "labels"
        table = fields[part] if part == "sequences" else fields[part][0]
        table = type(table)(**{**vars(table), name: value})
        fields[part] = table if part == "sequences" else [table]
    return Tables(name="x", items=list("pqrst"), length_limit=3, **fields)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"user_ids": ["u0"] * 60}, "a user id stands there more than once"),
        ({"classes": ["a"]}, "task 't': expected two labels or more"),
        ({"classes": ["a", "b"], "name": "next"}, "two tasks have one name"),
        ({"name": "t\n"}, "'t.n' cannot name a task: expected text of any script"),
        ({"name": "items"}, "'items' cannot name a task: it is reserved"),
    ],
)
def test_tables_that_cannot_be_written(tmp_path, changes, said):
    with pytest.raises(DataError, match=said):
        write_dataset(tables(**changes), str(tmp_path / "out"), SplitRule())
    assert list(tmp_path.iterdir()) == []


def test_items_labels_and_histories_out_of_range(tmp_path):
    whole = tables()
    values = whole.sequences.values.copy()
    values[7] = 5
    offsets = whole.sequences.offsets.copy()
    offsets[4] = offsets[3]
    for sequences, said in (
        (SequenceTable(whole.sequences.user_ids, whole.sequences.user_hash, values, whole.sequences.offsets), "an item lies outside"),
        (SequenceTable(whole.sequences.user_ids, whole.sequences.user_hash, whole.sequences.values, offsets), "user 'u3': has no history"),
    ):
        with pytest.raises(DataError, match=said):
            write_dataset(Tables("x", whole.items, sequences, whole.labels, 3), str(tmp_path / "out"), SplitRule())
    label = whole.labels[0]
    high = LabelTable("t", "item", label.classes, label.users, label.values + np.int32(1), label.offsets)
    with pytest.raises(DataError, match="a label lies outside of its 2 classes"):
        write_dataset(Tables("x", whole.items, whole.sequences, [high], 3), str(tmp_path / "out"), SplitRule())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_writing_fails_midway(tmp_path, monkeypatch):
    from dist_teracon.data.prepare import folder_writer as module

    calls = 0
    write = module.pq.write_table

    def fail(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise OSError(28, "No space left on device")
        write(*arguments, **options)

    monkeypatch.setattr(module.pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(tables(), str(tmp_path / "out"), SplitRule())
    assert list(tmp_path.iterdir()) == []
