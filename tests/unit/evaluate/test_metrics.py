"""Metrics against scikit-learn and torchmetrics, ties against every order they could stand in, and what a configuration may name."""

from __future__ import annotations

import itertools
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.retrieval as oracle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
from sklearn.preprocessing import label_binarize

from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import validate
from dist_teracon.data.schema import Task
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.candidates import outcomes
from dist_teracon.evaluate.metrics import METRICS, check_metrics, metric_names, metrics_of, parse_metric

NEXT, LIKES, AGE = (Task(name, kind, 10, 5, (3, 1, 1)) for name, kind in (("next", "next"), ("likes", "item"), ("age", "profile")))


def found(logits, labels, seen=None):
    logits, labels = torch.as_tensor(np.asarray(logits)), torch.as_tensor(np.asarray(labels, dtype=np.int64))
    return outcomes(logits, labels, keep_logits=True, seen_Y=None if seen is None else torch.as_tensor(seen))


def score(name, logits, labels, users=None, seen=None):
    return parse_metric(name).score(found(logits, labels, seen), None if users is None else np.asarray(users))


@pytest.mark.parametrize("labels", [2, 7, 50])
@pytest.mark.parametrize("cutoff", [1, 2, 5, 10])
def test_ranking_metrics_without_ties_are_those_of_torchmetrics(labels, cutoff):
    generator = torch.Generator().manual_seed(labels)
    # the oracle takes a score of zero or less for none
    logits, targets = 0.1 + torch.rand(200, labels, generator=generator), torch.randint(labels, (200,), generator=generator)
    relevant = torch.nn.functional.one_hot(targets, labels).flatten()
    query = torch.repeat_interleave(torch.arange(200), labels)
    oracles = {
        "mrr": oracle.RetrievalMRR, "ndcg": oracle.RetrievalNormalizedDCG, "hr": oracle.RetrievalHitRate, "recall": oracle.RetrievalRecall,
    }  # fmt: skip
    for name, theirs in oracles.items():
        expected = theirs(top_k=min(cutoff, labels))(logits.flatten(), relevant, indexes=query).item()
        assert score(f"{name}@{cutoff}", logits, targets) == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("cutoff", [1, 3, 8])
def test_recall_of_users_with_several_targets_is_that_of_torchmetrics(cutoff):
    generator = np.random.default_rng(0)
    logits, rows, targets = 0.1 + generator.random((40, 12)), [], []
    for user in range(40):
        chosen = generator.choice(12, size=generator.integers(1, 6), replace=False)
        rows += [user] * len(chosen)
        targets += chosen.tolist()
    relevant = np.zeros((40, 12), dtype=np.int64)
    relevant[rows, targets] = 1
    query = torch.repeat_interleave(torch.arange(40), 12)
    expected = oracle.RetrievalRecall(top_k=cutoff)(torch.from_numpy(logits).flatten(), torch.from_numpy(relevant).flatten(), indexes=query)
    assert score(f"recall@{cutoff}", logits[rows], targets, users=rows) == pytest.approx(expected.item(), rel=1e-6)


GAINS = {
    "mrr": lambda rank: 1 / rank, "hr": lambda rank: 1.0, "recall": lambda rank: 1.0, "ndcg": lambda rank: 1 / np.log2(rank + 1),
}  # fmt: skip


@pytest.mark.parametrize("name", GAINS)
@given(data=st.lists(st.integers(0, 3), min_size=1, max_size=6), target=st.integers(0, 5), cutoff=st.sampled_from([1, 2, 5]))
def test_ties_score_the_mean_over_every_order(name, data, target, cutoff):
    target %= len(data)
    gains = []
    for order in itertools.permutations(range(len(data))):
        standing = sorted(range(len(data)), key=lambda label, order=order: (-data[label], order[label]))
        rank = standing.index(target) + 1
        gains.append(GAINS[name](rank) if rank <= cutoff else 0.0)
    assert score(f"{name}@{cutoff}", [np.float64(data)], [target]) == pytest.approx(float(np.mean(gains)), rel=1e-12)


@given(data=st.lists(st.integers(0, 3), min_size=1, max_size=6), target=st.integers(0, 5), cutoff=st.sampled_from([1, 2, 5]))
def test_reciprocal_ranks_are_exact(data, target, cutoff):
    target %= len(data)
    greater, equal = sum(value > data[target] for value in data), data.count(data[target])
    mean = sum(Fraction(1, rank) for rank in range(greater + 1, greater + equal + 1) if rank <= cutoff) / equal
    assert score(f"mrr@{cutoff}", [np.float64(data)], [target]) == pytest.approx(float(mean), rel=1e-14)


