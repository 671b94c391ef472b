"""`dist-teracon init`: formats, files, columns, units and tasks are guessed right, and what is written can be prepared."""

from __future__ import annotations

import csv
import gzip
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from dist_teracon.cli import main
from dist_teracon.data.init import samples
from dist_teracon.data.init.columns import content_of, guess_roles, named_role
from dist_teracon.data.init.recipe import init_recipe, known_format
from dist_teracon.data.init.samples import sample_folder
from dist_teracon.data.init.tasks import bins_of, seconds_of, task_name
from dist_teracon.data.recipe import Recipe, read_recipe
from dist_teracon.data.schema import read_dataset_info
from dist_teracon.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).parents[3] / "helpers"))
from made_logs import write_logs

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()


def rows_of(path: Path, *rows: tuple[Any, ...], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def made(folder: Path, tmp_path: Path) -> tuple[Recipe, list[str]]:
    """Return the recipe that is written for a folder, and what is said."""
    out = str(tmp_path / "recipe.yaml")
    said = init_recipe(str(folder), out)
    assert max(map(cell_len, (line for line in said if not line.startswith("  dist-teracon ")))) <= 80
    return read_recipe(out), said


def test_a_platforms_own_names_in_its_own_encoding(tmp_path: Path) -> None:
    recipe, said = made(write_logs(tmp_path / "검색 로그", encoding="cp949"), tmp_path)
    assert recipe.name == "검색 로그"
    assert (recipe.files.events, recipe.files.users, recipe.files.items) == (("search_log.csv",), ("members.csv",), ("products.csv",))
    columns = recipe.columns
    assert (columns.user, columns.item, columns.timestamp, columns.type) == ("회원번호", "검색어", "검색일시", "행동")
    assert recipe.encoding == "cp949"
    assert recipe.missing == {"gender": ("-",)}
    assert recipe.history.events.type == ("search",)
    assert recipe.history.keep == ("time",)  # all events of the history are of one type
    assert list(recipe.tasks) == ["purchase", "category", "gender", "age"]
    assert recipe.tasks["category"].label == "category"
    assert recipe.tasks["category"].events.type == recipe.tasks["purchase"].events.type == ("purchase",)
    assert recipe.tasks["age"].bins == (20, 30, 40, 50, 60)
    assert any(line.startswith("no task: members.csv: email: 240 different texts") for line in said)
    assert any(line.startswith("not read: README.md: ") for line in said)


def test_attributes_that_may_be_inputs_stand_in_a_comment_that_prepare_takes(tmp_path: Path) -> None:
    recipe, _ = made(write_logs(tmp_path / "raw"), tmp_path)
    assert recipe.inputs.names == ()
    path = tmp_path / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("# inputs:", "inputs:"), encoding="utf-8")
    inputs = read_recipe(str(path)).inputs
    assert [(rule.name, rule.bins) for rule in inputs.user] == [("gender", None), ("age", 10)]
    assert inputs.item[0].name == "category"
    # the history is of searches, whose words are no products
    command = ["prepare", "events", str(tmp_path / "raw"), str(tmp_path / "out"), "--recipe", str(path), "--max-bad-rows", "0.2"]
    assert main(command) == 2
    assert main([*command, "--set", "inputs.item=[]"]) == 0


def test_this_programs_own_names_are_left_out(tmp_path: Path) -> None:
    recipe, _ = made(write_logs(tmp_path / "raw", kind="plain"), tmp_path)
    assert not {"files", "columns", "encoding"} & recipe.model_fields_set


def test_times_split_where_nothing_else_tells_labels_apart(tmp_path: Path) -> None:
    recipe, _ = made(write_logs(tmp_path / "raw", kind="times"), tmp_path)
    assert recipe.files.events == ("logs",)
    assert recipe.columns.timestamp_unit == "ms"
    (later,) = recipe.tasks.values()
    assert recipe.history.events.until == later.events.since
    assert later.choose == "next"


