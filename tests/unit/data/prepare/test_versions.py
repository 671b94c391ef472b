"""A new version of a data set: what was there stays, what is new comes after it."""

from __future__ import annotations

import numpy as np
import pytest

from dist_teracon.cli import main
from dist_teracon.data import ragged
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.prepare.versions import ancestors, append
from dist_teracon.data.schema import FIRST_ITEM, Split, SplitRule
from dist_teracon.errors import DataError
from dist_teracon.hashing import stable_hash

SHARDS = 4
RULE = SplitRule(train=0.6, validation=0.2, test=0.2)


def tables(users, *, items, tasks, group=1, seed=0):
    """Users `u<n>` of the numbers given, whose sequences follow from the number and the size of the catalogue."""
    sequences = [[(7 * user + 3 * step + seed) % items for step in range(2 + user % 5)] for user in users]
    lengths = [len(sequence) for sequence in sequences]
    hashes = np.array([stable_hash(f"group {user // group}") for user in users], dtype=np.uint64)
    everyone = np.arange(len(users))
    labels = [
        LabelTable(name, "profile", ["a", "b", "c"], everyone, np.array([user % 3 for user in users], np.int32), np.arange(len(users) + 1))
        for name in tasks
    ]
    flat = np.array([item for sequence in sequences for item in sequence], dtype=np.int32)
    return Tables(
        name="living",
        items=[f"i{item}" for item in range(items)],
        sequences=SequenceTable([f"u{user}" for user in users], hashes, flat, ragged.offsets_of(lengths)),
        labels=labels,
        length_limit=6,
    )


@pytest.fixture
def versions(tmp_path):
    """100 users and 40 items; then 90 of them with other histories, 60 more, 15 more items and another task."""
    write_dataset(tables(range(100), items=40, tasks=["age"]), str(tmp_path / "old"), RULE, shards=SHARDS)
    more = tables(range(10, 160), items=55, tasks=["age", "city"], seed=1)
    write_dataset(more, str(tmp_path / "more"), RULE, shards=SHARDS)
    append(str(tmp_path / "old"), str(tmp_path / "more"), str(tmp_path / "new"))
    return tuple(Dataset(str(tmp_path / name)) for name in ("old", "more", "new"))


def users_of(dataset, shard):
    ids = dataset.table(f"users/shard-{shard:05d}.parquet")["user_id"].to_pylist()
    data = dataset.shard(shard)
    return {name: data.values[data.offsets[row] : data.offsets[row + 1]].tolist() for row, name in enumerate(ids)}


def names_of(dataset):
    return dataset.vocabulary("items")["item"].to_pylist()


def test_old_users_keep_row_and_sequence_and_new_ones_come_after(versions):
    old, more, new = versions
    for shard in range(SHARDS):
        before, added, after = (users_of(dataset, shard) for dataset in versions)
        assert list(after)[: len(before)] == list(before)
        assert {name: after[name] for name in before} == before
        assert set(after) == set(before) | set(added)
        for name in set(added) - set(before):  # the same items by name
            assert [names_of(new)[item] for item in after[name]] == [names_of(more)[item] for item in added[name]]
    assert (new.info.users, old.info.users) == (160, 100)
    assert new.info.events == sum(new.shard(shard).values.shape[0] for shard in range(SHARDS))


def test_old_items_keep_their_index_and_counts_are_those_of_the_sequences(versions):
    old, _, new = versions
    assert names_of(new)[: old.info.items] == names_of(old)
    assert new.info.items == len(names_of(new)) == 55 + FIRST_ITEM
    counted = sum(np.bincount(new.shard(shard).values, minlength=new.info.items) for shard in range(SHARDS))
    assert new.vocabulary("items")["count"].to_numpy().tolist() == counted.tolist()


def test_old_tasks_stay_byte_for_byte(versions):
    old, _, new = versions
    assert new.info.tasks[:2] == old.info.tasks
    kept = [path for path in old.info.files if path.startswith("tasks/") or path == "vocab/age.parquet"]
    assert len(kept) == 2 * SHARDS + 1
    assert all(new.content(path) == old.content(path) for path in kept)


