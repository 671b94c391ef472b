"""The rows of a data set's users, and which of them an event's label or a user's attribute belongs to.

Under a split by users or rows a user is one row. Under a split by time a user is a row for each period that is predicted, which holds what
came before it and has one split (docs/data.md, Splits by time): so whatever reads training rows reads nothing of what came later.

Legend: U rows, P people, E events, C codes of users.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.prepare.splits import split_users
from dist_teracon.data.recipe_split import SplitPart
from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.data.sources.base import Events
from dist_teracon.errors import DataError
from dist_teracon.hashing import stable_hash

Int = NDArray[np.int64]


@dataclass(frozen=True)
class UserRows:
    """Rows of users.

    Attributes:
        names: Of the rows, each once.
        hashes: uint64 [U], of the rows' users.
        people: Names of the users who have a row, each once.
        person_row: int64 [P], the row that a user's attributes belong to, −1 for none.
        person_of_row: int64 [U], whose rows they are.
        row_of_code: int64 [C, W], the row of each of the events' user codes, for each window of labels; −1 for none.
        windows: Seconds at which the windows of labels begin; None where there is one, of all time.
        splits: int8 [U], the rows' splits; None where users or examples are cut.
        next_rows: int64, rows that take part in the first task; None for all.
        later_rows: int64 [P, periods], further rows that a user's attributes belong to, as of later test periods; −1 for none.
    """

    names: Sequence[str]
    hashes: NDArray[np.uint64]
    people: Sequence[str]
    person_row: Int
    person_of_row: Int
    row_of_code: Int
    windows: tuple[float, ...] | None = None
    splits: NDArray[np.int8] | None = None
    next_rows: Int | None = None
    later_rows: Int | None = None

    @classmethod
    def one_each(cls, names: Sequence[str], row_of_code: Int) -> UserRows:
        """Return a row a user."""
        hashes = np.array([stable_hash(name) for name in names], dtype=np.uint64)
        everyone = np.arange(len(names))
        return cls(names, hashes, names, everyone, everyone, row_of_code[:, None])

    def window_of(self, events: Events, chosen: Int) -> Int:
        """Return the window of some events, int64 [E], −1 for those before the first."""
        if self.windows is None:
            return np.zeros(len(chosen), dtype=np.int64)
        return np.sum([events.from_moment(begin)[chosen] for begin in self.windows], axis=0) - 1

    def of_events(self, events: Events, chosen: Int) -> Int:
        """Return the row that some events' labels belong to, int64 [E], −1 for none."""
        window = self.window_of(events, chosen)
        return np.where(window < 0, -1, self.row_of_code[events.user.codes[chosen], window])

    def trains(self, rows: Int) -> NDArray[np.bool_]:
        """Return which rows may be counted for vocabularies, bool: all, but under a split by time those that are trained on."""
        return np.ones(len(rows), dtype=bool) if self.splits is None else self.splits[rows] == Split.TRAIN


@dataclass(frozen=True)
class _Kind:
    """Rows of one kind, `split` as data sets store it.

    The history ends before `end`; with one more event, before `until`, where that is the first task's label.
    """

    name: str
    split: int
    end: float
    until: float | None
    takes_next: bool


