"""When rows are predicted: of which task and split, by the data set's dates or its last event, and in batches of training and scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dist_teracon.data import ragged
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.event_columns import NO_TIME, EventColumns
from dist_teracon.data.loader import TrainingLoader, evaluation_batches
from dist_teracon.data.moments import Moments, day_of
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.schema import Split, SplitRule, Task
from dist_teracon.hashing import stable_hash

NEXT, LIKES, AGE = (Task(name, kind, 5, 5, (1, 1, 1)) for name, kind in (("next", "next"), ("likes", "item"), ("age", "profile")))


def made(tmp_path: Any, by: Any) -> Dataset:
    """Return a small data set whose events have times, that are distinct."""
    draw, users = np.random.default_rng(0), 40
    offsets = ragged.offsets_of(draw.integers(4, 9, users))
    items, columns = draw.integers(0, 9, offsets[-1]).astype(np.int32), EventColumns(1_600_000_000 + 10 * np.arange(offsets[-1]))
    names = [f"u{user}" for user in range(users)]
    hashes = np.array([stable_hash(name) for name in names], dtype=np.uint64)
    labels = [
        LabelTable(name, kind, ["a", "b"], chosen, draw.integers(0, 2, len(chosen)).astype(np.int32), np.arange(len(chosen) + 1))
        for name, kind, chosen in (("likes", "item", np.arange(users)), ("age", "profile", np.arange(0, users, 2)))
    ]
    sequences = SequenceTable(names, hashes, items, offsets, columns=columns)
    tables = Tables(name="timed", items=[f"i{item}" for item in range(9)], sequences=sequences, labels=labels, length_limit=10)
    write_dataset(tables, str(tmp_path), SplitRule(by=by, train=0.6, validation=0.2, test=0.2), shards=3)
    return Dataset(str(tmp_path))


def batches_of(dataset: Dataset, tasks: list[str], split: Split) -> Any:
    infos = [dataset.info.task(task) for task in tasks]
    if split == Split.TRAIN:
        return TrainingLoader(dataset, infos, mask_index=0, batch=8, seed=1, rank=0, world_size=1).epoch(1)
    return evaluation_batches(
        dataset, infos[0], split, mask_index=0, batch=8, rank=0, world_size=1, max_users=None, seed=0
    )  # fmt: skip


def test_a_split_by_time_says_when_each_part_is_predicted(tmp_path: Any) -> None:
    info = made(tmp_path, "users").info
    dated = replace(
        info,
        split=replace(info.split, by="time"),
        source={"recipe": {"split": {"labels_from": 100.0, "validation_from": 200.5, "test_from": 300.0}}},
    )
    moments = Moments.of_dataset(dated, 999)
    found = {task.name: [moments.of(task, split) for split in Split] for task in (NEXT, LIKES, AGE)}
    assert found == {"next": [200, 200, 300], "likes": [100, 200, 300], "age": [200, 200, 300]}
    assert moments.last == 300
    until = Moments.of_dataset(replace(info, source={"recipe": {"history": {"events": {"until": 50.0}}}}), 999)
    assert [until.of(LIKES, split) for split in Split] == [50] * 3
    assert Moments.of_dataset(info, 999).of(AGE, Split.TRAIN) == 999


@pytest.mark.parametrize("by", ["users", "last"])
def test_next_items_are_predicted_when_they_came(tmp_path: Any, by: str) -> None:
    dataset = made(tmp_path, by)
    assert next(iter(batches_of(dataset, ["next"], Split.TRAIN))).moments is None
    dataset.moments = Moments.of_dataset(dataset.info, dataset.last_event(range(3)))
    ends = {}
    for shard in map(dataset.shard, range(3)):
        for begin, end in zip(shard.offsets, shard.offsets[1:], strict=False):
            ends[shard.columns.times[begin]] = (int(end - begin), shard.columns.times[end - 1])
    assert dataset.moments.last == max(last for _, last in ends.values())
    behind = {Split.TRAIN: 2, Split.VALIDATION: 1, Split.TEST: 0} if by == "last" else dict.fromkeys(Split, 0)
    for split in Split:
        seen = 0
        for batch in batches_of(dataset, ["next"], split):
            for row, (begin, end) in enumerate(zip(batch.row_offsets, batch.row_offsets[1:], strict=False)):
                length, last = ends[int(batch.times[begin])]
                assert end - begin == length - 1 - behind[split]
                assert batch.moments[row] == last - 10 * behind[split]
                seen += 1
        assert seen > 5, split


def test_other_labels_are_predicted_at_one_moment_and_joint_rows_at_their_tasks(tmp_path: Any) -> None:
    dataset = made(tmp_path, "users")
    dataset.moments = Moments(300, 100, 200)
    for task, split, moment in (("likes", Split.TRAIN, 100), ("likes", Split.TEST, 300), ("age", Split.TRAIN, 200)):
        batches = list(batches_of(dataset, [task], split))
        assert {int(value) for batch in batches for value in batch.moments} == {moment}
    for batch in batches_of(dataset, ["age", "likes"], Split.TRAIN):
        of_age = set(batch.examples[0].index.tolist())
        assert batch.moments.tolist() == [200 if row in of_age else 100 for row in range(batch.rows)]


def test_without_times_there_is_no_last_event(tmp_path: Any) -> None:
    dataset = made(tmp_path, "users")
    dataset.read_columns(())
    assert dataset.last_event(range(3)) == NO_TIME


def test_a_run_tells_when_labels_without_times_are_predicted():
    assert Moments(1_509_494_400).told() == "recency: labels without times are predicted on 2017-11-01"
    split = Moments(1_509_494_400, 1_500_000_000, 1_504_224_000)
    assert split.told().endswith(
        "on 2017-07-14 (of items) and 2017-09-01 (of users) in training, on 2017-09-01 in validation, on 2017-11-01 in the test"
    )
    assert (
        replace(split, labels_from=None)
        .told()
        .endswith("on 2017-09-01 in training, on 2017-09-01 in validation, on 2017-11-01 in the test")
    )
    assert day_of(10**13) == "10000000000000 s since 1970"