def test_a_new_task_has_the_labels_of_old_and_new_users_under_the_old_split(versions):
    old, _, new = versions
    task = new.info.task("city")
    assert (task.users, sum(task.examples)) == (150, 150)
    found = {}
    for shard in range(SHARDS):
        labels, ids = new.labels("city", shard), list(users_of(new, shard))
        assert (np.diff(labels.users) > 0).all()
        of_age = old.labels("age", shard)
        before = dict(zip(of_age.users.tolist(), of_age.split.tolist(), strict=True))
        for row, value, split in zip(labels.users.tolist(), labels.values.tolist(), labels.split.tolist(), strict=True):
            found[ids[row]] = value
            assert split == before.get(row, split)
    assert found == {f"u{user}": user % 3 for user in range(10, 160)}
    assert task.examples == tuple(sum(int((new.labels("city", shard).split == split).sum()) for shard in range(SHARDS)) for split in Split)


def test_a_group_of_users_stays_in_one_split(tmp_path):
    write_dataset(tables(range(0, 90), items=40, tasks=["age"], group=4), str(tmp_path / "old"), RULE, shards=SHARDS)
    write_dataset(tables(range(90, 160), items=40, tasks=["city"], group=4), str(tmp_path / "more"), RULE, shards=SHARDS)
    append(str(tmp_path / "old"), str(tmp_path / "more"), str(tmp_path / "new"))
    new, splits = Dataset(str(tmp_path / "new")), {}
    for shard in range(SHARDS):
        hashes = new.shard(shard).user_hash
        for task in ("age", "city"):
            labels = new.labels(task, shard)
            for row, split in zip(labels.users, labels.split, strict=True):
                splits.setdefault(int(hashes[row]), set()).add(int(split))
    assert len(splits) == 40
    assert all(len(found) == 1 for found in splits.values())


def test_versions_know_where_they_come_from_and_are_made_once(versions, tmp_path):
    old, more, new = versions
    assert new.info.parent == old.info.fingerprint
    assert ancestors(new.info) == [old.info.fingerprint]
    assert new.info.notes["appended"][-1]["users"] == 60
    again = append(old.uri, more.uri, new.uri)
    assert again == new.info
    write_dataset(tables(range(100, 150), items=70, tasks=["sex"]), str(tmp_path / "third"), RULE, shards=SHARDS)
    third = append(new.uri, str(tmp_path / "third"), str(tmp_path / "newer"))
    assert ancestors(third) == [old.info.fingerprint, new.info.fingerprint]
    assert [task.name for task in third.tasks] == ["next", "age", "city", "sex"]
    assert third.users == 160


def test_what_does_not_fit_is_refused(versions, tmp_path):
    old, more, new = versions
    with pytest.raises(DataError, match="has no task that"):
        append(new.uri, more.uri, str(tmp_path / "x"))
    write_dataset(tables(range(30), items=9, tasks=["other"]), str(tmp_path / "eight"), RULE, shards=8)
    with pytest.raises(DataError, match="prepare it with --shards 4"):
        append(old.uri, str(tmp_path / "eight"), str(tmp_path / "x"))
    with pytest.raises(DataError, match="made from something else"):
        append(old.uri, more.uri, old.uri)
    trained = [
        int(name[1:])
        for shard in range(SHARDS)
        for row, name in enumerate(users_of(old, shard))
        if row in old.labels("age", shard).of(Split.TRAIN).users
    ]
    write_dataset(tables(trained, items=9, tasks=["few"]), str(tmp_path / "few"), RULE, shards=SHARDS)
    with pytest.raises(DataError, match=r"under the split of .* it has 60 training, 0 validation, 0 test examples"):
        append(old.uri, str(tmp_path / "few"), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_the_command_line(tmp_path, capsys):
    folder = tmp_path / "old"
    write_dataset(tables(range(100), items=40, tasks=["age"]), str(folder), RULE, shards=SHARDS)
    out = str(tmp_path / "new")
    arguments = ["prepare", "synthetic", out, "--users", "300", "--append", str(folder)]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert "300 users" in told.err
    new = Dataset(out)
    assert (new.info.shards, new.info.users) == (SHARDS, 400)
    assert [task.name for task in new.info.tasks] == ["next", "age", "item-a", "item-b", "profile-8", "profile-2", "profile-6"]
    assert main(arguments) == 0
    assert main([*arguments, "--shards", "3"]) == 2
    assert "leave --shards and --split out" in capsys.readouterr().err
    assert main(["prepare", "synthetic", str(tmp_path / "newer"), "--users", "300", "--append", out]) == 2
    assert f"six-tasks-v1: has no task that {out} does not have" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
