"""A model that reads times and types of events: every form of histories, states, other data sets, and what is refused."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import dist_teracon
from dist_teracon.data.schema import FIRST_ITEM
from dist_teracon.errors import ConfigError, DataError

EVENTS = [
    {"item": f"p{(7 * place) % 24:02d}", "time": 1_700_000_000 + 3**place, "type": ("view", "buy", "other")[place % 3]}
    for place in range(12)
]


COLUMNS = {"item": "item", "timestamp": "time", "type": "type"}


@pytest.fixture(scope="module")
def typed(shop, tmp_path_factory):
    """The shop's data set with times and types of views and buys."""
    from shop import RECIPE, prepare_shop

    history = {**RECIPE["history"], "events": {"type": ["view", "buy"]}, "keep": ["time", "type"], "repeats": True}
    tasks = {"club": {"kind": "profile"}, "late": {"kind": "profile", "attribute": "club"}}
    return prepare_shop(shop.events, tmp_path_factory.mktemp("typed") / "dataset", history=history, tasks=tasks)


def made(typed, folder, **model):
    from shop import CONFIG, make_shop_run

    model = {"event_features": ["gaps", "types"], **model}
    return dist_teracon.from_pretrained(make_shop_run(typed, folder / "run", tasks=["next", "club"], model={**CONFIG["model"], **model}))


@pytest.fixture(scope="module")
def model(typed, tmp_path_factory):
    return made(typed, tmp_path_factory.mktemp("timed"))


def test_events_of_a_file_a_table_and_mappings_give_the_vectors_of_the_data_set(model, typed, shop):
    from dist_teracon.inference.sources import of_dataset

    source = of_dataset(model, typed, log=print)
    expected = {}
    for part in range(source.parts):
        read = source.histories(part)
        vectors = model.encode(read)
        expected |= dict(zip(read.users.to_pylist(), vectors, strict=True))
    table = pq.read_table(shop.events / "events.parquet")
    for form in (str(shop.events / "events.parquet"), table):
        read = model.histories(form)
        for user, vector in zip(read.users.to_pylist(), model.encode(read), strict=True):
            if user in expected:
                np.testing.assert_allclose(vector, expected[user], atol=1e-6)
    rows = sorted(table.to_pylist(), key=lambda row: row["timestamp"])
    own = [{"item": row["item"], "time": row["timestamp"], "type": row["type"]} for row in rows if row["user"] == "u003"]
    np.testing.assert_allclose(model.encode([own])[0], expected["u003"], atol=1e-6)
    assert len(expected) > 100


def test_times_and_types_matter_and_unknown_types_are_read_as_unknown(model):
    first = model.encode([EVENTS])
    later = [{**event, "time": event["time"] + 86_400} for event in EVENTS]
    assert np.array_equal(model.encode([later]), first)  # only the gaps count
    assert not np.allclose(model.encode([[*EVENTS[:-1], {**EVENTS[-1], "time": EVENTS[-1]["time"] * 2}]]), first)
    assert np.array_equal(
        model.encode([[{**event, "type": None if event["type"] == "other" else event["type"]} for event in EVENTS]]), first
    )
    # counted, of events that are read: the last eight
    told = "3 of 8 events are of types that the model does not know; it reads them as the unknown type"
    table = pa.table({"user": ["u"] * 12, **{name: [event[key] for event in EVENTS] for name, key in COLUMNS.items()}})
    assert [event["type"] for event in EVENTS[-8:]].count("other") == 3
    for form in ([EVENTS], [[{**event, "type": f" {event['type']} "} for event in EVENTS]]):
        assert told in model.histories(form).notes()
        assert np.array_equal(model.encode(form), first)
    assert not any("of types that" in line for line in model.histories([[{**event, "type": None} for event in EVENTS]]).notes())
    assert not any("of types that" in line for line in model.histories(table).notes())  # the recipe's views and buys alone


def test_histories_out_of_the_order_of_their_times_are_told(model):
    told = "1 of 2 histories are not in the order of their times; they are read as given"
    same = [{**EVENTS[0], "item": item} for item in ("p02", "p03")]
    assert told in model.histories([EVENTS[::-1], same]).notes()
    assert not any("not in the order" in line for line in model.histories([EVENTS[3:], EVENTS[:3]]).notes())


