"""`prepare … --append` and `--refresh`, day by day: what is left out is counted, what would be mixed is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_teracon.cli import main
from dist_teracon.data.dataset import Shard
from dist_teracon.data.event_columns import EventColumns
from dist_teracon.data.prepare.append_counts import newer_events
from dist_teracon.data.prepare.append_rules import labels_inside
from dist_teracon.data.schema import read_dataset_info

DAY = 86400.0
START = 1_600_000_000.0
RECIPE: dict[str, Any] = {
    "name": "platform",
    "history": {"events": {"type": "view"}, "length": 20, "minimum": 2},
    "tasks": {
        "buys": {"kind": "item", "events": {"type": "buy"}, "targets": 3, "choose": "first"},
        "age": {"kind": "profile", "bins": [30, 50]},
    },
    "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
}


def write_raw(folder: Path, *, days: int, users: int, items: int = 12) -> Path:
    """Write events of so many days: user u has three views and a buy a day, from day 0 on; items from the twelfth on come later."""
    rows: dict[str, list[Any]] = {"user": [], "item": [], "timestamp": [], "type": []}
    for user in range(users):
        for day in range(days):
            for step in range(4):
                rows["user"].append(f"u{user}")
                rows["item"].append(f"i{(7 * user + 5 * day + 3 * step) % (items if day else 12)}")
                rows["timestamp"].append(START + DAY * day + 60 * step)
                rows["type"].append("buy" if step == 3 else "view")
    folder.mkdir()
    pq.write_table(pa.table(rows), folder / "events.parquet")
    ages = {"user": [f"u{user}" for user in range(users)], "age": [str(20 + 7 * user % 50) for user in range(users)]}
    pq.write_table(pa.table({**ages, "city": ["SBI"[user % 3] for user in range(users)]}), folder / "users.parquet")
    return folder


@pytest.fixture
def days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `day1` (40 users) and `day2` (these with one day more, and 20 new ones, and two more items), and day 1 prepared."""
    monkeypatch.chdir(tmp_path)
    write_raw(tmp_path / "day1", days=1, users=40)
    write_raw(tmp_path / "day2", days=2, users=60, items=14)
    assert prepare(RECIPE, "day1", "v1") == 0
    return tmp_path


def prepare(recipe: dict[str, Any], raw: str, out: str, *options: str) -> int:
    Path("r.yaml").write_text(json.dumps(recipe))
    return main(["prepare", "events", raw, out, "--recipe", "r.yaml", *options])


def with_city(**changes: Any) -> dict[str, Any]:
    """Today's recipe: one task more, and changed fields by dotted name."""
    recipe = json.loads(json.dumps({**RECIPE, "tasks": {**RECIPE["tasks"], "city": {"kind": "profile"}}}))
    for name, value in changes.items():
        *path, leaf = name.split("__")
        node = recipe
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return recipe