def test_with_one_target_a_user_recall_is_the_hit_rate():
    generator = np.random.default_rng(2)
    logits, targets = generator.integers(0, 4, (30, 9)).astype(np.float64), generator.integers(0, 9, 30)
    assert score("recall@3", logits, targets, users=np.arange(30)) == pytest.approx(score("hr@3", logits, targets))


@st.composite
def classified(draw, *, ties):
    """Logits [E, Y] and labels; of few values where ties are to be had, else all different."""
    classes, examples = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=examples, max_size=examples)))
    if ties:
        return draw(hnp.arrays(np.float32, (examples, classes), elements=st.integers(-2, 2))), labels
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    return (generator.permutation(examples * classes).reshape(examples, classes) / 10).astype(np.float32), labels


@given(classified(ties=False))
def test_accuracy_and_macro_f1_without_ties_are_scikit_learns(data):
    logits, labels = data
    assert score("accuracy", logits, labels) == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert score("macro-f1", logits, labels) == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))


@given(classified(ties=True))
def test_log_loss_is_scikit_learns(data):
    logits, labels = data
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    assert score("log-loss", logits, labels) == pytest.approx(log_loss(labels, probabilities, labels=range(logits.shape[1])), rel=1e-9)


@pytest.mark.parametrize("ties", [True, False])
@given(st.data())
def test_auroc_is_scikit_learns_with_ties_and_without(ties, data):
    logits, labels = data.draw(classified(ties=ties))
    classes = logits.shape[1]
    if classes == 2:
        scores, positives = (logits[:, 1].astype(np.float64) - logits[:, 0])[:, None], (labels == 1)[:, None]
    else:
        scores = torch.from_numpy(logits).double().log_softmax(1).numpy()
        positives = label_binarize(labels, classes=range(classes)).astype(bool)
    defined = [c for c in range(scores.shape[1]) if 0 < positives[:, c].sum() < len(labels)]
    expected = np.mean([roc_auc_score(positives[:, c], scores[:, c]) for c in defined]) if defined else None
    assert score("auroc", logits, labels) == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_auroc_of_several_classes_is_scikit_learns_one_against_the_rest():
    generator = np.random.default_rng(0)
    logits, labels = generator.standard_normal((300, 4)), generator.integers(0, 4, 300)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert score("auroc", logits, labels) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("classes", "labels"), [(2, [0, 1, 1, 0, 1]), (3, [0, 1, 2, 2, 1])])
def test_a_constant_model_has_the_score_of_chance(classes, labels):
    logits = np.zeros((5, classes))
    assert score("accuracy", logits, labels) == pytest.approx(1 / classes)
    assert score("auroc", logits, labels) == 0.5
    assert score("log-loss", logits, labels) == pytest.approx(np.log(classes))
    shares = np.bincount(labels, minlength=classes) / 5
    assert score("macro-f1", logits, labels) == pytest.approx(np.mean(2 * shares / classes / (shares + 1 / classes)))


def test_a_model_that_is_not_a_number_is_never_good():
    logits, labels = np.full((4, 2), np.nan), [0, 1, 1, 0]
    assert [score(name, logits, labels) for name in ("accuracy", "macro-f1", "auroc", "log-loss", "hr@5")] == [0, 0, 0, None, 0]
    half = np.array([[0.0, np.nan], [0.0, 1.0], [1.0, 0.0], [0.0, 0.5]])
    assert score("auroc", half, [1, 0, 0, 1]) == 0.25


def test_classes_that_never_occur_are_left_out():
    logits = np.eye(4)[[0, 1, 1]]
    assert score("macro-f1", logits, [0, 1, 1]) == 1
    assert score("auroc", logits, [0, 1, 1]) == 1
    assert score("auroc", logits, [1, 1, 1]) is None


def test_a_target_that_training_never_saw_is_a_miss():
    logits, seen = np.eye(3)[[0, 1, 2]] * 9, [True, True, False]
    assert score("accuracy", logits, [0, 1, 2], seen=seen) == pytest.approx(2 / 3)
    assert score("macro-f1", logits, [0, 1, 2], seen=seen) == pytest.approx(2 / 3)
    assert score("recall@3", logits, [0, 1, 2], seen=seen) == pytest.approx(2 / 3)


