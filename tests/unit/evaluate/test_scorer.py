"""Scores over a data set: every example of a split, in any chunks, on any number of ranks."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Split
from dist_teracon.evaluate.baseline_table import baseline_table
from dist_teracon.evaluate.candidates import outcomes
from dist_teracon.evaluate.metrics import metrics_of, parse_metric
from dist_teracon.evaluate.scorer import score_task, standard_error
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


DEFAULT = ("mrr@5", "accuracy")
ALL = ("mrr@5", "ndcg@10", "hr@3", "recall@3", "accuracy", "macro-f1", "auroc", "log-loss")


def run(model, dataset, task, split=Split.TEST, names=DEFAULT, **settings):
    arguments = {"runtime": Runtime(0, 1, torch.device("cpu")), "batch": 7, "max_users": None, "seed": 0, **settings}
    return score_task(model, dataset, task, split, metrics=metrics_of(dataset.info.task(task), names), **arguments)


def by_hand(model, dataset, task, split):
    """Mean reciprocal rank (or accuracy) example by example; a label that training never saw scores nothing."""
    seen, values, unseen = dataset.train_counts(task) > 0, [], 0
    info = dataset.info.task(task)
    for number in range(dataset.info.shards):
        shard, labels = dataset.shard(number), dataset.labels(task, number).of(split)
        for row, user in enumerate(labels.users):
            items = shard.values[shard.offsets[user] : shard.offsets[user + 1] - info.predicts_next]
            logits = model.heads[task](model.items[torch.from_numpy(items.copy())].sum(0))
            for label in labels.values[labels.offsets[row] : labels.offsets[row + 1]]:
                rank = 1 + int((logits > logits[label]).sum())
                values.append((1 / rank if rank <= (5 if info.ranks_labels else 1) else 0) * bool(seen[label]))
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
        torch.distributed, "all_reduce", lambda total: total.copy_(counts) if total.shape == counts.shape else sums.append(total.clone())
    )
    for rank in range(world):
        run(model, dataset, "likes", runtime=Runtime(rank, world, torch.device("cpu")))
    value, examples, users, unseen, *squares = torch.stack(sums).sum(0).tolist()
    whole = run(model, dataset, "likes")
    assert standard_error(value / examples, examples, users, *squares) == pytest.approx(whole.error, rel=1e-9)
    assert (value / examples, examples, unseen) == (pytest.approx(whole.value, rel=1e-12), whole.examples, whole.unseen)


@pytest.mark.parametrize(("task", "metric"), [("likes", "mrr@5"), ("likes", "recall@3"), ("age", "accuracy")])
def test_the_standard_error_is_that_of_users_drawn_anew(dataset, task, metric):
    score = run(Model(dataset), dataset, task, Split.TRAIN, names=(metric, "mrr@5", "accuracy"))
    sums, counts = score.by_user.score, score.by_user.examples
    counts = np.minimum(counts, 1) if metric.startswith("recall") else counts
    assert sums.sum() / counts.sum() == pytest.approx(score.value)
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=20_000)
    assert score.error == pytest.approx(np.std(drawn @ sums / (drawn @ counts)), rel=0.1)


def test_what_is_no_mean_and_what_has_one_user_have_no_standard_error(dataset):
    assert run(Model(dataset), dataset, "age", names=("macro-f1",)).error is None
    assert run(Model(dataset), dataset, "next", max_users=1).error is None


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


def test_class_scores_of_a_bf16_head_are_those_of_its_values_in_fp32(dataset):
    wide, low = Model(dataset), Model(dataset)
    head = low.heads["age"].bfloat16()
    wide.heads["age"] = Head(C, 3, generator=torch.Generator())
    wide.heads["age"].load_state_dict(head.state_dict())
    low.encode = lambda batch, task: Model.encode(low, batch, task).bfloat16()
    wide.encode = lambda batch, task: Model.encode(wide, batch, task).bfloat16().float()
    assert run(low, dataset, "age", Split.TRAIN, ALL).values == run(wide, dataset, "age", Split.TRAIN, ALL).values


def examples_of(model, dataset, task, split):
    """Logits, label, user and `training saw the label` of every example, one by one."""
    info, rows = dataset.info.task(task), []
    for number in range(dataset.info.shards):
        shard, labels = dataset.shard(number), dataset.labels(task, number).of(split)
        for row, user in enumerate(labels.users):
            items = shard.values[shard.offsets[user] : shard.offsets[user + 1] - info.predicts_next]
            logits = model.heads[task](model.items[torch.from_numpy(items.copy())].sum(0)).detach()
            rows += [(logits, label, (number, row)) for label in labels.values[labels.offsets[row] : labels.offsets[row + 1]].tolist()]
    return rows


@pytest.mark.parametrize("split", [Split.TRAIN, Split.TEST])
@pytest.mark.parametrize("task", ["next", "likes", "age"])
def test_every_metric_is_that_of_all_examples_at_once(dataset, task, split):
    model, seen = Model(dataset), torch.from_numpy(dataset.train_counts(task) > 0)
    logits, labels, users = zip(*examples_of(model, dataset, task, split), strict=True)
    whole = outcomes(torch.stack(logits), torch.tensor(labels), seen_Y=seen, keep_logits=True)
    numbers = np.unique([f"{shard}/{row}" for shard, row in users], return_inverse=True)[1]
    found = run(model, dataset, task, split, ALL)
    assert len(found.values) == 4
    for name, value in found.values.items():
        assert value == pytest.approx(parse_metric(name).score(whole, numbers), rel=1e-9), name
    assert found.value == found.values[metrics_of(dataset.info.task(task), ALL)[0].name]


def test_further_metrics_leave_the_first_as_it_is(dataset):
    for task in ("next", "likes", "age"):
        alone, among = run(Model(dataset), dataset, task), run(Model(dataset), dataset, task, names=ALL)
        assert alone.value == among.value
        assert np.array_equal(alone.by_user.score, among.by_user.score)
        assert not alone.by_user.others


def test_scores_by_user_add_up_to_each_metric_that_is_a_mean(dataset):
    likes, age = (run(Model(dataset), dataset, task, Split.TRAIN, ALL) for task in ("likes", "age"))
    assert list(likes.by_user.others) == ["ndcg@10", "hr@3", "recall@3"]
    assert list(age.by_user.others) == ["log-loss"]
    assert likes.by_user.others["hr@3"].sum() / likes.examples == pytest.approx(likes.values["hr@3"])
    assert likes.by_user.others["recall@3"].mean() == pytest.approx(likes.values["recall@3"])
    assert age.by_user.others["log-loss"].sum() / age.examples == pytest.approx(age.values["log-loss"])


def test_a_metric_of_the_whole_split_selects_without_scores_by_user(dataset):
    score = run(Model(dataset), dataset, "age", names=("auroc", "accuracy"))
    assert score.value == score.values["auroc"]
    assert np.isnan(score.by_user.score).all()
    assert list(score.by_user.others) == ["accuracy"]


@pytest.mark.parametrize("task", ["likes", "age"])
def test_without_examples_there_is_no_score(dataset, task):
    score = run(Model(dataset), dataset, task, names=ALL, max_users=0)
    assert set(score.values.values()) == {None}
    assert (score.examples, score.by_user.score.size) == (0, 0)


def _score_on(rank, world, folder, dataset):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    runtime = Runtime(rank, world, torch.device("cpu"))
    scores = {task: run(Model(dataset), dataset, task, Split.TRAIN, ALL, runtime=runtime) for task in ("next", "likes", "age")}
    found = {task: [score.values, score.examples, score.unseen] for task, score in scores.items()}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_scores_of_two_processes_are_those_of_one(dataset, tmp_path):
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_score_on, args=(rank, 2, tmp_path, dataset)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for task, (values, examples, unseen) in first.items():
        alone = run(Model(dataset), dataset, task, Split.TRAIN, ALL)
        assert values == {name: pytest.approx(value, rel=1e-12) for name, value in alone.values.items()}
        assert (examples, unseen) == (alone.examples, alone.unseen)
        if task == "age":  # nothing is rounded on the way
            assert (values["auroc"], values["macro-f1"]) == (alone.values["auroc"], alone.values["macro-f1"])


def with_rule(dataset, **changes):
    """The same data set under a recipe; `likes` has the items' names for labels where `label` is item."""
    recipe = {"history": changes.get("history", {}), "tasks": {"likes": {"kind": "item", **changes.get("likes", {})}}}
    opened = Dataset(dataset.uri)
    opened.info = replace(opened.info, source={"format": "events", "recipe": recipe})
    names = opened.vocabulary("items")["item"].to_pylist()
    opened._label_of_item["likes"] = np.array([int(name[1:]) if name and int(name[1:]) < 25 else -1 for name in names])
    return opened