def rows_by_time(
    part: SplitPart, rule: SplitRule, events: Events, kept: Int, ordered: Int, counts: Int, *, length: int, minimum: int
) -> tuple[UserRows, Int, Int, tuple[Int, Int]]:  # fmt: skip
    """Make the rows of a split by time.

    Args:
        part: The recipe's, with its dates.
        rule: Shares and seed by which users are cut for tasks of theirs.
        events: All events, with times.
        kept: int64 [P], codes of the users who are kept, in the order of their names.
        ordered: int64, the events of their whole histories, user by user in time.
        counts: int64 [P], how many of them each has.
        length: The last so many of a history are kept.
        minimum: Rows with fewer events before their period are left out.

    Returns:
        The rows; the events of all rows' histories; where each row's begin, int64 [U + 1]; of each row the place in `ordered` of its
        user's first event, and how many of them its history leaves out before it begins, int64 [U] each.
    """
    assert part.validation_from is not None and part.test_from is not None
    t1, t2 = part.validation_from, part.test_from
    tests = [f"@test-{number}" if number > 1 else "@test" for number in range(1, len(part.tests) + 1)]
    until = [*part.tests[1:], np.inf]
    kinds = [
        _Kind("", Split.TRAIN, t1, None, True),
        _Kind("@validation-next", Split.VALIDATION, t1, t2, True),
        *(_Kind(f"{name}-next", Split.TEST + at, part.tests[at], until[at], True) for at, name in enumerate(tests)),
        _Kind("@validation", Split.VALIDATION, t1, None, False),
        *(_Kind(name, Split.TEST + at, part.tests[at], None, False) for at, name in enumerate(tests)),
    ]
    if part.labels_from is not None:
        kinds.insert(0, _Kind("@training", Split.TRAIN, part.labels_from, None, False))
    begins = ragged.offsets_of(counts)
    people = [events.user.names[code] for code in kept.tolist()]
    person, kind_of, first, end = [], [], [], []
    for number, kind in enumerate(kinds):
        ends = begins[1:] - _from(events, ordered, begins, kind.end)
        there = ends - begins[:-1] >= max(1, minimum)
        if kind.until is not None:  # and the first event of the period, which is predicted
            later = begins[1:] if kind.until == np.inf else begins[1:] - _from(events, ordered, begins, kind.until)
            there &= later > ends
            ends = ends + 1
        users = np.flatnonzero(there)
        person.append(users)
        kind_of.append(np.full(len(users), number))
        end.append(ends[users])
        first.append(np.maximum(begins[users], ends[users] - length))
    person_U, kind_U, first_U, end_U = (np.concatenate(columns) for columns in (person, kind_of, first, end))
    order = np.lexsort((kind_U, person_U))
    person_U, kind_U, first_U, end_U = person_U[order], kind_U[order], first_U[order], end_U[order]
    lengths = end_U - first_U
    row_of = np.full((len(kept), len(kinds)), -1, dtype=np.int64)
    row_of[person_U, kind_U] = np.arange(len(person_U))
    hashes = np.array([stable_hash(name) for name in people], dtype=np.uint64)
    names = [f"{people[user]}{kinds[kind].name}" for user, kind in zip(person_U.tolist(), kind_U.tolist(), strict=True)]
    _check_names(names, people)
    place = {kind.name: number for number, kind in enumerate(kinds)}
    windows = [name for name in ("@training", "@validation", *tests) if name in place]
    of_code = np.full((len(events.user.names), len(windows)), -1, dtype=np.int64)
    of_code[kept] = row_of[:, [place[name] for name in windows]]
    # attributes have no times: users with a training row are cut for them, and read what came before their part's period
    by_split, person_row = row_of[:, [place[name] for name in ("", "@validation", "@test")]], np.full(len(kept), -1, dtype=np.int64)
    known = np.flatnonzero(by_split[:, 0] >= 0)
    person_row[known] = by_split[known, split_users(hashes[known], replace(rule, by="users"))]
    tested = known[person_row[known] == row_of[known, place["@test"]]]
    later_rows = np.full((len(kept), len(tests) - 1), -1, dtype=np.int64)
    later_rows[tested] = row_of[tested][:, [place[name] for name in tests[1:]]]
    there, person_of_row = np.unique(person_U, return_inverse=True)  # who has no row is no user of the data set
    rows = UserRows(
        names, hashes[person_U], [people[user] for user in there.tolist()], person_row[there], person_of_row, of_code,
        windows=(*([part.labels_from] if part.labels_from is not None else []), t1, *part.tests),
        splits=np.array([kind.split for kind in kinds], dtype=np.int8)[kind_U],
        next_rows=np.flatnonzero(np.array([kind.takes_next for kind in kinds])[kind_U]),
        later_rows=later_rows[there],
    )  # fmt: skip
    before = begins[person_U], first_U - begins[person_U]
    return rows, ordered[ragged.positions(first_U, lengths)], ragged.offsets_of(lengths), before


def periods_without(splits: NDArray[np.int8], rows: Int, *, periods: int) -> list[int]:
    """Return the numbers, from 1 on, of the test's periods in which none of a task's rows is.

    Args:
        splits: int8 [U], of all rows.
        rows: int64, those that have a label of the task.
        periods: How many the test has.
    """
    counts = np.bincount(splits[rows], minlength=Split.TEST + periods)[Split.TEST :]
    return (np.flatnonzero(counts == 0) + 1).tolist()


def _check_names(names: Sequence[str], people: Sequence[str]) -> None:
    """Raise DataError where a user's id is the name of another user's row."""
    if len(set(names)) == len(names):
        return
    users = set(people)
    twice = next(name for name, count in Counter(names).items() if count > 1)
    other = max((user for user in users if user != twice and twice.startswith(f"{user}@")), key=len)
    raise DataError(
        f"split.by: under 'time' a user is several rows, and the row '{twice}' of user '{other}' has the name of another user of the data; "
        "rename that user, or split by users"
    )


def _from(events: Events, ordered: Int, begins: Int, moment: float) -> Int:
    """Return how many of each user's events are at a moment or after it, int64 [P]."""
    after = ragged.offsets_of(events.from_moment(moment)[ordered])
    return after[begins[1:]] - after[begins[:-1]]