def test_scores_of_no_example_are_none():
    assert {name: score(name, np.zeros((0, 3)), []) for name in ("mrr@5", "recall@5", "accuracy", "macro-f1", "auroc", "log-loss")} == (
        dict.fromkeys(("mrr@5", "recall@5", "accuracy", "macro-f1", "auroc", "log-loss"))
    )


def test_a_task_has_the_metrics_of_its_kind_in_the_configured_order():
    names = ["auroc", "ndcg@10", "accuracy", "mrr@5"]
    assert [[metric.name for metric in metrics_of(task, names)] for task in (NEXT, LIKES, AGE)] == [
        ["ndcg@10", "mrr@5"], ["ndcg@10", "mrr@5"], ["auroc", "accuracy"],
    ]  # fmt: skip
    assert all(metric.description for metric in metrics_of(NEXT, names))


def test_metrics_of_before_are_the_default():
    names = validate(RunConfig, {"dataset": "d"}, where="x").evaluate.metrics
    assert [metrics_of(task, names)[0].name for task in (NEXT, LIKES, AGE)] == ["mrr@5", "mrr@5", "accuracy"]
    check_metrics(names, where="x", tasks=[AGE])
    check_metrics(names, where="x", tasks=[NEXT])


@pytest.mark.parametrize("name", metric_names())
def test_the_configuration_takes_every_registered_metric(name):
    name = name.replace("@k", "@7")
    # a metric that is lower for better models stands behind one that selects
    names = [*(() if parse_metric(name).higher_is_better else ("accuracy",)), name]
    taken = validate(RunConfig, {"dataset": "d", "evaluate": {"metrics": names}}, where="x").evaluate.metrics
    check_metrics(taken, where="x", tasks=[NEXT] if parse_metric(name).ranks_labels else [AGE])


PROFILE_METRICS = ", ".join(metric_names(ranks_labels=False))


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["ndgc@10"], ("no metric 'ndgc@10'; did you mean 'ndcg'?", "mrr@k, hr@k", PROFILE_METRICS)),
        (["AUROC"], ("did you mean 'auroc'?",)),
        (["mrr"], ("expected a cutoff of 1 to 999999 as in 'mrr@10', got 'mrr'",)),
        (["hr@0"], ("got 'hr@0'",)),
        (["hr@05"], ("got 'hr@05'",)),
        (["accuracy@3"], ("accuracy takes no cutoff",)),
        (["mrr@5", "accuracy", "mrr@5"], ("expected each metric once, got 'mrr@5' again",)),
        (
            ["mrr@5", "log-loss", "accuracy"],
            ("'log-loss' is lower for better models and cannot select", PROFILE_METRICS.replace(", log-loss", "")),
        ),
        (["mrr@5"], (f"expected a metric of task 'age' ({PROFILE_METRICS}), got mrr@5",)),
        (["auroc"], ("expected a metric of task 'next' (mrr@k",)),
    ],
)
def test_impossible_metrics_are_named(names, parts):
    with pytest.raises(ConfigError) as caught:
        check_metrics(names, where="run.yaml", tasks=[NEXT, AGE])
    for part in ("run.yaml: evaluate.metrics: ", *parts):
        assert part in str(caught.value)


def test_a_metric_that_no_task_has_is_named():
    with pytest.raises(ConfigError, match=r"'auroc' is for profile tasks, and none of this run's is \(next, likes\)"):
        check_metrics(["mrr@5", "auroc"], where="run.yaml", tasks=[NEXT, LIKES])


def test_names_are_read_without_torch():
    code = "import sys, dist_teracon.evaluate.metrics; print([m for m in ('torch', 'sklearn', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_new_metric_is_a_function_and_a_line(monkeypatch):
    from dist_teracon.evaluate.metrics import by_example

    def margin(found):
        """Logit of the target less the highest; mean over examples."""
        return np.take_along_axis(found.class_scores, found.labels[:, None], 1)[:, 0] - found.class_scores.max(1)

    monkeypatch.setitem(METRICS, "margin", by_example(margin))
    check_metrics(["mrr@5", "margin"], where="x", tasks=[NEXT, AGE])
    assert score("margin", np.array([[1.0, 3.0], [2.0, 0.0]]), [0, 0]) == -1


@pytest.mark.parametrize("page", ["method", "training"])
def test_the_documents_have_every_registered_metric(page):
    text = (Path(__file__).parents[3] / "docs" / f"{page}.md").read_text()
    assert [name for name in metric_names() if f"`{name}`" not in text] == []