def without_seen_by_hand(model, dataset, task, split):
    """Mean reciprocal rank where each user's own items are no candidates, and as targets are misses."""
    seen_in_training, of_item, values, repeated = dataset.train_counts(task) > 0, dataset.label_of_item(task), [], 0
    info = dataset.info.task(task)
    for number in range(dataset.info.shards):
        shard, labels = dataset.shard(number), dataset.labels(task, number).of(split)
        for row, user in enumerate(labels.users):
            items = shard.values[shard.offsets[user] : shard.offsets[user + 1] - info.predicts_next]
            logits = model.heads[task](model.items[torch.from_numpy(items.copy())].sum(0))
            own = {int(label) for label in of_item[items] if label >= 0}
            others = torch.tensor([label for label in range(info.labels) if label not in own], dtype=torch.int64)
            for label in labels.values[labels.offsets[row] : labels.offsets[row + 1]].tolist():
                rank = 1 + int((logits[others] > logits[label]).sum())
                repeated += label in own
                values.append((1 / rank if rank <= 5 else 0) * bool(seen_in_training[label]) * (label not in own))
    return np.mean(values), repeated


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("task", ["next", "likes"])
def test_what_a_user_has_seen_is_left_out(dataset, task, split, monkeypatch):
    ruled, model = with_rule(dataset), Model(dataset)
    expected, repeated = without_seen_by_hand(model, ruled, task, split)
    whole = run(model, ruled, task, split, exclude_seen=True)
    assert whole.value == pytest.approx(expected, rel=1e-12)
    if split == Split.TRAIN:
        assert expected != pytest.approx(run(model, ruled, task, split).value)
        assert repeated  # targets that a user has taken already are there, and are misses
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 100)
    assert run(model, ruled, task, split, exclude_seen=True, batch=3).value == pytest.approx(expected, rel=1e-12)


