"""Several tables of events, a service each, as one data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from event_tables import csv, parquet

from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import Recipe, parse_recipe
from dist_teracon.data.schema import read_dataset_info
from dist_teracon.data.summary import dataset_lines
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.inference.histories import HistoryReader
from dist_teracon.inference.vocabulary import Vocabulary

START = 1_700_000_000
USERS = [f"{user:02d}" for user in range(40)]
Rows = list[tuple[str, str, int, str, float | None]]


def _events() -> dict[str, Rows]:
    """Views of all users, orders of some, videos of some: (user, item, second, type, value)."""
    generator = np.random.default_rng(3)
    logs: dict[str, Rows] = {"view": [], "order": [], "video": []}
    for number, user in enumerate(USERS):
        seconds = iter(generator.permutation(1000).tolist())  # so that the logs' events lie among one another
        logs["view"] += [(user, f"p{generator.integers(9)}", START + next(seconds), "view", None) for _ in range(6)]
        if number % 4:
            price = float(generator.integers(5, 40))
            logs["order"] += [(user, f"p{generator.integers(9)}", START + next(seconds), "order", price) for _ in range(2)]
        if number % 2:
            kinds = ("play", "like")
            logs["video"] += [(user, f"p{generator.integers(5)}", START + next(seconds), kinds[place % 2], None) for place in range(4)]
    return logs


LOGS = _events()
FILES = {
    "views-1.csv": csv(
        {"customer": [row[0] for row in LOGS["view"][:100]], "dish": [row[1] for row in LOGS["view"][:100]],
         "viewed_at": [row[2] for row in LOGS["view"][:100]], "type": ["ios"] * 100}
    ),
    "views-2.csv": csv(
        {"customer": [row[0] for row in LOGS["view"][100:]], "dish": [row[1] for row in LOGS["view"][100:]],
         "viewed_at": [row[2] for row in LOGS["view"][100:]], "type": ["web"] * (len(LOGS["view"]) - 100)}
    ),
    "orders/part-0.parquet": parquet(
        {"buyer": [row[0] for row in LOGS["order"]], "dish": [row[1] for row in LOGS["order"]],
         "at": pa.array([row[2] for row in LOGS["order"]], pa.timestamp("s")), "price": [row[4] for row in LOGS["order"]]}
    ),
    "videos.csv": csv(
        {"customer": [row[0] for row in LOGS["video"]], "clip": [row[1] for row in LOGS["video"]],
         "at_ms": [1000 * row[2] for row in LOGS["video"]], "action": [row[3] for row in LOGS["video"]]}
    ),
    "users.csv": csv({"customer": USERS, "age": [15 + number for number in range(len(USERS))]}),
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "name": "platform",
    "columns": {"user": "customer"},
    "logs": {
        "view": {"files": "views-*.csv", "item": "dish", "timestamp": "viewed_at"},
        "order": {"files": "orders", "user": "buyer", "item": "dish", "timestamp": "at", "value": "price"},
        "video": {
            "files": "videos.csv",
            "item": "clip",
            "timestamp": "at_ms",
            "timestamp_unit": "ms",
            "type": "action",
            "prefix": "video:",
        },
    },
    "history": {"events": {"type": ["view", "play"]}, "length": 8, "keep": ["time", "type"]},
    "tasks": {
        "orders": {"kind": "item", "events": {"type": "order", "value": "> 10"}},
        "likes": {"kind": "item", "events": {"type": "like"}},
        "age": {"kind": "profile", "bins": [25, 40]},
    },
    "split": {"train": 0.5, "validation": 0.25, "test": 0.25},
}


def _changed(**logs: dict[str, Any]) -> dict[str, Any]:
    """The recipe with other fields of some logs."""
    return {**RECIPE, "logs": {name: {**log, **logs.get(name, {})} for name, log in RECIPE["logs"].items()}}


def _written(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def _contents(folder: Path) -> dict[str, bytes]:
    """Everything in a data set but its description."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def test_logs_are_one_table_whose_events_a_person_would_have_put_together(tmp_path: Path) -> None:
    raw = _written(tmp_path / "raw", FILES)
    prepare("events", raw, str(tmp_path / "logs"), recipe=parse_recipe(RECIPE))
    rows = [(user, f"video:{item}" if name == "video" else item, *rest) for name, log in LOGS.items() for user, item, *rest in log]
    table = dict(zip(("customer", "item", "timestamp", "type", "value"), map(list, zip(*rows, strict=True)), strict=True))
    by_hand = _written(tmp_path / "by-hand", {"events.csv": csv(table), "users.csv": FILES["users.csv"]})
    alone = {name: value for name, value in RECIPE.items() if name != "logs"}
    prepare("events", by_hand, str(tmp_path / "one"), recipe=parse_recipe(alone))
    assert _contents(tmp_path / "logs") == _contents(tmp_path / "one")


