"""`dist-teracon inspect`: what a person reads of a data set is what is in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.inspection import inspect_lines
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.schema import SplitRule
from dist_teracon.data.summary import dataset_lines
from dist_teracon.errors import DataError
from dist_teracon.hashing import stable_hash

ITEMS = ["겨울 코트", "날씨", "딸기\x1b[2J케이크", "지하철 노선도"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve users `회원 0` …; user n has n + 1 items, the n-th first, and an age but for user 3; the fourth item of user 3 is unseen."""
    lengths = np.arange(1, 13)
    values = np.concatenate([(np.arange(length) + length - 1) % 4 for length in lengths]).astype(np.int32)
    values[6 + 3] = -1
    names = [f"회원 {user}" for user in range(12)]
    hashes = np.array([stable_hash(name) for name in names], dtype=np.uint64)
    aged = np.delete(np.arange(12), 3)
    tables = Tables(
        name="검색",
        items=ITEMS,
        sequences=SequenceTable(names, hashes, values, np.concatenate([[0], np.cumsum(lengths)])),
        labels=[LabelTable("age", "profile", ["20대", "30대"], aged, (aged % 2).astype(np.int32), np.arange(12))],
        length_limit=12,
    )
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(tables, str(folder), SplitRule(train=0.5, validation=0.25, test=0.25), shards=3)
    return Dataset(str(folder))


def users_shown(lines: list[str]) -> list[str]:
    return [line.removeprefix("user ") for line in lines if line.startswith("user ")]


def test_a_user_reads_as_the_raw_data_had_them(dataset: Dataset) -> None:
    lines = inspect_lines(dataset, user="회원 3")
    start = lines.index("user 회원 3")
    assert lines[start + 1 : start + 3] == [
        "  history, 4 items, oldest first:",
        "    지하철 노선도 · 겨울 코트 · 날씨 · (unseen item)",
    ]
    assert "  age: no label" in lines


def test_labels_stand_with_their_split(dataset: Dataset) -> None:
    split = {}
    for shard in range(3):
        labels = dataset.labels("age", shard)
        for row, value, part in zip(labels.users, labels.values, labels.split, strict=True):
            split[dataset.table(f"users/shard-{shard:05d}.parquet")["user_id"][int(row)].as_py()] = (int(value), int(part))
    for user in ("회원 0", "회원 5", "회원 11"):
        value, part = split[user]
        assert f"  age, {('training', 'validation', 'test')[part]}: {('20대', '30대')[value]}" in inspect_lines(dataset, user=user)


def test_the_last_item_is_the_first_tasks_label(dataset: Dataset) -> None:
    line = next(line for line in inspect_lines(dataset, user="회원 1") if line.startswith("  next, "))
    assert line.endswith(": 딸기�[2J케이크 (the last item)")


def test_counts_and_frequent_names(dataset: Dataset) -> None:
    lines = inspect_lines(dataset, task="age")
    assert lines[0] == "검색: 12 users, 4 items, 78 events"
    assert "most frequent labels of age: 30대 (6) · 20대 (5)" in lines or "most frequent labels of age: 20대 (6) · 30대 (5)" in lines
    assert any(line.startswith("most frequent items: ") for line in lines)
    assert any(line.split() == ["age", "profile", "2", "11", *map(str, dataset.info.task("age").examples)] for line in lines)


def test_prepare_names_the_tasks_whose_scores_are_mostly_chance(dataset: Dataset) -> None:
    """Parts of fewer than 30 examples, and those alone."""
    next_task, age = dataset.info.tasks
    many = replace(age, name="many", examples=(100, 30, 30))
    text = " ".join(line.strip() for line in dataset_lines(replace(dataset.info, tasks=(next_task, age, many))))
    named = f"next ({next_task.examples[1]}; {next_task.examples[2]}), age ({age.examples[1]}; {age.examples[2]}); `split`"
    assert f"few for validation, which chooses epochs, or the test: {named}" in text
    enough = dataset_lines(replace(dataset.info, tasks=(many,)))
    assert not any("few for validation" in line for line in enough)


@pytest.mark.parametrize("count", [1, 3, 12, 50])
def test_so_many_users_are_shown_each_once(dataset: Dataset, count: int) -> None:
    shown = users_shown(inspect_lines(dataset, users=count))
    assert len(shown) == len(set(shown)) == min(count, 12)
    assert "회원 3" not in users_shown(inspect_lines(dataset, users=50, task="age"))


def test_long_histories_show_the_newest_items_and_lines_fit(tmp_path: Path) -> None:
    values = np.arange(100, dtype=np.int32)
    tables = Tables(
        name="long",
        items=[f"검색어 {number} " + "가" * 50 for number in range(100)],
        sequences=SequenceTable(list("abc"), np.arange(3, dtype=np.uint64), np.tile(values, 3), np.arange(0, 400, 100)),
        labels=[],
        length_limit=100,
    )
    write_dataset(tables, str(tmp_path / "set"), SplitRule(train=0.4, validation=0.3, test=0.3), shards=1)
    lines = inspect_lines(Dataset(str(tmp_path / "set")), user="b")
    assert "  history, 100 items, oldest first (70 older ones are not shown):" in lines
    assert max(map(cell_len, lines)) <= 80
    shown = "\n".join(lines).partition("oldest first")[2].split()
    assert "70" in shown
    assert "69" not in shown


def test_a_user_or_task_that_is_not_there(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="no user '회원 99'; did you mean '회원"):
        inspect_lines(dataset, user="회원 99")
    assert main(["inspect", dataset.uri, "--task", "agee"]) == 2
    assert "has no task 'agee'; did you mean 'age'?" in capsys.readouterr().err
    assert main(["inspect", f"{dataset.uri}/none"]) == 2
    assert "no data set there" in capsys.readouterr().err


def test_the_command_takes_any_data_set(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path))
    assert main(["inspect", "synthetic:six-tasks-v1?users=60", "--users", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("six-tasks-v1: 60 users, 5,000 items, ")
    assert len(users_shown(lines)) == 2
    assert max(map(cell_len, lines)) <= 80