@pytest.mark.parametrize(
    "shape",
    [
        {},
        # reach 7 of the limit of 8
        {
            "backbone": {"name": "nextitnet", "dilations": [1], "kernel_size": 3},
            "pooling": "mean",
            "event_features": ["gaps", "types", "recency"],
        },
        # reach 4: a state goes on past the limit, and its mean loses an event whose successor then has no gap
        {"backbone": {"name": "nextitnet", "dilations": [1], "kernel_size": 2}, "pooling": "concat"},
        {"backbone": {"name": "sasrec", "layers": 2, "time_bias": "learned"}, "event_features": ["types"]},
    ],
    ids=["reach 19", "reach 7", "reach 4", "sasrec"],
)
def test_a_state_goes_on_with_events(typed, tmp_path, shape):
    model = made(typed, tmp_path, **shape)
    if model.reads_moments:
        _moments_matter(model, dist_teracon.open_dataset(typed))
        _requests_bring_moments(model)
    for task in ("club", "shared"):
        state = model.state(EVENTS[:3], task)
        for end in range(4, len(EVENTS) + 1):
            state = model.extend(state, EVENTS[end - 1])
            assert np.abs(state.vector - model.encode([EVENTS[:end]], task)[0]).max() < 1e-5, end
    with pytest.raises(DataError, match="the model reads times of events"):
        model.extend(state, "p01")


def _moments_matter(model, dataset):
    """A model that reads recency: its default is where the training data ended, and states go on at any moment."""
    assert model.moment == dataset.last_event(range(dataset.info.shards)) > 1_600_000_000
    history, last = EVENTS[:5], EVENTS[4]["time"]
    default = model.encode([history], "club")
    assert np.array_equal(model.encode([history], "club", at=model.moment), default)
    assert np.array_equal(
        model.encode([history], "club", at=datetime.fromtimestamp(last, UTC)), model.encode([history], "club", at=last - 999)
    )
    hour, year = (model.encode([history], "club", at=last + seconds) for seconds in (3_600, 31_536_000))
    assert not np.array_equal(hour, year)
    both = model.encode([history, history], "club", at=[last + 3_600, None])
    np.testing.assert_allclose(both, np.concatenate([hour, default]), atol=1e-6)
    state = model.state(history[:1], "club", at=last)
    for number, event in enumerate(history[1:]):
        state = model.extend(state, event, at=last + 3_600 + number - 3)
    np.testing.assert_allclose(state.vector, hour[0], atol=1e-5)
    with pytest.raises(DataError, match="at: expected a moment for all, or one for each of 1 users, got 2"):
        model.encode([history], at=[1, 2])
    with pytest.raises(DataError, match="at: expected seconds since 1970, or a datetime"):
        model.predict([history], "next", at="now")


def _requests_bring_moments(model):
    from dist_teracon.inference.serving.app import App
    from dist_teracon.inference.serving.served import Served, Source
    from dist_teracon.inference.serving.users import Users

    app = App([Served.load(Source("timed", str(model.run)), Users(10))])

    def vector(path, **fields):
        answer = json.loads(asyncio.run(app.handle("POST", path, {}, json.dumps(fields).encode())).body)
        return answer["vectors"][0] if "vectors" in answer else answer.get("vector", answer)

    moment = EVENTS[6]["time"] + 5_000
    np.testing.assert_allclose(vector("/encode", histories=[EVENTS[:7]], at=moment), model.encode([EVENTS[:7]], at=moment)[0], atol=1e-6)
    vector("/events", user="u", items=EVENTS[:6], at=5)
    for at in (moment, 2 * moment, None):
        found = vector("/events", user="u", items=EVENTS[6:7] if at == moment else [], **({} if at is None else {"at": at}))
        np.testing.assert_allclose(found, model.encode([EVENTS[:7]], at=at)[0], atol=1e-5)
    assert "at: expected seconds since 1970" in vector("/predict", histories=[EVENTS], task="next", at="now")["error"]


def test_a_model_that_does_not_read_the_moment_takes_none(model):
    with pytest.raises(ConfigError, match="at: the model does not read when it predicts"):
        model.encode([EVENTS], at=5)
    with pytest.raises(ConfigError, match="at: the model does not read"):
        model.extend(model.state(EVENTS, "club"), EVENTS[0], at=5)


