"""Recipes: what they may say, and what is said of one that is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_teracon.cli import main
from dist_teracon.data.recipe import parse_recipe, read_recipe
from dist_teracon.data.recipe_values import bin_names, parse_comparisons
from dist_teracon.errors import ConfigError

RECIPES = Path(__file__).parents[3] / "configs" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_is_valid(path):
    recipe = read_recipe(str(path))
    assert parse_recipe(recipe.to_json()) == recipe


def wrong(tmp_path: Path, text: str) -> str:
    """Return what is said of a recipe's text."""
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_recipe(str(tmp_path / "r.yaml"))
    assert str(error.value).startswith(str(tmp_path / "r.yaml"))
    return str(error.value).removeprefix(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("histroy: {}", ": histroy: unknown field; did you mean 'history'? (known: name, seed, "),
        ("history: {lenght: 3}", ": history.lenght: unknown field; did you mean 'length'? "),
        ("history: {events: {form: 2020-01-01}}", ": history.events.form: unknown field; did you mean 'from'? "),
        ("tasks: {a: {kind: item, target: 3}}", ": tasks.a.target: unknown field; did you mean 'targets'? "),
        ("tasks: {a: {kind: profil}}", ": tasks.a.kind: expected 'item' or 'profile', got 'profil'"),
        ("tasks: {a: {targets: 3}}", ": tasks.a.kind: expected 'item' or 'profile', got None"),
        ("tasks: {a: {kind: item, targets: 0}}", ": tasks.a.targets: input should be greater than or equal to 1, got 0"),
        ("tasks: {a: {kind: item, choose: last}}", ": tasks.a.choose: input should be 'random', 'first' or 'next', got 'last'"),
        ("tasks: {a: {kind: item, choose: next}}", ": tasks.a: 'choose: next' requires a date in events.from"),
        ("tasks: {a: {kind: item, events: {value: 'three'}}}", ": tasks.a.events.value: expected comparisons such as '<= 3'"),
        ("tasks: {a: {kind: item, events: {value: '<= 3; import os'}}}", ", got '<= 3; import os'"),
        ("tasks: {a: {kind: profile, bins: [3, 3]}}", ": tasks.a.bins: edges must ascend, got [3, 3]"),
        ("tasks: {a: {kind: profile, bins: [3], classes: [x, y]}}", ": tasks.a: give bins or classes, not both"),
        ("tasks: {items: {kind: profile}}", ": tasks: 'items' cannot name a task: it is reserved"),
        ('tasks: {"a\\nb": {kind: profile}}', ": tasks: 'a\\nb' cannot name a task"),
        ("tasks: {' a': {kind: profile}}", ": tasks: ' a' cannot name a task"),
        ("tasks: {yes: {kind: profile}}", ": tasks: a task's name is True to YAML; write it in quotes"),
        ("tasks: {a: {kind: profile, classes: [x, y, x]}}", ": tasks.a: class 'x' stands there more than once"),
        ("tasks: {a: {kind: profile, classes: [yes, no]}}", ": tasks.a.classes: is a truth value to YAML"),
        ("history: {length: yes}", ": history: length is a truth value to YAML"),
        ("tasks: {a: {kind: item, targets: on}}", ": tasks.a: targets is a truth value to YAML"),
        ("history: {events: {from: true}}", ": history.events: from is a truth value to YAML"),
        ("tasks: {a: {kind: profile, bins: [9007199254740993]}}", ": tasks.a.bins.0: numbers are compared exactly up to 2^53"),
        ("history: {events: {value: 9007199254740993}}", ": history.events.value: numbers are compared exactly up to 2^53"),
        ("history: {events: {value: '> 1e300'}}", ": history.events.value: numbers are compared exactly up to 2^53"),
        ("history: {events: {until: 2022-06-31}}", ": history.events.until: no such day in the calendar, got '2022-06-31'"),
        ("history: {events: {until: 2021-02-29}}", ": history.events.until: no such day"),
        ("history: {events: {until: 2021-02-28T24:00:00}}", ": history.events.until: no such day and time: hours run from 00 to 23"),
        ("history: {events: {until: 2021-02-28T20:00:00+25:00}}", ": history.events.until: no such day and time: offsets from UTC"),
        (
            "history: {events: {from: 20200914}}",
            ": history.events.from: a bare number counts seconds since 1970, and this one looks like a date: write '2020-09-14'",
        ),
        (
            "history: {events: {from: 202009}}",
            ": history.events.from: a bare number counts seconds since 1970, and this one looks like a date",
        ),
        ("history: {events: {from: 20200914123000}}", "looks like a date: write '2020-09-14T12:30:00'"),
        (
            "history: {events: {from: 1600041600000}}",
            ": history.events.from: expected seconds since 1970; in milliseconds it is 2020-09-14 00:00:00 UTC",
        ),
        ("tasks: {next: {kind: profile}}", ": tasks: 'next' is the first task's name already"),
        ("tasks: {Next: {kind: profile}}", ": tasks: 'next' and 'Next' differ in capital letters alone"),
        ("tasks: {age: {kind: profile}, Age: {kind: profile}}", ": tasks: 'age' and 'Age' differ in capital letters alone"),
        ("history: {events: {from: soon}}", ": history.events.from: expected a date (2026-01-31)"),
        ("history: {events: {from: 2020-02-01, until: 2020-01-01}}", ": history.events: 'from' must lie before 'until'"),
        ("split: {train: 0.9}", ": split: train, validation and test must add up to 1"),
        ("split: {folds: 3, fold: 3}", ": split: fold must be below folds (3)"),
        ("split: {by: rovs}", ": split.by: input should be 'users', 'rows', 'last' or 'time', got 'rovs'"),
        ("files: {event: x}", ": files.event: unknown field; did you mean 'events'?"),
        ("files: {events: []}", ": files.events: "),
        ("columns: {timezone: Mars/Base}", ": columns.timezone: expected a time zone by its IANA name"),
        ("columns: {timestamp_unit: sec}", ": columns.timestamp_unit: input should be 's', 'ms', 'us', 'ns' or 'date', got 'sec'"),
        ("encoding: klingon", ": encoding: expected an encoding of text that Python knows"),
        ("encoding: hex", ": encoding: expected an encoding of text that Python knows"),
        ("missing: {gender: {a: b}}", ": missing: expected a list of codes, as ['0', '-'], or such lists by attribute"),
        ("missing: [null]", ": missing: expected a list of codes"),
        ("seed: -1", ": seed: input should be greater than or equal to 0, got -1"),
        ("seed: 1\nseed: 2", ":2: not valid YAML: duplicate key 'seed'"),
        ("name: [", ":1: not valid YAML"),
        ("- name", ": expected a mapping of fields, got list"),
        ("", ": expected a mapping of fields, got NoneType"),
    ],
)
def test_a_wrong_recipe_is_named_by_file_and_field(tmp_path, text, said):
    assert said in wrong(tmp_path, text)