def test_the_recipe_decides_where_the_setting_is_open(dataset):
    model = Model(dataset)
    once = with_rule(dataset, history={"repeats": False}, likes={"repeats": False})
    for task in ("next", "likes"):
        without = run(model, once, task, Split.TRAIN, exclude_seen=True).value
        assert run(model, once, task, Split.TRAIN).value == without
        assert run(model, once, task, Split.TRAIN, exclude_seen=False).value == run(model, dataset, task, Split.TRAIN).value != without
    # labels that are an attribute of items, or that no recipe describes, are never left out
    for other in (with_rule(dataset, likes={"label": "category"}), dataset):
        assert run(model, other, "likes", exclude_seen=True).value == run(model, dataset, "likes").value
    assert run(model, once, "age", exclude_seen=True).value == run(model, dataset, "age").value


@pytest.mark.parametrize("task", ["next", "likes"])
def test_popularity_leaves_out_the_same(dataset, task):
    """A model whose scores are the training counts has the score of the baseline."""
    ruled, model = with_rule(dataset), Model(dataset, constant=True)
    with torch.no_grad():
        model.heads[task].bias.copy_(torch.from_numpy(dataset.train_counts(task)))
    logged: list[str] = []
    table = baseline_table(ruled, [ruled.info.task(task)], metrics=DEFAULT, seed=0, log=logged.append, exclude_seen=True)
    _, repeated = without_seen_by_hand(model, ruled, task, Split.TEST)
    assert [line.partition(" of ")[0] for line in logged] == ([f"{task}: {repeated}"] if repeated else [])
    assert task == "next" or repeated, "some targets of 'likes' are in their users' histories"
    assert table["popularity"][0] == pytest.approx(run(model, ruled, task, exclude_seen=True).value, rel=1e-12)
    if task == "likes":
        plain = baseline_table(ruled, [ruled.info.task(task)], metrics=DEFAULT, seed=0, log=lambda _: None)
        assert table["popularity"][0] != pytest.approx(plain["popularity"][0])