@pytest.mark.parametrize(
    ("histories", "said"),
    [
        ([["p01", "p02"]], r'each event of a history as \{"item": "a", "time": 1600000000, "type": "click"\}, got \'p01\''),
        ([[{"item": "p01", "time": 5}]], "the model reads types of events"),
        (pa.array([["p01"]]), "got an array of ids"),
        ([[{"item": "p01", "type": "view", "time": 1_700_000_000_000}]], "time: expected seconds since 1970.*in which unit is it"),
        ([[{"item": "p01", "type": 3, "time": 5}]], "type: expected the type's name"),
        (pa.table({"user": ["a"], "item": ["p01"], "type": ["view"]}), "the events have no column of times"),
    ],
)  # fmt: skip
def test_events_without_what_the_model_reads_are_refused(model, histories, said):
    with pytest.raises(DataError, match=said):
        model.encode(histories)


def test_a_model_of_items_takes_mappings_too(shop):
    plain = dist_teracon.from_pretrained(shop.run)
    assert np.array_equal(plain.encode([EVENTS]), plain.encode([[event["item"] for event in EVENTS]]))


def test_other_data_sets_need_the_columns_and_types_are_matched_by_name(model, shop, typed, tmp_path):
    from shop import RECIPE, prepare_shop

    from dist_teracon.inference.evaluate import evaluate
    from dist_teracon.inference.mapped_dataset import MappedDataset
    from dist_teracon.inference.sources import of_dataset

    with pytest.raises(DataError, match=r"keeps no times of events, which the model reads .*history.keep: \[time\]"):
        evaluate(model, shop.dataset)
    # buys alone, so that they are type 1 there
    history = {**RECIPE["history"], "events": {"type": "buy"}, "minimum": 1, "min_count": 1, "keep": "all", "repeats": True}
    other = dist_teracon.open_dataset(prepare_shop(shop.events, tmp_path / "buys", history=history, tasks={"club": {"kind": "profile"}}))
    mapped = MappedDataset(other, model)
    buy = model.reader.reads.types.index("buy")
    assert other.types() == [None, "buy"] and buy == 2
    for shard in range(other.info.shards):
        assert (other.shard(shard).columns.types == 1).all()
        assert (mapped.shard(shard).columns.types == buy).all()
        assert np.array_equal(mapped.shard(shard).columns.times, other.shard(shard).columns.times)
    assert evaluate(model, typed)[0].examples > 0
    # a type of another name is told, by every command that reads the data set
    table, told = pq.read_table(shop.events / "events.parquet"), []
    (tmp_path / "raw").mkdir()
    for name in ("users.csv", "items.csv"):
        (tmp_path / "raw" / name).write_bytes((shop.events / name).read_bytes())
    kinds = pa.array(["order" if kind == "buy" else kind for kind in table["type"].to_pylist()])
    items = pa.array(["an item that came later" if item == "p22" else item for item in table["item"].to_pylist()])
    table = table.set_column(table.column_names.index("item"), "item", items).set_column(table.column_names.index("type"), "type", kinds)
    pq.write_table(table, tmp_path / "raw" / "events.parquet")
    history = {**history, "events": {"type": ["view", "order"]}}
    renamed = prepare_shop(tmp_path / "raw", tmp_path / "renamed", history=history, tasks={"club": {"kind": "profile"}})
    evaluate(model, renamed, tasks=["club"], log=told.append)
    line = "types of events that the model does not know are read as the unknown type: order"
    assert line in told
    items = dist_teracon.open_dataset(renamed).info.items - FIRST_ITEM
    later = f"1 of {items} items of {renamed} are not known to the model; it reads them as unseen"
    assert of_dataset(model, renamed, log=print).notes == [later, line]
    assert of_dataset(model, typed, log=print).notes == []


def test_an_exported_program_takes_items_alone(model, tmp_path):
    from dist_teracon.inference.padded import export_model

    with pytest.raises(ConfigError, match=r"reads gaps, types of events .*an exported program items alone"):
        export_model(model, str(tmp_path / "out.pt2"), "club")


