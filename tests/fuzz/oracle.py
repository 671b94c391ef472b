"""A slow reader of raw events, a character and a row at a time in plain Python: what the readers of the package must agree with.

It knows the documented rules (docs/data.md, Reading) and shares no code with the package. Where a file's header is damaged it gives up,
as the package must then refuse the file or read what can be read.
"""

from __future__ import annotations

import csv
import gzip
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
DATE = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[ Tt]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:[.,]([0-9]+))?)?"
    r" ?([Zz]|UTC|GMT|([-+])([0-9]{2})(?::?([0-9]{2}))?)?"
)
MOST_LINES = 1000
LARGEST = 2**63 - 1


class GiveUpError(Exception):
    """The oracle does not judge this input."""


@dataclass
class Table:
    """Rows of one file that are well-formed, as cells by column, and the lines that are rejected."""

    rows: list[dict[str, str | None]] = field(default_factory=list)
    rejected: set[int] = field(default_factory=set)


@dataclass
class Expected:
    """What a data set must hold: each user's items in time, each user's gender, rejected lines by file.

    `columns`, where events have types: each user's times in seconds, and types. `shelves`: the attribute of each item that has one.
    """

    sequences: dict[str, list[str | None]]
    genders: dict[str, str]
    rejected: dict[str, set[int]]
    columns: dict[str, tuple[list[int], list[str | None]]] | None = None
    shelves: dict[str, str] = field(default_factory=dict)


def text_of(content: bytes, name: str) -> bytes:
    """Return a file's text with `\\n` at the end of every line."""
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        raise GiveUpError
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content if not content or content.endswith(b"\n") else content + b"\n"


def record_end(content: bytes, start: int, quote: bool) -> int | None:
    """Return where the record's newline is, None where a quote is not closed at the end of its cell."""
    at, cell_begins = start, True
    while at < len(content):
        character = content[at : at + 1]
        if quote and cell_begins and character == b'"':
            at += 1
            while True:
                if at >= len(content):
                    return None
                if content[at : at + 1] == b'"':
                    if content[at + 1 : at + 2] != b'"':
                        break
                    at += 1
                at += 1
            at += 1
            while content[at : at + 1] == b" ":
                at += 1
            if content[at : at + 1] not in (b",", b"\n"):
                return None
            cell_begins = False
            continue
        if character == b"\n":
            return at
        cell_begins = character == b","
        at += 1
    return None


def records(content: bytes, quote: bool, rejected: set[int]) -> list[tuple[int, int, bytes]]:
    """Return (line, lines, text) of each record that is not blank; lines with wrong quotes are rejected."""
    found, at, line = [], 0, 1
    while at < len(content):
        end = record_end(content, at, quote)
        if end is None or content.count(b"\n", at, end) > MOST_LINES:
            rejected.add(line)
            at, line = content.index(b"\n", at) + 1, line + 1
            continue
        lines = 1 + content.count(b"\n", at, end)
        if end > at:
            found.append((line, lines, content[at:end]))
        at, line = end + 1, line + lines
    return found


def cells_of(text: str, delimiter: str, quote: bool) -> list[str]:
    """Return a record's cells."""
    return next(csv.reader([text], delimiter=delimiter)) if quote else text.split(delimiter)


def read_table(
    content: bytes, name: str, *, delimiter: str, quote: bool = False, header: list[str] | None = None, encoding: str = "utf-8"
) -> tuple[Table, list[str]]:
    """Return a file's rows, blanks around the cells cut off, and its columns."""
    table = Table()
    columns = header
    for line, lines, text in records(text_of(content, name), quote, table.rejected):
        try:
            decoded = text.decode(encoding)
        except UnicodeDecodeError:
            if columns is None:
                raise GiveUpError from None
            table.rejected.add(line)
            continue
        cells = cells_of(decoded, delimiter, quote)
        if columns is None:
            columns = [cell.strip() for cell in cells]
            if table.rejected or delimiter not in decoded or len(set(columns)) != len(columns):
                raise GiveUpError
            continue
        if len(cells) != len(columns):
            table.rejected |= set(range(line, line + lines))
            continue
        table.rows.append({"": str(line)} | {column: cell.strip() or None for column, cell in zip(columns, cells, strict=True)})
    if columns is None:
        raise GiveUpError
    return table, columns


def number(text: str) -> float | None:
    """Return a number, None where it is none."""
    value = float(text) if NUMBER.fullmatch(text) else None
    return value if value is not None and abs(value) != float("inf") else None


def nanoseconds(text: str) -> int | None:
    """Return a time's nanoseconds since 1970, rounded down; None where it is none that 64 bits hold."""
    if NUMBER.fullmatch(text):
        return _of_seconds(text)
    match = DATE.fullmatch(text)
    return None if match is None else _of_date(match)