def test_what_the_logs_have_in_common_is_counted_and_shown(tmp_path: Path) -> None:
    info = prepare("events", _written(tmp_path / "raw", FILES), str(tmp_path / "out"), recipe=parse_recipe(RECIPE))
    both = len(_users("order") | _users("video"))
    assert info.notes["logs"] == {
        "view": {"events": 240, "in_history": 240, "users": 40, "users_elsewhere": both, "items": 9, "items_elsewhere": 9},
        "order": {"events": 60, "in_history": 0, "users": 30, "users_elsewhere": 30, "items": 9, "items_elsewhere": 9},
        "video": {"events": 80, "in_history": 40, "users": 20, "users_elsewhere": 20, "items": 5, "items_elsewhere": 0},
    }
    assert both == 30
    lines = dataset_lines(info)
    at = lines.index("events of several logs:")
    assert lines[at + 1].split() == ["log", "events", "in", "history", "users", "elsewhere", "too", "items", "elsewhere", "too"]
    assert lines[at + 4].split() == ["video", "80", "40", "20", "20", "5", "0"]
    assert max(map(len, lines)) <= 80
    shared = prepare("events", str(tmp_path / "raw"), str(tmp_path / "same"), recipe=parse_recipe(_changed(video={"prefix": ""})))
    assert shared.notes["logs"]["video"]["items_elsewhere"] == 5


def _users(log: str) -> set[str]:
    return {row[0] for row in LOGS[log]}


def test_the_name_of_a_log_is_the_type_even_where_a_column_is_called_type(made: Any) -> None:
    """The views' own column `type` holds devices; nobody named it."""
    plain = made(FILES, {**RECIPE, "history": {"events": {"type": "view"}, "length": 8}})
    assert sum(map(len, plain.sequences.values())) == len(LOGS["view"])
    devices = made(FILES, _changed(view={"type": "type"}) | {"history": {"events": {"type": ["ios", "web"]}, "length": 8}})
    assert sum(map(len, devices.sequences.values())) == len(LOGS["view"])


