"""SVD with logistic regression as a method: against scikit-learn on directions of its own, and what it gives to tasks that rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from small_runs import TASKS, events, results, settings, train_here, write_small

import dist_teracon
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Split
from dist_teracon.evaluate.baselines import best_classifier
from dist_teracon.evaluate.metrics import parse_metric

Users = dict[Split, tuple[np.ndarray, np.ndarray]]


def counts_of(dataset: Dataset, task: str, *, without_last: int = 0) -> Users:
    """Return how often each user of a split has each item, [U, V], and the users' labels."""
    found: dict[Split, list[tuple[np.ndarray, int]]] = {split: [] for split in Split}
    for index in range(dataset.info.shards):
        shard, labels = dataset.shard(index), dataset.labels(task, index)
        for split in Split:
            part = labels.of(split)
            for place, user in enumerate(part.users):
                items = shard.values[shard.offsets[user] : shard.offsets[user + 1] - without_last]
                row = np.bincount(items, minlength=dataset.info.items)
                found[split] += [(row, int(label)) for label in part.values[part.offsets[place] : part.offsets[place + 1]]]
    return {split: (np.array([row for row, _ in rows]), np.array([label for _, label in rows])) for split, rows in found.items()}


def directions(train: np.ndarray) -> tuple[np.ndarray, TruncatedSVD]:
    """Return items' weights and the SVD of training users' rows."""
    has = (train > 0).sum(axis=0)
    weights = np.where(has > 0, np.log((1 + len(train)) / (1 + has)) + 1, 0.0)
    size = min(128, *train.shape)
    return weights, TruncatedSVD(n_components=size, n_iter=7, random_state=0).fit(normalize(train * weights))


def test_probabilities_are_those_of_scikit_learn(alone: None, tmp_path: Path) -> None:
    dataset = Dataset(write_small(tmp_path / "set"))
    run = train_here(settings(dataset.uri, method="svdlr", tasks=TASKS), tmp_path / "run")
    weights, svd = directions(counts_of(dataset, "next")[Split.TRAIN][0])
    noted = {event["task"]: event["dimensions"] for event in events(run) if event["event"] == "svd_logistic_regression"}
    model = dist_teracon.from_pretrained(str(run))
    items = dataset.vocabulary("items")["item"].to_pylist()
    for place, task in enumerate(("age", "gender"), start=2):
        users = counts_of(dataset, task)
        values = {split: svd.transform(normalize(rows * weights)) for split, (rows, _) in users.items()}
        reached = {}
        for size in (16, 32, values[Split.TRAIN].shape[1]):
            fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
                values[Split.TRAIN][:, :size], users[Split.TRAIN][1]
            )
            reached[size] = fitted, fitted.score(values[Split.VALIDATION][:, :size], users[Split.VALIDATION][1])
        size = max(reached, key=lambda tried: reached[tried][1])  # the fewest of equals
        assert noted[task] == size
        fitted = reached[size][0]
        assert results(run)["scores"][-1][place] == pytest.approx(
            fitted.score(values[Split.TEST][:, :size], users[Split.TEST][1]), abs=1e-9
        )
        history = [items[value] for value in np.repeat(np.arange(len(items)), users[Split.TEST][0][0])]
        found = model.predict([history], task, top=len(fitted.classes_))
        expected = fitted.predict_proba(values[Split.TEST][:1, :size])[0]
        labels = dataset.vocabulary(task)["label"].to_pylist()
        got = dict(zip(found.labels[0], np.exp(found.scores[0]) / np.exp(found.scores[0]).sum(), strict=True))
        assert [got[labels[code]] for code in fitted.classes_] == pytest.approx(expected.tolist(), abs=1e-4)


def test_rankings_are_those_of_popularity(alone: None, small: str, tmp_path: Path) -> None:
    ours, theirs = (results(train_here(settings(small, method=name), tmp_path / name)) for name in ("svdlr", "popularity"))
    assert [row[:2] for row in ours["scores"]] == [row[:2] for row in theirs["scores"]]
    assert ours["bwt"] == theirs["bwt"]


@pytest.mark.parametrize("labels", [[0, 1, 2, 2], [0, 2, 2, 2], [2, 2, 2, 2]])
def test_weights_give_the_classifiers_probabilities(labels: list[int]) -> None:
    """Of three classes, of two of them, and of one; a class that training never saw has next to none."""
    draw = np.random.default_rng(1)
    target = np.tile(labels, 20)
    values = (draw.normal(size=(80, 5)) + target[:, None] * [1, 0, 2, 0, 0] + 3).astype(np.float32)
    found = best_classifier(parse_metric("accuracy"), (values, target), (values[:0], target[:0]), classes=4)
    weight, bias = found.weights(4)
    logits = values @ weight.T + bias
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = np.zeros((80, 4))
    expected[:, found.model.classes_] = found.model.predict_proba(values.astype(np.float64))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