def test_what_a_version_leaves_out_is_counted_printed_and_noted(days, capsys, read):
    assert prepare(with_city(), "day2", "v2", "--append", "v1") == 0
    printed, told = capsys.readouterr()
    (last,) = read_dataset_info("v2").notes["appended"]
    old, new = (read(Path(name)) for name in ("v1", "v2"))
    raw = pq.read_table("day2/events.parquet").to_pylist()
    views = [row for row in raw if row["type"] == "view" and row["user"] in old.sequences]
    newer = len(views) - sum(map(len, old.sequences.values()))
    assert newer == 40 * 3
    fresh = set(new.sequences) - set(old.sequences)
    buys = {(row["user"], row["item"]) for row in raw if row["type"] == "buy"}
    of_old = {(user, item) for user, pairs in old.labels["buys"].items() for item, _ in pairs}
    assert last["left_out"] == {
        "events of old users, newer than their history": newer,
        "examples of new users in the old task 'next'": len(fresh),
        "examples of new users in the old task 'buys'": sum(user in fresh for user, _ in buys),
        "other labels of old users in the old task 'buys'": sum(user not in fresh for user, _ in buys - of_old),
        "examples of new users in the old task 'age'": len(fresh),
    }
    assert (last["users"], last["tasks"], last["refreshed"]) == (20, ["city"], False)
    assert last["matched"]["history"] == {"unit": "events", "total": 480, "kept": 360, "left_out": {"another type": 120}}
    assert f"events of old users, newer than their history{newer:>30}" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    fresh_items = {item for user in fresh for item in new.sequences[user]} - {item for items in old.sequences.values() for item in items}
    assert f"v1 and 20 users, {len(fresh_items)} items, tasks: city" in told
    assert fresh_items
    assert not [line for line in told.splitlines() if "/." in line or "added/" in line]
    assert {user: new.sequences[user] for user in old.sequences} == old.sequences


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"history__length": 10}, "history.length: 20 -> 10"),
        ({"history__minimum": 1}, "history.minimum: 2 -> 1"),
        ({"history__min_count": 2}, "history.min_count: 1 -> 2"),
        ({"history__events": {"type": ["view", "buy"]}}, "history.events.type: ['view'] -> ['view', 'buy']"),
        ({"history__events": {"type": "view", "until": "2020-09-15"}}, "history.events.until: None -> 1600128000.0"),
        ({"tasks__age__bins": [30, 40, 50]}, "tasks.age.bins: [30.0, 50.0] -> [30.0, 40.0, 50.0]"),
        ({"tasks__buys__targets": 2}, "tasks.buys.targets: 3 -> 2"),
        ({"tasks__buys__events": {"type": "view"}}, "tasks.buys.events.type: ['buy'] -> ['view']"),
        ({"split__seed": 3}, "split.seed: 0 -> 3"),
        ({"split": {"train": 0.8, "validation": 0.1, "test": 0.1}}, "split.train: 0.6 -> 0.8"),
        ({"columns__timestamp_unit": "ms"}, "columns.timestamp_unit: 's' -> 'ms'"),
        ({"first_task": "watch"}, "first_task: 'next' -> 'watch'"),
    ],
)
@pytest.mark.parametrize("refresh", [False, True])
def test_another_recipe_is_refused_field_by_field_before_the_work(days, capsys, changes, said, refresh):
    window = "until" in str(changes)
    if window and refresh:  # a refreshed version takes all histories anew
        changes = {"history__events": {"type": "view", "until": "2020-09-20"}}
    capsys.readouterr()
    status = prepare(with_city(**changes), "day2", "v2", "--append", "v1", *(["--refresh"] if refresh else []))
    told = capsys.readouterr().err
    if window and refresh:
        assert status == 0
        assert "history.events.until is now 1600560000.0 (was None), for all users' histories" in told
        return
    assert (status, "reading" in told) == (2, False)
    assert f"\n  {said}" in told
    assert sorted(path.name for path in days.iterdir()) == ["day1", "day2", "r.yaml", "v1"]


def test_the_recipe_of_a_version_is_that_of_all_its_tasks(days, capsys):
    recipe = {**with_city(), "tasks": {"city": {"kind": "profile"}}}
    assert prepare(recipe, "day2", "v2", "--append", "v1") == 0
    assert prepare(with_city(tasks__age__bins=[1, 2], tasks__more={"kind": "item"}), "day2", "v3", "--append", "v2") == 2
    assert "tasks.age.bins: [30.0, 50.0] -> [1.0, 2.0]" in capsys.readouterr().err
    assert prepare(with_city(tasks__more={"kind": "item"}), "day2", "v3", "--append", "v2") == 0
    assert [task.name for task in read_dataset_info("v3").tasks] == ["next", "buys", "age", "city", "more"]


