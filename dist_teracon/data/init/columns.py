"""Guesses about columns: which holds users, items, times, types, values, by their names and by what is in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dist_teracon.data.init.samples import Sample

_ROLES = ("user", "item", "timestamp", "type", "value")
# Names of columns in small letters and without what is neither letter nor digit; those of ids also with an ending below.
_NAMES = {
    "user": ("user", "member", "customer", "visitor", "account", "client", "uid", "mid", "person", "회원", "사용자", "유저", "고객"),
    "item": (
        "item", "product", "goods", "sku", "movie", "video", "content", "article", "doc", "document", "page", "song", "track", "book",
        "query", "keyword", "searchterm", "searchquery", "term", "search",
        "상품", "검색어", "질의어", "질의", "쿼리", "키워드", "아이템", "콘텐츠",
    ),
    "timestamp": (
        "timestamp", "time", "ts", "date", "datetime", "dt", "eventtime", "eventtimestamp", "createdat", "created", "unixtime", "epoch",
        "timems", "timestampms", "logtime", "clicktime", "searchtime", "when",
        "시각", "일시", "시간", "날짜", "등록일", "등록일시", "검색일시",
    ),
    "type": (
        "type", "event", "eventtype", "eventname", "action", "actiontype", "behavior", "behaviour", "behaviortype",
        "유형", "행동", "이벤트", "구분",
    ),
    "value": ("value", "rating", "score", "stars", "star", "평점", "별점", "점수"),
}  # fmt: skip
_ID_ENDINGS = ("id", "ids", "no", "num", "number", "code", "key", "idx", "seq", "nm", "name", "text", "아이디", "번호", "코드", "명")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?)?\s*(Z|UTC|[-+]\d{2}(:?\d{2})?)?")
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
# Codes of unknown that people write.
_UNKNOWN = frozenset(("-", "--", "?", "na", "n/a", "nan", "null", "none", "unknown", "\\n", "미상", "알수없음", "알 수 없음", "없음"))


@dataclass(frozen=True)
class Guess:
    """A column's role.

    Attributes:
        column: Its name.
        confidence: `sure`, `likely` or `guess`.
        why: In words.
    """

    column: str
    confidence: str
    why: str


@dataclass(frozen=True)
class Content:
    """What a column holds.

    Attributes:
        filled: How many values there are.
        distinct: How many different ones.
        is_number: Whether all are numbers.
        times: `iso`, a unit of numbers (`s`, `ms`, `us`, `ns`), `date` for digits such as 20200131, or None.
        counts: How often each value occurs.
        unknown: Codes of unknown among the values.
    """

    filled: int
    distinct: int
    is_number: bool
    times: str | None
    counts: Counter[str]
    unknown: tuple[str, ...]


def content_of(sample: Sample, column: str) -> Content:
    """Return what a column of a sample holds."""
    values = [value for value in sample.columns[column] if value is not None]
    counts = Counter(values)
    unknown = tuple(sorted(text for text in counts if text.strip().lower() in _UNKNOWN))
    if is_age(column):  # nobody is 0, −1 or 999 years old among grown-ups
        numbers = [float(text) for text in counts if _NUMBER.fullmatch(text)]
        if sorted(number for number in numbers if 0 < number <= 120)[:1] >= [5.0]:
            unknown += tuple(sorted(text for text in counts if _NUMBER.fullmatch(text) and not 0 < float(text) <= 120))
    known = [text for text in counts if text not in unknown]
    is_number = bool(known) and all(_NUMBER.fullmatch(text) for text in known)
    times = "iso" if column in sample.times else _times(known, is_number=is_number)
    return Content(len(values), len(counts), is_number, times, counts, unknown)


def is_age(column: str) -> bool:
    """Return whether a column's name is that of an age."""
    return re.sub(r"[\W\d_]", "", column.lower()) in ("age", "userage", "ageyears", "나이", "연령", "만나이")


def _times(values: Sequence[str], *, is_number: bool) -> str | None:
    """Return what times the values can be: nearly all must fit."""
    if not values:
        return None
    enough = 0.98 * len(values)
    if sum(_ISO.fullmatch(text) is not None for text in values) >= enough:
        return "iso"
    if not is_number:
        return None
    if sum(_is_date(text) for text in values) >= enough:
        return "date"
    numbers = [float(text) for text in values]
    latest = datetime.now().timestamp() + 366 * 86_400
    fitting = [unit for unit, scale in _UNITS.items() if sum(631_152_000 <= number / scale <= latest for number in numbers) >= enough]
    return fitting[0] if fitting else None


def _is_date(text: str) -> bool:
    if not re.fullmatch(r"(19|20)\d{6}(\d{6})?", text):
        return False
    try:
        datetime.strptime(text, "%Y%m%d" if len(text) == 8 else "%Y%m%d%H%M%S")
    except ValueError:
        return False
    return True


def named_role(column: str) -> str | None:
    """Return the role that a column's name stands for."""
    bare = re.sub(r"[\W_]", "", column.lower())
    for role in _ROLES:
        if bare in _NAMES[role]:
            return role
    for role in ("user", "item"):
        if any(bare == name + ending for name in _NAMES[role] for ending in _ID_ENDINGS):
            return role
    return None


def guess_roles(sample: Sample, contents: dict[str, Content]) -> dict[str, Guess]:
    """Return which column of a table of events holds what: by name where it has one that is known, else by content."""
    found: dict[str, Guess] = {}
    for column, content in contents.items():
        role = named_role(column)
        if role is None or role in found or not content.filled:
            continue
        if role == "timestamp" and content.times is None:
            continue
        if role == "type" and content.distinct > 50:
            continue
        if role == "value" and not content.is_number:
            continue
        found[role] = Guess(column, "sure" if role != "type" or content.distinct > 1 else "likely", _fact(role, content, sample))
    taken = {guess.column for guess in found.values()}
    rest = {column: content for column, content in contents.items() if column not in taken and content.filled}
    for role in ("timestamp", "user", "item"):
        guessed = _by_content(role, rest, rows=sample.rows) if role not in found else None
        if guessed is not None:
            found[role] = Guess(guessed, "guess", f"by what it holds: {_fact(role, rest.pop(guessed), sample)}")
    return found


def _by_content(role: str, rest: dict[str, Content], *, rows: int) -> str | None:
    """Return the first column that can have a role: users and items occur more than once."""
    for column, content in rest.items():
        if role == "timestamp":
            if content.times is not None and content.distinct > 1:
                return column
        elif content.times is None and 1 < content.distinct < 0.95 * rows and content.filled > 0.9 * rows and content.distinct >= 10:
            return column
    return None


def _fact(role: str, content: Content, sample: Sample) -> str:
    if role == "timestamp":
        shown = {"iso": "dates", "date": "digits as 20200131"}.get(content.times or "", f"numbers that are {content.times} since 1970")
        return f"{shown}, as {next(iter(content.counts))}"
    if role in ("type", "value") and content.distinct <= 8:
        return ", ".join(text for text, _ in content.counts.most_common())
    return f"{content.distinct:,} different in {sample.rows:,} rows, as {next(iter(content.counts))}"
