"""The table of baselines of a data set."""

from __future__ import annotations

import numpy as np
import pytest

from dist_teracon.data.schema import Split
from dist_teracon.evaluate import baseline_table as baselines_module
from dist_teracon.evaluate.baseline_table import baseline_table

DEFAULT = ("mrr@5", "accuracy")


def test_baseline_table_has_a_place_for_every_task(make_dataset):
    dataset = make_dataset(users=300, items=40, unseen=0.0)
    logged = []
    table = baseline_table(dataset, dataset.info.tasks, metrics=DEFAULT, seed=0, log=logged.append)
    assert [value is None for value in table["popularity"]] == [False, False, True]
    assert [value is None for value in table["majority"]] == [True, True, False]
    assert [value is None for value in table["svd_logistic_regression"]] == [True, True, bool(logged)]
    counts, hits = dataset.train_counts("age"), []
    for shard in range(dataset.info.shards):
        hits += (dataset.labels("age", shard).of(Split.TEST).values == counts.argmax()).tolist()
    assert table["majority"][2] == pytest.approx(np.mean(hits))


def test_baselines_are_scored_by_the_metric_that_selects(make_dataset):
    pytest.importorskip("sklearn")
    dataset = make_dataset(users=300, items=40, unseen=0.0)
    table = baseline_table(dataset, dataset.info.tasks, metrics=("recall@3", "auroc", "accuracy"), seed=0, log=print)
    counts, shares = dataset.train_counts("likes"), []
    first = np.argsort(-counts, kind="stable")[:3]
    assert len(set(counts[np.argsort(-counts)[:4]].tolist())) == 4, "no ties at the cutoff"
    for shard in range(dataset.info.shards):
        labels = dataset.labels("likes", shard).of(Split.TEST)
        shares += [np.isin(labels.values[a:b], first).mean() for a, b in zip(labels.offsets, labels.offsets[1:])]  # noqa: B905
    assert table["popularity"][1] == pytest.approx(np.mean(shares))
    assert table["majority"][2] == 0.5
    assert 0 < table["svd_logistic_regression"][2]["score"] < 1


def test_the_svd_baseline_takes_a_sample_of_many_users_and_says_so(make_dataset, monkeypatch):
    pytest.importorskip("sklearn")
    dataset, logged = make_dataset(users=300, items=40, unseen=0.0), []
    whole = baseline_table(dataset, dataset.info.tasks, metrics=DEFAULT, seed=0, log=logged.append)
    assert "users" not in whole["svd_logistic_regression"][2]
    assert not logged
    monkeypatch.setattr(baselines_module, "SVD_USERS", 150)
    cut = baseline_table(dataset, dataset.info.tasks, metrics=DEFAULT, seed=0, log=logged.append)
    assert 100 < cut["svd_logistic_regression"][2]["users"] < 200
    assert f"on {cut['svd_logistic_regression'][2]['users']} of 300 users" in logged[0]
    assert cut["popularity"] == whole["popularity"]
    picked = [baselines_module._picked_users(dataset, shard, 0) for shard in range(dataset.info.shards)]
    rows, labels, split = baselines_module._examples(dataset, "age", picked)
    first, expected = 0, []
    for shard, users in enumerate(picked):
        known = dict(zip(dataset.labels("age", shard).users.tolist(), dataset.labels("age", shard).values.tolist(), strict=True))
        expected += [(first + place, known[user]) for place, user in enumerate(users.tolist()) if user in known]
        first += len(users)
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == expected
    assert len(split) == len(rows)