def test_a_refreshed_version_has_histories_of_today_and_keeps_the_rest(days, capsys, read):
    assert prepare(RECIPE, "day2", "v2", "--append", "v1", "--refresh") == 0
    capsys.readouterr()
    assert prepare(RECIPE, "day2", "anew") == 0
    old, new, anew = (read(Path(name)) for name in ("v1", "v2", "anew"))
    assert new.sequences == anew.sequences
    assert len(new.sequences["u0"]) == 2 * len(old.sequences["u0"])
    # the first task's examples are those of today, under the split of before
    assert {user: pairs[0][0] for user, pairs in new.labels["next"].items()} == {user: items[-1] for user, items in new.sequences.items()}
    for user, ((_, split),) in old.labels["next"].items():
        assert new.labels["next"][user][0][1] == split
    assert {name: new.labels[name] for name in ("buys", "age")} == {name: old.labels[name] for name in ("buys", "age")}
    items = [pq.read_table(f"{name}/vocab/items.parquet").to_pydict() for name in ("v1", "v2")]
    assert items[1]["item"][: len(items[0]["item"])] == items[0]["item"]
    counted = np.unique([item for sequence in new.sequences.values() for item in sequence], return_counts=True)
    assert {name: count for name, count in zip(items[1]["item"], items[1]["count"], strict=True) if count} == dict(
        zip(*map(np.ndarray.tolist, counted), strict=True)
    )
    info = read_dataset_info("v2")
    assert (info.users, info.items, info.events) == (60, 2 + len(counted[0]), 60 * 6)
    assert info.task("next").labels == len(counted[0]) > 12
    last = info.notes["appended"][-1]
    assert (last["renewed_histories"], last["shorter_histories"]) == (40, 0)
    assert "events of old users, newer than their history" not in last["left_out"]
    assert info.source["comparable"] == []
    assert info.source["ancestors"] == [read_dataset_info("v1").fingerprint]
    files = [path for path in read_dataset_info("v1").files if path.startswith(("tasks/buys", "tasks/age", "vocab/age", "vocab/buys"))]
    assert files
    assert all(Path("v1", path).read_bytes() == Path("v2", path).read_bytes() for path in files)


def test_a_refresh_from_the_day_alone_is_warned_of(days, capsys):
    table = pq.read_table("day2/events.parquet")
    today = np.asarray(table["timestamp"]) >= START + DAY
    Path("today").mkdir()
    pq.write_table(table.filter(pa.array(today & (np.arange(len(today)) % 4 > 0))), "today/events.parquet")
    pq.write_table(pq.read_table("day2/users.parquet"), "today/users.parquet")
    assert prepare({**RECIPE, "history": {**RECIPE["history"], "minimum": 2}}, "today", "v2", "--append", "v1", "--refresh") == 0
    assert "warning: 40 of 40 renewed histories are shorter than before" in capsys.readouterr().err


@pytest.mark.parametrize(("column", "noun"), [("user", "users"), ("item", "items")])
def test_ids_in_another_writing_are_no_new_ones(days, capsys, column, noun):
    for file in ("events.parquet", "users.parquet"):
        table = pq.read_table(f"day2/{file}")
        if column in table.column_names:
            place = table.column_names.index(column)
            table = table.set_column(place, column, pa.array([str(name).upper() for name in table[column].to_pylist()]))
        Path("loud").mkdir(exist_ok=True)
        pq.write_table(table, f"loud/{file}")
    assert prepare(RECIPE, "loud", "v2", "--append", "v1", "--refresh") == 2
    said = capsys.readouterr().err
    assert f"of its {noun} would be {noun} of v1 but for capital letters, and were others: only in v1: '" in said
    assert not Path("v2").exists()


def test_one_or_two_ids_that_look_alike_are_an_accident(days):
    Path("odd").mkdir()
    for file in ("events.parquet", "users.parquet"):
        table = pq.read_table(f"day2/{file}")
        names = [name.upper() if name in ("u3", "u4") else name for name in table["user"].to_pylist()]
        pq.write_table(table.set_column(table.column_names.index("user"), "user", pa.array(names)), f"odd/{file}")
    assert prepare(RECIPE, "odd", "v2", "--append", "v1", "--refresh") == 0
    assert read_dataset_info("v2").users == 62


def test_old_labels_within_refreshed_histories_are_warned_of():
    def recipe(until: float | None) -> dict[str, Any]:
        return {"history": {"events": {"until": until}}, "tasks": {"buys": {"kind": "item"}, "age": {"kind": "profile"}}}

    said = labels_inside(recipe(START), recipe(START + 31 * DAY))
    assert said.startswith("histories ended 2020-09-13 12:26 UTC when the labels of buys were told from them, and end 2020-10-14 12:26 now")
    assert "end with the last event now" in labels_inside(recipe(START), recipe(None))
    assert labels_inside(recipe(START), recipe(START)) == labels_inside(recipe(None), recipe(START)) == ""
    assert labels_inside({**recipe(START), "tasks": {"age": {"kind": "profile"}}}, recipe(None)) == ""


