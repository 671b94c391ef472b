"""Scores over a data set: every example of a split, in any chunks, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dist_teracon.data.schema import Split
from dist_teracon.evaluate import baseline_table as baselines_module
from dist_teracon.evaluate import scorer
from dist_teracon.evaluate.baseline_table import baseline_table
from dist_teracon.evaluate.scorer import score_task
from dist_teracon.models import heads
from dist_teracon.models.heads import Head
from dist_teracon.runtime import Runtime

C = 6


class Model:
    """A bag of item vectors under a random head; `constant` gives every label one score."""

    def __init__(self, dataset, *, constant=False):
        generator = torch.Generator().manual_seed(0)
        self.items = torch.randn(dataset.info.items, C, dtype=torch.float64, generator=generator)
        self.heads = {task.name: Head(C, task.labels, generator=generator).double() for task in dataset.info.tasks}
        with torch.no_grad():
            for head in self.heads.values():
                head.weight.mul_(0 if constant else 100)

    def mask_index(self, task):
        return 0

    def encode(self, batch, task):
        rows = torch.repeat_interleave(torch.arange(batch.rows), batch.row_offsets.diff())
        return torch.zeros(batch.rows, C, dtype=torch.float64).index_add(0, rows, self.items[batch.values])

    def head(self, task):
        return self.heads[task]


def run(model, dataset, task, split=Split.TEST, **settings):
    arguments = {"runtime": Runtime(0, 1, torch.device("cpu")), "batch": 7, "max_users": None, "seed": 0, **settings}
    return score_task(model, dataset, task, split, **arguments)


def by_hand(model, dataset, task, split):
    """Mean reciprocal rank (or accuracy) example by example; a label that training never saw scores nothing."""
    seen, values, unseen = dataset.train_counts(task) > 0, [], 0
    kind = dataset.info.task(task).kind
    for number in range(dataset.info.shards):
        shard, labels = dataset.shard(number), dataset.labels(task, number).of(split)
        for row, user in enumerate(labels.users):
            items = shard.values[shard.offsets[user] : shard.offsets[user + 1] - (kind == "next")]
            logits = model.heads[task](model.items[torch.from_numpy(items.copy())].sum(0))
            for label in labels.values[labels.offsets[row] : labels.offsets[row + 1]]:
                rank = 1 + int((logits > logits[label]).sum())
                values.append((1 / rank if rank <= (1 if kind == "profile" else 5) else 0) * bool(seen[label]))
                unseen += not seen[label]
    return np.mean(values), len(values), unseen


@pytest.fixture(scope="module")
def dataset(make_dataset):
    return make_dataset(users=80, items=60, labels=25, seed=5)


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("task", ["next", "likes", "age"])
def test_scores_are_those_of_every_example_by_hand(dataset, task, split):
    model = Model(dataset)
    score = run(model, dataset, task, split)
    value, examples, unseen = by_hand(model, dataset, task, split)
    assert score.value == pytest.approx(value, rel=1e-12)
    assert (score.examples, score.unseen) == (examples, unseen)
    assert examples == dataset.info.task(task).examples[split]


def test_targets_that_training_never_saw_are_misses_and_counted(dataset):
    score = run(Model(dataset), dataset, "next")
    assert score.unseen > 0
    # a model that ranks the right label first everywhere still misses them
    perfect = Model(dataset)
    perfect.encode = lambda batch, task: torch.nn.functional.one_hot(_last_labels(batch), dataset.info.task(task).labels).double()
    perfect.heads["next"] = Head(dataset.info.task("next").labels, dataset.info.task("next").labels, generator=torch.Generator()).double()
    perfect.heads["next"].weight.data = torch.eye(dataset.info.task("next").labels, dtype=torch.float64)
    assert run(perfect, dataset, "next").value == pytest.approx(1 - score.unseen / score.examples)


def _last_labels(batch):
    (examples,) = batch.examples
    assert examples.index.tolist() == list(range(batch.rows))
    return examples.labels


@pytest.mark.parametrize("task", ["next", "likes", "age"])
def test_neither_chunks_nor_batches_change_a_score(dataset, task, monkeypatch):
    model = Model(dataset)
    whole = run(model, dataset, task, Split.TRAIN, batch=1000)
    labels = dataset.info.task(task).labels
    for at_once, batch in ((1, 1000), (3 * labels + 1, 1000), (2 * labels, 5), (1 << 25, 1)):
        monkeypatch.setattr(heads, "LOGITS_AT_ONCE", at_once)
        score = run(model, dataset, task, Split.TRAIN, batch=batch)
        assert score.value == pytest.approx(whole.value, rel=1e-12)
        assert (score.examples, score.unseen) == (whole.examples, whole.unseen)


@pytest.mark.parametrize("world", [2, 5, 11])
def test_ranks_add_up_to_the_score_of_one(dataset, world, monkeypatch):
    model, sums = Model(dataset), []
    counts = torch.from_numpy(dataset.train_counts("likes"))
    # what training saw is counted by each rank in its shards, and summed before anything is scored
    monkeypatch.setattr(
        scorer.dist, "all_reduce", lambda total: total.copy_(counts) if total.shape == counts.shape else sums.append(total.clone())
    )
    for rank in range(world):
        run(model, dataset, "likes", runtime=Runtime(rank, world, torch.device("cpu")))
    value, examples, unseen = torch.stack(sums).sum(0).tolist()
    whole = run(model, dataset, "likes")
    assert (value / examples, examples, unseen) == (pytest.approx(whole.value, rel=1e-12), whole.examples, whole.unseen)


def test_a_constant_model_scores_chance(dataset):
    constant = Model(dataset, constant=True)
    score = run(constant, dataset, "age", Split.TRAIN)
    assert score.value == pytest.approx(1 / 3)
    likes = run(constant, dataset, "likes", Split.TRAIN)
    assert likes.value == pytest.approx(sum(1 / rank for rank in range(1, 6)) / 25)


def test_no_more_users_than_asked_for(dataset):
    score = run(Model(dataset), dataset, "next", Split.TRAIN, max_users=10)
    assert score.examples == 10


def test_bf16_weights_are_ranked_in_fp32(dataset):
    """Scores that lie close together would tie in bf16."""
    wide, low = Model(dataset), Model(dataset)
    head = low.heads["likes"].bfloat16()
    with torch.no_grad():
        head.bias.fill_(64)
    wide.heads["likes"].load_state_dict(head.state_dict())
    assert run(low, dataset, "likes", Split.TRAIN).value == pytest.approx(run(wide, dataset, "likes", Split.TRAIN).value, rel=1e-12)


def test_baseline_table_has_a_place_for_every_task(make_dataset):
    dataset = make_dataset(users=300, items=40, unseen=0.0)
    told = []
    table = baseline_table(dataset, dataset.info.tasks, seed=0, log=told.append)
    assert [value is None for value in table["popularity"]] == [False, False, True]
    assert [value is None for value in table["majority"]] == [True, True, False]
    assert [value is None for value in table["svd_logistic_regression"]] == [True, True, bool(told)]
    counts, hits = dataset.train_counts("age"), []
    for shard in range(dataset.info.shards):
        hits += (dataset.labels("age", shard).of(Split.TEST).values == counts.argmax()).tolist()
    assert table["majority"][2] == pytest.approx(np.mean(hits))


def test_the_svd_baseline_takes_a_sample_of_many_users_and_says_so(make_dataset, monkeypatch):
    pytest.importorskip("sklearn")
    dataset, told = make_dataset(users=300, items=40, unseen=0.0), []
    whole = baseline_table(dataset, dataset.info.tasks, seed=0, log=told.append)
    assert "users" not in whole["svd_logistic_regression"][2]
    assert not told
    monkeypatch.setattr(baselines_module, "SVD_USERS", 150)
    cut = baseline_table(dataset, dataset.info.tasks, seed=0, log=told.append)
    assert 100 < cut["svd_logistic_regression"][2]["users"] < 200
    assert f"on {cut['svd_logistic_regression'][2]['users']} of 300 users" in told[0]
    assert cut["popularity"] == whole["popularity"]
    picked = [baselines_module._picked_users(dataset, shard, 0) for shard in range(dataset.info.shards)]
    rows, labels, split = baselines_module._examples(dataset, "age", picked)
    first, wanted = 0, []
    for shard, users in enumerate(picked):
        known = dict(zip(dataset.labels("age", shard).users.tolist(), dataset.labels("age", shard).values.tolist(), strict=True))
        wanted += [(first + place, known[user]) for place, user in enumerate(users.tolist()) if user in known]
        first += len(users)
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == wanted
    assert len(split) == len(rows)
