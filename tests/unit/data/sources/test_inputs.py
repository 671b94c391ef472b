"""`inputs`: side features of users and items, from tables of raw data to the data set and its versions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.input_features import CLOSED
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.schema import read_dataset_info
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.train.verify import verify

sys.path.insert(0, str(Path(__file__).parents[3] / "helpers"))
from event_tables import GENDERS, PARTS, START, TABLE, USERS, changed, csv, parquet, refused

# u00 … u11 in the north, then six in the south, and two of whom nothing is known; ages 20 … 39
REGIONS = ["north"] * 12 + ["south"] * 6 + [None] * 2
AGES: list[Any] = [20 + number for number in range(20)]
PEOPLE = {"user": USERS, "g": list(GENDERS.values()), "region": REGIONS, "age": AGES}
ITEMS = sorted(set(TABLE["item"]))
# the first item has no row
THINGS = {"item": ITEMS[1:], "kind": ["ab"[n % 2] for n in range(1, len(ITEMS))], "price": [n / 2 for n in range(1, len(ITEMS))]}
INPUTS = {"user": ["region", "g", {"name": "age", "bins": 4}], "item": ["kind", {"name": "price", "bins": [1, 3]}]}
RECIPE = {"inputs": INPUTS, "tasks": {"g": {"kind": "profile"}, "age": {"kind": "profile", "bins": [30], "excludes": ["region"]}}, **PARTS}
FILES = {"events.csv": csv(TABLE), "users.csv": csv(PEOPLE), "items.csv": csv(THINGS)}


def made_of(folder: Path, files: dict[str, bytes], recipe: dict[str, Any], name: str = "out", **options: Any) -> Path:
    raw = folder / f"raw-{name}"
    raw.mkdir()
    for file, content in files.items():
        (raw / file).write_bytes(content)
    prepare("events", str(raw), str(folder / name), recipe=parse_recipe(recipe), **options)
    return folder / name


def users_of(folder: Path) -> dict[str, dict[str, int]]:
    """Return the users' features as the files have them, read without their reader."""
    rows = [row for shard in sorted((folder / "users").iterdir()) for row in pq.read_table(shard).to_pylist()]
    return {row["user_id"]: {name: value for name, value in row.items() if name.startswith("input.")} for row in rows}


def names_of(folder: Path, feature: str) -> list[tuple[str | None, int]]:
    table = pq.read_table(folder / f"vocab/_input.{feature}.parquet").to_pylist()
    assert [row["index"] for row in table] == list(range(len(table)))
    return [(row["value"], row["count"]) for row in table]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_of(tmp_path_factory.mktemp("inputs"), FILES, RECIPE, shards=3)


def test_users_have_numbers_of_categories_and_bins(whole: Path) -> None:
    assert names_of(whole, "region") == [(None, 2), ("north", 12), ("south", 6)]
    assert names_of(whole, "age") == [(None, 0), ("<25", 5), ("25-29", 5), ("30-34", 5), ("35+", 5)]
    users = users_of(whole)
    assert users["u00"] == {"input.region": 1, "input.g": 2, "input.age": 1}
    assert users["u13"] == {"input.region": 2, "input.g": 1, "input.age": 3}
    assert users["u19"] == {"input.region": 0, "input.g": 1, "input.age": 4}


def test_items_have_theirs_beside_their_vocabulary(whole: Path) -> None:
    table, names = (
        pq.read_table(whole / "inputs/items.parquet").to_pydict(),
        pq.read_table(whole / "vocab/items.parquet")["item"].to_pylist(),
    )
    assert table["index"] == list(range(len(ITEMS) + 2))
    assert names_of(whole, "price") == [(None, 1), ("<1", 1), ("1-2", 4), ("3+", 5)]
    kinds, place = [name for name, _ in names_of(whole, "kind")], {name: index for index, name in enumerate(names)}
    for item, kind in zip(THINGS["item"], THINGS["kind"], strict=True):
        assert kinds[table["input.kind"][place[item]]] == kind
    assert [table["input.kind"][index] for index in (0, 1, place[ITEMS[0]])] == [0, 0, 0]
    assert [table["input.price"][place[item]] for item in ITEMS] == [0, 1, *[2] * 4, *[3] * 5]


