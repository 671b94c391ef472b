"""Event folders: the recipes of NAVER's and TTL's shape, filters, forms of the files."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.errors import ConfigError, DataError

RECIPES = Path(__file__).parents[4] / "configs" / "recipes"
USERS = 70
START = 1_600_000_000


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def naver() -> tuple[dict[str, list[Any]], dict[str, list[Any]], dict[str, list[Any]]]:
    """Return events over seven months, users and items of NAVER's shape."""
    generator = np.random.default_rng(5)
    events: dict[str, list[Any]] = {"user": [], "item": [], "timestamp": [], "type": []}
    start, end = moment("2021-12-01"), moment("2022-07-01")
    for user in range(USERS):
        for _ in range(60):
            query = generator.random() < 0.8
            events["user"].append(f"u{user}")
            events["item"].append(f"query {generator.integers(40)}" if query else f"product {generator.integers(30)}")
            events["timestamp"].append(float(generator.integers(start, end)))
            events["type"].append("query" if query else "shop")
    users = {
        "user": [f"u{user}" for user in range(USERS)],
        "gender": ["fm"[user % 2] for user in range(USERS)],
        "age": [12 + user % 50 for user in range(USERS)],
    }
    items = {
        "item": [f"product {item}" for item in range(30)],
        "minor_category": [f"minor {item % 10}" for item in range(30)],
        "major_category": [f"major {item % 10 // 4}" for item in range(30)],
    }
    return events, users, items


def by_user(events: dict[str, list[Any]], *kinds: str) -> dict[str, list[tuple[float, str]]]:
    """Return each user's (time, item) of some types, in time order."""
    rows: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for user, item, time, kind in zip(events["user"], events["item"], events["timestamp"], events["type"], strict=True):
        if kind in kinds:
            rows[user].append((time, item))
    return {user: sorted(own, key=lambda row: row[0]) for user, own in rows.items()}


