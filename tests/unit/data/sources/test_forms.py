"""Forms in which people's files come: whatever the form, the data set is that of the plain file, or an error says what is wrong."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import fsspec
import pyarrow as pa
import pytest
from event_tables import GENDER, GENDERS, ITEMS, PARTS, PEOPLE, TABLE, USERS, WHOLE, csv, genders, parquet, refused, rows

from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.errors import ConfigError


def zst(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize(
    "files",
    [
        {"events.csv.bz2": bz2.compress(WHOLE)},
        {"events.csv.xz": lzma.compress(WHOLE)},
        {"events.csv.zst": zst(WHOLE)},
        {"EVENTS.CSV.GZ": gzip.compress(WHOLE)},
        {"events.txt": WHOLE},
        {"events.tsv": WHOLE.replace(b",", b"\t")},
        {"events.csv": WHOLE.replace(b",", b";")},
        {"events.csv": csv({**TABLE, "a; b": [1] * 80}).replace(b",", b"\t").replace(b";", b",")},
        {"events": WHOLE},
        {"events.pq": parquet(TABLE)},
        {"events.parquet.gz": gzip.compress(parquet(TABLE))},
        {"events/part-0.csv": csv(rows(0, 40)), "events/part-1.csv.bz2": bz2.compress(csv(rows(40, 80)))},
        {"events/part-0.csv": csv(rows(0, 40)), "events/part-1.pq": parquet(rows(40, 80))},
        {"events/part-0.csv": csv(rows(0, 40)), "events/part-1.CSV": csv(rows(40, 80))},
        {"events/part-0.csv": csv(rows(0, 40)), "events/part-1": csv(rows(40, 80))},
        {"events/part-0": parquet(rows(0, 40)), "events/part-1": parquet(rows(40, 80)), "events/_SUCCESS": b""},
        {"events/date=2020-01-01/part-0.parquet": parquet(rows(0, 40)), "events/date=2020-01-02/part-0.parquet": parquet(rows(40, 80))},
        {"date=2020-01-01/part-0.parquet": parquet(rows(0, 40)), "date=2020-01-02/part-0.parquet": parquet(rows(40, 80))},
        {"events.parquet/part-00000.snappy.parquet": parquet(TABLE)},
        {"events/part-0.csv": WHOLE, "events/._part-0.csv": b"\0\5\x16\7", "events/.part-0.csv.crc": b"\0", "events/_SUCCESS": b""},
        {"events/part-0.parquet": parquet(TABLE), "events/part-1.parquet": parquet(pa.table(TABLE).slice(0, 0))},
        {"events/part-0.csv": WHOLE, "events/part-1.csv": b"user,item,timestamp\n", "events/part-2.csv": b"", "events/part-3.csv": b"\n"},
        {"events/part-0.csv": csv(rows(0, 40)), "events/part-1.csv": csv(dict(reversed(rows(40, 80).items())))},
    ],
)  # fmt: skip
def test_events_in_any_file_are_the_same_data_set(made, files):
    recipe = {"columns": {"timestamp": "timestamp"}, **PARTS}  # a folder `date=…` is a column too
    back = made(files, recipe)
    assert back.sequences == ITEMS
    assert back.info["notes"]["files"]["not_read"] == {}
    assert set(back.info["notes"]["files"]["read"]) == {name for name in files if "/_" not in name and "/." not in name}


def test_other_tables_may_be_compressed_and_in_parts(made):
    back = made({"events.csv": WHOLE, "users.csv.zst": zst(csv(PEOPLE))}, GENDER)
    assert genders(back) == GENDERS


def test_users_in_parts(made):
    halves = [csv({name: values[half::2] for name, values in PEOPLE.items()}) for half in (0, 1)]
    assert genders(made({"events.csv": WHOLE, "users/part-0.csv": halves[0], "users/part-1.csv": halves[1]}, GENDER)) == GENDERS


def test_parts_come_in_natural_order(made):
    files = {f"events/part-{part}.csv": csv({"user": USERS, "item": [f"s{part:02d}"] * 20}) for part in range(12)}
    back = made(files, PARTS)
    assert back.sequences["u00"] == [f"s{part:02d}" for part in range(12)]
    assert "no column of times; the order of the file is taken" in back.info["log"]
    assert back.info["notes"]["times"] == {"column": "none"}


def test_a_source_that_is_one_file_is_events(made):
    back = made({"clicks.csv": WHOLE, "other.csv": b"x\n"}, PARTS, source="clicks.csv")
    assert back.sequences == ITEMS
    assert list(back.info["source"]["files"]) == ["clicks.csv"]


def test_files_by_name_and_every_other_is_named(made):
    recipe = {"files": {"events": "log-*.csv", "users": ["people.csv"]}, **GENDER}
    files = {"log-1.csv": csv(rows(0, 40)), "log-2.csv": csv(rows(40, 80)), "people.csv": csv(PEOPLE), "readme.md": b"x", "old/x.csv": b"x"}
    back = made(files, recipe)
    assert (back.sequences, genders(back)) == (ITEMS, GENDERS)
    assert back.info["notes"]["files"]["read"] == ["log-1.csv", "log-2.csv", "people.csv"]
    assert set(back.info["notes"]["files"]["not_read"]) == {"readme.md", "old/"}
    assert "not read: readme.md, which is not named events, users or items" in back.info["log"]


def test_no_events_there(made):
    refused(made, {"log-1.csv": WHOLE}, r"no events there, as events\.csv .*\(has: log-1\.csv\); `files: \{events: NAME\}`")
    recipe = {"files": {"events": "logs-1.csv"}}
    refused(made, {"log-1.csv": WHOLE}, r"files\.events: .* has no 'logs-1\.csv'; did you mean 'log-1\.csv'", recipe, error=ConfigError)


@pytest.mark.parametrize("other", [{"user": "who"}, {"timestamp": "ts"}, {"timestamp": None}])
def test_parts_whose_columns_differ(made, other):
    names = {name: other.get(name, name) for name in TABLE}
    part = {names[name]: values for name, values in rows(40, 80).items() if names[name]}
    said = refused(made, {"events/part-0.csv": csv(rows(0, 40)), "events/part-1.csv": csv(part)}, "its columns differ from those of")
    lacking = next(iter(other))
    assert f"has no column '{lacking}'" in said
    assert "part-1.csv" in said
    assert "part-0.csv" in said


@pytest.mark.parametrize("name", ["Timestamp", "time", "ts", "event_time", "date", "TIME_STAMP"])
def test_a_column_of_times_under_another_name(made, name):
    table = {"user": TABLE["user"], "item": TABLE["item"], name: [-time for time in TABLE["timestamp"]]}
    for files in ({"events.csv": csv(table)}, {"events.parquet": parquet(table)}):
        refused(made, files, rf"no column 'timestamp', but '{name}', .* columns\.timestamp: {name} ", PARTS)
        assert made(files, {"columns": {"timestamp": None}, **PARTS}).sequences == ITEMS
    table[name] = TABLE["timestamp"]
    assert made({"events.csv": csv(table)}, {"columns": {"timestamp": name}, **PARTS}).sequences == ITEMS


def test_columns_that_are_missing_or_have_two_roles(made):
    said = refused(made, {"events.csv": WHOLE.replace(b"item,", b"itme,", 1)}, r"no column 'item'; did you mean 'itme'")
    assert "`columns:` in the recipe names columns" in said
    for columns in ({"value": "item"}, {"value": "timestamp"}, {"type": "user"}, {"item": "user"}):
        role, column = next(iter(columns.items()))
        for files in ({"events.csv": WHOLE}, {"events.parquet": parquet(TABLE)}):
            said = refused(made, files, f"are both '{column}'; a column has one role", {"columns": columns}, error=ConfigError)
            assert f"columns.{role}" in said


def test_a_column_twice(made):
    twice = pa.table([*pa.table(TABLE).columns, pa.array(TABLE["item"])], names=["user", "item", "timestamp", "item"])
    refused(made, {"events.parquet": parquet(twice)}, r"events\.parquet: column 'item' stands there more than once")
    refused(made, {"events.csv": WHOLE.replace(b"timestamp", b"item", 1)}, r"events\.csv:1: column 'item' stands there more than once")


def test_sources_without_events(made):
    for files in ({"events.csv": b"user,item\n"}, {"events.parquet": parquet(pa.table(TABLE).slice(0, 0))}):
        refused(made, files, "has no rows")
    refused(made, {"events/a.csv": b"user,item\n", "events/b.csv": b"user,item\n"}, "has no rows, nor have the 1 other parts")
    refused(made, {"events/a.csv": b"", "events/b.csv": b"\n"}, "is empty, as are all 2 files")
    refused(made, {"events.csv": gzip.compress(WHOLE)}, r"the content is compressed, which its name does not show; .* to end in \.gz")
    refused(made, {"events/part-0": b"Obj\x01\x00"}, r"no events there|neither CSV nor Parquet")


@pytest.mark.parametrize("format", ["recbole", "movielens", "tenrec", "sequence-csv"])
def test_other_formats_list_their_files_alike(made, format):
    inter = b"user_id:token\titem_id:token\ttimestamp:float\n" + csv(TABLE).split(b"\n", 1)[1].replace(b",", b"\t")
    ratings = (
        b"userId,movieId,rating,timestamp\n"
        + "".join(f"{user},{item},3,{time}\n" for user, item, time in zip(*TABLE.values(), strict=True)).encode()
    )
    clicks = (
        b"user_id,item_id,click\n" + "".join(f"{user},{item},1\n" for user, item in zip(TABLE["user"], TABLE["item"], strict=True)).encode()
    )
    half = clicks.split(b"\n")
    files: dict[str, bytes] = {
        "recbole": {"x.Inter.xz": lzma.compress(inter)},
        "movielens": {"ratings.CSV.bz2": bz2.compress(ratings)},
        "tenrec": {"b-10.csv": b"\n".join([half[0], *half[41:]]), "b-2.CSV.zst": zst(b"\n".join(half[:41]))},
        "sequence-csv": {
            "task1_a/part-10.csv": b"5,1\n" * 4,
            "task1_a/part-2": b"1,2\n1,3\n4,5\n" * 9,
            "task1_a/._part-2": b"\0",
            "task1_a/part-3": b"",
        },
    }[format]
    recipe = {**PARTS, "history": {"events": {"type": "click"}}} if format == "tenrec" else PARTS
    back = made({**files, "._x.csv": b"\0\1", "notes.md": b"x"}, recipe, format=format)
    assert list(back.info["notes"]["files"]["not_read"]) == ["notes.md"]
    if format == "sequence-csv":
        assert back.info["notes"]["files"]["read"] == ["task1_a/part-2", "task1_a/part-3", "task1_a/part-10.csv"]
        assert (back.info["users"], back.info["events"]) == (31, 62)
    else:
        assert back.sequences == ITEMS
        assert len(back.info["notes"]["files"]["read"]) == len(files)


def test_columns_and_files_of_other_formats(made):
    rows = zip(*TABLE.values(), strict=True)
    inter = "who:token\twhat:token\twhen:token\n" + "".join(f"{user}\t{item}\t{time}\n" for user, item, time in rows)
    recipe = {"files": {"events": "b.inter"}, "columns": {"user": "who", "item": "what", "timestamp": "when"}, **PARTS}
    assert made({"a.inter": b"x", "b.inter": inter.encode()}, recipe, format="recbole").sequences == ITEMS
    shown = "who,what,when,click\n" + "".join(
        f"{user},{item},{time},1\n" for user, item, time in [*zip(*TABLE.values(), strict=True)][::-1]
    )
    recipe["files"] = {"events": "q.txt"}
    assert made({"q.txt": shown.encode()}, recipe, format="tenrec").sequences == ITEMS
    refused(made, {"q.txt": shown.encode()}, "files: format 'tenrec'", {"files": {"users": "x"}}, error=ConfigError, format="tenrec")
    refused(made, {"a.csv": b"1,2\n"}, "files: this format has a file of numbers a task", {"files": {"events": "x"}}, error=ConfigError,
            format="sequence-csv")  # fmt: skip


def test_parts_of_sequences_without_rows(made):
    refused(made, {"task1_a/1.csv": b"", "task1_a/2.csv": b"\n"}, "has no rows, nor has another part of task 'a'", format="sequence-csv")


def test_what_was_rejected_is_named_by_its_place_in_the_source(made, tmp_path):
    content = WHOLE + b"u99\n"
    for source, files in (("", {"events/part-1.csv": content}), ("log.csv", {"log.csv": content})):
        made(files, PARTS, source=source, max_bad_rows=0.1)
        row = json.loads((tmp_path / "out" / "rejected.jsonl").read_text())
        assert (row["file"], row["line"]) == (next(iter(files)), 82)


def test_parts_on_a_store(tmp_path, read):
    root = f"memory://{tmp_path.name}/raw"
    files = {
        "events/type=view/part-0.csv.gz": gzip.compress(csv(rows(0, 40))), "events/type=buy/part-00001": parquet(rows(40, 80)),
        "events/_SUCCESS": b"", "events/notes.md": b"x", "users.CSV": csv(PEOPLE),
    }  # fmt: skip
    for name, content in files.items():
        with fsspec.open(f"{root}/{name}", "wb") as file:
            file.write(content)
    recipe = {"history": {"events": {"type": "buy"}}, **GENDER}
    info = prepare("events", root, str(tmp_path / "out"), recipe=parse_recipe(recipe))
    assert read(tmp_path / "out").sequences == {user: ITEMS[user] for user in USERS[10:]}
    assert info.notes["files"]["read"] == ["events/type=buy/part-00001", "events/type=view/part-0.csv.gz", "users.CSV"]
    assert info.notes["files"]["not_read"] == {"events/notes.md": "is neither CSV nor Parquet by its name and content"}
    assert list(info.source["files"]) == info.notes["files"]["read"]