def test_high_values_are_labels(tmp_path: Path) -> None:
    recipe, _ = made(write_logs(tmp_path / "raw", kind="ratings"), tmp_path)
    assert recipe.history.events.value == "<= 3"
    assert [task.events.value for task in recipe.tasks.values()] == ["== 4", "== 5"]


def test_values_with_codes_of_unknown_make_no_tasks(tmp_path: Path) -> None:
    for code, by_value in (("NaN", True), ("-", False)):
        folder = tmp_path / code
        folder.mkdir()
        rows = [(f"u{user}", f"i{item}", 1_600_000_000 + item, [code, "3", "4", "5"][item % 4]) for user in range(40) for item in range(8)]
        rows_of(folder / "events.csv", ("user", "item", "timestamp", "rating"), *rows)
        recipe, _ = made(folder, folder)
        assert ("value-5" in recipe.tasks) is by_value
        assert (recipe.history.events.value is None) is not by_value


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (f"{NOON:.0f}", "s"), (f"{NOON * 1e3:.0f}", "ms"), (f"{NOON * 1e6:.0f}", "us"), (f"{NOON * 1e9:.0f}", "ns"),
        ("20240501", "date"), ("20240501120000", "date"), ("2024-05-01", "iso"), ("2024-05-01 12:00:00", "iso"),
        ("2024-05-01T12:00:00.123+09:00", "iso"), ("2024-05-01 12:00:00 UTC", "iso"), ("5", None), ("99999999", None), ("noon", None),
    ],
)  # fmt: skip
def test_units_of_times(tmp_path: Path, written: str, expected: str | None) -> None:
    rows_of(tmp_path / "raw/events.csv", ("time",), *[(written,)] * 5)
    sample = sample_folder(str(tmp_path / "raw")).tables["events.csv"]
    assert content_of(sample, "time").times == expected
    if expected is not None and expected != "iso":
        day = NOON if written != "20240501" else NOON - 12 * 3600
        assert seconds_of([written], expected) == [day]


def test_times_that_are_dates_become_seconds() -> None:
    texts = ["2024-05-01T12:00:00Z", "2024-05-01 12:00:00 UTC", "2024-05-01 12:00", "2024-05-01T21:00:00+09:00", "none", None]
    assert seconds_of(texts, "iso") == [NOON, NOON, NOON, NOON, None, None]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("user_id", "user"), ("UserID", "user"), ("member_no", "user"), ("고객번호", "user"), ("item", "item"), ("product_id", "item"),
        ("검색어", "item"), ("상품코드", "item"), ("event_time", "timestamp"), ("createdAt", "timestamp"), ("일시", "timestamp"),
        ("event_type", "type"), ("행동", "type"), ("rating", "value"), ("gender", None), ("price", None), ("user_type", None),
    ],
)  # fmt: skip
def test_roles_by_name(name: str, role: str | None) -> None:
    assert named_role(name) == role


def test_columns_without_names_that_are_known_are_guessed_by_content_and_said_so(tmp_path: Path) -> None:
    rows = [(f"a{number % 20}", f"thing {number % 33}", 1_700_000_000 + number) for number in range(200)]
    rows_of(tmp_path / "raw/dump.csv", ("col1", "col2", "col3"), *rows)
    sample = sample_folder(str(tmp_path / "raw")).tables["dump.csv"]
    roles = guess_roles(sample, {name: content_of(sample, name) for name in sample.columns})
    assert {role: guess.column for role, guess in roles.items()} == {"timestamp": "col3", "user": "col1", "item": "col2"}
    assert {guess.confidence for guess in roles.values()} == {"guess"}


