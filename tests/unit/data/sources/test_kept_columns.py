"""`history.keep`: times and types of events beside the items of histories, from raw events to the data set and its versions."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.event_columns import NO_TIME, EventColumns
from dist_teracon.data.moments import Moments
from dist_teracon.data.prepare.padding import padded_columns
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.schema import Split, read_dataset_info
from dist_teracon.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).parents[3] / "helpers"))
from event_tables import PARTS, PEOPLE_CSV, START, TABLE, USERS, changed, csv, refused

# a click, then bought, then an event without a type, then a click
TYPES = ["click", "buy", None, "click"] * len(USERS)
TIMES = [START + 10 * place**2 + 0.75 for _ in USERS for place in range(4)]
TYPED = changed(type=TYPES, timestamp=TIMES)
RULES = {"tasks": {"g": {"kind": "profile"}}, **PARTS}


def kept(folder, user="u00"):
    """Return a user's row of the data set's files, read without its reader."""
    for shard in sorted((folder / "users").iterdir()):
        for row in pq.read_table(shard).to_pylist():
            if row["user_id"] == user:
                return row
    raise AssertionError(user)


def made_of(tmp_path, table, recipe, name="out", **options):
    raw = tmp_path / f"raw-{name}"
    raw.mkdir()
    for file, content in {"events.csv": csv(table), **PEOPLE_CSV}.items():
        (raw / file).write_bytes(content)
    prepare("events", str(raw), str(tmp_path / name), recipe=parse_recipe(recipe), **options)
    return tmp_path / name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return made_of(tmp_path_factory.mktemp("kept"), TYPED, {"history": {"keep": ["type", "time"], "length": 3}, **RULES})


def test_columns_hold_the_last_events_times_in_seconds_and_types_by_falling_count(whole):
    row = kept(whole)
    assert row["times"] == [START + 10, START + 40, START + 90]
    names = pq.read_table(whole / "vocab/_types.parquet").to_pylist()
    # of the last three events of 20 users each
    assert names == [
        {"type": None, "index": 0, "count": 20},
        {"type": "buy", "index": 1, "count": 20},
        {"type": "click", "index": 2, "count": 20},
    ]
    assert row["types"] == [1, 0, 2]
    info = json.loads((whole / "dataset.json").read_text())
    assert (info["history"], info["format_version"]) == ({"times": True, "types": 3}, 2)
    assert info["source"]["recipe"]["history"]["keep"] == ["time", "type"]
    assert "vocab/_types.parquet" in info["files"]


@pytest.mark.parametrize("cached", [False, True])
def test_shards_are_read_with_the_columns_that_are_asked_for(whole, cached, tmp_path, monkeypatch):
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path))
    data = Dataset(str(whole), cached=cached)
    shard = next(index for index in range(data.info.shards) if data.shard(index).user_hash.size)
    columns = data.shard(shard).columns
    assert (columns.names, columns.times.dtype, columns.types.dtype) == (("times", "types"), np.int64, np.int32)
    assert columns.times.shape == columns.types.shape == data.shard(shard).values.shape
    assert columns.types[:3].tolist() == [1, 0, 2]
    data.read_columns(["types"])
    assert data.shard(shard).columns.names == ("types",)
    assert data.types() == [None, "buy", "click"]


def test_without_the_field_nothing_is_kept_and_the_recipe_is_stored_as_ever(tmp_path):
    plain = made_of(tmp_path, TYPED, RULES)
    assert set(kept(plain)) == {"user_id", "user_hash", "sequence"}
    info = json.loads((plain / "dataset.json").read_text())
    assert "history" not in info
    assert info["format_version"] == 1
    assert "keep" not in info["source"]["recipe"]["history"]
    assert parse_recipe({"history": {"keep": []}}).to_json() == parse_recipe({}).to_json()
    assert read_dataset_info(str(plain)).history.names == ()


def test_all_takes_what_the_source_has(tmp_path):
    assert Dataset(str(made_of(tmp_path, TABLE, {"history": {"keep": "all"}, **RULES}))).info.history.names == ("times",)


@pytest.mark.parametrize(("keep", "said"), [("type", "columns.type"), ("time", "columns.timestamp")])
def test_a_column_that_is_not_there_is_named(made, keep, said):
    table = {name: values for name, values in TABLE.items() if name != "timestamp"}
    refused(made, {"events.csv": csv(table), **PEOPLE_CSV}, said, {"history": {"keep": [keep]}, **RULES}, error=ConfigError)


def test_what_can_be_kept_is_said():
    with pytest.raises(ConfigError, match=r"history.keep: expected \[time, type\], one of them, or all, got \['value'\]"):
        parse_recipe({"history": {"keep": ["value"]}})


def test_a_row_without_a_time_is_a_malformed_row(made):
    table = changed(timestamp=[None, *TABLE["timestamp"][1:]])
    back = made({"events.csv": csv(table), **PEOPLE_CSV}, {"history": {"keep": "time"}, **RULES}, max_bad_rows=0.05)
    assert sum(back.info["notes"]["malformed_rows"].values()) == 1
    assert back.info["events"] == len(TABLE["user"]) - 1


def test_times_of_another_unit_name_the_option(made):
    rules = {"history": {"keep": "time"}, **RULES}
    milliseconds = changed(timestamp=[1000 * value for value in TABLE["timestamp"]])
    refused(made, {"events.csv": csv(milliseconds), **PEOPLE_CSV}, "set columns.timestamp_unit: ms", rules)
    soon = int(datetime(datetime.now(UTC).year + 3, 1, 1, tzinfo=UTC).timestamp())
    late = changed(timestamp=[soon + value - START for value in TABLE["timestamp"]])
    refused(made, {"events.csv": csv(late), **PEOPLE_CSV}, "80 after the end of next year; .*columns.timestamp_unit", rules)
    counted = changed(timestamp=[value - START for value in TABLE["timestamp"]])
    refused(made, {"events.csv": csv(counted), **PEOPLE_CSV}, "keeps their times; columns.timestamp_unit", rules)
    # without the field only their order counts, as ever
    assert made({"events.csv": csv(late), **PEOPLE_CSV}, RULES).info["users"] == len(USERS)


def test_types_that_are_ids_are_refused(made, monkeypatch):
    monkeypatch.setattr("dist_teracon.data.prepare.kept_columns.MOST_TYPES", 10)
    table = changed(type=[f"t{number}" for number in range(len(TABLE["user"]))])
    refused(made, {"events.csv": csv(table), **PEOPLE_CSV}, "80 types of events, more than 10", {"history": {"keep": "type"}, **RULES})


def test_one_type_alone_is_told(made):
    table = changed(type=["click"] * len(TABLE["user"]))
    back = made({"events.csv": csv(table), **PEOPLE_CSV}, {"history": {"keep": "type"}, **RULES})
    assert "all events of the histories are of type 'click'" in back.info["log"]


def test_padding_has_no_time_and_no_type():
    columns = EventColumns(np.array([7, 8, 9, 10], dtype=np.int64), np.array([1, 2, 1, 2], dtype=np.int32))
    padded = padded_columns(columns, np.array([0, 1, 4]), length=2)
    assert padded.times.tolist() == [NO_TIME, 7, 9, 10]
    assert padded.types.tolist() == [0, 1, 1, 2]


def test_a_version_keeps_old_users_columns_and_puts_new_types_behind(tmp_path):
    rules = {"history": {"keep": ["time", "type"]}, **PARTS}
    old = made_of(tmp_path, TYPED, {"tasks": {"g": {"kind": "profile"}}, **rules}, "old", shards=2)
    # old users with another type, and ten new ones
    people = [f"n{user}" for user in range(20)]
    later = changed(
        user=[*TABLE["user"], *(user for user in people for _ in range(4))], item=TABLE["item"] * 2,
        timestamp=[START + 100 + place for place in range(4)] * 40, type=["sell", "click", "buy", None] * 40,
    )  # fmt: skip
    (tmp_path / "raw-added").mkdir()
    (tmp_path / "raw-added" / "events.csv").write_bytes(csv(later))
    users = {"user": [*USERS, *people], "city": ["ab"[number % 2] for number in range(40)]}
    (tmp_path / "raw-added" / "users.csv").write_bytes(csv(users))
    recipe = parse_recipe({"tasks": {"city": {"kind": "profile"}}, **rules})
    prepare("events", str(tmp_path / "raw-added"), str(tmp_path / "added"), recipe=recipe, shards=2)
    old_last = Dataset(str(old)).last_event(range(2))
    for name, refresh in (("new", False), ("renewed", True)):
        append(str(old), str(tmp_path / "added"), str(tmp_path / name), refresh=refresh)
        data = Dataset(str(tmp_path / name))
        assert data.types() == [None, "click", "buy", "sell"]
        counts = pq.read_table(tmp_path / name / "vocab/_types.parquet")["count"].to_pylist()
        assert counts == ([40, 60, 40, 20] if not refresh else [40, 40, 40, 40])
        assert data.info.history.types == 4
        # old tasks are told when they were, as their histories and labels are those of then; unless all are of today
        moments = Moments.of_dataset(data.info, data.last_event(range(2)))
        then, now = old_last, START + 103
        assert then < now
        assert [moments.of(data.info.task(task), split) for task in ("g", "city") for split in Split] == [now if refresh else then] * 3 + [
            now
        ] * 3
        assert moments.last == now
        fresh = kept(tmp_path / name, "n3")
        assert (fresh["times"], fresh["types"]) == ([START + 100 + place for place in range(4)], [3, 1, 2, 0])
    assert kept(tmp_path / "new") == kept(old)
    assert kept(tmp_path / "renewed")["types"] == [3, 1, 2, 0]


def test_versions_keep_the_same_columns(tmp_path):
    old = made_of(tmp_path, TYPED, {"history": {"keep": "time"}, **RULES}, "old", shards=2)
    added = made_of(tmp_path, TYPED, {**RULES, "tasks": {"h": {"kind": "profile", "attribute": "g"}}}, "added", shards=2)
    with pytest.raises(DataError, match=r"its histories hold items and those of .* items and times; prepare it with the same history.keep"):
        append(str(old), str(added), str(tmp_path / "new"))


def test_a_log_of_other_years_says_so(made):
    early = changed(timestamp=[datetime.fromtimestamp(10**8 + value - START, UTC).isoformat() for value in TABLE["timestamp"]])
    files, rules = {"events.csv": csv(early), **PEOPLE_CSV}, {"history": {"keep": "time"}, **RULES}
    refused(made, files, r"columns.timestamp_years what is plausible, as \[1970, 2030\]", rules)
    back = made(files, {**rules, "columns": {"timestamp_years": [1970, 1980]}})
    assert back.info["events"] == len(TABLE["user"])
    refused(made, files, "lie outside of 1974 to 1980", {**rules, "columns": {"timestamp_years": [1974, 1980]}})
    with pytest.raises(ConfigError, match=r"columns.timestamp_years: expected the first and the last year of events, as \[1970, 2030\]"):
        parse_recipe({"columns": {"timestamp_years": [2030, 1970]}})
    assert "timestamp_years" not in parse_recipe({}).to_json()["columns"]


def test_events_that_have_not_happened_yet_are_told(tmp_path):
    told: list[str] = []
    soon = int(datetime.now(UTC).timestamp())
    table = changed(timestamp=[*TABLE["timestamp"][:-2], soon + 3600, soon + 9 * 86_400])
    made_of(tmp_path, table, {"history": {"keep": "time"}, **RULES}, log=told.append)
    day = datetime.fromtimestamp(soon + 9 * 86_400, UTC).date()
    (line,) = [line for line in told if "in the future" in line]
    assert f"1 of {len(TABLE['user'])} events lie in the future" in line
    assert f"the last on {day}" in line
    told.clear()
    years = {"columns": {"timestamp_years": [2000, 2100]}}  # somebody who says so knows
    made_of(tmp_path, table, {"history": {"keep": "time"}, **years, **RULES}, "again", log=told.append)
    assert not [line for line in told if "in the future" in line]
