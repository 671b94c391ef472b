"""Metrics of a run: the first of a task selects, the others stand beside it in everything that is written."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_runs import TASKS, events, results, settings, train_here, weights

from dist_teracon import io
from dist_teracon.errors import ConfigError

NAMES = ["mrr@5", "ndcg@10", "recall@3", "accuracy", "auroc", "log-loss"]


@pytest.fixture(scope="module")
def runs(alone: None, small: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run by the default metrics, and one with further metrics behind them."""
    folder, values = tmp_path_factory.mktemp("metrics"), settings(small, tasks=("next", "gender"))
    return train_here(values, folder / "plain"), train_here({**values, "evaluate": {"metrics": NAMES}}, folder / "more")


def test_further_metrics_change_no_weight_and_no_score(runs: tuple[Path, Path]) -> None:
    plain, more = runs
    first, second = weights(plain, "02-gender"), weights(more, "02-gender")
    assert all(first[name].equal(second[name]) for name in first)
    differ = ("scores_by_metric",)
    assert [{k: v for k, v in results(run).items() if k not in differ} for run in runs] == [
        {k: v for k, v in results(plain).items() if k not in differ}
    ] * 2


def test_all_metrics_are_in_results_state_and_events(runs: tuple[Path, Path]) -> None:
    found = results(runs[1])
    assert list(found["scores_by_metric"]) == NAMES
    for name, rows in found["scores_by_metric"].items():
        has = [name in NAMES[:3], name in NAMES[3:]]
        assert [[score is not None for score in row] for row in rows] == [has[:1], has]
    assert [row[0] for row in found["scores_by_metric"]["mrr@5"]] == [row[0] for row in found["scores"]]
    state = io.read_json(str(runs[1] / "stages/02-gender/state.json"))
    assert state["scores_by_metric"] == {name: rows[1] for name, rows in found["scores_by_metric"].items()}
    assert set(state["validation_scores_by_metric"]) == set(NAMES)
    assert events(runs[1], "run")[0]["metrics"] == [NAMES[:3], NAMES[3:]]
    logged = events(runs[1], "scores")[1]["scores_by_metric"]
    assert list(logged["next"]) == NAMES[:3]
    assert logged["gender"]["auroc"] == found["scores_by_metric"]["auroc"][1][1]


def test_scores_by_user_have_a_column_a_metric_that_is_a_mean(runs: tuple[Path, Path]) -> None:
    plain, more = (pq.read_table(run / "stages/02-gender/scores.parquet") for run in runs)
    assert more.column_names == [*plain.column_names, "ndcg@10", "recall@3", "log-loss"]
    assert more.select(plain.column_names).equals(plain)
    gender = more.filter([task == "gender" for task in more["task"].to_pylist()])
    assert gender["ndcg@10"].null_count == len(gender)
    assert gender["log-loss"].null_count == 0


def test_the_first_metric_selects(alone: None, small: str, tmp_path: Path) -> None:
    values = {**settings(small, tasks=("next", "gender")), "evaluate": {"metrics": ["ndcg@10", "macro-f1", "accuracy", "mrr@5"]}}
    run = train_here(values, tmp_path / "run")
    found = results(run)
    assert found["metrics"] == ["ndcg@10", "macro-f1"]
    assert [row[-1] for row in found["scores"]] == [found["scores_by_metric"][name][k][k] for k, name in enumerate(found["metrics"])]
    assert [event["metric"] for event in events(run, "epoch") if event["stage"] == 2] == ["macro-f1"] * 3
    baselines = io.read_json(str(run / "baselines.json"))
    assert 0 < baselines["majority"][1] < 0.5  # the F1 of the class that is never predicted is 0


@pytest.mark.parametrize(
    ("names", "message"),
    [(["mrr@5", "acuracy"], "did you mean 'accuracy'"), (["mrr@5"], "a metric of task 'age'"), (["log-loss", "mrr@5"], "cannot select")],
)
def test_impossible_metrics_stop_a_run_before_it_begins(alone: None, small: str, tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_here({**settings(small, tasks=TASKS[:3]), "evaluate": {"metrics": names}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
