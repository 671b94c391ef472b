"""Item-based nearest neighbours: similarities and rankings as their formula says, against sums written out; what it refuses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_runs import results, settings, train_here, write_small

import dist_teracon
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import FIRST_ITEM, Split
from dist_teracon.errors import ConfigError
from dist_teracon.inference.predictions import Predictions
from dist_teracon.train.add_task import AddedTask

HISTORIES = [["i3", "i4", "i4", "i11"], ["i20"], ["i33", "i2", "no such item"]]


Rows = list[tuple[set[str], set[str]]]


def training_rows(dataset: Dataset, task: str) -> Rows:
    """Return the items and the labels of each training row, by name."""
    items = dataset.vocabulary("items")["item"].to_pylist()
    labels = items[FIRST_ITEM:] if task == "next" else dataset.vocabulary(task)["label"].to_pylist()
    rows = []
    for index in range(dataset.info.shards):
        shard, train = dataset.shard(index), dataset.labels(task, index).of(Split.TRAIN)
        for row, user in enumerate(train.users):
            has = {items[value] for value in shard.values[shard.offsets[user] : shard.offsets[user + 1]] if value >= FIRST_ITEM}
            own = {labels[value] for value in train.values[train.offsets[row] : train.offsets[row + 1]]}
            rows.append((has, has if task == "next" else own))
    return rows


def expected(rows: list[tuple[set[str], set[str]]], history: list[str], *, shrinkage: float, own: bool) -> dict[str, float]:
    """Return each label's score."""
    items, labels = (set().union(*(row[place] for row in rows)) for place in (0, 1))
    scores = {}
    for label in labels:
        similar = {}
        for item in items:
            both = sum(item in has and label in is_ for has, is_ in rows)
            with_item, with_label = sum(item in has for has, _ in rows), sum(label in is_ for _, is_ in rows)
            if both and (own or item != label):
                similar[item] = both / (math.sqrt(with_item * with_label) + shrinkage)
        scores[label] = sum(similar.get(item, 0.0) for item in set(history))
    return scores


def scores_of(found: Predictions, row: int) -> Mapping[str, float]:
    return dict(zip(found.labels[row], found.scores[row].tolist(), strict=False))