def test_dataset_json_describes_them_and_what_is_closed_to_whom(whole: Path) -> None:
    value = json.loads((whole / "dataset.json").read_text())
    assert value["format_version"] == 2
    assert value["inputs"]["user"][2] == {"name": "age", "values": 5, "edges": [25.0, 30.0, 35.0]}
    assert value["inputs"]["item"][1] == {"name": "price", "values": 4, "edges": [1.0, 3.0]}
    assert value["inputs"]["closed"] == {"g": ["g"], "age": ["region", "age"]}
    assert {"inputs/items.parquet", "vocab/_input.region.parquet", "vocab/_input.kind.parquet"} <= set(value["files"])
    assert value["notes"]["matched"]["input region"]["left_out"] == {"no value: missing": 2}
    assert value["notes"]["matched"]["input kind"]["left_out"] == {"no row in items.csv: missing": 1}
    info = read_dataset_info(str(whole))
    assert info.fingerprint == read_dataset_info(str(whole)).fingerprint
    assert info.inputs.names == ("region", "g", "age", "kind", "price")


def test_they_are_checked_like_every_file(whole: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    assert not [path for path, problem in verify(str(copy)) if problem]
    (copy / "inputs/items.parquet").write_bytes(b"other")
    (problem,) = [(path, problem) for path, problem in verify(str(copy)) if problem]
    assert problem == (str(copy / "inputs/items.parquet"), "is not as it was prepared")


@pytest.mark.parametrize("cached", [False, True])
def test_rows_of_a_task_lack_what_is_closed_to_it(whole: Path, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path))
    data = Dataset(str(whole), cached=cached)
    shard = next(index for index in range(3) if data.shard(index).user_hash.size > 1)
    assert data.user_features(shard, "next") is None
    data.read_inputs(["age", "region", "price"])
    every, raw = data.user_features(shard, "next"), data.shard(shard).features
    assert raw is not None and every is not None
    assert np.array_equal(every, raw[:, [0, 2]])
    assert (data.user_features(shard, "age") == CLOSED).all()
    assert np.array_equal(data.user_features(shard, "g"), every)
    assert (data.user_features(shard, "next", "age") == CLOSED).all()
    assert data.item_features().shape == (data.info.items, 1)
    data.read_inputs(["g"])
    assert (data.user_features(shard, "g") == CLOSED).all()
    assert not (data.user_features(shard, "age") == CLOSED).any()


def test_truth_values_of_a_version_in_another_format_keep_their_numbers(tmp_path: Path) -> None:
    member = [bool(number % 3) for number in range(len(USERS))]
    rule: dict[str, Any] = {"inputs": {"user": ["member"]}, **PARTS}
    old = made_of(tmp_path, {"events.csv": csv(TABLE), "users.csv": csv({"user": USERS, "member": member})}, rule, "old")
    later = [f"later {user}" for user in USERS]
    files = {
        "events.csv": csv(changed(user=[f"later {user}" for user in TABLE["user"]])),
        "users.parquet": parquet({"user": later, "member": [not value for value in member]}),
    }
    new = made_of(tmp_path, files, rule, "new")
    append(str(old), str(new), str(tmp_path / "both"), refresh=True)
    assert names_of(tmp_path / "both", "member") == [(None, 0), ("True", 20), ("False", 20)]
    users = users_of(tmp_path / "both")
    assert [users[user]["input.member"] for user in [*USERS, *later]] == [
        1 if value else 2 for value in [*member, *(not v for v in member)]
    ]


