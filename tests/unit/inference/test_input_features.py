"""A model that reads side features: features in every form, data sets, states, programs, the server; closed ones, and what is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import dist_teracon
from dist_teracon.errors import ConfigError, DataError

PEOPLE = {f"u{user:03d}": {"region": ("north", "south")[user % 2], "age": 18 + user % 40} for user in range(120)}
INPUTS = {"user": ["club", "region", {"name": "age", "bins": [25, 40]}], "item": ["category"]}
HISTORIES = [["p01", "p02"], ["p03", "p07", "p20"], ["p05"]]
GIVEN: list[dict[str, Any]] = [{"region": "south", "age": 30}, {"age": "52", "club": "yes"}, {}]


@pytest.fixture(scope="module")
def events(shop: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's events, with region and age in the table of users."""
    folder = tmp_path_factory.mktemp("fed") / "events"
    shutil.copytree(shop.events, folder)
    clubs = [line.split(",") for line in (folder / "users.csv").read_text().splitlines()[1:]]
    lines = [f"{user},{club},{PEOPLE[user]['region']},{PEOPLE[user]['age']}\n" for user, club in clubs]
    (folder / "users.csv").write_text("user,club,region,age\n" + "".join(lines))
    return folder


def prepared(events: Path, out: Path, **changes: Any) -> str:
    from shop import prepare_shop

    tasks = {"club": {"kind": "profile"}, "late": {"kind": "profile", "attribute": "club", "excludes": ["region"]}}
    return prepare_shop(events, out, **{"inputs": INPUTS, "tasks": tasks, **changes})


