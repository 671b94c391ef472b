"""The public TERACON format."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.schema import folder_of
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.hashing import stable_hash


def key(sequence: str, occurrence: int = 1) -> str:
    return f"{stable_hash(sequence):016x}-{occurrence}"


def sequences(count: int, width: int = 6) -> list[str]:
    """Return unpadded sequences, all different."""
    generator = np.random.default_rng(3)
    found: dict[str, None] = {}
    while len(found) < count:
        found[",".join(map(str, generator.integers(1, 30, size=generator.integers(2, width + 1))))] = None
    return list(found)


def padded(sequence: str, width: int = 6) -> str:
    items = sequence.split(",")
    return ",".join(["0"] * (width - len(items)) + items)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six-wide sequences of 60 users: task 1, an item task of some of them, two profiles; task 10 comes after task 2."""
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = sequences(60)
    (raw / "task1_history.csv").write_text("".join(padded(row) + "\n" for row in rows))
    targets = [",".join(str(40 + (place + n) % 7) for n in range(1 + place % 3)) for place in range(50)]
    bought = [f"{padded(row)},,{own}\n" for row, own in zip(rows, targets, strict=False)]
    (raw / "task2_bought.csv").write_text("".join(bought))
    (raw / "task10_gender.csv").write_text("".join(f"{padded(row)},,{place % 2}\n" for place, row in reversed(list(enumerate(rows)))))
    (raw / "task3_city.csv").write_text("".join(f"{padded(row)},,{place}\n" for place, row in enumerate([*rows, *sequences(110)[60:]])))
    return raw


def test_tasks_stand_in_natural_order_with_their_kinds(folder, tmp_path):
    info = prepare("sequence-csv", str(folder), str(tmp_path / "out"))
    assert [(task.name, task.kind, task.labels, task.users) for task in info.tasks] == [
        ("history", "next", 29, 60), ("bought", "item", 7, 50), ("city", "item", 110, 110), ("gender", "profile", 2, 60),
    ]  # fmt: skip
    assert info.length_limit == 6
    assert info.users == 110


def test_a_round_trip_recovers_sequences_and_targets(folder, tmp_path, read):
    prepare("sequence-csv", str(folder), str(tmp_path / "out"))
    back = read(tmp_path / "out")
    rows = sequences(110)
    assert back.sequences == {key(row): row.split(",") for row in rows}
    assert set(back.labels["history"]) == {key(row) for row in rows[:60]}
    for place, row in enumerate(rows[:60]):
        assert [label for label, _ in back.labels["gender"][key(row)]] == [str(place % 2)]
        if place < 50:
            assert [label for label, _ in back.labels["bought"][key(row)]] == [str(40 + (place + n) % 7) for n in range(1 + place % 3)]


def test_equal_sequences_are_several_users_of_one_split(tmp_path, read):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [*sequences(50), *sequences(50)[:20], *sequences(50)[:5]]
    (raw / "task1_a.csv").write_text("".join(padded(row) + "\n" for row in rows))
    (raw / "task2_b.csv").write_text("".join(f"{padded(row)},,{place % 3}\n" for place, row in enumerate(rows)))
    info = prepare("sequence-csv", str(raw), str(tmp_path / "out"))
    assert info.users == 75
    assert info.notes["groups_of_equal_sequences"] == 20
    assert info.notes["users_in_groups_of_equal_sequences"] == 45
    back = read(tmp_path / "out")
    for place, row in enumerate(sequences(50)):
        group = [key(row, number) for number in range(1, 4) if key(row, number) in back.sequences]
        assert len(group) == (3 if place < 5 else 2 if place < 20 else 1)
        assert len({back.labels[task][user][0][1] for user in group for task in ("a", "b")}) == 1
        assert len({back.shard_of_user[user] for user in group}) == 1
    third = key(sequences(50)[0], 3)
    assert [label for label, _ in back.labels["b"][third]] == [str(70 % 3)]


def test_padding_of_another_width_is_the_same_user(tmp_path, read):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = sequences(60)
    (raw / "task1_a.csv").write_text("".join(padded(row) + "\n" for row in rows))
    (raw / "task2_b.csv").write_bytes("".join(f"{padded(row, 9)},,{place % 3}\r\n" for place, row in enumerate(rows)).encode())
    info = prepare("sequence-csv", str(raw), str(tmp_path / "out"))
    assert info.users == 60


def test_numbers_up_to_32_bits_are_items_and_targets(folder, tmp_path, read):
    path = folder / "task2_bought.csv"
    path.write_text(path.read_text() + "0,0,0,0,2147483647,1000000000,,2147483646\n")
    prepare("sequence-csv", str(folder), str(tmp_path / "out"))
    back = read(tmp_path / "out")
    user = key("2147483647,1000000000")
    assert back.sequences[user] == ["2147483647", "1000000000"]
    assert back.labels["bought"][user][0][0] == "2147483646"


def test_compressed_files_are_read(folder, tmp_path):
    plain = prepare("sequence-csv", str(folder), str(tmp_path / "plain"))
    for path in list(folder.glob("*.csv")):
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = prepare("sequence-csv", str(folder), str(tmp_path / "packed"))
    assert (packed.tasks, packed.files) == (plain.tasks, plain.files)


