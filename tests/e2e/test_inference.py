"""A real run in use: what it predicts has the score that training wrote down."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import dist_teracon
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import evaluation_batches
from dist_teracon.data.schema import Split
from dist_teracon.inference.evaluate import evaluate


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A shop's data set and a run trained on it, whose recipe has `repeats: false`."""
    from shop import prepare_shop, train_shop, write_events

    folder = tmp_path_factory.mktemp("shop")
    dataset = prepare_shop(write_events(folder / "events"), folder / "dataset")
    return dataset, train_shop(dataset, folder / "run")


def test_ranks_of_predictions_give_the_scores_of_the_run(trained):
    """Items of a user's own history are left out in both, and in the run's scores those that came before it was cut, too."""
    dataset, run = Dataset(trained[0]), trained[1]
    model, results = dist_teracon.from_pretrained(run), json.loads((run / "results.json").read_text())
    items = dataset.vocabulary("items")["item"].to_pylist()
    earlier = 0
    for place, task in enumerate(results["tasks"]):
        seen, labels, sums, count = dataset.train_counts(task) > 0, model.labels(task), 0.0, 0
        batches = evaluation_batches(
            dataset, dataset.info.task(task), Split.TEST, mask_index=0, batch=512, rank=0, world_size=1, max_users=None, seed=0,
            with_earlier=dataset.info.excludes_seen(task, None),
        )  # fmt: skip
        for packed in batches:
            rows = [packed.values[low:high].tolist() for low, high in pairwise(packed.row_offsets.tolist())]
            taken = [[] for _ in rows] if packed.earlier is None else np.split(packed.earlier[0], packed.earlier[1][1:-1])
            earlier += sum(map(len, taken))
            ranked = model.predict(
                [[items[item] or "unseen" for item in row] for row in rows], task, top=len(labels),
                candidates=[[name for place, name in enumerate(labels.names) if place not in set(part)] for part in map(list, taken)],
            ).labels  # fmt: skip
            (examples,) = packed.examples
            for row, label in zip(examples.index.tolist(), examples.labels.tolist(), strict=True):
                name = labels.names[label]
                rank = ranked[row].index(name) + 1 if name in ranked[row] else 10**9
                sums += (1 / rank if rank <= (1 if task == "club" else 5) else 0) * bool(seen[label])
                count += 1
        assert results["test_examples"][place] == count
        assert sums / count == pytest.approx(results["scores"][-1][place], rel=1e-12)
    assert earlier > 10


def test_evaluate_gives_the_scores_of_the_run(trained):
    results = json.loads((trained[1] / "results.json").read_text())
    by_metric = {name: stages[-1] for name, stages in results["scores_by_metric"].items()}
    expected = [{name: row[place] for name, row in by_metric.items() if row[place] is not None} for place in range(3)]
    scores = evaluate(dist_teracon.from_pretrained(trained[1]))
    assert [score.values for score in scores] == expected
    assert [score.examples for score in scores] == results["test_examples"]
    assert [score.excludes_seen for score in scores] == [True, True, False]


def test_the_example_runs(tmp_path, capsys):
    path = Path(__file__).parents[2] / "examples" / "own_data.py"
    spec = importlib.util.spec_from_file_location("own_data", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.CONFIG["train"] = {name: {"epochs": 1, "probe_steps": 0} for name in ("first", "second", "later")}
    example.main(tmp_path, users=250)
    shown = capsys.readouterr().out
    assert "top-10 lists of 250 users" in shown
    assert "vectors of 250 users, float32 (250, 64)" in shown
    watched = {"football-3", "football-7", "music-1", "football-0"}
    suggested = shown.partition("to watch next: ")[2].splitlines()[0].split(", ")
    assert len(suggested) == 10
    assert not watched & set(suggested)