@pytest.fixture(scope="module")
def fed(events: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepared(events, tmp_path_factory.mktemp("fed") / "dataset")


def made(fed: str, folder: Path, features: Any = "all", **model: Any) -> Any:
    from shop import CONFIG, make_shop_run

    model = {**CONFIG["model"], "input_features": features, **model}
    return dist_teracon.from_pretrained(make_shop_run(fed, folder / "run", tasks=["next", "club", "late"], model=model))


@pytest.fixture(scope="module")
def model(fed: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(fed, tmp_path_factory.mktemp("fed"))


def test_features_of_a_folder_a_table_and_mappings_give_the_vectors_of_the_data_set(model: Any, fed: str, events: Path) -> None:
    from dist_teracon.inference.sources import of_dataset

    source, expected = of_dataset(model, fed, log=print), {}
    for part in range(source.parts):
        read = source.histories(part)
        expected |= dict(zip(read.users.to_pylist(), model.encode(read, "next"), strict=True))
    assert len(expected) > 100
    clubs = dict(line.split(",")[:2] for line in (events / "users.csv").read_text().splitlines()[1:])
    rows = {user: {**person, "club": clubs[user]} for user, person in PEOPLE.items()}
    table = pa.table({"user": list(rows), **{name: [row[name] for row in rows.values()] for name in ("region", "age", "club")}})
    for form, given in ((str(events), None), (str(events / "events.parquet"), rows), (str(events / "events.parquet"), table)):
        read = model.histories(form, features=given)
        found = dict(zip(read.users.to_pylist(), model.encode(read, "next"), strict=True))
        for user, vector in expected.items():
            np.testing.assert_allclose(found[user], vector, atol=1e-6)


def test_what_is_not_given_or_not_known_is_missing(model: Any) -> None:
    plain = model.encode(HISTORIES, "next")
    fed = model.encode(HISTORIES, "next", features=GIVEN)
    assert np.array_equal(fed[2], plain[2])
    assert not np.array_equal(fed[0, -8:], plain[0, -8:])
    assert np.array_equal(fed[:, :-8], plain[:, :-8])  # the features' part stands at the end
    strange = model.histories(HISTORIES, features=[{"region": "moon"}, {"region": None}, {"region": " "}])
    assert np.array_equal(model.encode(strange, "next"), plain)
    assert "1 values of features (club, region, age) are not known to the model" in strange.notes()[0]
    assert "are not given; all are read as missing" in model.histories(HISTORIES).notes()[0]
    tables = model.method.model().backbone.user_features.tables
    own = tables[1][2] + tables[2][2] + tables[0][0]  # south by name behind north, 30 in the second bin
    np.testing.assert_allclose(fed[0, -8:], own.detach().numpy(), atol=1e-6)


def test_truth_values_are_known_in_every_spelling() -> None:
    from dist_teracon.data.input_features import InputFeature
    from dist_teracon.inference.user_features import FeatureReader
    from dist_teracon.inference.vocabulary import Vocabulary

    members = Vocabulary([None, "False", "True"])
    assert members.indices(pa.array(["true", "FALSE", "True", "false", "yes", None])).tolist() == [2, 1, 2, 1, -1, -1]
    assert Vocabulary(["False", "True", "maybe"]).index("true") == -1  # names of another kind, each as it is written
    assert Vocabulary(["False", "false"]).indices(pa.array(["False", "false", "FALSE"])).tolist() == [0, 1, -1]
    reader = FeatureReader((InputFeature("member", 3),), {"member": members}, ("member",))
    read = reader.read([{"member": True}, {"member": "false"}, {"member": np.False_}], 3, None)
    assert read.values is not None and read.values[:, 0].tolist() == [2, 1, 1]
    assert read.told == ()


def test_cells_of_every_type_are_read_as_preparation_reads_a_column_of_it() -> None:
    """A number of 32 bits by its digits, so that 0.7 lies in the bin from 0.7 on; categories that are numbers, dates or decimals."""
    from dist_teracon.data.input_features import InputFeature
    from dist_teracon.inference.user_features import FeatureReader
    from dist_teracon.inference.vocabulary import Vocabulary

    names, users = Vocabulary([None, "0.7", "2", "2020-01-31"]), pa.array(["a", "b"])
    reader = FeatureReader((InputFeature("share", 3, (0.7,)), InputFeature("kind", 4)), {"kind": names}, ("share", "kind"))
    for share in (0.7, np.float32(0.7), np.float64(0.7), Decimal("0.70"), "0.7", b"0.7"):
        read = reader.read([{"share": share, "kind": kind} for kind in (Decimal("0.7"), np.float32(0.7), 2.0, date(2020, 1, 31))], 4, None)
        assert read.values is not None and read.values.tolist() == [[2, 1], [2, 1], [2, 2], [2, 3]]
    for kind in (pa.float32(), pa.float64(), pa.string(), pa.decimal128(2, 1), pa.dictionary(pa.int8(), pa.string())):
        texts = pa.array(["0.7", "2.0"])
        column = texts.cast(kind) if not pa.types.is_dictionary(kind) else texts.dictionary_encode()
        read = reader.read(pa.table({"user": ["a", "b"], "share": column, "kind": column}), 2, users)
        assert read.values is not None and read.values[:, 0].tolist() == [2, 2] and read.values[0, 1] == 1
    for wrong, shown in (([1], r"\[1\] \(list\)"), (b"\xff", r"b'\\xff' \(bytes\)")):
        with pytest.raises(DataError, match=f"a text, a number or a date for 'kind' of history 1, got {shown}"):
            reader.read([{"kind": "2"}, {"kind": wrong}], 2, None)
    with pytest.raises(DataError, match="expected texts, numbers or dates in column 'kind', got list<item: int64>"):
        reader.read(pa.table({"user": ["a", "b"], "kind": [[1], [2]]}), 2, users)


def test_features_by_user_say_whom_they_miss_and_several_rows_are_read_as_preparation_reads_them(model: Any) -> None:
    table = pa.table({"user": ["u1", "u2", "u1"], "item": ["p01", "p02", "p03"], "timestamp": [1_700_000_000] * 3, "type": ["view"] * 3})
    plain, given = model.histories(table, features={}), {"u1": {"region": "south"}, "u02": {"region": "north"}}
    assert plain.notes()[-1] == "2 of 2 users have no features given; theirs are read as missing"
    told = model.histories(table, features=given).notes()
    assert "1 of 2 users have no features given; theirs are read as missing" in told
    assert "features are given of 1 users who have no history here, as 'u02'; histories are of users as 'u1'" in told
    # what a person's rows say first counts, and the second one fills what it leaves empty
    rows = pa.table({"user": ["u1", "u2", "u1"], "region": [" ", "north", "south"], "age": [30, 60, 99]})
    read = model.histories(table, features=rows)
    assert read.notes()[-1] == "1 users have several rows of features; their first value that is not missing counts"
    whole = model.histories(table, features=[{"region": "south", "age": 30}, {"region": "north", "age": 60}])
    assert np.array_equal(read.rows.features, whole.rows.features)
    assert not np.array_equal(read.rows.features, plain.rows.features)
    with pytest.raises(DataError, match="expected the features of each user by name"):
        model.histories(table, features={"u1": "south"})


def test_codes_of_unknown_are_missing_in_use_too() -> None:
    """As in preparation, of numbers as of categories, however a whole number is written."""
    from dist_teracon.data.input_features import InputFeature
    from dist_teracon.data.recipe import parse_recipe
    from dist_teracon.inference.user_features import FeatureReader
    from dist_teracon.inference.vocabulary import Vocabulary

    recipe = parse_recipe({"missing": {"age": ["0", "-"], "kind": ["9.0"]}})
    features = InputFeature("age", 4, (25.0, 40.0)), InputFeature("kind", 3)
    reader = FeatureReader(features, {"kind": Vocabulary([None, "1", "9"])}, ("age", "kind"), recipe)
    rows = [{"age": cell, "kind": cell} for cell in (0, 0.0, "0", " - ", "NaN", float("nan"), None)]
    read = reader.read([*rows[:1], *({"age": row["age"]} for row in rows[1:]), {"kind": 9}, {"kind": "9"}, {"age": 5, "kind": 1}], 10, None)
    assert read.values is not None and read.values.tolist() == [[0, 0]] * 9 + [[1, 1]]
    assert read.strange is not None and read.strange.tolist() == [1] + [0] * 9  # the kind 0
    with pytest.raises(DataError, match="expected a number for 'age' of history 0, got 'inf'; leave it out where it is not known"):
        reader.read([{"age": float("inf")}], 1, None)


def test_vectors_of_a_task_and_shared_ones_read_nothing_that_is_closed(model: Any) -> None:
    club, both, place = [{"club": "yes"}] * 3, [{"club": "yes", "region": "north"}] * 3, [{"region": "north"}] * 3

    def same(kind: Any, one: Any, other: Any, **options: Any) -> bool:
        return np.array_equal(
            model.encode(HISTORIES, kind, features=one, **options), model.encode(HISTORIES, kind, features=other, **options)
        )

    assert same("club", club, None) and not same("club", place, None)
    assert same("late", both, None) and not same("late", GIVEN, None)
    assert not same("next", club, None)
    for way in ("mean", "open", "concat"):
        assert same("shared", both, None, shared=way)
        assert not same("shared", GIVEN, None, shared=way)
    one, other = (model.predict(HISTORIES, "club", features=given).scores for given in (club, None))
    assert np.array_equal(one, other)


def test_a_probe_of_a_task_reads_nothing_that_is_closed_to_it_whatever_the_vectors_task(
    model: Any, fed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dist_teracon.cli import main
    from dist_teracon.inference.probe import without_features

    told: list[str] = []
    given = [[{"club": club, "region": "north"}] * 3 for club in ("yes", "no")]
    reads = [model.histories(HISTORIES, features=features) for features in given]
    assert not np.array_equal(*(model.encode(read, "next") for read in reads))
    shut = without_features(model, reads, {"club", "shoe size"}, log=told.append)
    assert np.array_equal(*(model.encode(read, "next") for read in shut))
    (other,) = without_features(model, [model.histories(HISTORIES, features=[{"club": "yes"}] * 3)], {"club"}, log=told.append)
    assert not np.array_equal(model.encode(other, "next"), model.encode(shut[0], "next"))  # the region stays
    assert told == ["vectors are made without club of users, which the labels' task must not read"] * 2
    assert without_features(model, reads, (), log=told.append) is reads
    assert main(["probe", str(model.run), "--labels-task", "late", "--task", "next", "--json", str(tmp_path / "probe.json")]) == 0
    assert "vectors are made without club, region of users" in capsys.readouterr().err
    labels = tmp_path / "labels.csv"
    labels.write_text("user,label\n" + "".join(f"u{user:03d},{user % 2}\n" for user in range(120)))
    assert main(["probe", str(model.run), "--labels", str(labels), "--task", "next"]) == 0
    assert "the vectors read club, region, age of users; labels that follow from one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{}], "expected a mapping for each of 3 users, got 1"),
        ("north", "expected a mapping for each user"),
        ({"u001": {}}, "the histories have no ids of users"),
        ([{"regoin": "north"}, {}, {}], "has no feature 'regoin' of users; did you mean 'region'"),
        ([{"age": "old"}, {}, {}], "expected a number for 'age' of history 0, got 'old'"),
        (pa.table({"who": ["u001"]}), "the table has no column 'user' of users"),
    ],
)  # fmt: skip
def test_features_of_another_form_are_refused(model: Any, given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        model.encode(HISTORIES, features=given)


def test_a_model_without_features_takes_none(shop: Any) -> None:
    with pytest.raises(ConfigError, match=r"the model reads no features of users \(model.input_features\)"):
        dist_teracon.from_pretrained(shop.run).encode(HISTORIES, features=GIVEN)


@pytest.mark.parametrize("shape", [{}, {"backbone": {"name": "sasrec", "layers": 2}}], ids=["nextitnet", "sasrec"])
def test_a_state_goes_on_with_the_users_features(fed: str, tmp_path: Path, shape: dict[str, Any]) -> None:
    model, items = made(fed, tmp_path, **shape), [f"p{(7 * place) % 24:02d}" for place in range(11)]
    for task in ("next", "club", "shared"):
        state = model.state(items[:3], task, features=GIVEN[1])
        for end in range(4, len(items) + 1):
            state = model.extend(state, items[end - 1])
            assert np.abs(state.vector - model.encode([items[:end]], task, features=[GIVEN[1]])[0]).max() < 1e-5, end


def test_a_program_reads_features_of_items_and_not_of_users(model: Any, fed: str, tmp_path: Path) -> None:
    from dist_teracon.inference.padded import export_model

    with pytest.raises(ConfigError, match=r"reads club, region, age of users .*an exported program items alone"):
        export_model(model, str(tmp_path / "out.pt2"), "club")
    items = made(fed, tmp_path, ["category"])
    assert export_model(items, str(tmp_path / "items.pt2"), "club") < 1e-5
    table = items.method.model().backbone
    assert not np.array_equal(items.item_vectors(), table.item_embedding.weight.detach().numpy())


def test_other_data_sets_need_the_features_and_the_bins(model: Any, events: Path, fed: str, shop: Any, tmp_path: Path) -> None:
    from dist_teracon.inference.evaluate import evaluate
    from dist_teracon.inference.mapped_dataset import MappedDataset

    with pytest.raises(DataError, match=r"has no feature 'club' of users, which the model reads"):
        evaluate(model, shop.dataset)
    other = prepared(events, tmp_path / "bins", inputs={**INPUTS, "user": ["club", "region", {"name": "age", "bins": [30]}]})
    with pytest.raises(DataError, match=r"cuts 'age' at \[30.0\], and the model reads bins cut at \[25.0, 40.0\]"):
        evaluate(model, other)
    # as long as the features are in any order, and regions are matched by name
    people = (events / "users.csv").read_text().splitlines()
    moved = tmp_path / "moved"
    shutil.copytree(events, moved)
    changed = [line.replace("north", "zone") if place % 4 else line for place, line in enumerate(people)]
    (moved / "users.csv").write_text("\n".join(changed) + "\n")
    inputs = {"user": [INPUTS["user"][2], "region", "club"], "item": []}
    opened = dist_teracon.open_dataset(prepared(moved, tmp_path / "other", inputs=inputs))
    mapped, names = MappedDataset(opened, model), opened.input_values("region")
    for shard in range(opened.info.shards):
        theirs, ours = opened.shard(shard).features, mapped.shard(shard).features
        assert np.array_equal(ours[:, 2], theirs[:, 0])
        own = [{None: 0, "north": 1, "south": 2, "zone": 0}[names[number]] for number in theirs[:, 1].tolist()]
        assert ours[:, 1].tolist() == own
    before = {score.task: score.values for score in evaluate(model, fed)}
    assert set(before) == {"next", "club", "late"}


def test_requests_carry_features(model: Any) -> None:
    from dist_teracon.inference.serving.app import App
    from dist_teracon.inference.serving.served import Served, Source
    from dist_teracon.inference.serving.users import Users

    app = App([Served.load(Source("fed", str(model.run)), Users(10))])

    def post(path: str, **fields: Any) -> tuple[int, Any]:
        answer = asyncio.run(app.handle("POST", path, {}, json.dumps(fields).encode()))
        return answer.status, json.loads(answer.body)

    status, value = post("/encode", histories=HISTORIES, features=GIVEN, task="next")
    assert (status, value["unknown_features"]) == (200, 0)
    np.testing.assert_allclose(value["vectors"], model.encode(HISTORIES, "next", features=GIVEN), atol=1e-6)
    assert post("/encode", histories=HISTORIES, features=[{"region": "moon"}, {}, {"club": "?"}])[1]["unknown_features"] == 2
    labels = post("/predict", histories=HISTORIES, features=GIVEN, task="next", top=3)[1]["labels"]
    assert labels == model.predict(HISTORIES, "next", top=3, features=GIVEN).labels
    for fields, said in (
        ({"features": [{}]}, "features: expected a list of an object for each history"),
        ({"features": [{}, [], {}]}, "features[1]: expected"),
        ({"features": [{"age": True}, {}, {}]}, "features[0].'age': expected a text, a number, or null"),
        ({"features": [{"agee": 3}, {}, {}]}, "has no feature 'agee' of users; did you mean 'age'"),
    ):  # fmt: skip
        status, value = post("/encode", histories=HISTORIES, **fields)
        assert status == 400
        assert said in value["error"], value
    status, value = post("/events", user="u", items=["p01"], task="club")
    assert status == 400
    assert "remembered users have none; send histories to /encode" in value["error"]


def test_a_number_that_cannot_be_read_in_the_table_of_users(model: Any, events: Path, tmp_path: Path) -> None:
    """As in preparation: one of a thousand is missing, and told with its place; more are one error."""
    folder = tmp_path / "events"
    shutil.copytree(events, folder)
    clean = model.histories(str(folder))
    lines = (folder / "users.csv").read_text().splitlines()
    lines[5] = "u004,yes,north,abc"
    (folder / "users.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(
        DataError, match=r"users.csv: 1 of 120 users have a 'age' that is no number, first at .*users.csv:6: 'abc'; write a"
    ):
        model.histories(str(folder))
    lines += [f"x{user:04d},no,south,30" for user in range(900)]
    (folder / "users.csv").write_text("\n".join(lines) + "\n")
    read = model.histories(str(folder))
    (told,) = [line for line in read.notes() if "no number" in line]
    assert "1 users have a 'age' that is no number" in told
    assert told.endswith("users.csv:6: 'abc'; it is read as missing")
    changed = (read.rows.features != clean.rows.features).nonzero()
    assert read.users[int(changed[0][0])].as_py() == "u004"
    assert (read.rows.features[changed].tolist(), len(changed[0])) == ([0], 1)
    (folder / "users.csv").write_text("\n".join([*lines, "u001,no,south,99"]) + "\n")
    assert any("have several values" in line for line in model.histories(str(folder)).notes())