def test_the_recipe_of_navers_shape(events_folder, tmp_path, read):
    events, users, items = naver()
    folder = events_folder(events, users=users, items=items)
    info = prepare("events", str(folder), str(tmp_path / "out"), recipe=str(RECIPES / "naver.yaml"))
    assert [task.name for task in info.tasks] == ["queries", "next-queries", "minor-category", "major-category", "gender", "age"]
    assert [task.kind for task in info.tasks] == ["next", "item", "item", "item", "profile", "profile"]
    assert info.task("minor-category").labels == 10
    assert info.task("major-category").labels == 3

    back, queries, shopped = read(tmp_path / "out"), by_user(events, "query"), by_user(events, "shop")
    may = [moment("2022-01-01"), moment("2022-05-01"), moment("2022-06-01")]
    category = dict(zip(items["item"], items["minor_category"], strict=True))
    assert len(back.sequences) > 60
    for user, sequence in back.sequences.items():
        assert sequence == [item for time, item in queries[user] if may[0] <= time < may[1]][-60:]
        after = list(dict.fromkeys(item for time, item in queries[user] if may[1] <= time < may[2]))[:5]
        assert [label for label, _ in back.labels["next-queries"].get(user, [])] == after
        bought = {category[item] for _, item in shopped.get(user, [])}
        drawn = {label for label, _ in back.labels["minor-category"].get(user, [])}
        assert drawn <= bought
        assert len(drawn) == min(5, len(bought))
        assert back.labels["age"][user][0][0] == ["10-19", "20-29", "30-39", "40-49", "50-59", "60+"][(12 + int(user[1:]) % 50) // 10 - 1]


def test_the_recipe_of_navers_shape_by_time(events_folder, tmp_path):
    events, users, items = naver()
    said: list[str] = []
    folder, out = events_folder(events, users=users, items=items), tmp_path / "out"
    info = prepare("events", str(folder), str(out), recipe=str(RECIPES / "naver-time.yaml"), shards=1, log=said.append)
    assert info.history.names == ("times", "types")
    assert [(feature.name, feature.values) for feature in (*info.inputs.user, *info.inputs.item)] == [
        ("gender", 3), ("age", 7), ("minor_category", 11), ("major_category", 4)
    ]  # fmt: skip
    assert info.inputs.closed == {"gender": ("gender",), "age": ("age",)}
    assert info.test_periods == (moment("2022-05-01"), moment("2022-06-01"))
    dataset = Dataset(str(out))
    shard, names, kinds = dataset.shard(0), dataset.vocabulary("items")["item"].to_pylist(), dataset.types()
    rows = pq.read_table(out / "users/shard-00000.parquet", columns=["user_id"])["user_id"].to_pylist()
    every, shopped = by_user(events, "query", "shop"), by_user(events, "shop")
    category = dict(zip(items["item"], items["minor_category"], strict=True))
    end = {"": "2022-04-01", "@training": "2022-03-01", "@validation": "2022-04-01", "@test": "2022-05-01", "@test-2": "2022-06-01"}
    checked, minor = 0, dataset.vocabulary("minor-category")["label"].to_pylist()
    found = dataset.labels("minor-category", 0)
    ends = zip(found.users.tolist(), pairwise(found.offsets), strict=True)
    bought = {row: [minor[value] for value in found.values[slice(*places)]] for row, places in ends}
    for row, name in enumerate(rows):
        user, _, kind = name.partition("@")
        if kind.endswith("next"):
            continue
        before = [pair for pair in every[user] if moment("2022-01-01") <= pair[0] < moment(end[f"@{kind}" if kind else ""])][-60:]
        here = slice(shard.offsets[row], shard.offsets[row + 1])
        assert [names[item] for item in shard.values[here]] == [item for _, item in before]
        assert shard.columns.times[here].tolist() == [int(time) for time, _ in before]
        types = [kinds[number] for number in shard.columns.types[here]]
        assert types == [item.split()[0].replace("product", "shop") for _, item in before]
        if kind == "test-2":
            june = {category[item] for time, item in shopped.get(user, []) if time >= moment("2022-06-01")}
            assert set(bought.get(row, [])) <= june
            assert len(bought.get(row, [])) == min(5, len(june))
            checked += len(june)
    assert checked > 100
    assert sum("test period" in line for line in said) == 2


def ttl_csv(folder: Path, *, dates: bool) -> dict[str, list[Any]]:
    """Write events of TTL's shape as CSV, times as ISO dates or numbers; return them."""
    generator = np.random.default_rng(6)
    folder.mkdir()
    events: dict[str, list[Any]] = {"user": [], "item": [], "timestamp": [], "type": []}
    for _ in range(USERS * 40):
        events["user"].append(str(generator.integers(USERS)))
        events["item"].append(f'video, "{generator.integers(50)}"')
        events["timestamp"].append(1.6e9 + float(generator.integers(10_000_000)))
        events["type"].append(str(generator.choice(["watch", "click", "like"])))
    with (folder / "events.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(events)
        for user, item, time, kind in zip(*events.values(), strict=True):
            writer.writerow([user, item, datetime.fromtimestamp(time, UTC).isoformat(sep=" ")[:19] if dates else int(time), kind])
    rows = "".join(f"{user},{user % 8},{'fm'[user % 2]},{'' if user % 5 == 0 else user % 6}\n" for user in range(USERS))
    (folder / "users.csv.gz").write_bytes(gzip.compress(("user,age,gender,life_status\n" + rows).encode()))
    return events


@pytest.mark.parametrize("dates", [False, True])
def test_the_recipe_of_ttls_shape(tmp_path, read, dates):
    events = ttl_csv(tmp_path / "raw", dates=dates)
    info = prepare("events", str(tmp_path / "raw"), str(tmp_path / "out"), recipe=str(RECIPES / "ttl.yaml"))
    assert [task.name for task in info.tasks] == ["watching", "click", "like", "age", "gender", "life-status"]
    assert [task.labels for task in info.tasks][3:] == [8, 2, 6]
    assert info.task("life-status").users == USERS * 4 // 5
    back = read(tmp_path / "out")
    watched, clicked = by_user(events, "watch"), by_user(events, "click")
    for user, sequence in back.sequences.items():
        assert sequence == [item for _, item in watched[user]][-100:]
        assert {label for label, _ in back.labels["click"][user]} <= {item for _, item in clicked[user]}


def small(**changes: Any) -> dict[str, list[Any]]:
    """Return 60 users with 6 events each; the value counts up within a user."""
    events: dict[str, list[Any]] = {
        "user": [f"{user:02d}" for user in range(60) for _ in range(6)],
        "item": [f"i{(user * 7 + place * place) % 23}" for user in range(60) for place in range(6)],
        "timestamp": [START + float(1000 * place) for _ in range(60) for place in range(6)],
        "value": [float(place) for _ in range(60) for place in range(6)],
    }
    return {**events, **changes}


def test_several_types_and_values_choose_the_events(events_folder, tmp_path, read):
    folder = events_folder(small(type=[("a", "b", "c")[place % 3] for _ in range(60) for place in range(6)]))
    recipe = parse_recipe({"history": {"events": {"type": ["a", "b"], "value": "> 0, != 3"}}})
    prepare("events", str(folder), str(tmp_path / "out"), recipe=recipe)
    back = read(tmp_path / "out")
    assert all(items == [f"i{(int(user) * 7 + place * place) % 23}" for place in (1, 4)] for user, items in back.sequences.items())


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 1000), ("us", 10**6), ("ns", 10**9)])
def test_units_of_timestamps(events_folder, tmp_path, read, unit, scale):
    folder = events_folder(small(timestamp=[(START + 1000 * place) * scale for _ in range(60) for place in range(6)]))
    recipe = parse_recipe({"columns": {"timestamp_unit": unit}, "history": {"events": {"from": START + 2000, "until": START + 5000}}})
    info = prepare("events", str(folder), str(tmp_path / "out"), recipe=recipe)
    assert info.events == 60 * 3