def test_a_recipe_chooses_tasks_kinds_and_split(folder, tmp_path):
    recipe = parse_recipe({
        "name": "mine", "first_task": "watching", "split": {"by": "rows"}, "history": {"length": 4},
        "tasks": {"gender": {"kind": "item"}, "city": {"kind": "profile"}},
    })  # fmt: skip
    info = prepare("sequence-csv", str(folder), str(tmp_path / "out"), recipe=recipe)
    assert [(task.name, task.kind) for task in info.tasks] == [("watching", "next"), ("gender", "item"), ("city", "profile")]
    assert (info.name, info.split.by, info.length_limit) == ("mine", "rows", 4)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"tasks": {"gendre": {"kind": "item"}}}, r"tasks\.gendre: no file holds that task; did you mean 'gender'\?"),
        ({"tasks": {"gender": {"kind": "profile", "bins": [1]}}}, r"tasks\.gender\.bins: this format has its targets in the file"),
        ({"tasks": {"bought": {"kind": "profile"}}}, r"tasks\.bought\.kind: expected 'item', as users have several targets"),
        ({"history": {"minimum": 3}}, r"history\.minimum: this format has its sequences in the file"),
        ({"columns": {"user": "u"}}, "columns: this format has no columns"),
    ],
)
def test_what_a_recipe_cannot_say_here(folder, tmp_path, recipe, said):
    with pytest.raises(ConfigError, match=said):
        prepare("sequence-csv", str(folder), str(tmp_path / "out"), recipe=parse_recipe(recipe))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("0,0,5,x,,7", "a field that is not a whole number"),
        ("0,5,0,9,,7", r"padding \(0\) after the first item"),
        ("0,0,5,-9,,7", "a field that is not a whole number"),
        ("0,0,5,9.5,,7", "a field that is not a whole number"),
        ("0,0,0,0,,7", "a user without history"),
        ("0,0,5,9", "no ',,' with targets"),
        ("0,0,5,9,,7,", "an empty field"),
        ("0,0,5,,9,,7", "more than one ',,'"),
        ("0,0,5,9,,", "an empty field"),
        ("0,0,5,2147483648,,7", "a number above 2147483647"),
        ("0,0,5,9,,9999999999999999999999", "a number above 2147483647"),
    ],
)
def test_malformed_rows_are_counted_by_kind_and_stop_the_job(folder, tmp_path, row, kind):
    path = folder / "task2_bought.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:7], row, *lines[7:]]) + "\n")
    with pytest.raises(DataError, match=kind) as error:
        prepare("sequence-csv", str(folder), str(tmp_path / "out"))
    assert "task2_bought.csv: 1 of 51 rows are malformed; --max-bad-rows 0.001 allows 0" in str(error.value)
    assert f"task2_bought.csv:8: {row!r}" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    info = prepare("sequence-csv", str(folder), str(tmp_path / "out"), max_bad_rows=0.05)
    assert list(info.notes["malformed_rows"].values()) == [1]
    assert info.task("bought").users == 50


def test_targets_in_the_first_file(folder, tmp_path):
    (folder / "task1_history.csv").write_text((folder / "task10_gender.csv").read_text())
    with pytest.raises(DataError, match=r"60 × targets after ',,' in the first task's file, first at .*task1_history\.csv:1"):
        prepare("sequence-csv", str(folder), str(tmp_path / "out"))


def test_empty_and_missing_files(folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        prepare("sequence-csv", str(tmp_path / "none"), str(tmp_path / "out"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"no \*\.csv file there"):
        prepare("sequence-csv", str(tmp_path / "bare"), str(tmp_path / "out"))
    (folder / "task3_city.csv").write_text("\n\n")
    with pytest.raises(DataError, match=r"task3_city\.csv: is empty"):
        prepare("sequence-csv", str(folder), str(tmp_path / "out"))


def test_one_label_only(folder, tmp_path):
    path = folder / "task10_gender.csv"
    path.write_text(path.read_text().replace(",,1\n", ",,0\n"))
    with pytest.raises(DataError, match=r"task 'gender': expected two labels or more, got '0' alone"):
        prepare("sequence-csv", str(folder), str(tmp_path / "out"))


def test_a_name_that_cannot_be_a_folder_gets_a_short_one(folder, tmp_path):
    plain = prepare("sequence-csv", str(folder), str(tmp_path / "plain"))
    (folder / "task3_city.csv").rename(folder / "task3_\u1112\u1161 1/2 home town.csv".replace("/", "∕"))
    info = prepare("sequence-csv", str(folder), str(tmp_path / "out"))
    (name,) = {task.name for task in info.tasks} - {task.name for task in plain.tasks}
    assert name == "하 1∕2 home town"
    assert {path.name for path in (tmp_path / "out" / "tasks").iterdir()} == {folder_of(task.name) for task in info.tasks}
    assert folder_of(name).isascii()
    files = [path.read_bytes() for path in sorted((tmp_path / "out" / "tasks" / folder_of(name)).iterdir())]
    assert files == [path.read_bytes() for path in sorted((tmp_path / "plain" / "tasks" / "city").iterdir())]
