"""What stands in the cells of people's tables: types, missing values, blanks, numbers as ids, encodings, quotes, codes of unknown."""

from __future__ import annotations

import csv as csv_module
import io
import re
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from event_tables import GENDER, GENDERS, ITEMS, PARTS, PEOPLE, START, TABLE, USERS, WHOLE, changed, csv, genders, parquet, refused

from dist_teracon.data.recipe import parse_recipe, read_recipe
from dist_teracon.errors import ConfigError

RECIPES = Path(__file__).parents[4] / "configs" / "recipes"
PEOPLE_CSV = {"users.csv": csv(PEOPLE)}
TIMES = TABLE["timestamp"]


def text_arrays(values: list[str]) -> list[pa.Array]:
    """Return texts in every type of Arrow that holds them."""
    plain = pa.array(values)
    kinds = [
        plain.cast(kind)
        for kind in (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string()))
    ]
    return [*kinds, pa.array([value.encode() for value in values], pa.binary(len(values[0])))]


@pytest.mark.parametrize("kind", range(6))
def test_texts_of_any_type(made, kind):
    events = pa.table({"user": text_arrays(TABLE["user"])[kind], "item": text_arrays(TABLE["item"])[kind], "timestamp": TIMES})
    people = pa.table({"user": text_arrays(USERS)[kind], "g": text_arrays(PEOPLE["g"])[kind]})
    back = made({"events.parquet": parquet(events), "users.parquet": parquet(people)}, GENDER)
    assert (back.sequences, genders(back)) == (ITEMS, GENDERS)


