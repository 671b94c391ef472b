"""A small table of events and users for tests of the forms in which such tables come."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_teracon.errors import DataError, TeraconError

START = 1_600_000_000
PARTS = {"split": {"train": 0.5, "validation": 0.25, "test": 0.25}}
GENDER = {"tasks": {"g": {"kind": "profile"}}, **PARTS}

USERS = [f"u{user:02d}" for user in range(20)]
ITEMS = {user: [f"i{(place * place * 5 + number) % 11:02d}" for place in range(4)] for number, user in enumerate(USERS)}
GENDERS = {user: "mf"[number % 2] for number, user in enumerate(USERS)}
TABLE: dict[str, list[Any]] = {
    "user": [user for user in USERS for _ in range(4)],
    "item": [item for user in USERS for item in ITEMS[user]],
    "timestamp": [START + 10 * place for _ in USERS for place in range(4)],
}
PEOPLE = {"user": USERS, "g": list(GENDERS.values())}


def csv(table: dict[str, list[Any]]) -> bytes:
    lines = [",".join(table), *(",".join("" if cell is None else str(cell) for cell in row) for row in zip(*table.values(), strict=True))]
    return ("\n".join(lines) + "\n").encode()


def parquet(table: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), sink)
    return sink.getvalue()


def changed(**columns: Any) -> dict[str, list[Any]]:
    return {**TABLE, **columns}


def rows(first: int, behind: int) -> dict[str, list[Any]]:
    """Return some of the table's rows."""
    return {name: values[first:behind] for name, values in TABLE.items()}


def refused(
    made: Any, files: dict[str, bytes], said: str, recipe: Any = PARTS, *, error: type[TeraconError] = DataError, **options: Any
) -> str:
    with pytest.raises(error, match=said) as caught:
        made(files, recipe, **options)
    return str(caught.value)


def genders(back: Any) -> dict[str, str]:
    return {user: pairs[0][0] for user, pairs in back.labels["g"].items()}


PEOPLE_CSV = {"users.csv": csv(PEOPLE)}
WHOLE = csv(TABLE)