def test_without_inputs_a_data_set_is_as_ever(tmp_path: Path) -> None:
    plain = made_of(tmp_path, FILES, {"tasks": {"g": {"kind": "profile"}}, **PARTS})
    value = json.loads((plain / "dataset.json").read_text())
    assert (value["format_version"], "inputs" in value, "inputs" in value["source"]["recipe"]) == (1, False, False)
    assert "excludes" not in value["source"]["recipe"]["tasks"]["g"]
    assert parse_recipe({"inputs": {"user": []}}).to_json() == parse_recipe({}).to_json()
    assert parse_recipe(parse_recipe(RECIPE).to_json()) == parse_recipe(RECIPE)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"user": ["region", "region"]}, "inputs: 'region' stands twice in user; a feature has one role"),
        ({"user": ["x"], "item": ["x"]}, "'x' stands among those of users and those of items"),
        ({"user": [{"name": "age", "bins": 1}]}, "bins: expected how many bins, from 2 to 100, or their ascending edges"),
        ({"user": [{"name": "age", "bins": [3, 2]}]}, "ascending edges"),
        ({"user": [{"name": "age", "bin": 3}]}, r"inputs.user.0.bin: unknown field; did you mean 'bins'\? \(known: name, bins\)"),
        ({"user": [True]}, "expected a list of attributes"),
        ({"users": ["age"]}, "unknown field; did you mean 'user'"),
    ],
)
def test_recipes_that_declare_features_wrongly(inputs: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_recipe({"inputs": inputs})


@pytest.mark.parametrize(
    ("excludes", "said"),
    [
        (["regoin"], r"tasks.g.excludes: 'regoin' is not declared; did you mean 'region'\?; inputs.user has: region"),
        (["kind"], "'kind' is of items, which every task reads with them"),
    ],
)
def test_what_is_excluded_is_declared(excludes: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_recipe({"inputs": {"user": "region", "item": "kind"}, "tasks": {"g": {"kind": "profile", "excludes": excludes}}})


def _people(**columns: list[Any]) -> dict[str, bytes]:
    return {**FILES, "users.csv": csv({**PEOPLE, **columns})}


@pytest.mark.parametrize(
    ("files", "inputs", "said", "error"),
    [
        (FILES, {"user": ["town"]}, r"inputs.user: .*users.csv has no attribute 'town' of users.*there are: g, region, age", ConfigError),
        (FILES, {"user": ["user"]}, "it names them, and a column has one role", ConfigError),
        ({"events.csv": FILES["events.csv"]}, {"item": ["kind"]}, "inputs.item: the source has no attributes of items", ConfigError),
        (
            _people(region=["x"] * 20),
            {"user": ["region"]},
            r"'region' has one value alone among users who are trained on \('x'\)",
            DataError,
        ),
        (_people(region=[None] * 20), {"user": ["region"]}, "'region' has no value for any user", DataError),
        (_people(age=[5] * 20), {"user": [{"name": "age", "bins": 3}]}, r"'age' has one value alone among users who .* \('5'\)", DataError),
        (FILES, {"user": [{"name": "age", "bins": [90]}]}, "all values lie in one of the bins", DataError),
        (_people(age=["old"] * 20), {"user": [{"name": "age", "bins": 3}]}, "age is not a number", DataError),
    ],
)
def test_features_that_tell_nothing_or_are_not_there(made: Any, files: dict[str, bytes], inputs: Any, said: str, error: Any) -> None:
    refused(made, files, said, {"inputs": inputs, **PARTS}, error=error)


def test_a_thousand_values_are_no_categories(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_teracon.data.prepare.input_values.MOST_VALUES", 19)
    refused(made, FILES, "'age' has 20 values, more than 19.*{name: age, bins: 10}", {"inputs": {"user": ["age"]}, **PARTS})
    back = made(FILES, {"inputs": {"user": [{"name": "age", "bins": 10}]}, **PARTS})
    assert back.info["inputs"]["user"][0]["values"] == 11


def test_a_split_by_time_counts_training_rows_alone(tmp_path: Path) -> None:
    late = {"user": ["zz"] * 2, "item": ["i01", "i02"], "timestamp": [START + 21, START + 31]}
    events = {name: [*TABLE[name], *late[name]] for name in TABLE}
    people = {"user": [*USERS, "zz"], "region": [*REGIONS, "west"], "age": [*AGES, 1000]}
    split = {"by": "time", "validation_from": START + 20, "test_from": START + 30}
    recipe = {"inputs": {"user": ["region", {"name": "age", "bins": 4}]}, "split": split}
    made = made_of(tmp_path, {"events.csv": csv(events), "users.csv": csv(people)}, recipe)
    assert names_of(made, "region") == [(None, 2), ("north", 12), ("south", 6)]
    assert read_dataset_info(str(made)).inputs.user[1].edges == (25.0, 30.0, 35.0)
    users = users_of(made)
    assert users["u13"] == users["u13@validation-next"] == users["u13@test-next"] == {"input.region": 2, "input.age": 3}
    assert users["zz@test-next"] == {"input.region": 0, "input.age": 4}
    left_out = read_dataset_info(str(made)).notes["matched"]["input region"]["left_out"]
    assert left_out == {"no value: missing": 2, "a value that nobody has who is trained on: missing": 1}


def test_padding_has_no_features(tmp_path: Path) -> None:
    made = made_of(tmp_path, FILES, {"inputs": INPUTS, "history": {"padding": "token", "length": 6}, **PARTS})
    data = Dataset(str(made))
    data.read_inputs(["kind", "price"])
    assert data.vocabulary("items")["item"].to_pylist()[-1] == "<padding>"
    assert data.item_features()[-1].tolist() == [0, 0]
    assert data.item_features().shape == (data.info.items, 2)


def test_what_there_is_is_printed(whole: Path) -> None:
    from dist_teracon.data.summary import dataset_lines

    text = " ".join(line.strip() for line in dataset_lines(read_dataset_info(str(whole))))
    assert "side features: of users region (2 values), g (2 values), age (4 bins); of items kind (2 values), price (3 bins)" in text
    assert "age does not read region, age" in text


def test_a_user_is_shown_with_them(whole: Path) -> None:
    from dist_teracon.data.inspection import inspect_lines

    assert "  region: (missing) · g: f · age: 35+" in inspect_lines(Dataset(str(whole)), user="u19")


def test_one_value_and_missing_ones_tell_something(made: Any) -> None:
    back = made(_people(region=["x"] * 10 + [None] * 10), {"inputs": {"user": ["region"]}, **PARTS})
    assert back.info["inputs"]["user"] == [{"name": "region", "values": 2, "edges": []}]


def test_formats_of_sequences_have_none(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "1.csv").write_text("".join(f"0,{user % 5 + 1},{user % 3 + 1},,{user % 2}\n" for user in range(40)))
    with pytest.raises(ConfigError, match="inputs: features come from tables of users and items, and 'sequence-csv' has none"):
        prepare("sequence-csv", str(raw), str(tmp_path / "out"), recipe=parse_recipe({"inputs": {"user": ["age"]}}))


# the same items, and ten users of another region, one of them older than anybody before
NEW = [f"n{user}" for user in range(10)]
LATER_PEOPLE = {
    "user": [*USERS, *NEW], "g": ["mf"[n % 2] for n in range(30)], "city": ["xy"[n % 2] for n in range(30)],
    "region": [*["south"] * 20, *["east"] * 10], "age": [*AGES, *[25] * 9, 90],
}  # fmt: skip
LATER_EVENTS = changed(
    user=[*TABLE["user"], *(user for user in NEW for _ in range(4))], item=[*TABLE["item"], *["i01", "i02", "i99", "i98"] * 10],
    timestamp=[*TABLE["timestamp"], *TABLE["timestamp"][:40]],
)  # fmt: skip
LATER_THINGS = {"item": [*ITEMS, "i99"], "kind": ["b"] * len(ITEMS) + ["c"], "price": [9] * (len(ITEMS) + 1)}
LATER = {"events.csv": csv(LATER_EVENTS), "users.csv": csv(LATER_PEOPLE), "items.csv": csv(LATER_THINGS)}


@pytest.mark.parametrize("refresh", [False, True])
def test_a_version_keeps_numbers_and_bins_and_puts_new_values_behind(whole: Path, tmp_path: Path, refresh: bool) -> None:
    rules = {**RECIPE, "tasks": {"city": {"kind": "profile", "excludes": ["region"]}}}
    known = read_dataset_info(str(whole)).inputs
    added = made_of(tmp_path, LATER, rules, "added", shards=3, known_inputs=known)
    append(str(whole), str(added), str(tmp_path / "new"), refresh=refresh)
    new = tmp_path / "new"
    regions = [("north", 0 if refresh else 12), ("south", 20 if refresh else 6), ("east", 10)]
    assert names_of(new, "region") == [(None, 0 if refresh else 2), *regions]
    users = users_of(new)
    assert users["n0"] == {"input.region": 3, "input.g": 2, "input.age": 2}
    assert users["n9"]["input.age"] == 4
    before = users_of(whole)
    assert all((users[user] == before[user]) is (not refresh or user in USERS[12:18]) for user in USERS)
    info = read_dataset_info(str(new))
    assert info.inputs.closed == {"g": ("g",), "age": ("region", "age"), "city": ("region",)}
    assert [feature.values for feature in (*info.inputs.user, *info.inputs.item)] == [4, 3, 5, 4, 4]
    assert info.inputs.user[2].edges == (25.0, 30.0, 35.0)
    old_items, items = (pq.read_table(folder / "inputs/items.parquet").to_pydict() for folder in (whole, new))
    names, kinds = pq.read_table(new / "vocab/items.parquet")["item"].to_pylist(), [name for name, _ in names_of(new, "kind")]
    found = {name: kinds[value] for name, value in zip(names, items["input.kind"], strict=True)}
    assert (found["i99"], found["i98"]) == ("c", None)
    if refresh:
        assert all(found[item] == "b" for item in ITEMS)
    else:
        assert items["input.kind"][: len(old_items["index"])] == old_items["input.kind"]
    assert not [path for path, problem in verify(str(new)) if problem]


def test_versions_have_the_same_features(whole: Path, tmp_path: Path) -> None:
    city = {"city": {"kind": "profile"}}
    other = made_of(tmp_path, LATER, {**RECIPE, "tasks": city, "inputs": {"user": ["region"]}}, "other", shards=3)
    with pytest.raises(DataError, match=r"side features are not those of .* \(it has user region, and .* has user region, user g"):
        append(str(whole), str(other), str(tmp_path / "new"))
    bins = made_of(tmp_path, LATER, {**RECIPE, "tasks": city}, "bins", shards=3)
    with pytest.raises(DataError, match=r"side features are not those of .* \(their bins differ\)"):
        append(str(whole), str(bins), str(tmp_path / "new"))


def test_the_command_appends_with_the_bins_of_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dist_teracon.cli import main

    recipe = tmp_path / "recipe.json"
    old, raw = made_of(tmp_path, FILES, RECIPE, "old", shards=3), tmp_path / "later"
    raw.mkdir()
    for file, content in LATER.items():
        (raw / file).write_bytes(content)
    recipe.write_text(json.dumps({**RECIPE, "tasks": {"city": {"kind": "profile"}}}))
    command = ["prepare", "events", str(raw), str(tmp_path / "new"), "--recipe", str(recipe), "--append", str(old)]
    for _ in range(2):
        assert main(command) == 0
    assert "is there already" in capsys.readouterr().err
    assert read_dataset_info(str(tmp_path / "new")).inputs.user[2].edges == (25.0, 30.0, 35.0)
    recipe.write_text(json.dumps({**RECIPE, "inputs": {"user": ["region"]}, "tasks": {"town": {"kind": "profile", "attribute": "city"}}}))
    assert main([*command[:3], str(tmp_path / "newer"), *command[4:]]) == 2
    assert "inputs.user" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "bins", "edges", "sizes"),
    [
        ([0] * 60 + [*range(1, 41)], 2, (1.0,), [60, 40]),  # the middle one is the least, whose bin must not take the others
        ([0] * 95 + [1, 2, 3, 4, 5], 10, (1.0,), [95, 5]),
        ([1] * 34 + [2] * 33 + [3] * 33, 3, (2.0, 3.0), [34, 33, 33]),
        ([0] * 51 + [1] * 49, 2, (1.0,), [51, 49]),
        ([*range(100)], 4, (25.0, 50.0, 75.0), [25] * 4),
    ],
)
def test_bins_left_to_the_values_have_about_as_many_each(
    tmp_path: Path, values: list[int], bins: int, edges: tuple[float, ...], sizes: list[int]
) -> None:
    users = [f"u{number:02d}" for number in range(100)]
    events = {name: [column[row % len(column)] for row in range(400)] for name, column in TABLE.items()}
    events["user"] = [users[row // 4] for row in range(400)]
    files = {"events.csv": csv(events), "users.csv": csv({"user": users, "age": values})}
    told: list[str] = []
    recipe = {"inputs": {"user": [{"name": "age", "bins": bins}]}, **PARTS}
    made = made_of(tmp_path, files, recipe, log=told.append)
    assert read_dataset_info(str(made)).inputs.user[0].edges == edges
    assert [count for _, count in names_of(made, "age")[1:]] == sizes
    fewer = f"inputs: 'age' has {len(sizes)} bins instead of {bins}, as many values are the same: "
    assert any(line.startswith(fewer) for line in told) == (len(sizes) < bins)