@pytest.mark.parametrize(
    "times",
    [
        pa.array([datetime.fromtimestamp(time, UTC).isoformat() for time in TIMES], pa.large_string()),
        pa.array([f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC" for time in TIMES], pa.string_view()),
        pa.array([f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}+00" for time in TIMES]).dictionary_encode(),
        pa.array([str(time) for time in TIMES], pa.large_string()),
        pa.array(TIMES, pa.uint64()),
        pa.array(TIMES, pa.float64()),
        pa.array(TIMES, pa.int64()).cast(pa.decimal128(22, 3)),
        pa.array(TIMES, pa.timestamp("s")),
        pa.array([time * 10**9 for time in TIMES], pa.timestamp("ns", "Asia/Seoul")),
        pa.array([date.fromordinal(time - START + 730_000) for time in TIMES], pa.date32()),
    ],
)  # fmt: skip
def test_times_of_any_type(made, times):
    backwards = list(range(len(TIMES)))[::-1]  # the file's order is not that of time
    plain = times.cast(pa.string()) if times.type == pa.string_view() else times
    table = pa.table({"user": TABLE["user"], "item": TABLE["item"], "timestamp": plain}).take(backwards)
    table = table.set_column(2, "timestamp", table["timestamp"].cast(times.type))
    assert made({"events.parquet": parquet(table)}, PARTS).sequences == ITEMS


@pytest.mark.parametrize(
    "kind", [pa.time32("s"), pa.time64("us"), pa.duration("s"), pa.list_(pa.int64()), pa.struct({"a": pa.int64()}), pa.bool_()]
)
def test_types_that_are_no_time(made, kind):
    values = {"list": [[1]] * 80, "struct": [{"a": 1}] * 80, "bool": [True] * 80}
    column = pa.array(next((cells for name, cells in values.items() if str(kind).startswith(name)), [1] * 80), kind)
    table = pa.table({"user": TABLE["user"], "item": TABLE["item"], "timestamp": column})
    said = refused(made, {"events.parquet": parquet(table)}, "column 'timestamp': expected a date with a time, or a number, got")
    assert re.split(r"[\[<]", str(kind))[0] in said


def test_columns_that_nothing_asks_for_do_not_matter(made):
    odd = {
        "emb": [[1.0, 2.0]] * 80,
        "clock": pa.array([5] * 80, pa.time32("s")),
        "value": ["high"] * 80,
        "raw": [b"\xff"] * 80,
        "map": [{"a": 1}] * 80,
    }
    back = made(
        {"events.parquet": parquet(pa.table({**TABLE, **odd})), "users.parquet": parquet(pa.table({**PEOPLE, "emb": [[1.0]] * 20}))}, GENDER
    )
    assert (back.sequences, genders(back)) == (ITEMS, GENDERS)
    said = "column 'emb': expected text or whole numbers, got list<"
    refused(made, {"events.parquet": parquet(pa.table({**TABLE, **odd}))}, said, {"columns": {"item": "emb"}, **PARTS})


def test_one_bad_cell_in_a_column_of_text_costs_its_row_alone(made):
    values = pa.array(["5"] * 79 + ["five"], pa.large_string())
    recipe = {"history": {"events": {"value": "== 5"}}, **PARTS}
    back = made({"events.parquet": parquet(pa.table({**TABLE, "value": values}))}, recipe, max_bad_rows=0.1)
    assert back.info["notes"]["malformed_rows"] == {"value is not a number": 1}
    assert back.info["events"] == 79


@pytest.mark.parametrize("none", [None, "", " ", float("nan")])
@pytest.mark.parametrize("form", [csv, parquet])
def test_nothing_is_the_same_in_every_format(made, none, form):
    """Classes are f and m alone; an event without an item is a malformed row."""
    ending = "csv" if form is csv else "parquet"
    if isinstance(none, float):
        if form is csv:
            none = ""  # as pandas writes it
        else:
            events = changed(item=[none, *[float(item[1:]) for item in TABLE["item"][1:]]])
            people = pa.table({"user": USERS, "g": pa.array([none, *[float(number % 2) for number in range(1, 20)]])})
            back = made({"events.parquet": parquet(events), "users.parquet": parquet(people)}, GENDER, max_bad_rows=0.1)
            assert set(genders(back).values()) == {"0", "1"}
            assert back.sequences["u00"] == [str(int(item[1:])) for item in ITEMS["u00"][1:]]
            return
    files = {
        f"events.{ending}": form(changed(item=[none, *TABLE["item"][1:]])),
        f"users.{ending}": form({"user": USERS, "g": [none, *PEOPLE["g"][1:]]}),
    }
    back = made(files, GENDER, max_bad_rows=0.1)
    assert back.info["notes"]["malformed_rows"] == {"empty item": 1}
    assert back.sequences == {**ITEMS, "u00": ITEMS["u00"][1:]}
    assert genders(back) == {user: gender for user, gender in GENDERS.items() if user != "u00"}


def test_a_value_that_is_nan_is_missing(made):
    values = [float("nan"), *[1.0] * 79]
    for files in ({"events.parquet": parquet(changed(value=values))}, {"events.csv": csv(changed(value=["NaN", *values[1:]]))}):
        back = made(files, {"history": {"events": {"value": "== 1"}}, **PARTS})
        assert (back.info["events"], back.info["notes"]["malformed_rows"]) == (79, {})


def test_blanks_around_names_are_cut_off_and_counted(made):
    events = changed(user=[f" {user}" for user in TABLE["user"]], item=[f"{item}\u00a0" for item in TABLE["item"]])
    people = {"user": [f"{user} " for user in USERS], "g": [f"{gender}\t" for gender in PEOPLE["g"]]}
    for files in (
        {"events.csv": csv(events), "users.csv": csv(people)},
        {"events.parquet": parquet(events), "users.parquet": parquet(people)},
    ):
        back = made(files, GENDER)
        assert (back.sequences, genders(back)) == (ITEMS, GENDERS)
        assert back.info["notes"]["trimmed"] == {"user": 100, "item": 80, "g": 20}


@pytest.mark.parametrize("form", ["csv of floats", "parquet of floats", "text in parquet", "the other side"])
def test_whole_numbers_that_one_table_writes_as_floats(made, form):
    numbers = {user: 20_000_000_000 + number for number, user in enumerate(USERS)}  # more than fits into a float's usual digits
    ints = [numbers[user] for user in TABLE["user"]]
    floats = [float(number) for number in ints]
    people = {"user": list(numbers.values()), "g": PEOPLE["g"]}
    files = {
        "csv of floats": {"events.csv": csv(changed(user=[f"{number:.1f}" for number in floats])), "users.csv": csv(people)},
        "parquet of floats": {"events.parquet": parquet(changed(user=floats)), "users.csv": csv(people)},
        "text in parquet": {
            "events.parquet": parquet(changed(user=[f"{number:.1f}" for number in floats])),
            "users.parquet": parquet(people),
        },
        "the other side": {
            "events.csv": csv(changed(user=ints)),
            "users.csv": csv({**people, "user": [f"{number}.00" for number in numbers.values()]}),
        },
    }[form]
    back = made(files, GENDER)
    assert back.sequences == {str(numbers[user]): items for user, items in ITEMS.items()}
    assert genders(back) == {str(numbers[user]): gender for user, gender in GENDERS.items()}
    if form != "parquet of floats":
        assert "user" in back.info["notes"]["whole_numbers"]


@pytest.mark.parametrize(("name", "zeros"), [("x", ".0"), ("20", "")])
def test_parts_of_a_table_write_whole_numbers_in_one_way(made, name, zeros):
    ids = [f"{int(user[1:])}.0" for user in TABLE["user"]]
    ids[-1] = name  # in the second part alone
    table, half = changed(user=ids), len(ids) // 2
    parts = (slice(None, half), slice(half, None))
    files = {f"events/part-{part}.csv": csv({key: cells[rows] for key, cells in table.items()}) for part, rows in enumerate(parts)}
    back = made(files, PARTS)
    assert set(back.sequences) == {name, *(f"{number}{zeros}" for number in range(20))}
    assert ("whole_numbers" in back.info["notes"]) == (not zeros)


def test_versions_stay_as_they_are_and_inexact_ids_are_refused(made):
    items = ["1.0", "1.1", *TABLE["item"][2:]]
    assert made({"events.csv": csv(changed(item=items))}, PARTS).sequences["u00"][:2] == ["1.0", "1.1"]
    for first in (2.0**60, 2.0**53 - 79):  # as 2^53 is read what was 2^53 + 1, too
        large = parquet(changed(user=[first + number for number in range(80)]))
        refused(made, {"events.parquet": large}, r"column 'user': expected ids as text or whole numbers, got double from 2\^53 on")


def test_events_within_a_microsecond_keep_their_order(made):
    nanoseconds = [START * 10**9 + 3 - place for _ in USERS for place in range(4)]  # the file's order is the reverse of time
    want = {user: items[::-1] for user, items in ITEMS.items()}
    for column in (nanoseconds, pa.array(nanoseconds, pa.timestamp("ns")), [str(moment) for moment in nanoseconds]):
        recipe = {"columns": {"timestamp_unit": "ns"}, **PARTS}
        assert made({"events.parquet": parquet(changed(timestamp=column))}, recipe).sequences == want
    assert made({"events.csv": csv(changed(timestamp=nanoseconds))}, {"columns": {"timestamp_unit": "ns"}, **PARTS}).sequences == want
    bound = {"history": {"events": {"from": "2020-09-13T12:26:40Z"}}, "columns": {"timestamp_unit": "ns"}, **PARTS}
    assert made({"events.csv": csv(changed(timestamp=[moment - 2 for moment in nanoseconds]))}, bound).info["events"] == 40


def test_a_unit_that_is_not_stated(made):
    events = csv(changed(timestamp=[time * 1000 for time in TIMES]))
    recipe = {"tasks": {"t": {"kind": "item", "events": {"from": "2022-05-01"}, "choose": "next"}}}
    refused(
        made,
        {"events.csv": events},
        r"1600000000000, which read in s is in the year 52672; they are ms: set columns\.timestamp_unit: ms",
        recipe,
    )
    digits = csv(changed(timestamp=[20200914 + place for _ in USERS for place in range(4)]))
    refused(made, {"events.csv": digits}, r"columns\.timestamp_unit: date")
    assert made({"events.csv": digits}, {"columns": {"timestamp_unit": "date"}, **PARTS}).sequences == ITEMS
    counted = csv(changed(timestamp=[place for _ in USERS for place in range(4)]))
    back = made({"events.csv": counted}, PARTS)
    assert back.sequences == ITEMS
    assert "only their order is used" in back.info["log"]
    refused(made, {"events.csv": counted}, "the recipe chooses events by date", recipe)


def test_local_times(made):
    local = csv(changed(timestamp=[f"2022-05-01 0{8 + place % 2}:59:59" for _ in USERS for place in range(4)]))
    recipe = {"columns": {"timezone": "Asia/Seoul"}, "history": {"events": {"from": "2022-05-01T00:00:00Z"}}, **PARTS}
    assert made({"events.csv": local}, recipe).info["events"] == 40  # nine o'clock in Seoul is midnight UTC
    with pytest.raises(ConfigError, match=r"columns\.timezone: expected a time zone by its IANA name.*'KST'"):
        parse_recipe({"columns": {"timezone": "KST"}})


@pytest.mark.parametrize("encoding", ["cp949", "utf-16", "utf-16-le", "euc-kr"])
def test_texts_in_other_encodings(made, encoding):
    items = [f"딸기 {item}" for item in TABLE["item"]]
    people = csv({"user": USERS, "g": ["남", "여"] * 10})
    files = {"events.csv": csv(changed(item=items)).decode().encode(encoding), "users.csv": people.decode().encode(encoding)}
    back = made(files, {"encoding": encoding, **GENDER})
    assert back.sequences["u00"] == [f"딸기 {item}" for item in ITEMS["u00"]]
    assert genders(back)["u01"] == "여"
    wrong = {"utf-16": "got UTF-16 .* set `encoding: utf-16`", "utf-16-le": "no column 'user'"}
    refused(made, files, wrong.get(encoding, "bytes that are not UTF-8 text"), GENDER)


def test_bytes_that_are_no_text_of_the_encoding(made):
    lines = csv(changed(item=["딸기"] * 80)).decode().encode("cp949").split(b"\n")
    lines[7] = b"u01,\xff\xff\xff,1600000000"
    back = made({"events.csv": b"\n".join(lines)}, {"encoding": "cp949", **PARTS}, max_bad_rows=0.1)
    assert back.info["notes"]["malformed_rows"] == {"bytes that are not CP949 text": 1}
    said = refused(made, {"events.csv": b"\n".join(lines)}, "bytes that are not UTF-8 text")
    assert "`encoding` in the recipe" in said
    with pytest.raises(ConfigError, match="encoding: expected an encoding of text that Python knows"):
        parse_recipe({"encoding": "cp9490"})
    refused(
        made, {"events.csv": b"\xef\xbb\xbf" + WHOLE}, "got UTF-8 .the file begins with its byte-order mark", {"encoding": "cp949", **PARTS}
    )


def test_quoted_cells_over_several_lines(made):
    lines = WHOLE.decode().split("\n")
    lines[6] = '"u01","say ""hi"",\nu00,GHOST,1600000000\nend",1600000010'
    back = made({"events.csv": "\n".join(lines).encode()}, PARTS)
    assert back.sequences["u01"][1] == 'say "hi",\nu00,GHOST,1600000000\nend'
    assert back.sequences["u00"] == ITEMS["u00"]
    assert back.info["notes"]["records_of_several_lines"] == {"count": 1}
    # the numbers of later lines stay right
    lines[60] = "u14,i00"
    said = refused(made, {"events.csv": "\n".join(lines).encode()}, "1 × wrong number of columns")
    assert "events.csv:63: 'u14,i00'" in said


def test_a_row_over_several_lines_with_a_wrong_number_of_cells_counts_each_line(made):
    lines = WHOLE.decode().split("\n")
    lines[6] = '"u01,i01,5\nu00,i02,6\nu00",x'
    back = made({"events.csv": "\n".join(lines).encode()}, PARTS, max_bad_rows=0.1)
    assert back.info["notes"]["malformed_rows"] == {"wrong number of columns": 3}
    assert back.info["events"] == 79


def test_a_header_with_quoted_commas_and_line_ends(made):
    content = b'user,item,"price, EUR","two\nlines",timestamp\n' + WHOLE.split(b"\n", 1)[1].replace(b",1600", b',"1,5",x,1600')
    assert made({"events.csv": content}, PARTS).sequences == ITEMS


def test_the_first_value_that_is_there_counts_and_others_are_counted(made):
    people = {"user": [*USERS, *USERS, "u03"], "g": ["", *PEOPLE["g"][1:], *PEOPLE["g"], "other"]}
    for files in ({"users.csv": csv(people)}, {"users.parquet": parquet(people)}):
        back = made({"events.csv": WHOLE, **files}, GENDER)
        assert genders(back) == GENDERS
        assert back.info["notes"]["conflicting"] == {"g": 1}
        assert "1 names of column 'user' have several values of 'g'; the first counts" in back.info["log"]


def test_tenrecs_attributes_are_those_of_the_first_row_that_has_them(made):
    shown = "user_id,item_id,click,gender\n" + "".join(
        f"{user},{item},1,{'' if place == 0 and number % 3 == 0 else 1 + number % 2}\n"
        for number, user in enumerate(USERS)
        for place, item in enumerate(ITEMS[user])
    )
    recipe = {"tasks": {"gender": {"kind": "profile"}}, "history": {"events": {"type": "click"}}, **PARTS}
    back = made({"a.csv": shown.encode()}, recipe, format="tenrec")
    assert {user: pairs[0][0] for user, pairs in back.labels["gender"].items()} == {
        user: str(1 + number % 2) for number, user in enumerate(USERS)
    }


@pytest.mark.parametrize("missing", [["0", "-"], {"g": ["0", "-"]}, {"g": 0}])
def test_codes_of_unknown_are_no_labels(made, missing):
    people = {"user": USERS, "g": [["0", "1", "2", "-"][number % 4] for number in range(20)]}
    known = {user for user, code in zip(USERS, people["g"], strict=True) if code in ("1", "2")}
    if missing == {"g": 0}:
        people["g"] = [code.replace("-", "0") for code in people["g"]]
    recipe = {"missing": missing, "tasks": {"g": {"kind": "profile", "classes": ["1", "2"]}}, **PARTS}
    back = made({"events.csv": WHOLE, "users.csv": csv(people)}, recipe)
    assert set(genders(back)) == known
    assert back.info["notes"]["missing"] == {"g": 10}
    recipe["missing"] = {"gg": ["0"]}
    refused(made, {"events.csv": WHOLE, "users.csv": csv(people)}, r"missing\.gg: no table has that attribute", recipe, error=ConfigError)


def test_ids_that_look_like_codes_of_unknown_are_ids(made):
    recipe = {"missing": ["i00", "u00"], **GENDER}
    assert made({"events.csv": WHOLE, **PEOPLE_CSV}, recipe).sequences == ITEMS


def test_tenrecs_recipe_has_its_code_of_unknown():
    assert read_recipe(str(RECIPES / "tenrec.yaml")).missing_in("gender") == {"0"}
    assert read_recipe(str(RECIPES / "tenrec.yaml")).missing_in("video_category") == frozenset()


@pytest.mark.parametrize("seed", range(6))
def test_a_table_of_odd_cells_is_the_same_as_csv_and_as_parquet(made, seed):
    draw = np.random.default_rng(seed)
    pool = ["", None, " ", "NaN", "nan", "null", "1.0", "1", "007", " x", "x", "two\nlines", 'say "hi"', "a,b", "딸기", "\u3000y"]

    def odd(plain: list[str], share: float) -> list[str | None]:
        return [pool[int(draw.integers(len(pool)))] if draw.random() < share else cell for cell in plain]

    events = {"user": odd(TABLE["user"], 0.05), "item": odd(TABLE["item"], 0.3), "timestamp": odd([str(time) for time in TIMES], 0.05)}
    people = {"user": odd(USERS, 0.1), "g": odd(PEOPLE["g"], 0.3)}
    texts = {}
    for name, table in (("events", events), ("users", people)):
        text = io.StringIO(newline="")
        csv_module.writer(text).writerows([list(table), *zip(*table.values(), strict=True)])
        texts[f"{name}.csv"] = text.getvalue().encode()
    kinds = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    tables = {
        f"{name}.parquet": parquet(pa.table({key: pa.array(cells).cast(kinds[seed % 3]) for key, cells in table.items()}))
        for name, table in (("events", events), ("users", people))
    }
    one, other = (made(files, GENDER, max_bad_rows=0.9) for files in (texts, tables))
    assert (one.sequences, one.labels) == (other.sequences, other.labels)
    assert one.info["notes"]["malformed_rows"] == other.info["notes"]["malformed_rows"]
    assert one.info["events"] > 40