def test_arrow_timestamps_need_no_unit(events_folder, tmp_path):
    moments = pa.array([(START + 1000 * place) * 1000 for _ in range(60) for place in range(6)], pa.timestamp("ms"))
    folder = events_folder(small(timestamp=moments))
    recipe = parse_recipe({"columns": {"timestamp_unit": "ms"}, "history": {"events": {"from": START + 2000, "until": START + 5000}}})
    assert prepare("events", str(folder), str(tmp_path / "out"), recipe=recipe).events == 60 * 3


def test_columns_of_other_names_and_types(tmp_path, events_folder, read):
    events = small()
    plain = events_folder(events)
    prepare("events", str(plain), str(tmp_path / "plain"), recipe=parse_recipe({}))
    (tmp_path / "named").mkdir()
    pq.write_table(
        pa.table({"who": events["user"], "what": events["item"], "when": events["timestamp"]}), tmp_path / "named/events.parquet"
    )
    recipe = parse_recipe({"columns": {"user": "who", "item": "what", "timestamp": "when"}})
    prepare("events", str(tmp_path / "named"), str(tmp_path / "out"), recipe=recipe)
    assert read(tmp_path / "out").sequences == read(tmp_path / "plain").sequences


def test_events_in_parts_are_one(tmp_path, events_folder, read):
    events = small()
    prepare("events", str(events_folder(events)), str(tmp_path / "whole"), recipe=parse_recipe({}))
    (tmp_path / "parts" / "events").mkdir(parents=True)
    for part, rows in enumerate((slice(0, 100), slice(100, 360))):
        columns = {name: values[rows] for name, values in events.items()}
        pq.write_table(pa.table(columns), tmp_path / f"parts/events/{part}.parquet")
    prepare("events", str(tmp_path / "parts"), str(tmp_path / "out"), recipe=parse_recipe({}))
    assert read(tmp_path / "out").sequences == read(tmp_path / "whole").sequences