@pytest.mark.parametrize("day", ["2022-06-31", "2021-02-29", "2021-02-28T24:00:00", "2021-02-28T20:00:00+25:00"])
def test_a_day_that_is_none_is_refused_on_the_command_line_too(tmp_path, capsys, day):
    (tmp_path / "raw").mkdir()
    arguments = ["prepare", "events", str(tmp_path / "raw"), str(tmp_path / "out"), "--set", f"history.events.until={day}"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--set: history.events.until: no such day" in line


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1000001", "== 1000001"), ("0.1234567", "== 0.1234567"), ("3", "== 3"), ("1e6", "== 1e6"), ("-0.5", "== -0.5"), ("'3'", "== 3"),
        ("9007199254740991", "== 9007199254740991"),
    ],
)  # fmt: skip
def test_a_bare_number_is_compared_as_it_is_written(tmp_path, written, read):
    (tmp_path / "r.yaml").write_text(f"history: {{events: {{value: {written}}}}}")
    assert read_recipe(str(tmp_path / "r.yaml")).history.events.value == read
    ((_, number),) = parse_comparisons(read)
    assert number == float(written.strip("'"))


@given(st.one_of(st.integers(1 - 2**53, 2**53 - 1), st.floats(-1e15, 1e15)))
def test_every_number_of_a_filter_and_of_bins_is_kept_exactly(number):
    ((_, compared),) = parse_comparisons(parse_recipe({"history": {"events": {"value": number}}}).history.events.value)
    assert compared == number


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=6, unique=True))
def test_names_of_bins_never_collide(edges):
    names = bin_names(sorted(edges))
    assert len(set(names)) == len(names) == len(edges) + 1