def test_parts_by_day_are_one_table_and_tabs_and_quotes_are_read(tmp_path: Path) -> None:
    for day in range(1, 4):
        rows = [(f"u{number % 40}", f'a "b"\t{number % 9}', f"2024-05-0{day}") for number in range(100)]
        rows_of(tmp_path / f"raw/search-2024-05-0{day}.tsv", ("user", "item", "timestamp"), *rows, delimiter="\t")
    (sample,) = sample_folder(str(tmp_path / "raw")).tables.values()
    assert (sample.name, len(sample.files), sample.delimiter, sample.rows) == ("search-*.tsv", 3, "\t", 300)
    assert sample.columns["item"][1] == 'a "b"\t1'


def test_parts_of_which_some_are_compressed_are_one_table(tmp_path: Path) -> None:
    """As a log's older files are; a file that lies there twice, plain and compressed, is two tables."""
    for day in range(1, 4):
        rows = [(f"u{number % 40}", f"i{number % 9}", f"2024-05-0{day}") for number in range(100)]
        path = rows_of(tmp_path / f"raw/views-{day}.csv", ("user", "item", "timestamp"), *rows)
        if day > 1:
            (tmp_path / f"raw/views-{day}.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    (sample,) = sample_folder(str(tmp_path / "raw")).tables.values()
    assert (sample.name, len(sample.files), sample.rows) == ("views-*.csv*", 3, 300)
    recipe, _ = made(tmp_path / "raw", tmp_path)
    assert recipe.files.events == ("views-*.csv*",)
    assert prepared_events(recipe, tmp_path) == 300
    (tmp_path / "raw/views-1.csv.gz").write_bytes(gzip.compress((tmp_path / "raw/views-1.csv").read_bytes()))
    assert list(sample_folder(str(tmp_path / "raw")).tables) == ["views-1.csv", "views-*.csv.gz"]


def prepared_events(recipe: Recipe, tmp_path: Path) -> int:
    """Prepare what a recipe was made of; returns how many events are read."""
    assert main(["prepare", "events", str(tmp_path / "raw"), str(tmp_path / "set"), "--recipe", str(tmp_path / "recipe.yaml")]) == 0
    total: int = read_dataset_info(str(tmp_path / "set")).notes["matched"]["history"]["total"]
    return total


def test_folders_in_folders_are_one_table(tmp_path: Path) -> None:
    for month in (3, 4):
        rows = [(f"u{number % 40}", f"i{number % 9}", f"2024-0{month}-05") for number in range(100)]
        rows_of(tmp_path / f"raw/events/month={month}/part-0.csv", ("user", "item", "timestamp"), *rows)
    (sample,) = sample_folder(str(tmp_path / "raw")).tables.values()
    assert (sample.name, len(sample.files), sample.rows) == ("events", 2, 200)


def test_parts_may_be_text_and_parquet(tmp_path: Path) -> None:
    """A part a service, as docs/own-data.md makes them: one of them CSV with dates, one Parquet with its own times."""
    views = [("user", "item", "timestamp", "type"), *((f"u{n % 40}", f"p{n % 12}", "2024-05-01 12:00:00", "view") for n in range(300))]
    rows_of(tmp_path / "raw/events/view.csv", *views)
    users, items = [f"u{n % 40}" for n in range(100)], [f"p{n % 7}" for n in range(100)]
    table = pa.table({"user": users, "item": items, "timestamp": [datetime(2024, 5, 2)] * 100, "type": ["order"] * 100})
    pq.write_table(table, tmp_path / "raw/events/order.parquet")
    recipe, said = made(tmp_path / "raw", tmp_path)
    assert recipe.history.events.type == ("view",)
    assert recipe.tasks["order"].events.type == ("order",)
    assert any("dates, as 2024-05-02 00:00:00" in line for line in said)
    command = ["prepare", "events", str(tmp_path / "raw"), str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.yaml")]
    assert main(command) == 0


def test_parquet_with_its_own_times(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    moments = [datetime.fromtimestamp(NOON + 86_400 * (number % 10), UTC) for number in range(400)]
    table = pa.table(
        {
            "uid": pa.array([number % 50 for number in range(400)], pa.int64()),
            "query": [f"검색 {number % 21}" for number in range(400)],
            "at": pa.array(moments, pa.timestamp("us", "UTC")),
            "tags": [["a"]] * 400,
        }
    )
    pq.write_table(table, tmp_path / "raw/log.parquet")
    sample = sample_folder(str(tmp_path / "raw")).tables["log.parquet"]
    assert (sample.times, sample.unread, sample.rows) == ({"at"}, ("tags",), 400)
    recipe, _ = made(tmp_path / "raw", tmp_path)
    assert (recipe.columns.user, recipe.columns.item, recipe.columns.timestamp) == ("uid", "query", "at")


def test_large_files_are_sampled_at_their_beginning_middle_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of(tmp_path / "raw/events.csv", ("user", "item"), *[(f"u{number:06d}", "i") for number in range(20_000)])
    monkeypatch.setattr(samples, "_BYTES", 4096)
    (sample,) = sample_folder(str(tmp_path / "raw")).tables.values()
    users = sample.columns["user"]
    assert not sample.whole
    assert users[0] == "u000000"
    assert users[-1] == "u019999"
    assert any("u009" < user < "u011" for user in users)
    assert sample.rows < 1000


def test_a_recipe_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_logs(tmp_path / "raw", kind="plain", users=60)
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    assert main(["init", str(raw), "--out", str(tmp_path / "mine.yaml")]) == 2
    assert "is there already and is never overwritten" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "name: mine\n"


def test_folders_of_which_nothing_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        init_recipe(str(tmp_path / "nowhere"), str(tmp_path / "r.yaml"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files there"):
        init_recipe(str(tmp_path / "empty"), str(tmp_path / "r.yaml"))
    rows_of(tmp_path / "one/log.csv", ("user", "item"), ("a", "b"))
    with pytest.raises(DataError, match="is a file; name the folder that holds it"):
        init_recipe(str(tmp_path / "one/log.csv"), str(tmp_path / "r.yaml"))
    rows_of(tmp_path / "people/members.csv", ("member", "gender"), *[(f"m{number}", "f") for number in range(50)])
    with pytest.raises(DataError, match=r"no table looks like events: .* \(found: members.csv \(member, gender\)\)"):
        init_recipe(str(tmp_path / "people"), str(tmp_path / "r.yaml"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/log.json").write_text("{}")
    with pytest.raises(DataError, match=r"\(found: no table; not read: log.json: neither CSV nor Parquet by its name\)"):
        init_recipe(str(tmp_path / "notes"), str(tmp_path / "r.yaml"))
    with pytest.raises(ConfigError, match="expected a file on a local disk"):
        init_recipe(str(tmp_path / "people"), "s3://bucket/r.yaml")
    assert not (tmp_path / "r.yaml").exists()


def test_a_table_of_users_whose_key_has_another_name_is_named(tmp_path: Path) -> None:
    write_logs(tmp_path / "raw")
    members = (tmp_path / "raw/members.csv").read_text(encoding="utf-8").replace("회원번호", "member_id", 1)
    (tmp_path / "raw/members.csv").write_text(members, encoding="utf-8")
    recipe, said = made(tmp_path / "raw", tmp_path)
    assert list(recipe.tasks) == ["purchase", "category"]
    text = " ".join(" ".join(said).split())
    assert "members.csv: its users stand in 'member_id', those of the events in '회원번호': give both one name" in text


def test_attributes_that_stand_in_the_table_of_events(tmp_path: Path) -> None:
    events = [("일시", "회원번호", "성별", "상품명", "분류", "행동", "쪽")]
    for number in range(600):
        user, item = number % 60, (number * 7 + number // 60) % 40
        moment = f"2024-03-{1 + number % 28:02d}"
        events.append(
            (moment, user, "남여"[user % 2], f"상품 {item}", f"분류 {item % 5}", ("조회", "조회", "구매")[number // 60 % 3], number % 9)
        )
    rows_of(tmp_path / "raw/log.csv", *events, delimiter=";")
    recipe, said = made(tmp_path / "raw", tmp_path)
    assert recipe.files.events == recipe.files.users == recipe.files.items == ("log.csv",)
    assert list(recipe.tasks) == ["구매", "분류", "성별"]
    assert any(line.startswith("log.csv: 성별: one value for each user") for line in said)
    assert main(["prepare", "events", str(tmp_path / "raw"), str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.yaml")]) == 0


def write_services(folder: Path, **changed: tuple[tuple[Any, ...], ...]) -> Path:
    """Write a table of events a service, with names of columns and units of their own, and one table that is none; some may be others."""
    tables: dict[str, tuple[tuple[Any, ...], ...]] = {
        "views-1": (("customer_id", "dish_id", "viewed_at"), *((f"u{n % 40}", f"p{n % 12}", NOON + n) for n in range(400))),
        "views-2": (("customer_id", "dish_id", "viewed_at"), *((f"u{n % 40}", f"p{n % 11}", NOON + 500 + n) for n in range(300))),
        "orders": (("buyer", "dish_id", "ordered_at"), *((f"u{n % 39}", f"p{n % 13}", 1000 * (NOON + n)) for n in range(300))),
        "clips": (
            ("customer_id", "video", "watched", "action"),
            *((f"u{n % 38}", f"v{n % 12}", f"2024-05-0{1 + n % 3}", ("play", "play", "like")[n // 38 % 3]) for n in range(500)),
        ),
        "shops": (("shop", "town"), ("s1", "Lyon"), ("s2", "Nice")),
        **changed,
    }
    for name, rows in tables.items():
        rows_of(folder / f"{name}.csv", *rows)
    return folder


def test_a_table_of_events_a_service_becomes_a_log_each(tmp_path: Path) -> None:
    recipe, said = made(write_services(tmp_path / "raw"), tmp_path)
    assert recipe.files.events is None
    assert {name: log.files for name, log in recipe.logs.items()} == {
        "clips": ("clips.csv",), "orders": ("orders.csv",), "views": ("views-*.csv",),
    }  # fmt: skip
    views, orders, clips = (recipe.logs[name].over(recipe.columns) for name in ("views", "orders", "clips"))
    assert (views.user, views.item, views.timestamp, views.type) == ("customer_id", "dish_id", "viewed_at", None)
    assert (orders.user, orders.item, orders.timestamp, orders.timestamp_unit) == ("buyer", "dish_id", "ordered_at", "ms")
    assert (clips.user, clips.item, clips.timestamp, clips.type) == ("customer_id", "video", "watched", "action")
    assert recipe.history.events.type == ("views",)
    assert [task.events.type for task in recipe.tasks.values()] == [("play",), ("orders",), ("like",)]
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "# prefix: 'orders:'    # 12 of its 13 items have names of another log's" in text
    assert "# prefix: 'clips:'" not in text
    assert "tables that nothing is made of: shops.csv" in " ".join(said)
    prepared = ["prepare", "events", str(tmp_path / "raw"), str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.yaml")]
    assert main(prepared) == 0


@pytest.mark.parametrize(
    ("orders", "why"),
    [
        ((("buyer", "dish"), *((f"u{n % 39}", f"p{n % 13}") for n in range(300))), "orders.csv has no column of times"),
        ((("buyer", "dish", "at"), *((f"b{n % 39}", f"p{n % 13}", NOON + n) for n in range(300))), "0 of its 39 users are in"),
        ((("buyer", "dish", "at"), *((f"u{33 + n % 60}", f"p{n % 13}", NOON + n) for n in range(300))), "5 of its 60 users are in"),
    ],
)
def test_events_that_do_not_go_with_the_others_are_named_with_the_reason(tmp_path: Path, orders: Any, why: str) -> None:
    recipe, said = made(write_services(tmp_path / "raw", orders=orders), tmp_path)
    assert set(recipe.logs) == {"clips", "views"}
    text = " ".join(" ".join(said).split())
    assert "tables that nothing is made of: orders.csv, shops.csv" in text
    assert "orders.csv looks like events, but" in text
    assert why in text


def test_a_copy_of_a_table_is_no_service_of_its_own(tmp_path: Path) -> None:
    """Of its labels each would stand in the history."""
    folder = write_services(tmp_path / "raw")
    (folder / "orders_backup.csv").write_text((folder / "orders.csv").read_text())
    rows = [row.split(",") for row in (folder / "clips.csv").read_text().splitlines()]
    pq.write_table(pa.table(dict(zip(rows[0], map(list, zip(*rows[1:], strict=True)), strict=True))), folder / "clips.parquet")
    recipe, said = made(folder, tmp_path)
    assert [log.files for log in recipe.logs.values()] == [("clips.csv",), ("orders.csv",), ("views-*.csv",)]
    text = " ".join(" ".join(said).split())
    assert (
        "orders_backup.csv looks like events, but 300 of its 300 different rows looked at (user, item, time) are in orders.csv too" in text
    )
    assert "are in clips.csv too" in text


def test_logs_have_names_of_their_own(tmp_path: Path) -> None:
    actions = (
        ("customer_id", "dish_id", "at", "type"),
        *((f"u{n % 40}", f"p{(n + 5) % 13}", NOON + n, ("views", "cart")[n % 2]) for n in range(900)),
    )
    recipe, said = made(write_services(tmp_path / "raw", actions=actions), tmp_path)
    assert recipe.logs["actions"].type == "type"
    assert recipe.logs["views-2"].files == ("views-*.csv",)  # `views` is a type already
    assert "no column of: value" in " ".join(said)


def test_types_of_a_log_that_another_one_has_too_give_way_to_the_logs_names(tmp_path: Path) -> None:
    orders = (("buyer", "dish", "at", "action"), *((f"u{n % 39}", f"p{n % 13}", NOON + n, ("play", "buy")[n % 2]) for n in range(300)))
    recipe, _ = made(write_services(tmp_path / "raw", orders=orders), tmp_path)
    assert recipe.logs["clips"].type == "action"
    assert recipe.logs["orders"].type is None


def test_few_users_make_a_comment_of_a_task(tmp_path: Path) -> None:
    recipe, said = made(write_logs(tmp_path / "raw", kind="plain", users=20), tmp_path)
    assert list(recipe.tasks) == []
    assert any(line.startswith("as a comment, task purchase: ") for line in said)
    assert "  # purchase: {kind: item" in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")


def test_formats_are_known_by_their_files(tmp_path: Path) -> None:
    def kind(folder: str, *files: tuple[str, str]) -> str:
        for name, text in files:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text(text)
        return known_format(sample_folder(str(tmp_path / folder)))

    assert kind("a", ("x.inter", "user_id:token\titem_id:token\n1\t2\n")) == "recbole"
    assert kind("b", ("u.data", "1\t2\t3\t881250949\n")) == "movielens"
    assert kind("c", ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n"), ("movies.csv", "movieId,title,genres\n")) == "movielens"
    assert kind("d", ("QK.csv", "user_id,item_id,click,like,video_category,gender,age\n1,2,1,0,3,1,2\n")) == "tenrec"
    assert kind("e", ("original_desen_pretrain.csv", "0,0,1,2\n")) == "ttl"
    assert kind("f", ("task1_watch.csv", "0,0,1,2\n0,1,2,3\n"), ("task2_age.csv", "0,0,1,2,,3\n0,1,2,3,,1\n")) == "sequence-csv"


@pytest.mark.parametrize(
    ("files", "tasks"),
    [
        ({"u.data": "1\t2\t3\t881250949\n", "u.user": "1|24|M|x|0\n"}, ["star4", "star5", "age", "gender", "occupation"]),
        ({"ratings.csv": "userId,movieId,rating,timestamp\n1,2,3,4\n", "movies.csv": "movieId,title,genres\n1,a,b\n"}, ["star4", "star5"]),
        ({"QK.csv": "user_id,item_id,click,like,gender,age\n1,2,1,0,1,2\n"}, ["like", "age", "gender"]),
        ({"task1_watch.csv": "0,0,1,2\n", "task2_age.csv": "0,0,1,2,,3\n"}, []),
    ],
)
def test_formats_with_columns_of_their_own_get_a_recipe(tmp_path: Path, files: dict[str, str], tasks: list[str]) -> None:
    (tmp_path / "raw").mkdir()
    for name, text in files.items():
        (tmp_path / "raw" / name).write_text(text)
    recipe, _ = made(tmp_path / "raw", tmp_path)
    assert (recipe.name, list(recipe.tasks)) == ("raw", tasks)


def test_recboles_files_with_their_types(tmp_path: Path) -> None:
    inter = [(f"u{number % 60}", f"i{number % 23}", (number // 60 + number) % 5 + 1, 1_700_000_000 + number) for number in range(1200)]
    header = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    rows_of(tmp_path / "raw/x.inter", header, *inter, delimiter="\t")
    people = [(f"u{number}", "FM"[number % 2], number % 7) for number in range(60)]
    rows_of(tmp_path / "raw/x.user", ("user_id:token", "gender:token", "job:token"), *people, delimiter="\t")
    recipe, said = made(tmp_path / "raw", tmp_path)
    assert "format recbole" in " ".join(said)
    assert not {"files", "columns"} & recipe.model_fields_set
    assert list(recipe.tasks) == ["value-4", "value-5", "gender", "job"]


def test_codes_of_unknown_in_texts_and_in_ages(tmp_path: Path) -> None:
    rows = [(f"u{number}", ("남", "여", "미상", "-")[number % 4], (0, 999, 20, 31)[number % 4], number % 3) for number in range(80)]
    rows_of(tmp_path / "raw/users.csv", ("user", "성별", "나이", "grade"), *rows)
    sample = sample_folder(str(tmp_path / "raw")).tables["users.csv"]
    assert {name: content_of(sample, name).unknown for name in ("성별", "나이", "grade")} == {
        "성별": ("-", "미상"), "나이": ("0", "999"), "grade": (),
    }  # fmt: skip


def test_types_in_another_script_become_tasks_that_prepare_takes(tmp_path: Path) -> None:
    raw = write_logs(tmp_path / "raw", kind="plain")
    events = (raw / "events.csv").read_text(encoding="utf-8").replace(",purchase", ",구매").replace(",search", ",검색 (앱)")
    (raw / "events.csv").write_text(events, encoding="utf-8")
    recipe, _ = made(raw, tmp_path)
    assert next(iter(recipe.tasks)) == "구매"
    assert main(["prepare", "events", str(raw), str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.yaml")]) == 0


def test_bins_are_round_and_within_what_there_is() -> None:
    assert bins_of(range(15, 80), "age") == [20, 30, 40, 50, 60]
    assert bins_of([1958, 1971, 1999, 2003], "birth_year") == [1960, 1970, 1980, 1990, 2000]
    assert bins_of([number * 1000 for number in range(60)], "income") == [10_000, 20_000, 30_000, 40_000, 50_000]
    assert bins_of([0.0] * 90 + [5.0], "x") == [5]
    edges = bins_of([0.01 * number for number in range(100)], "share")
    assert edges == sorted(set(edges))
    assert 0 < edges[0] < edges[-1] < 1


@pytest.mark.parametrize(
    ("text", "name"), [("add to cart", "add-to-cart"), ("구매", "구매"), ("../x", "x"), ("!!", "task"), ("a/b", "a-b")]
)
def test_names_of_tasks_fit_a_recipe(text: str, name: str) -> None:
    assert task_name(text) == name