def test_without_timestamps_the_file_order_counts(tmp_path, events_folder, read):
    events = small()
    del events["timestamp"]
    folder = events_folder(events)
    prepare("events", str(folder), str(tmp_path / "out"), recipe=parse_recipe({}))
    assert read(tmp_path / "out").sequences["03"] == events["item"][18:24]
    recipe = parse_recipe({"tasks": {"t": {"kind": "item", "choose": "first"}}})
    with pytest.raises(ConfigError, match=r"tasks\.t\.choose: the events have no timestamps"):
        prepare("events", str(folder), str(tmp_path / "no"), recipe=recipe)


def test_rare_items_are_unseen_and_never_a_target(events_folder, tmp_path, read):
    events = small()
    events["item"][5] = events["item"][8] = "rare"  # the last of one user's sequence, the third of another's
    recipe = parse_recipe({"history": {"min_count": 3}})
    info = prepare("events", str(events_folder(events)), str(tmp_path / "out"), recipe=recipe)
    back = read(tmp_path / "out")
    assert info.items == 2 + 23
    assert back.sequences["00"] == [*events["item"][:5], None]
    assert back.sequences["01"][2] is None
    assert set(back.labels["next"]) == set(back.sequences) - {"00"}


def test_rare_labels_are_dropped_before_the_draw(events_folder, tmp_path, read):
    events = small()
    events["item"][5] = "rare"
    recipe = parse_recipe({"tasks": {"t": {"kind": "item", "min_count": 2}}})
    prepare("events", str(events_folder(events)), str(tmp_path / "out"), recipe=recipe)
    assert "rare" not in {label for pairs in read(tmp_path / "out").labels["t"].values() for label, _ in pairs}


def test_a_class_list_fixes_order_and_bounds(events_folder, tmp_path):
    users = {"user": [f"{user:02d}" for user in range(60)], "plan": [["free", "paid", "trial"][user % 3] for user in range(60)]}
    folder = events_folder(small(), users=users)
    recipe = parse_recipe({"tasks": {"plan": {"kind": "profile", "classes": ["trial", "free", "paid"]}}})
    prepare("events", str(folder), str(tmp_path / "out"), recipe=recipe)
    assert pq.read_table(tmp_path / "out/vocab/plan.parquet").column("label").to_pylist() == ["trial", "free", "paid"]
    recipe = parse_recipe({"tasks": {"plan": {"kind": "profile", "classes": ["free", "paid"]}}})
    with pytest.raises(DataError, match=r"20 × plan is none of the recipe's classes, first at .*users\.parquet: row 3: 'trial'"):
        prepare("events", str(folder), str(tmp_path / "bad"), recipe=recipe)


def test_two_forms_of_one_table(events_folder, tmp_path):
    folder = events_folder(small())
    (folder / "events.csv").write_text("user,item\n")
    with pytest.raises(DataError, match="events are there more than once"):
        prepare("events", str(folder), str(tmp_path / "out"), recipe=parse_recipe({}))


def test_users_of_one_item_each_have_nothing_to_predict(events_folder, tmp_path):
    folder = events_folder({"user": [str(user) for user in range(60)], "item": ["a", "b"] * 30})
    with pytest.raises(DataError, match="task 'next': no user has two items or more"):
        prepare("events", str(folder), str(tmp_path / "out"), recipe=parse_recipe({}))


def test_parts_are_read_in_natural_order(tmp_path, read):
    """`10` comes after `2`; without timestamps that is the order of a user's events."""
    folder = tmp_path / "raw" / "events"
    folder.mkdir(parents=True)
    for part in range(1, 13):
        pq.write_table(pa.table({"user": [f"u{user}" for user in range(60)], "item": [f"i{part}"] * 60}), folder / f"events-{part}.parquet")
    prepare("events", str(tmp_path / "raw"), str(tmp_path / "out"), recipe=parse_recipe({}))
    assert read(tmp_path / "out").sequences["u7"] == [f"i{part}" for part in range(1, 13)]