def test_a_recipe_with_logs_is_the_same_after_it_was_stored(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE)
    stored = json.loads(json.dumps(recipe.to_json()))
    assert stored["logs"]["order"] == {**RECIPE["logs"]["order"], "files": ["orders"]}
    again = parse_recipe({**stored, "columns": {"user": "customer", "timestamp_unit": "ms"}})
    assert again.logs["view"].over(again.columns).timestamp_unit == "ms"  # not the default, written out
    assert "logs" not in Recipe().to_json()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (_changed(order={"item": "meal"}), r"logs\.order\.item: .*part-0.parquet has no column 'meal'"),
        (_changed(order={"timestamp": "price"}), r"logs\.order\.value and logs\.order\.timestamp are both 'price'|logs\.order\.\w+ and"),
        (_changed(order={"files": "order*.csv"}), r"logs\.order\.files: .* has no 'order\*\.csv'"),
        (_changed(video={"files": ["videos.csv", "views-1.csv"]}), r"logs\.video\.files: 'views-1.csv' of .* is in logs\.view too"),
        ({**RECIPE, "files": {"events": "views-*.csv"}}, "files.events names one table of events and logs several"),
        ({**RECIPE, "columns": {"type": "action"}}, r"columns\.type: with logs a log's name is the type .*logs\.view\.type"),
        ({**RECIPE, "logs": {2: {"files": "a"}}}, "logs: a log's name is 2 to YAML"),
        ({**RECIPE, "logs": {"view": {"item": "dish"}}}, r"logs\.view\.files: required field missing"),
        (_changed(view={"itm": "dish"}), r"logs\.view\.itm: unknown field, did you mean 'item'.*prefix|logs\.view\.itm: unknown field"),
        (_changed(view={"timezone": "Seoul"}), r"logs\.view\.timezone: expected a time zone"),
    ],
)  # fmt: skip
def test_mistakes_name_the_field_of_the_log(made: Any, recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(FILES, recipe)


def test_times_are_needed_in_all_logs_or_in_none(made: Any) -> None:
    untimed = {**FILES, "videos.csv": csv({"customer": USERS, "clip": [f"p{number % 3}" for number in range(40)], "action": ["like"] * 40})}
    dateless = _changed(video={"timestamp": None})
    with pytest.raises(DataError, match=r"logs: the events of 'video' have no times, those of 'view' do.*logs\.video\.timestamp"):
        made(untimed, dateless)
    with pytest.raises(DataError, match=r"videos.csv:1: no column .* set logs\.video\.timestamp: when"):
        made({**FILES, "videos.csv": csv({"customer": USERS, "clip": ["p1"] * 40, "when": [START] * 40})}, {
            **RECIPE, "logs": {**RECIPE["logs"], "video": {"files": "videos.csv", "item": "clip"}},
        })  # fmt: skip
    ordered = {**_changed(view={"timestamp": None}, order={"timestamp": None}, video={"timestamp": None})}
    back = made(untimed, {**ordered, "history": {"events": {"type": "view"}, "length": 8}})
    assert back.sequences[USERS[0]] == [row[1] for row in LOGS["view"] if row[0] == USERS[0]]


def test_a_log_of_other_peoples_ids_is_refused(made: Any) -> None:
    others = {**FILES, "orders/part-0.parquet": parquet(
        {"buyer": [f"0{row[0]}" for row in LOGS["order"]], "dish": [row[1] for row in LOGS["order"]],
         "at": pa.array([row[2] for row in LOGS["order"]], pa.timestamp("s")), "price": [row[4] for row in LOGS["order"]]}
    )}  # fmt: skip
    with pytest.raises(DataError, match=r"(?s)logs\.order\.user: the users of order and of the other logs do not meet.*zeros at the begin"):
        made(others, RECIPE)
    few = _changed()
    back = made({**FILES, "users.csv": FILES["users.csv"]}, few, max_unmatched=0.0)  # services may share few users
    assert back.info["notes"]["logs"]["view"]["users"] == 40


def test_formats_with_one_place_for_events_refuse_logs(made: Any) -> None:
    with pytest.raises(ConfigError, match=r"logs: format 'recbole' has its events in one place; .* read by: events"):
        made({"a.inter": b"user_id:token\titem_id:token\n1\t2\n"}, RECIPE, format="recbole")


def test_a_log_without_rows_adds_nothing_and_is_told(made: Any) -> None:
    kinds = {"buyer": pa.string(), "dish": pa.string(), "at": pa.timestamp("s"), "price": pa.float64()}
    quiet = {**FILES, "orders/part-0.parquet": parquet({name: pa.array([], kind) for name, kind in kinds.items()})}
    recipe = {**RECIPE, "tasks": {"likes": RECIPE["tasks"]["likes"]}}
    back = made(quiet, recipe)
    assert "logs.order: has no rows; it adds nothing" in back.info["log"]
    assert back.info["notes"]["logs"]["order"] == {
        "events": 0, "in_history": 0, "users": 0, "users_elsewhere": 0, "items": 0, "items_elsewhere": 0,
    }  # fmt: skip
    whole = made(FILES, recipe)
    assert whole.sequences == back.sequences
    with pytest.raises(ConfigError, match="no event is of type 'order'"):
        made(quiet, RECIPE)


def test_days_in_several_logs_do_not_run_backwards(made: Any) -> None:
    """Each log runs from old to new; that the second stands behind the first says nothing of time."""
    days = {"customer": [user for user in USERS for _ in range(9)], "dish": [f"p{place}" for _ in USERS for place in range(9)]}
    moments = [START + 86_400 * place for _ in USERS for place in range(9)]
    files = {"a.csv": csv({**days, "timestamp": moments}), "b.csv": csv({**days, "timestamp": moments})}
    recipe = {
        "columns": {"user": "customer", "item": "dish"},
        "logs": {"a": {"files": "a.csv"}, "b": {"files": "b.csv"}},
        "split": RECIPE["split"],
    }
    back = made(files, recipe)
    assert back.info["notes"]["equal_times"] == {"events": 720, "again": 0, "backwards": False}
    assert "there again" not in back.info["log"]
    assert back.sequences[USERS[0]] == [f"p{place // 2}" for place in range(18)]
    turned = made(files, {**recipe, "logs": {"b": {"files": "b.csv", "prefix": "b"}, "a": {"files": "a.csv"}}})
    assert turned.sequences[USERS[0]][:2] == ["bp0", "p0"]


def test_years_of_a_log_hold_for_times_that_are_kept(made: Any) -> None:
    old = {"customer": [user for user in USERS for _ in range(3)], "dish": [f"p{place}" for _ in USERS for place in range(3)]}
    files = {"a.csv": csv({**old, "timestamp": [20_000_000 + place for place in range(120)]})}
    recipe = {"columns": {"user": "customer", "item": "dish"}, "history": {"keep": "time"}, "split": RECIPE["split"]}
    back = made(files, {**recipe, "logs": {"a": {"files": "a.csv", "timestamp_years": [1970, 1975]}}})
    assert len(back.sequences) == 40
    with pytest.raises(DataError, match="120 of 120 times lie outside of 1990 to 2100"):
        made(files, {**recipe, "logs": {"a": {"files": "a.csv"}}})


def test_another_order_of_logs_or_tasks_is_another_data_set(tmp_path: Path) -> None:
    raw, out = _written(tmp_path / "raw", FILES), str(tmp_path / "out")
    prepare("events", raw, out, recipe=parse_recipe(RECIPE))
    prepare("events", raw, out, recipe=parse_recipe(RECIPE))  # is there already
    turned = {**RECIPE, "logs": dict(reversed(RECIPE["logs"].items()))}
    with pytest.raises(DataError, match=r"holds a data set made from something else \(differs in: logs\)"):
        prepare("events", raw, out, recipe=parse_recipe(turned))
    with pytest.raises(DataError, match=r"holds the same tasks in another order \(orders, likes, age\)"):
        prepare("events", raw, out, recipe=parse_recipe({**RECIPE, "tasks": dict(reversed(RECIPE["tasks"].items()))}))


def test_files_in_no_log_are_named_as_not_read(made: Any) -> None:
    back = made({**FILES, "clicks.csv": FILES["videos.csv"]}, RECIPE)
    assert "not read: clicks.csv, which is in no log that is read (`logs:` in the recipe)" in back.info["log"]


# -- in use


@pytest.fixture
def reader(tmp_path: Path) -> HistoryReader:
    """A reader of histories as the logs' data set has them."""
    prepare("events", _written(tmp_path / "raw", FILES), str(tmp_path / "data"), recipe=parse_recipe(RECIPE))
    return _reader_of(str(tmp_path / "data"))


def _reader_of(folder: str) -> HistoryReader:
    dataset = Dataset(folder)
    names = dataset.vocabulary("items")["item"].to_pylist()
    return HistoryReader(dataset.info, Vocabulary(names), known=len(names))


def test_in_use_a_folder_needs_the_logs_of_histories_alone(reader: HistoryReader, tmp_path: Path) -> None:
    today = {name: content for name, content in FILES.items() if not name.startswith(("orders", "users"))}
    read = reader.read(_written(tmp_path / "today", today))
    whole = reader.read(str(tmp_path / "raw"))
    assert read.rows.values.tolist() == whole.rows.values.tolist()
    assert read.unknown == 0
    dataset = Dataset(str(tmp_path / "data"))
    assert int(whole.events.sum()) == dataset.info.events
    with pytest.raises(ConfigError, match=r"logs\.video\.files: .* has no 'videos.csv'"):
        reader.read(_written(tmp_path / "less", {name: content for name, content in today.items() if name != "videos.csv"}))


def test_in_use_one_file_is_the_log_that_its_path_names(tmp_path: Path) -> None:
    """Three folders with parts of the same names, as a platform's services write them."""
    table = {"customer": [row[0] for row in LOGS["view"]], "item": [row[1] for row in LOGS["view"]]}
    files = {
        f"{name}/part-0.csv": csv({**table, "timestamp": [START + place for place in range(240)]}) for name in ("views", "plays", "buys")
    }
    logs = {"view": {"files": "views"}, "play": {"files": "plays/*.csv", "prefix": "p:"}, "buy": {"files": "./buys/"}}
    labels = {"buys": {"kind": "item", "events": {"type": "buy"}}}
    recipe = {
        "columns": {"user": "customer"},
        "logs": logs,
        "history": {"events": {"type": ["view", "play"]}, "length": 8},
        "tasks": labels,
    }
    prepare("events", _written(tmp_path / "raw", files), str(tmp_path / "data"), recipe=parse_recipe(recipe))
    reader = _reader_of(str(tmp_path / "data"))
    names = Dataset(str(tmp_path / "data")).vocabulary("items")["item"].to_pylist()
    for log, prefix in (("views", "p"), ("plays", "p:p")):
        read = reader.read(str(tmp_path / "raw" / log / "part-0.csv"))
        assert all(names[item].startswith(prefix) and (":" in names[item]) == (":" in prefix) for item in read.rows.values)
        assert read.unknown == 0
    with pytest.raises(ConfigError, match="is of the recipe's log 'buy', and histories are of view, play alone"):
        reader.read(str(tmp_path / "raw/buys/part-0.csv"))
    _written(tmp_path / "today", {"log.csv": files["views/part-0.csv"]})
    with pytest.raises(ConfigError, match=r"its path does not tell of which of the recipe's logs it is \(view: views; play: plays"):
        reader.read(str(tmp_path / "today/log.csv"))


def test_in_use_one_file_of_another_name_is_the_only_log_of_histories(tmp_path: Path) -> None:
    logs = {name: log for name, log in RECIPE["logs"].items() if name != "video"}
    recipe = {**RECIPE, "logs": logs, "history": {"events": {"type": "view"}, "length": 8}, "tasks": {"orders": RECIPE["tasks"]["orders"]}}
    prepare("events", _written(tmp_path / "raw", FILES), str(tmp_path / "data"), recipe=parse_recipe(recipe))
    reader = _reader_of(str(tmp_path / "data"))
    _written(tmp_path / "raw", {"today.csv": FILES["views-2.csv"]})
    for name in ("views-2.csv", "today.csv"):
        read = reader.read(str(tmp_path / "raw" / name))
        assert int(read.events.sum()) == len(LOGS["view"]) - 100
        assert read.unknown == 0
    with pytest.raises(ConfigError, match="is of the recipe's log 'order'"):
        reader.read(str(tmp_path / "raw/orders/part-0.parquet"))


# -- versions


def _append(tmp_path: Path, recipe: dict[str, Any], *options: str) -> int:
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    raw, parent, out = (str(tmp_path / name) for name in ("raw", "v1", "v2"))
    return main(["prepare", "events", raw, out, "--recipe", str(tmp_path / "r.yaml"), "--append", parent, *options])


@pytest.fixture
def first(tmp_path: Path) -> dict[str, Any]:
    """The recipe of a first version, without the videos."""
    recipe = {**RECIPE, "logs": {name: log for name, log in RECIPE["logs"].items() if name != "video"}}
    recipe |= {"history": {"events": {"type": "view"}, "length": 8}, "tasks": {"orders": RECIPE["tasks"]["orders"]}}
    prepare("events", _written(tmp_path / "raw", FILES), str(tmp_path / "v1"), recipe=parse_recipe(recipe))
    return recipe


def test_a_new_service_comes_with_its_log_and_task(first: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    later = {**first, "logs": RECIPE["logs"], "tasks": {**first["tasks"], "likes": RECIPE["tasks"]["likes"]}}
    assert _append(tmp_path, later) == 0
    assert "logs.video is new; its events are labels alone" in capfd.readouterr().err
    assert [task.name for task in read_dataset_info(str(tmp_path / "v2")).tasks] == ["next", "orders", "likes"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logs": RECIPE["logs"], "history": {"events": {"type": "view"}, "length": 8}}, None),
        ({"logs": {**RECIPE["logs"], "view": {**RECIPE["logs"]["view"], "item": "customer"}}}, "logs.view.item: 'dish' -> 'customer'"),
        ({"logs": {"order": RECIPE["logs"]["order"]}}, "logs.view: no longer there, and histories are of its events: name it"),
        ({"logs": {**RECIPE["logs"], "view": {**RECIPE["logs"]["view"], "files": "views-2.csv"}}}, None),
    ],
)
def test_what_histories_were_read_from_does_not_change(
    first: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any], said: str | None
) -> None:
    recipe = {**first, **change, "tasks": {"likes": RECIPE["tasks"]["likes"]} if said is None else first["tasks"]}
    code = _append(tmp_path, recipe)
    error = capfd.readouterr().err
    assert (code, said is None or said in " ".join(error.split())) == (0 if said is None else 2, True)