@pytest.mark.parametrize("options", [{"shrinkage": 10.0, "own": False}, {"shrinkage": 0.0, "own": True}])
def test_scores_are_the_sums_of_similarities(alone: None, small: str, tmp_path: Path, options: dict[str, Any]) -> None:
    run = train_here(settings(small, method={"name": "itemknn", **options}, tasks=("next", "likes")), tmp_path / "run")
    model, dataset = dist_teracon.from_pretrained(str(run)), Dataset(small)
    for task, labels in (("next", 40), ("likes", 12)):
        found, rows = model.predict(HISTORIES, task, top=labels, exclude_seen=False), training_rows(dataset, task)
        assert found.unknown == 1
        for row, history in enumerate(HISTORIES):
            wanted = expected(rows, history, **options)
            got = scores_of(found, row)
            assert sum(score > 0 for score in wanted.values()) > 3
            assert {name: got[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)
            assert all(score == 0 for name, score in got.items() if name not in wanted)


def counted_in_order(dataset: Dataset, task: str, history: list[str], *, decay: float, shrinkage: float) -> dict[str, float]:
    """Return each label's score where an event counts `decay` of the one behind it."""
    items = dataset.vocabulary("items")["item"].to_pylist()
    labels = items[FIRST_ITEM:] if task == "next" else dataset.vocabulary(task)["label"].to_pylist()
    both: Counter[tuple[str, str]] = Counter()
    with_item: Counter[str] = Counter()
    with_label: Counter[str] = Counter()
    for index in range(dataset.info.shards):
        shard, train = dataset.shard(index), dataset.labels(task, index).of(Split.TRAIN)
        for row, user in enumerate(train.users):
            events = [items[value] for value in shard.values[shard.offsets[user] : shard.offsets[user + 1]]]
            own = [labels[value] for value in train.values[train.offsets[row] : train.offsets[row + 1]]]
            behind = list(enumerate(events)) if task == "next" else [(len(events), label) for label in set(own)]
            for place, label in behind:
                for before in range(place):
                    both[label, events[before]] += decay ** (place - before - 1)
            with_item.update(set(events))
            with_label.update({label for _, label in behind})
    return {
        label: sum(
            decay ** (len(history) - 1 - place) * both[label, item] / (math.sqrt(with_item[item] * with_label[label]) + shrinkage)
            for place, item in enumerate(history)
            if item != label and both[label, item]
        )
        for label in with_label
        if label is not None
    }


def test_with_a_decay_what_came_last_counts_most(alone: None, small: str, tmp_path: Path) -> None:
    method = {"name": "itemknn", "decay": 0.7, "shrinkage": 1.0}
    run = train_here(settings(small, method=method, tasks=("next", "likes")), tmp_path / "run")
    model, dataset = dist_teracon.from_pretrained(str(run)), Dataset(small)
    for task, labels in (("next", 40), ("likes", 12)):
        found = model.predict(HISTORIES, task, top=labels, exclude_seen=False)
        for row, history in enumerate(HISTORIES):
            wanted = counted_in_order(dataset, task, history, decay=0.7, shrinkage=1.0)
            assert sum(score > 0 for score in wanted.values()) > 3
            # events that count for less than a thousandth are left out
            assert {name: scores_of(found, row)[name] for name in wanted} == pytest.approx(wanted, rel=0.01, abs=1e-3)


def test_a_label_keeps_its_nearest_items(alone: None, small: str, tmp_path: Path) -> None:
    values = settings(small, method={"name": "itemknn", "neighbours": 3}, tasks=("next", "likes"))
    model = dist_teracon.from_pretrained(str(train_here(values, tmp_path / "run")))
    weight = model.method.head("next").weight
    assert int((weight > 0).sum(dim=1).max()) == 3
    every = settings(small, method={"name": "itemknn"}, tasks=("next", "likes"))
    whole = dist_teracon.from_pretrained(str(train_here(every, tmp_path / "every"))).method.head("next").weight
    assert all(float(some[some > 0].min()) >= float(all_[some == 0].max()) for some, all_ in zip(weight, whole, strict=True) if some.any())
    assert results(tmp_path / "every")["scores"][0][0] > 2 * 1 / 40  # items come in four groups of ten


def test_the_last_items_are_not_counted_where_they_are_held_out(alone: None, tmp_path: Path) -> None:
    """Leave-one-out: nothing of a user's last two items is in any similarity."""
    from dist_teracon.continual.itemknn import ItemKnnSettings, similarities_of

    dataset = Dataset(write_small(tmp_path / "set"))
    task = dataset.info.task("next")
    whole = similarities_of(dataset, task, ItemKnnSettings(shrinkage=0.0)).toarray()
    dataset.behind = lambda name, split: 2  # type: ignore[method-assign]
    without = similarities_of(dataset, task, ItemKnnSettings(shrinkage=0.0)).toarray()
    pairs = {
        (int(label) - FIRST_ITEM, int(item))
        for index in range(dataset.info.shards)
        for train in [dataset.labels("next", index).of(Split.TRAIN)]
        for user in train.users
        for seen in [dataset.shard(index).values[dataset.shard(index).offsets[user] : dataset.shard(index).offsets[user + 1]][:-2]]
        for label in seen
        for item in seen
        if label != item
    }
    assert {(int(label), int(item)) for label, item in zip(*without.nonzero(), strict=True)} == pairs
    assert (whole > 0).sum() > len(pairs)


def test_profiles_and_tables_that_are_too_large_are_refused(
    alone: None, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = train_here(settings(small, method="itemknn", tasks=("next",)), tmp_path / "learned")
    with pytest.raises(ConfigError, match="method 'itemknn' keeps a table of the items that it began with, so no task can be added"):
        train_here(settings(small, method="itemknn", tasks=("next",)), learned, added=AddedTask("likes"))
    with pytest.raises(ConfigError, match="the labels of 'age' are classes of a profile; leave it out, or take `popularity`"):
        train_here(settings(small, method="itemknn", tasks=("next", "age")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("dist_teracon.continual.itemknn._TABLE", 1000)
    with pytest.raises(ConfigError, match="task 'next' has 40 labels of 42 items; at most 1000 numbers are held"):
        train_here(settings(small, method="itemknn", tasks=("next",)), tmp_path / "run")