def test_refusals_come_before_the_work(days, capsys):
    capsys.readouterr()
    (days / "full").mkdir()
    (days / "full" / "x").touch()
    for out, options, said in (
        ("full", ["--append", "v1"], "is there already and is no data set"),
        ("v1", ["--append", "v1"], "holds a data set made from something else"),
        ("v2", ["--append", "nothing"], "no data set there"),
        ("v2", ["--refresh"], "--refresh goes with --append"),
    ):
        assert prepare(with_city(), "day2", out, *options) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "reading" not in told
    assert prepare(RECIPE, "day2", "v2", "--append", "v1") == 2
    told = capsys.readouterr().err
    assert "platform: has no task that v1 does not have (next, buys, age)" in told and "--refresh" in told and "reading" not in told
    assert prepare(with_city(), "day2", "v2", "--append", "v1") == 0
    capsys.readouterr()
    assert prepare(with_city(), "day2", "v2", "--append", "v1") == 0
    told = capsys.readouterr().err
    assert "nothing to do" in told
    assert "reading" not in told
    assert prepare(with_city(), "day1", "v2", "--append", "v1") == 2
    assert "reading" not in capsys.readouterr().err


def test_formats_without_a_recipe_keep_split_and_rare_items(tmp_path, capsys):
    for day, users in (("one", 40), ("two", 60)):
        (tmp_path / day).mkdir()
        rows = [",".join(str(1 + (user * 7 + step * step) % 23) for step in range(6)) for user in range(users)]
        (tmp_path / day / "task1_watch.csv").write_text("\n".join(rows) + "\n")
        for number, task in enumerate(("like", "share") if day == "two" else ("like",), 2):
            targets = [f"{row},,{user % 3}" for user, row in enumerate(rows)]
            (tmp_path / day / f"task{number}_{task}.csv").write_text("\n".join(targets) + "\n")
    one, two, v1, v2 = (str(tmp_path / name) for name in ("one", "two", "v1", "v2"))
    split = [part for share in ("train=0.6", "validation=0.2", "test=0.2") for part in ("--set", f"split.{share}")]
    assert main(["prepare", "sequence-csv", one, v1, *split]) == 0
    capsys.readouterr()
    assert main(["prepare", "sequence-csv", two, v2, "--append", v1, "--min-count", "3"]) == 2
    told = capsys.readouterr().err
    assert "\n  split.train: 0.6 -> 0.8\n" in told
    assert "\n  history.min_count (--min-count): None -> 3\n" in told
    assert "reading" not in told
    assert main(["prepare", "sequence-csv", two, v2, *split, "--append", v1]) == 0
    assert read_dataset_info(v2).users == 60


def test_events_that_came_late_are_told_from_newer_ones():
    before = Shard(
        np.zeros(3, np.uint64), np.array([5, 6, 7, 5, 6, 7, 5, 6, 7], np.int32), np.array([0, 3, 6, 9]), np.zeros(3, np.int32),
        EventColumns(times=np.array([10, 20, 30] * 3)),
    )  # fmt: skip
    # one event late and two newer, three newer alone, and all of another window
    values = np.array([5, 8, 6, 7, 9, 9, 7, 9, 9, 9, 11, 12], np.int32)
    offsets, rows = np.array([0, 6, 10, 12]), np.arange(3)
    times = np.array([10, 15, 20, 30, 40, 50, 30, 40, 50, 60, 70, 80])
    assert newer_events(before, rows, (values, offsets), rows, times) == (2 + 3 + 2, 1)
    # without times all that the first user has more is told as such: nobody knows where it belongs
    assert newer_events(before, rows, (values, offsets), rows) == (3 + 2, 3)
    # a late event of the item that was the last one continues nothing
    late = (np.array([7, 5, 6, 7], np.int32), np.array([0, 4]))
    assert newer_events(before, rows[:1], late, rows[:1], np.array([5, 10, 20, 30])) == (0, 1)