def test_a_log_of_histories_with_types_of_its_own_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare("events", _written(tmp_path / "raw", FILES), str(tmp_path / "v1"), recipe=parse_recipe(RECIPE))
    logs = {name: log for name, log in RECIPE["logs"].items() if name != "video"}
    tasks = {"more": {"kind": "item", "events": {"type": "order"}}}
    without = {**RECIPE, "logs": logs, "tasks": tasks, "history": {**RECIPE["history"], "events": {"type": ["view", "play"]}}}
    for options in ((), ("--refresh",)):
        assert _append(tmp_path, without, *options) == 2
        assert "logs.video: no longer there, and histories are of its events" in " ".join(capfd.readouterr().err.split())
    turned = {**RECIPE, "logs": dict(reversed(RECIPE["logs"].items())), "tasks": tasks}
    assert _append(tmp_path, turned) == 2
    assert "logs: in the order view, order, video -> video, order, view" in capfd.readouterr().err
    spelled_out = _changed(view={"prefix": "", "user": "customer"}) | {"tasks": tasks}
    assert _append(tmp_path, spelled_out) == 0


def test_one_table_becomes_logs_where_all_histories_are_read_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    alone = {"columns": {"user": "customer", "item": "dish", "timestamp": "viewed_at", "type": "type"}, "files": {"events": "views-*.csv"}}
    recipe = {**alone, "history": {"length": 8}, "split": RECIPE["split"]}
    prepare("events", _written(tmp_path / "raw", FILES), str(tmp_path / "v1"), recipe=parse_recipe(recipe))
    logs = {"view": {"files": "views-*.csv", "prefix": "p:"}}
    later = {**recipe, "files": {}, "columns": {**alone["columns"], "type": None}, "logs": logs, "tasks": {"age": RECIPE["tasks"]["age"]}}
    assert _append(tmp_path, later) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "logs: events are read from logs now: --refresh reads all histories anew" in said


def test_a_new_logs_own_types_may_not_slip_into_histories(first: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen = [row[:3] for row in LOGS["view"][:30]]
    table = {"customer": [row[0] for row in seen], "dish": [row[1] for row in seen], "at": [row[2] for row in seen], "what": ["view"] * 30}
    _written(tmp_path / "raw", {"app.csv": csv(table)})
    logs = {**first["logs"], "app": {"files": "app.csv", "item": "dish", "timestamp": "at", "type": "what"}}
    later = {**first, "logs": logs, "tasks": {**first["tasks"], "age": RECIPE["tasks"]["age"]}}
    assert _append(tmp_path, later) == 2
    assert "logs.app: new, and 30 of its events fit history.events: --refresh" in capfd.readouterr().err
    assert not (tmp_path / "v2").exists()
    assert _append(tmp_path, later, "--refresh") == 0
