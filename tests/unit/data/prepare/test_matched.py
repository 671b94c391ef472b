"""What filters, joins and labels matched: every count against a count by hand, printed and in `notes.matched`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_teracon.cli import main
from dist_teracon.data.prepare.matched import join_of
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.schema import read_dataset_info
from dist_teracon.errors import ConfigError, DataError

START = 1_600_000_000.0  # 2020-09-13
USERS = 30
SPLIT = {"train": 0.4, "validation": 0.3, "test": 0.3}


def made_events() -> dict[str, list[Any]]:
    """Return 4 views and 2 buys of each user, an hour apart; odd users' last view has no value."""
    rows: dict[str, list[Any]] = {"user": [], "item": [], "timestamp": [], "type": [], "value": []}
    for user in range(USERS):
        for step in range(6):
            rows["user"].append(f"u{user}")
            rows["item"].append(f"i{(user * 3 + step * 5) % 11}")
            rows["timestamp"].append(START + 3600 * step)
            rows["type"].append("view" if step < 4 else "buy")
            rows["value"].append(None if step == 3 and user % 2 else float(step))
    return rows


def prepared(folder: Path, recipe: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Prepare and return `notes.matched`."""
    return prepare("events", str(folder), str(folder.parent / "out"), recipe=parse_recipe({"split": SPLIT, **recipe}), **options).notes[
        "matched"
    ]


def whole(value: Any) -> None:
    """Check that what is kept and left out adds up, everywhere."""
    if "unit" in value:
        assert value["total"] == value["kept"] + sum(value["left_out"].values())
        assert min([value["kept"], *value["left_out"].values()]) >= 0
    else:
        for part in value.values():
            whole(part)


def test_every_step_of_a_history_and_of_a_task_is_counted(events_folder):
    users = {"user": [f"u{user}" for user in range(5, 45)], "age": [None if user % 10 == 5 else str(user) for user in range(5, 45)]}
    items = {"item": [f"i{item}" for item in range(9)], "class": [None if item == 0 else "ab"[item % 2] for item in range(9)]}
    folder = events_folder(made_events(), users=users, items=items)
    recipe = {
        "history": {"events": {"type": "view", "value": "> 0", "until": "2020-09-13T15:30:00"}, "length": 2},
        "tasks": {
            "buys": {"kind": "item", "events": {"type": "buy", "from": "2020-09-13T16:00:00"}, "targets": 1, "choose": "first"},
            "class": {"kind": "item", "events": {"type": "view"}, "label": "class"},
            "age": {"kind": "profile", "bins": [20, 30]},
        },
    }
    matched = prepared(folder, recipe)
    whole(matched)
    # 6 events a user; views are steps 0 to 3, of which step 0 has no positive value; step 3 is at 15:26:40
    assert matched["history"] == {
        "unit": "events", "total": 180, "kept": 60,
        "left_out": {"another type": 60, "no value": 15, "value not > 0": 30, "before a user's last 2": 15},
    }  # fmt: skip
    assert matched["users"] == {"unit": "users", "total": 30, "kept": 30, "left_out": {}}
    assert matched["user attributes"] == {"unit": "rows of users.parquet", "total": 40, "kept": 25, "left_out": {"no event": 15}}
    assert matched["item attributes"] == {"unit": "rows of items.parquet", "total": 9, "kept": 9, "left_out": {}}
    assert matched["tasks"]["buys"] == {
        "unit": "events", "total": 180, "kept": 30, "left_out": {"another type": 120, "beyond a user's 1 targets": 30},
    }  # fmt: skip
    views = [(row["user"], row["item"]) for row in pq.read_table(folder / "events.parquet").to_pylist() if row["type"] == "view"]
    without_row = sum(item in ("i9", "i10") for _, item in views)
    without_class = sum(item == "i0" for _, item in views)
    labels = {(user, "ab"[int(item[1:]) % 2]) for user, item in views if item not in ("i9", "i10", "i0")}
    assert matched["tasks"]["class"] == {
        "unit": "events", "total": 180, "kept": len(labels),
        "left_out": {
            "another type": 60, "items without a row in items.parquet": without_row, "items without class": without_class,
            "a user's label once more": 120 - without_row - without_class - len(labels),
        },
    }  # fmt: skip
    assert matched["tasks"]["age"] == {"unit": "users", "total": 30, "kept": 22, "left_out": {"no row in users.parquet": 5, "no age": 3}}


def test_users_with_too_few_events_and_rare_labels_are_counted(events_folder):
    events = made_events()
    short = [row for row, (user, step) in enumerate((user, step) for user in range(USERS) for step in range(6)) if user >= 4 or step < 2]
    folder = events_folder({name: [column[row] for row in short] for name, column in events.items()})
    least = min(Counter(events["item"][row] for row in short if int(events["user"][row][1:]) >= 4).values()) + 1
    matched = prepared(
        folder, {"history": {"minimum": 3, "min_count": least}, "tasks": {"t": {"kind": "item", "events": {"type": "buy"}, "min_count": 5}}}
    )
    whole(matched)
    assert matched["users"] == {"unit": "users", "total": 30, "kept": 26, "left_out": {"fewer than 3 events": 4}}
    assert matched["history"]["left_out"] == {"of users with fewer than 3 events": 8}
    rare = matched["items"]["left_out"][f"fewer than {least} times: unseen"]
    info = read_dataset_info(str(folder.parent / "out"))
    assert matched["items"]["total"] - rare == info.items - 2
    assert matched["tasks"]["t"]["left_out"]["labels of fewer than 5 users"] > 0


@pytest.mark.parametrize("by", ["users", "last"])
def test_users_who_are_not_predicted_and_why_are_told(events_folder, capsys, by):
    """Of u0 to u19 the last item is rare, u20 to u24 have one item alone; u25 to u54 are as they should be."""
    names = [f"u{user}" for user in range(55) for _ in range(1 if 20 <= user < 25 else 5)]
    events = {
        "user": names,
        "item": [f"i{row % 4}" for row in range(len(names))],
        "timestamp": [START + row for row in range(len(names))],
    }
    for user in range(20):
        events["item"][5 * user + 4] = f"rare {user}"
    folder = events_folder(events)
    (folder.parent / "r.yaml").write_text(json.dumps({"history": {"min_count": 2, "minimum": 1}, "split": {**SPLIT, "by": by}}))
    arguments = [str(folder), str(folder.parent / "out"), "--recipe", str(folder.parent / "r.yaml")]
    assert main(["prepare", "events", *arguments]) == 0
    matched = read_dataset_info(str(folder.parent / "out")).notes["matched"]
    whole(matched)
    if by == "users":
        expected = {"no item before the last one": 5, "the last item is unseen: never a target": 20}
        assert matched["tasks"]["next"] == {"unit": "users", "total": 55, "kept": 30, "left_out": expected}
    else:  # three examples a user, the last one for the test
        expected = {"no item before it": 15, "the item is unseen: never a target": 20}
        assert matched["tasks"]["next"] == {"unit": "examples", "total": 165, "kept": 130, "left_out": expected}
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for reason, count in expected.items():
        assert [*reason.split(), str(count)] in lines


def test_times_outside_of_a_window_are_counted(events_folder):
    matched = prepared(
        events_folder(made_events()), {"history": {"events": {"from": "2020-09-13T13:00:00", "until": "2020-09-13T17:00:00"}}}
    )
    assert matched["history"]["left_out"] == {"before 2020-09-13 13:00:00 UTC": 30, "from 2020-09-13 17:00:00 UTC on": 30}


@pytest.mark.parametrize("bound", [{"from": 2020}, {"until": 2021}, {"from": 0}])
def test_a_year_is_no_moment_where_events_have_times(events_folder, bound):
    with pytest.raises(
        ConfigError,
        match=r"history\.events\.\w+: 1970-01-01( 00:\d\d:\d\d UTC)? \(a bare number, as \d+, counts seconds since 1970\) is years",
    ):
        prepared(events_folder(made_events()), {"history": {"events": bound}})


def test_a_type_that_no_event_has_is_named_and_refused_where_it_is_the_only_one(events_folder):
    told: list[str] = []
    folder = events_folder(made_events())
    prepared(folder, {"history": {"events": {"type": ["view", "bux"]}}}, log=told.append)
    assert "history.events.type: no event is of type 'bux'; did you mean 'buy'? (there are: view, buy)" in told
    with pytest.raises(ConfigError, match=r"tasks\.t\.events\.type: no event is of type 'bux'; did you mean 'buy'"):
        prepare(
            "events",
            str(folder),
            str(folder.parent / "x"),
            recipe=parse_recipe({"tasks": {"t": {"kind": "item", "events": {"type": "bux"}}}}),
        )


@pytest.mark.parametrize("column", ["absent", "empty"])
def test_comparisons_with_a_value_that_is_not_there_are_refused(events_folder, column):
    events = made_events()
    events["value"] = pa.nulls(len(events["user"]), pa.float64())
    if column == "absent":
        del events["value"]
    with pytest.raises(ConfigError, match=r"history\.events\.value: the events have no (column of values|value in that column)"):
        prepared(events_folder(events), {"history": {"events": {"value": "> 1"}}})


def test_a_bare_number_selects_its_own_value_alone(events_folder):
    events = made_events()
    events["value"] = [[1000000.0, 1000001.0, 0.1234567, 0.123457, 1e15, 3.0][step % 6] for step in range(len(events["user"]))]
    folder = events_folder(events)
    tasks = {f"t{n}": {"kind": "item", "events": {"value": value}} for n, value in enumerate((1000001, 0.1234567, 10**15))}
    prepared(folder, {"tasks": tasks})
    rows = pq.read_table(folder / "events.parquet").to_pylist()
    for n, value in enumerate((1000001, 0.1234567, 1e15)):
        items = {row["item"] for row in rows if row["value"] == value}
        assert set(pq.read_table(folder.parent / f"out/vocab/t{n}.parquet")["label"].to_pylist()) == items


IDS = {"zeros at the beginning": lambda user: f"{user:05d}", "capital letters": lambda user: f"ID{user}"}


@pytest.mark.parametrize(
    ("left", "right", "but_for"),
    [
        (["1.0", "2.0"], ["1", "2"], "'.0' at the end"),
        (["1", "2"], ["1.00", "2."], "'.0' at the end"),
        (["a ", " b"], ["a", "b"], "blanks at the ends"),
        (["001", "002"], ["1", "2"], "zeros at the beginning"),
        (["A", "b"], ["a", "B"], "capital letters"),
        (["x", "y"], ["a", "b"], None),
    ],
)
def test_what_ids_differ_in(left, right, but_for):
    join = join_of(left, right)
    assert (join.both, join.nearly, join.but_for) == (0, 2 if but_for else 0, [but_for] if but_for else [])
    assert join.unmatched == 1


@pytest.mark.parametrize("difference", IDS)
def test_ids_that_nearly_match_stop_the_job_with_ids_of_both_sides(events_folder, difference):
    events = made_events()
    events["user"] = [f"{'id' if difference == 'capital letters' else ''}{int(name[1:]) + 100}" for name in events["user"]]
    users = {"user": [IDS[difference](user + 100) for user in range(USERS)], "age": ["ab"[user % 2] for user in range(USERS)]}
    folder, recipe = events_folder(events, users=users), {"tasks": {"age": {"kind": "profile"}}}
    with pytest.raises(DataError) as caught:
        prepared(folder, recipe)
    first, ours, theirs, hint = str(caught.value).splitlines()
    assert "tasks.age.attribute: the users of the events and of users.parquet do not meet: 0 of 30" in first
    assert "--max-unmatched 0.5" in first
    assert ours == f"  only in the events: {', '.join(repr(IDS[difference](user).lower().lstrip('0')) for user in (100, 101, 102))}"
    assert theirs == f"  only in users.parquet: {', '.join(repr(IDS[difference](user)) for user in (100, 101, 102))}"
    assert f"30 more users would meet but for {difference}" in hint
    assert [path.name for path in folder.parent.iterdir()] == ["raw"]


def test_the_limit_is_of_the_fewer_and_can_be_set(events_folder):
    users = {
        "user": [f"u{user}" for user in range(10)] + [f"x{user}" for user in range(990)],
        "age": ["ab"[user % 2] for user in range(1000)],
    }
    recipe = {"tasks": {"age": {"kind": "profile"}}}
    folder = events_folder(made_events(), users=users)
    with pytest.raises(DataError, match="10 of 30 in the events and of 1000 in users"):
        prepared(folder, recipe)
    matched = prepared(folder, recipe, max_unmatched=0.7)
    assert matched["tasks"]["age"] == {"unit": "users", "total": 30, "kept": 10, "left_out": {"no row in users.parquet": 20}}
    with pytest.raises(ConfigError, match=r"--max-unmatched: expected a share from 0 to 1, got 1\.5"):
        prepared(folder, recipe, max_unmatched=1.5)


def test_a_survey_of_few_users_and_a_table_of_all_users_are_no_mismatch():
    assert join_of([f"u{user}" for user in range(1000)], ["u1", "u2"]).unmatched == 0
    assert join_of(["u1", "u2"], [f"u{user}" for user in range(1000)]).unmatched == 0
    assert join_of(["u1", "u2", "u3", "u4"], ["u1", "v2", "v3", "v4"]).unmatched == 0.75


def test_few_ids_that_nearly_match_are_a_warning(events_folder):
    events = made_events()
    users = {"user": [f"{'U' if user < 4 else 'u'}{user}" for user in range(USERS)], "age": ["ab"[user % 2] for user in range(USERS)]}
    told: list[str] = []
    prepared(events_folder(events, users=users), {"tasks": {"age": {"kind": "profile"}}}, log=told.append)
    (warning,) = [line for line in told if line.startswith("warning")]
    assert "4 more users would meet but for capital letters: only in the events: 'u0', 'u1', 'u2'" in warning


def test_the_summary_fits_and_names_all_counts(events_folder, tmp_path, capsys):
    users = {"user": [f"u{user}" for user in range(40)], "age": [str(user) for user in range(40)]}
    folder = events_folder(made_events(), users=users)
    name = "앞으로 살 물건들의 아주 긴 이름 " * 4
    recipe = {
        "split": SPLIT,
        "history": {"events": {"type": "view"}, "minimum": 3},
        "tasks": {name.strip(): {"kind": "item", "events": {"type": "buy"}, "targets": 1}, "age": {"kind": "profile", "bins": [10, 20]}},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert main(["prepare", "events", str(folder), str(tmp_path / "out"), "--recipe", str(tmp_path / "r.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) + sum("가" <= sign <= "힣" for sign in line) <= 80 for line in lines)
    assert lines[-1].split() == ["no", "event", "10"] or "    no event" in "\n".join(lines)
    counts = json.loads((tmp_path / "out" / "dataset.json").read_text())["notes"]["matched"]
    whole(counts)
    for reason, count in [*counts["history"]["left_out"].items(), *counts["user attributes"]["left_out"].items()]:
        (line,) = {line for line in lines if line.strip().startswith(reason) and line.endswith(f" {count}")}
        assert line


def test_the_fingerprint_does_not_depend_on_what_is_told(events_folder, tmp_path):
    folder = events_folder(made_events())
    info = prepare("events", str(folder), str(tmp_path / "out"), recipe=parse_recipe({}))
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(replace(info, notes={"other": 1}).to_json()))
    assert read_dataset_info(str(tmp_path / "out")).fingerprint == info.fingerprint
    assert replace(info, events=1).fingerprint != info.fingerprint


def test_streamed_sets_count_rare_items_long_histories_and_users_without_labels(tmp_path):
    (tmp_path / "raw").mkdir()
    rows = [",".join(str(1 + (user * 7 + step * step) % 23) for step in range(6)) for user in range(40)]
    (tmp_path / "raw" / "task1_watch.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "raw" / "task2_like.csv").write_text("\n".join(f"{row},,{user % 3}" for user, row in enumerate(rows) if user % 2) + "\n")
    recipe = parse_recipe({"history": {"length": 4, "min_count": 10}, "split": {"train": 0.6, "validation": 0.2, "test": 0.2}})
    info = prepare("sequence-csv", str(tmp_path / "raw"), str(tmp_path / "out"), recipe=recipe)
    matched = info.notes["matched"]
    whole(matched)
    assert matched["history"] == {
        "unit": "events",
        "total": 6 * info.users,
        "kept": 4 * info.users,
        "left_out": {"before a user's last 4": 2 * info.users},
    }
    assert matched["items"]["total"] - matched["items"]["left_out"]["fewer than 10 times: unseen"] == info.items - 2
    assert matched["tasks"]["like"] == {"unit": "users", "total": info.users, "kept": 20, "left_out": {"no label": info.users - 20}}
