"""What holds for any tables: every example once, one split a user, disjoint shards, a round trip."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.splits import cut, split_users
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.ragged import offsets_of
from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.errors import DataError
from dist_teracon.hashing import stable_hash

ITEMS = [f"item {item}" for item in range(9)]


def ragged(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows laid end to end, and their offsets."""
    flat = np.array([value for row in rows for value in row], dtype=np.int32)
    return flat, offsets_of([len(row) for row in rows])


@st.composite
def any_tables(draw: st.DrawFn) -> Tables:
    """Draw tables of 30 to 60 users with unseen items, long sequences, partial tasks and groups of one hash."""
    count = draw(st.integers(30, 60))
    rows = draw(st.lists(st.lists(st.integers(-1, 8), min_size=1, max_size=7), min_size=count, max_size=count))
    names = [f"u{row}" for row in range(count)]
    group = draw(st.integers(1, 3))
    hashes = np.array([stable_hash(f"u{row // group}") for row in range(count)], dtype=np.uint64)
    labels = []
    for name, most in (("shop", 3), ("age", 1)):
        users = draw(st.lists(st.integers(0, count - 1), unique=True, min_size=20, max_size=count).map(sorted))
        targets = draw(
            st.lists(st.lists(st.integers(0, 4), unique=True, min_size=1, max_size=most), min_size=len(users), max_size=len(users))
        )
        kind = "item" if most > 1 else "profile"
        labels.append(LabelTable(name, kind, list("abcde"), np.array(users, dtype=np.int64), *ragged(targets)))
    sequences = SequenceTable(names, hashes, *ragged(rows))
    return Tables(name="any", items=ITEMS, sequences=sequences, labels=labels, length_limit=draw(st.integers(2, 8)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    any_tables(),
    st.sampled_from(["users", "rows"]),
    st.integers(0, 99),
    st.sampled_from([(1, 0), (3, 0), (3, 2)]),
    st.integers(1, 5),
)
def test_a_round_trip_of_any_tables(read, tables, by, seed, folds, shards):
    rule = SplitRule(by=by, seed=seed, train=0.6, validation=0.2, test=0.2, folds=folds[0], fold=folds[1])
    with tempfile.TemporaryDirectory() as name:
        try:
            info = write_dataset(tables, f"{name}/out", rule, shards=shards)
        except DataError as error:
            assert "has no" in str(error) or "no user has" in str(error)
            assert list(Path(name).iterdir()) == []
            assume(False)
        back = read(Path(name) / "out")
    bounds = tables.sequences.offsets
    for row, user in enumerate(tables.sequences.user_ids):
        own = tables.sequences.values[bounds[row] : bounds[row + 1]][-tables.length_limit :]
        assert back.sequences[user] == [None if item < 0 else ITEMS[item] for item in own]
        targets = [own[-1]] if bounds[row + 1] - bounds[row] >= 2 and own[-1] >= 0 else []
        assert [label for label, _ in back.labels["next"].get(user, [])] == [ITEMS[item] for item in targets]
    for table in tables.labels:
        want = {
            tables.sequences.user_ids[user]: [table.classes[label] for label in table.values[start:end]]
            for user, (start, end) in zip(table.users, pairwise(table.offsets), strict=True)
        }
        assert {user: [label for label, _ in pairs] for user, pairs in back.labels[table.name].items()} == want
    for task in info.tasks:
        splits = [split for pairs in back.labels[task.name].values() for _, split in pairs]
        assert np.bincount(splits, minlength=3).tolist() == list(task.examples)
    if by == "users":
        of_hash: dict[int, set[int]] = {}
        for users in back.labels.values():
            for user, pairs in users.items():
                of_hash.setdefault(stable_hash(f"u{int(user[1:]) // _group(tables)}"), set()).update(split for _, split in pairs)
        assert all(len(parts) == 1 for parts in of_hash.values())


def _group(tables: Tables) -> int:
    """Return how many users share a hash."""
    return int((tables.sequences.user_hash == tables.sequences.user_hash[0]).sum())


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=200, unique=True),
    st.integers(0, 2**32),
    st.integers(2, 7),
)
def test_quotas_are_exact_and_folds_cover_each_user_once(hashes, seed, folds):
    keys = np.array(hashes, dtype=np.uint64)
    count = len(keys)
    plain = split_users(keys, SplitRule(seed=seed))
    assert (plain == Split.TEST).sum() == round(count * 0.15)
    assert (plain == Split.TRAIN).sum() == count - round(count * 0.2)
    tested = sum((split_users(keys, SplitRule(seed=seed, folds=folds, fold=fold)) == Split.TEST).astype(int) for fold in range(folds))
    assert tested.tolist() == [1] * count


@given(st.lists(st.integers(0, 20), min_size=1, max_size=100))
def test_equal_keys_stay_together_and_order_does_not_matter(values):
    keys = np.array(values, dtype=np.uint64)
    split = cut(keys, SplitRule(train=0.5, validation=0.2, test=0.3))
    for key in set(values):
        assert len(set(split[keys == key].tolist())) == 1
    assert cut(keys[::-1], SplitRule(train=0.5, validation=0.2, test=0.3)).tolist() == split[::-1].tolist()


def test_next_users_limit_the_first_task(tmp_path, read):
    ids = [f"u{row}" for row in range(100)]
    hashes = np.array([stable_hash(user) for user in ids], dtype=np.uint64)
    sequences = SequenceTable(ids, hashes, np.arange(200, dtype=np.int32) % 9, np.arange(0, 201, 2))
    tables = Tables(name="x", items=ITEMS, sequences=sequences, labels=[], length_limit=5, next_users=np.arange(0, 100, 2))
    info = write_dataset(tables, str(tmp_path / "out"), SplitRule())
    assert info.tasks[0].users == 50
    assert set(read(tmp_path / "out").labels["next"]) == set(ids[::2])


@pytest.mark.parametrize(("users", "shards"), [(100, 8), (500_000, 16), (1_470_000, 32)])
def test_the_number_of_shards_follows_the_size(users, shards):
    from dist_teracon.data.prepare.writer import default_shards

    assert default_shards(users) == shards
