"""Numbers and ids that are the same in every type: floats of fewer bits, decimals, whole numbers with and without a point."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from event_tables import GENDER, GENDERS, ITEMS, PARTS, PEOPLE, TABLE, USERS, WHOLE, changed, csv, genders, parquet, refused

RATINGS = [3.7, 0.3, 1.1, 5.5] * 20


@pytest.mark.parametrize(
    "values",
    [
        pa.array(RATINGS, pa.float32()),
        pa.array(np.array(RATINGS, np.float16)),
        pa.array([Decimal(str(value)) for value in RATINGS], pa.decimal128(10, 3)),
        pa.array([Decimal(str(value)) for value in RATINGS], pa.decimal256(50, 3)),
        pa.array(list(map(str, RATINGS))),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("comparison", "kept"), [("<= 3.7", 60), ("== 0.3", 20), ("> 3.7", 20)])
def test_values_of_any_type_compare_as_they_are_written(made, values, comparison, kept):
    recipe = {"tasks": {"t": {"kind": "item", "events": {"value": comparison}}}, **PARTS}
    matched = made({"events.parquet": parquet(changed(value=values))}, recipe).info["notes"]["matched"]["tasks"]["t"]
    assert (matched["total"], matched["left_out"][f"value not {comparison}"]) == (80, 80 - kept)


def test_ids_that_a_type_does_not_hold_exactly_are_refused(made):
    numbers = [float(16_777_216 + number) for number in range(20) for _ in range(4)]  # of 32 bits, every second one is another
    said = r"column 'user': expected ids as text or whole numbers, got float from 2\^24 on"
    refused(made, {"events.parquet": parquet(changed(user=pa.array(numbers, pa.float32())))}, said)
    said = r"column 'item': expected ids as text or whole numbers, got 1\.5 \(double\)"
    refused(made, {"events.parquet": parquet(changed(item=[1.0, 1.5] * 40))}, said)
    exact = pa.array([float(user[1:]) for user in TABLE["user"]], pa.float32())
    back = made({"events.parquet": parquet(changed(user=exact))}, PARTS)
    assert back.sequences == {str(int(user[1:])): items for user, items in ITEMS.items()}


@pytest.mark.parametrize("form", [csv, parquet])
def test_one_users_number_with_and_without_a_point_is_one_user(made, form):
    ids = [f"{int(user[1:])}{'.0' if place % 2 else ''}" for place, user in enumerate(TABLE["user"])]
    people = {"user": [f"{int(user[1:])}{'.0' if user > 'u09' else ''}" for user in USERS], "g": PEOPLE["g"]}
    ending = form.__name__
    back = made({f"events.{ending}": form(changed(user=ids)), f"users.{ending}": form(people)}, GENDER)
    assert back.sequences == {str(int(user[1:])): items for user, items in ITEMS.items()}
    assert genders(back) == {str(int(user[1:])): gender for user, gender in GENDERS.items()}
    assert back.info["notes"]["whole_numbers"] == {"user": "10.0"}


TRUTHS = {user: gender == "m" for user, gender in GENDERS.items()}


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        ({"users.csv": csv({**PEOPLE, "g": list(TRUTHS.values())})}, ["False", "True"]),  # as Python writes them
        ({"users.parquet": parquet({**PEOPLE, "g": list(TRUTHS.values())})}, ["false", "true"]),
        ({"users.csv": csv({**PEOPLE, "g": ["True", "FALSE", "true", "false"] * 5})}, ["false", "true"]),
    ],
)  # fmt: skip
def test_truth_values_have_two_classes_however_they_are_written(made, files, classes):
    back = made({"events.csv": WHOLE, **files}, GENDER)
    assert genders(back) == {user: classes[truth] for user, truth in TRUTHS.items()}
    assert [*back.info["notes"].get("truth_values", {})] == (["g"] if b"FALSE" in files.get("users.csv", b"") else [])
    named = made({"events.csv": WHOLE, **files}, {**GENDER, "tasks": {"g": {"kind": "profile", "classes": ["True", "False"]}}})
    assert genders(named) == {user: str(truth) for user, truth in TRUTHS.items()}


def test_ids_that_differ_in_their_form_of_unicode_are_named(made):
    composed = {user: f"\uac00{user}" for user in USERS}  # one letter, or two
    decomposed = [f"\u1100\u1161{user}" for user in USERS[:8]] + [composed[user] for user in USERS[8:]]
    files = {"events.csv": csv(changed(user=[composed[user] for user in TABLE["user"]])), "users.csv": csv({**PEOPLE, "user": decomposed})}
    assert "8 more users would meet but for the form of Unicode" in made(files, GENDER).info["log"]


def test_codes_of_unknown_are_met_as_cells_are_read_or_named(made):
    ages = [-1.0, *[float(20 + number % 3) for number in range(19)]]
    files = {"events.csv": WHOLE, "users.csv": csv({"user": USERS, "g": ages})}
    for code in ("-1.0", "-1", -1):
        back = made(files, {**GENDER, "missing": {"g": [code]}})
        assert set(genders(back).values()) == {"20", "21", "22"}
        assert back.info["notes"]["missing"] == {"g": 1}
    incomes = [0.0, *[float(number % 3) + 1.5 for number in range(19)]]  # as they stand, for 1.5 is no whole number
    back = made({"events.csv": WHOLE, "users.csv": csv({"user": USERS, "g": incomes})}, {**GENDER, "missing": {"g": ["0"]}})
    assert set(genders(back).values()) == {"1.5", "2.5", "3.5"}
    assert "missing.g: no cell" not in back.info["log"]
    files = {"events.csv": WHOLE, "users.csv": csv({"user": USERS, "g": ["Unknown", *PEOPLE["g"][1:]]})}
    back = made(files, {**GENDER, "missing": {"g": ["unknown"]}})
    assert "missing.g: no cell of that attribute is 'unknown'; did you mean 'Unknown'?" in back.info["log"]
    back = made(files, {**GENDER, "missing": ["Unknown", "-"]})
    assert back.info["notes"]["missing"] == {"g": 1}
    assert "missing: no cell of an attribute that is read is '-'" in back.info["log"]
    assert "is 'Unknown'" not in back.info["log"]


@pytest.mark.parametrize("strange", [0, -1_600_000_000, 1_600_000])
def test_a_few_times_that_can_be_none_are_counted(made, strange):
    many = {name: values * 5 for name, values in TABLE.items()}
    back = made({"events.csv": csv({**many, "timestamp": [strange, *many["timestamp"][1:]]})}, PARTS)
    assert back.info["notes"]["times"] == {"outside_1990_to_2100": 1}
    assert "1 of 400 times lie outside of 1990 to 2100" in back.info["log"]