def test_names_keep_their_text(tmp_path):
    (tmp_path / "r.yaml").write_text("history: {events: {type: [012, 1_000, 12:30, 0x1F, 7, 2020-01-02]}}\ntasks: {나이: {kind: profile}}")
    recipe = read_recipe(str(tmp_path / "r.yaml"))
    assert recipe.history.events.type == ("012", "1_000", "12:30", "0x1F", "7", "2020-01-02")
    assert list(recipe.tasks) == ["나이"]
    assert list(parse_recipe({"tasks": {"\u1102\u1161\u110b\u1175": {"kind": "profile"}}}).tasks) == ["나이"]


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    lines = wrong(tmp_path, "seed: x\nhistory: {length: 0}\nsplitt: {}").splitlines()
    assert len(lines) == 3


def test_no_such_recipe(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_recipe(str(tmp_path / "none.yaml"))


@given(st.sampled_from(["<", "<=", "==", "=", "!=", ">=", ">"]), st.integers(-9, 9), st.integers(-9, 9))
def test_comparisons_hold_as_python_has_them(sign, bound, value):
    ((compare, number),) = parse_comparisons(f" {sign}  {bound}")
    python = {"=": value == bound, "==": value == bound, "!=": value != bound, "<": value < bound, "<=": value <= bound}
    assert compare(value, number) == {**python, ">": value > bound, ">=": value >= bound}[sign]


def test_several_comparisons_must_all_hold():
    pairs = parse_comparisons("> 1, <= 3.5")
    assert [all(compare(value, number) for compare, number in pairs) for value in (1, 2, 3.5, 4)] == [False, True, True, False]


@pytest.mark.parametrize("written", ["2022-05-01", "2022-05-01 00:00:00", "'2022-05-01T02:00:00+02:00'", "1651363200"])
def test_moments_are_dates_times_or_seconds(tmp_path, written):
    (tmp_path / "r.yaml").write_text(f"history: {{events: {{from: {written}}}}}")
    assert read_recipe(str(tmp_path / "r.yaml")).history.events.since == datetime(2022, 5, 1, tzinfo=UTC).timestamp()


def test_bins_are_named_for_people():
    assert bin_names([18, 25, 26]) == ["<18", "18-24", "25", "26+"]
    assert bin_names([0.5, 1.5]) == ["<0.5", "[0.5, 1.5)", "1.5+"]


def test_codes_of_unknown_are_texts_for_all_attributes_or_by_attribute():
    assert parse_recipe({"missing": 0}).missing_in("any") == {"0"}
    assert parse_recipe({"missing": [0, "-"]}).missing_in("any") == {"0", "-"}
    by_name = parse_recipe({"missing": {"gender": [0, 9], "age": "-"}})
    assert [by_name.missing_in(name) for name in ("gender", "age", "plan")] == [{"0", "9"}, {"-"}, frozenset()]
    assert parse_recipe(by_name.to_json()) == by_name


def test_repeats_is_stored_only_where_it_is_given():
    """Else data sets that were prepared before the field was there would count as made from something else."""
    plain = parse_recipe({"tasks": {"buys": {"kind": "item"}}}).to_json()
    assert "repeats" not in plain["history"]
    assert "repeats" not in plain["tasks"]["buys"]
    once = parse_recipe({"history": {"repeats": False}, "tasks": {"buys": {"kind": "item", "repeats": False}}}).to_json()
    assert once["history"]["repeats"] is once["tasks"]["buys"]["repeats"] is False
    assert parse_recipe(once).history.repeats is False
    with pytest.raises(ConfigError, match="'repeats: false' is for labels that are items"):
        parse_recipe({"tasks": {"kinds": {"kind": "item", "label": "category", "repeats": False}}})


def test_moments_without_a_zone_are_in_that_of_the_columns():
    value = {"columns": {"timezone": "Asia/Seoul"}, "history": {"events": {"from": "2020-09-14", "until": "2020-09-15T00:00:00Z"}}}
    recipe = parse_recipe(value)
    midnight = datetime(2020, 9, 14, tzinfo=UTC).timestamp()
    assert (recipe.history.events.since, recipe.history.events.until) == (midnight - 9 * 3600, midnight + 86400)
    assert parse_recipe(recipe.to_json()) == recipe
    assert parse_recipe({"history": value["history"]}).history.events.since == midnight
