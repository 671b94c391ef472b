"""What filters, joins and labels matched: how many rows, users and labels stay, and at which step the others fall out.

`dataset.json` keeps it as `notes.matched`; `dist-teracon prepare` prints it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any

import numpy as np

from dist_teracon.errors import DataError

# `--max-unmatched`: of the smaller of two tables' ids, the largest share that may be without a partner in the other.
MAX_UNMATCHED = 0.5
_SHOWN = 3
# Of so many ids without a partner at most it is looked at what they differ in.
COMPARED = 2_000_000


@dataclass
class Funnel:
    """How many things of a kind stay, and how many fall out for which reason.

    Attributes:
        unit: What is counted, in the plural.
        total: How many there were.
        left_out: By reason, in the order of the steps; a thing counts at the first step that drops it.
    """

    unit: str
    total: int
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """How many stay."""
        return self.total - sum(self.left_out.values())

    def drop(self, reason: str, count: int | np.integer[Any]) -> None:
        """Count things that fall out; none is not noted."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + int(count)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"unit": self.unit, "total": self.total, "kept": self.kept, "left_out": self.left_out}


@dataclass(frozen=True)
class Join:
    """How the ids of two tables meet.

    Attributes:
        left, right: How many ids each has.
        both: How many are in both.
        only_left, only_right: The first few of the others, in order.
        nearly: How many more would meet if `but_for` were taken away from both.
        but_for: What the ids differ in.
    """

    left: int
    right: int
    both: int
    only_left: list[str]
    only_right: list[str]
    nearly: int
    but_for: list[str]

    @property
    def unmatched(self) -> float:
        """Share of the smaller table's ids that have no partner: a table may well hold more users than the other."""
        return 1 - self.both / max(1, min(self.left, self.right))


_FORMS: dict[str, Callable[[str], str]] = {
    "'.0' at the end": lambda text: text.partition(".")[0] if text.partition(".")[2].strip("0") == "" else text,
    "blanks at the ends": str.strip,
    "zeros at the beginning": lambda text: text.lstrip("0") or "0",
    "capital letters": str.casefold,
    "the form of Unicode (NFC, NFD)": lambda text: unicodedata.normalize("NFC", text),
}


def join_of(left: Collection[str], right: Collection[str]) -> Join:
    """Compare two sets of ids."""
    ours, theirs = set(left), set(right)
    only_left, only_right = ours - theirs, theirs - ours
    nearly, but_for = 0, []
    if only_left and only_right and max(len(only_left), len(only_right)) <= COMPARED:
        nearly = len(_all_forms(only_left) & _all_forms(only_right))
        if nearly:
            but_for = [name for name, form in _FORMS.items() if set(map(form, only_left)) & (only_right | set(map(form, only_right)))]
    return Join(len(ours), len(theirs), len(ours & theirs), nsmallest(_SHOWN, only_left), nsmallest(_SHOWN, only_right), nearly, but_for)


def _all_forms(ids: Iterable[str]) -> set[str]:
    for form in (_FORMS["blanks at the ends"], *_FORMS.values()):
        ids = map(form, ids)
    return set(ids)


def check_join(where: str, join: Join, *, noun: str, left: str, right: str, limit: float) -> str:
    """Check that two tables' ids meet.

    Args:
        where: The recipe's field that joins them.
        join: How they meet.
        noun: What an id stands for, in the plural.
        left, right: Names of the tables.
        limit: `--max-unmatched`.

    Returns:
        A warning about ids that nearly meet, or nothing.

    Raises:
        DataError: of the smaller table more than the limit has no partner.
    """
    near = ""
    if join.nearly:
        near = f"{join.nearly} more {noun} would meet but for {' and '.join(join.but_for) or 'several differences together'}"
    if join.unmatched <= limit:
        return f"{where}: {near}: {_ids(left, join.only_left)}; {_ids(right, join.only_right)}; write both in one way" if near else ""
    lines = [
        f"{where}: the {noun} of {left} and of {right} do not meet: {join.both} of {join.left} in {left} and of {join.right} in {right} "
        f"are in both; --max-unmatched {limit:g} allows that share of the fewer to be without a partner",
        f"  {_ids(left, join.only_left)}",
        f"  {_ids(right, join.only_right)}",
        f"  {near}: write them in one way in both"
        if near
        else "  do both name the same? columns: in the recipe names another column of ids",
    ]
    raise DataError("\n".join(lines))


def _ids(table: str, ids: Sequence[str]) -> str:
    return f"only in {table}: {', '.join(map(repr, ids)) or 'none'}"
