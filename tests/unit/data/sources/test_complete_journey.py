"""The recipe of a grocer's baskets and coupons, on made tables of The Complete Journey's columns."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_teracon.config_io import read_yaml
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe

RECIPE = Path(__file__).parents[4] / "configs" / "recipes" / "complete-journey.yaml"
CUT = datetime(2017, 11, 1, tzinfo=UTC).replace(tzinfo=None)
USERS = 60
KNOWN = range(0, USERS, 3)  # a third of the households have attributes
ATTRIBUTES = {
    "age": ["19-24", "25-34", "35-44", "45-54", "55-64", "65+"],
    "income": ["Under 15K", "25-34K", "250K+"],
    "household_size": ["1", "2", "5+"],
    "kids_count": ["0", "1", "2", "3+"],
}


def write_raw(raw: Path) -> list[tuple[int, int, datetime, str]]:
    """Write tables of a year, of 60 households and 28 items; returns the events."""
    generator = np.random.default_rng(3)
    rows = []
    for user in range(USERS):
        for _ in range(40):
            kind, item = ("buy", "coupon")[int(generator.random() < 0.15)], int(generator.integers(28))
            rows.append((user, item, datetime(2017, 1, 1) + timedelta(minutes=int(generator.integers(365 * 1440))), kind))
    raw.mkdir()
    columns = dict(zip(("user", "item", "timestamp", "type"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, "value": [1.0] * len(rows)}), raw / "events.parquet")
    attributes = {name: [values[user // 3 % len(values)] for user in KNOWN] for name, values in ATTRIBUTES.items()}
    pq.write_table(pa.table({"user": list(KNOWN), **attributes}), raw / "users.parquet")
    items = {
        "item": list(range(28)),
        "department": [f"D{item % 2}" for item in range(28)],
        "category": [f"C{item % 4}" for item in range(28)],
    }
    pq.write_table(pa.table(items), raw / "items.parquet")
    return rows


def test_eight_tasks_come_from_buys_coupons_and_households(tmp_path, read):
    raw = tmp_path / "raw"
    rows = write_raw(raw)
    info = prepare("events", str(raw), str(tmp_path / "out"), recipe=parse_recipe(read_yaml(str(RECIPE))))
    names = ["next", "next-buys", "categories", "coupons", "age", "income", "household-size", "kids"]
    assert [task.name for task in info.tasks] == names
    assert [task.kind for task in info.tasks] == ["next", *["item"] * 3, *["profile"] * 4]
    assert [info.task(name).users for name in names[4:]] == [len(KNOWN)] * 4
    back = read(tmp_path / "out")
    rows.sort(key=lambda row: (row[0], row[2]))
    buyers = Counter(label for _, label in {(user, item) for user, item, time, kind in rows if kind == "buy" and time >= CUT})
    assert min(buyers.values()) < 10 < max(buyers.values())
    for user in range(USERS):
        mine = [row[1:] for row in rows if row[0] == user]
        assert back.sequences[str(user)] == [str(item) for item, time, kind in mine if kind == "buy" and time < CUT]
        bought = dict.fromkeys(item for item, time, kind in mine if kind == "buy" and time >= CUT)
        later = [str(item) for item in bought if buyers[item] >= 10][:10]
        assert [label for label, _ in back.labels["next-buys"].get(str(user), [])] == later
        assert {label for label, _ in back.labels["categories"].get(str(user), [])} == {f"C{item % 4}" for item in bought}
        used = {f"C{item % 4}" for item, time, kind in mine if kind == "coupon" and time >= CUT}
        assert {label for label, _ in back.labels["coupons"].get(str(user), [])} == used
        for task, name in zip(names[4:], ATTRIBUTES, strict=True):
            own = [label for label, _ in back.labels[task].get(str(user), [])]
            assert own == ([ATTRIBUTES[name][user // 3 % len(ATTRIBUTES[name])]] if user in KNOWN else [])


def test_by_a_global_clock_tasks_have_labels_of_their_own_months_and_inputs_that_do_not_tell_them(tmp_path):
    write_raw(tmp_path / "raw")
    recipe = parse_recipe(read_yaml(str(RECIPE.with_name("complete-journey-time.yaml"))))
    info = prepare("events", str(tmp_path / "raw"), str(tmp_path / "out"), recipe=recipe)
    assert [task.name for task in info.tasks] == ["next", "next-buys", "categories", "coupons", "age", "income", "household-size", "kids"]
    assert all(min(task.examples) > 0 for task in info.tasks)
    assert info.history.names == ("times", "types")
    assert info.inputs.names == ("age", "income", "household_size", "kids_count", "department", "category")
    assert info.inputs.closed_to(["household-size"]) == info.inputs.closed_to(["kids"]) == {"household_size", "kids_count"}
    assert info.inputs.closed_to(["age"]) == {"age"}