def _of_seconds(text: str) -> int | None:
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None if float(text) else 0
    if value and value.adjusted() > 20:
        return None
    if value and value.adjusted() < -20:
        return -1 if value < 0 else 0
    top, bottom = value.as_integer_ratio()
    result = top * 10**9 // bottom
    return result if abs(result) <= LARGEST else None


def _of_date(match: re.Match[str]) -> int | None:
    day, clock, part, zone, sign, hours, minutes = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day} {clock or '00:00'}").replace(tzinfo=UTC)
    except ValueError:
        return None
    if zone and sign:
        if int(hours) > 23 or int(minutes or 0) > 59:
            return None
        ahead = timedelta(hours=int(hours), minutes=int(minutes or 0))
    else:
        ahead, sign = timedelta(), "+"
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    if abs(seconds) > LARGEST // 10**9 - 86_400:
        return None
    return (seconds - (ahead // timedelta(seconds=1)) * (-1 if sign == "-" else 1)) * 10**9 + int((part or "0").ljust(9, "0")[:9])


def unzeroed(names: list[str]) -> dict[str, str]:
    """Return each name as it is read: without `.0` where all are whole numbers and some have it."""
    if any("." in name for name in names) and all(re.fullmatch(r"[-+]?[0-9]+(\.0+)?", name) for name in names):
        return {
            name: re.sub(r"^[-+](0)$", r"\1", name.split(".")[0]) if name.split(".")[0] in ("-0", "+0") else name.split(".")[0]
            for name in names
        }
    return {name: name for name in names}


def keep(table: Table, check: dict[str, str]) -> None:
    """Reject the rows where a column is not what it must be: `id`, `time`, `number`."""
    kept = []
    for row in table.rows:
        good = True
        for column, kind in check.items():
            cell = row[column]
            if kind == "number":
                good &= cell is None or cell in ("NaN", "nan") or number(cell) is not None
            else:
                good &= cell is not None and (kind == "id" or nanoseconds(cell) is not None)
        if good:
            kept.append(row)
        else:
            table.rejected.add(int(row[""] or 0))
    table.rows = kept


def sequences_of(table: Table, user: str, item: str, time: str | None) -> dict[str, list[str | None]]:
    """Return each user's items in time, then in the order of the file."""
    rows = [(str(row[user]), str(row[item]), nanoseconds(str(row[time])) if time else 0) for row in table.rows]
    users, items = unzeroed([row[0] for row in rows]), unzeroed([row[1] for row in rows])
    found: dict[str, list[tuple[int, str]]] = {}
    for name, thing, moment in rows:
        found.setdefault(users[name], []).append((moment or 0, items[thing]))
    return {name: [thing for _, thing in sorted(events, key=lambda event: event[0])] for name, events in found.items()}


def columns_of(table: Table, user: str, time: str, kind: str) -> dict[str, tuple[list[int], list[str | None]]]:
    """Return each user's times in whole seconds and types, in time, then in the order of the file."""
    users = unzeroed([str(row[user]) for row in table.rows])
    types = unzeroed([str(row[kind]) for row in table.rows if row[kind] not in (None, "NaN", "nan")])
    found: dict[str, list[tuple[int, str | None]]] = {}
    for row in table.rows:
        found.setdefault(users[str(row[user])], []).append((nanoseconds(str(row[time])) or 0, types.get(str(row[kind]))))
    ordered = {name: sorted(events, key=lambda event: event[0]) for name, events in found.items()}
    return {name: ([moment // 10**9 for moment, _ in events], [one for _, one in events]) for name, events in ordered.items()}


def genders_of(table: Table, user: str, gender: str) -> dict[str, str]:
    """Return the first gender that stands there of each user."""
    keep(table, {user: "id"})
    users = unzeroed([str(row[user]) for row in table.rows])
    told = [(users[str(row[user])], row[gender]) for row in table.rows]
    values = unzeroed([value for _, value in told if value not in (None, "NaN", "nan")])
    found: dict[str, str] = {}
    for name, value in told:
        if value in values:
            found.setdefault(name, values[str(value)])
    return found


def expected(format: str, files: dict[str, bytes]) -> Expected:
    """Return what a data set made of files must hold.

    Raises:
        GiveUpError: the oracle does not judge them, as a header is damaged.
    """
    rejected: dict[str, set[int]] = {}
    genders: dict[str, str] = {}
    sequences: dict[str, list[str | None]] = {}
    shelves: dict[str, str] = {}
    columns_by_user = None
    for name, content in files.items():
        if format == "tenrec":
            table, columns = read_table(content, name, delimiter=",", quote=True)
            flags = [flag for flag in ("click", "follow", "like", "share") if flag in columns]
            if {"user_id", "item_id", "click", "gender"} - set(columns):
                raise GiveUpError
            keep(table, {"user_id": "id", "item_id": "id", **dict.fromkeys(flags, "number")})
            genders = _tenrec_genders(table)
            users = unzeroed([str(row["user_id"]) for row in table.rows])
            items = unzeroed([str(row["item_id"]) for row in table.rows])
            for row in table.rows:
                if (number(str(row["click"])) or 0) > 0:
                    sequences.setdefault(users[str(row["user_id"])], []).append(items[str(row["item_id"])])
        elif name in ("u.user", "x.user", "users.csv"):
            table, user, gender = _people(content, name)
            genders = genders_of(table, user, gender)
        elif name == "items.csv":
            table, columns = read_table(content, name, delimiter=",", quote=True)
            if {"item", "shelf"} - set(columns):
                raise GiveUpError
            shelves = genders_of(table, "item", "shelf")
        else:
            table, sequences = _events(content, name, dated=format == "recbole")
            if table.rows and "type" in table.rows[0]:
                columns_by_user = columns_of(table, "user", "timestamp", "type")
        rejected[name] = table.rejected
    return Expected(sequences, {user: gender for user, gender in genders.items() if user in sequences}, rejected, columns_by_user, shelves)


def rows_by_time(want: Expected, dates: dict[str, Any]) -> Expected:
    """Return what a split by time makes of users: rows by name, what no training row has being unknown."""
    first, second, (third,) = dates["validation_from"], dates["test_from"], dates["test_periods"]
    kinds: list[tuple[str, int, int | None]] = [
        ("", first, None), ("@validation", first, None), ("@test", second, None), ("@test-2", third, None),
        ("@validation-next", first, second), ("@test-next", second, third), ("@test-2-next", third, LARGEST),
    ]  # fmt: skip
    rows: dict[str, list[tuple[str, int, str | None]]] = {}
    trained: list[tuple[str, int, str | None]] = []
    for user, items in want.sequences.items():
        assert want.columns is not None
        events = list(zip(items, *want.columns[user], strict=True))
        for name, end, until in kinds:
            row = [event for event in events if event[1] < end]
            later = [event for event in events if until is not None and end <= event[1] < until]
            if row and (until is None or later):
                rows[user + name] = row + later[:1]
                trained += row if not name else []
    known, types = {event[0] for event in trained}, {event[2] for event in trained}
    sequences = {name: [item if item in known else None for item, _, _ in row] for name, row in rows.items()}
    columns = {name: ([time for _, time, _ in row], [kind if kind in types else None for _, _, kind in row]) for name, row in rows.items()}
    return Expected(sequences, {}, want.rejected, columns)


def last_labels(sequences: dict[str, list[str | None]]) -> dict[str, list[tuple[str | None, int]]]:
    """Return each user's next-item labels under a split by `last`, with their splits: the last three items that have one before them."""
    every = {
        user: [(items[-1 - behind], 2 - behind) for behind in (2, 1, 0) if len(items) >= behind + 2] for user, items in sequences.items()
    }
    return {user: labels for user, labels in every.items() if labels}


def _tenrec_genders(table: Table) -> dict[str, str]:
    copy = Table(list(table.rows))
    return genders_of(copy, "user_id", "gender")


def _people(content: bytes, name: str) -> tuple[Table, str, str]:
    if name == "u.user":
        header = ["user", "age", "gender", "occupation", "zip_code"]
        return read_table(content, name, delimiter="|", header=header, encoding="latin-1")[0], "user", "gender"
    if name == "x.user":
        table, columns = read_table(content, name, delimiter="\t")
        user, gender = "user_id:token", "gender:token"
    else:
        table, columns = read_table(content, name, delimiter=",", quote=True)
        user, gender = "user", "gender"
    if {user, gender} - set(columns):
        raise GiveUpError
    return table, user, gender


def _events(content: bytes, name: str, *, dated: bool) -> tuple[Table, dict[str, list[str | None]]]:
    if name == "u.data":
        table, columns = read_table(content, name, delimiter="\t", header=["user", "item", "rating", "timestamp"])
        roles = ("user", "item", "timestamp")
    elif dated:
        table, columns = read_table(content, name, delimiter="\t")
        roles = ("user_id:token", "item_id:token", "timestamp:float")
    else:
        table, columns = read_table(content, name, delimiter=",", quote=True)
        roles = ("user", "item", "timestamp")
    if set(roles) - set(columns):
        raise GiveUpError
    keep(table, {roles[0]: "id", roles[1]: "id", roles[2]: "time"})
    return table, sequences_of(table, *roles)