def test_requests_carry_events_and_users_are_remembered_with_them(model, tmp_path):
    from dist_teracon.inference.serving.app import App, load_app
    from dist_teracon.inference.serving.requests import Limits
    from dist_teracon.inference.serving.served import Served, Source
    from dist_teracon.inference.serving.users import Users

    source = Source("timed", str(model.run))
    app = App([Served.load(source, Users(10))], snapshots=tmp_path)

    def post(app, path, **fields):
        answer = asyncio.run(app.handle("POST", path, {}, json.dumps(fields).encode()))
        return answer.status, json.loads(answer.body)

    status, value = post(app, "/encode", histories=[EVENTS, EVENTS[:2]], task="club")
    assert (status, value["unknown_types"]) == (200, 3)
    np.testing.assert_allclose(value["vectors"], model.encode([EVENTS, EVENTS[:2]], "club"), atol=1e-6)
    assert post(app, "/predict", histories=[EVENTS], task="next", top=3)[1]["labels"] == model.predict([EVENTS], "next", top=3).labels
    post(app, "/events", user="u", items=EVENTS[:9], task="club")
    asyncio.run(app.save())
    again = load_app([source], users=10, limits=Limits(), snapshots=tmp_path)
    status, value = post(again, "/events", user="u", items=EVENTS[9:11], task="club")
    assert (status, value["events"], value["began"], value["unknown"]) == (200, 11, False, 0)
    np.testing.assert_allclose(value["vector"], model.encode([EVENTS[:11]], "club")[0], atol=1e-5)
    strange = [
        {**EVENTS[0], "type": "no such"},
        {**EVENTS[0], "item": " no such ", "type": None},
        {**EVENTS[0], "item": f" {EVENTS[0]['item']} "},
    ]
    value = post(again, "/events", user="v", items=strange, task="club")[1]
    assert (value["unknown"], value["unknown_types"]) == (1, 1)
    for wrong, said in (
        (["p01"], "the model reads times of events"),
        ([{"item": "p01", "tme": 5}], "an event has no 'tme'; did you mean 'time'"),
        ([{"time": 5}], "histories[0][0].item: expected a text"),
        ([{"item": "p01", "time": "now", "type": "buy"}], "histories[0][0].time: expected seconds since 1970, got a text"),
        ([{"item": "p01", "time": 5, "type": 7}], "histories[0][0].type: expected the type's name"),
    ):  # fmt: skip
        status, value = post(app, "/encode", histories=[wrong])
        assert status == 400
        assert said in value["error"], value


def test_types_that_came_later_start_as_the_unknown_one(model):
    from dist_teracon.train.item_growth import with_new_labels

    class Wider:
        def item_tables(self):
            return []

        def state_dict(self):
            return {"network.backbone.event_embedding.type_weight": torch.zeros(5, 2)}

    known = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    grown = with_new_labels({"network.backbone.event_embedding.type_weight": known}, Wider())
    assert grown["network.backbone.event_embedding.type_weight"].tolist() == [[1, 2], [3, 4], [1, 2], [1, 2], [1, 2]]


def test_datetimes_without_a_zone_are_in_that_of_the_recipe(shop, tmp_path):
    """As preparation reads them in a file: `columns.timezone`, UTC by default."""
    from zoneinfo import ZoneInfo

    from shop import RECIPE, prepare_shop

    history = {**RECIPE["history"], "events": {"type": ["view", "buy"]}, "keep": ["time", "type"], "repeats": True}
    tasks = {"club": {"kind": "profile"}}
    dataset = prepare_shop(shop.events, tmp_path / "dataset", history=history, tasks=tasks, columns={"timezone": "Asia/Seoul"})
    model = made(dataset, tmp_path, event_features=["gaps", "types", "recency"])
    naive = [{**event, "time": datetime.fromtimestamp(event["time"], ZoneInfo("Asia/Seoul")).replace(tzinfo=None)} for event in EVENTS]
    at = 1_700_500_000
    seoul = datetime.fromtimestamp(at, ZoneInfo("Asia/Seoul")).replace(tzinfo=None)
    assert np.array_equal(model.encode([naive], at=seoul), model.encode([EVENTS], at=at))
    table = pa.table({"user": ["u"] * 12, **{name: [event[key] for event in naive] for name, key in COLUMNS.items()}})
    assert model.histories(table).last_time.tolist() == [max(event["time"] for event in EVENTS if event["type"] != "other")]
