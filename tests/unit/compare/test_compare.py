"""Comparisons: the plan is checked before anything runs, and intervals are paired over users and seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from dist_teracon.atomic import write_json
from dist_teracon.compare.comparison import gather
from dist_teracon.compare.plan import read_plan
from dist_teracon.compare.statistics import Bootstrap, RunScores, backward_transfer, estimate, p_value, pooled, read_run_scores
from dist_teracon.compare.tables import markdown
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.scorer import UserScores
from dist_teracon.train.stage_folder import StageFolder

CONFIGS = Path(__file__).parents[3] / "configs"
PLANS = sorted([*(CONFIGS / "compare").glob("*.yaml"), *(CONFIGS / "experiments").glob("*.yaml")])
USERS = np.arange(40, dtype=np.uint64) * np.uint64(7919)


def write_run(folder, scores):
    """A run of two tasks; `scores[stage, task]` are the users' scores, one example each."""
    tasks = ("next", "age")
    folder.mkdir(parents=True)
    write_json(folder / "results.json", RESULTS)
    for stage, name in enumerate(tasks):
        parts = [("test", tasks[task], UserScores(USERS, scores[stage, task], np.ones(len(USERS), np.int64))) for task in range(stage + 1)]
        StageFolder(folder, stage, name).save_user_scores(parts)
    return read_run_scores(folder)


RESULTS = {
    "tasks": ["next", "age"],
    "metrics": ["mrr@5", "accuracy"],
    "scores_by_metric": {"mrr@5": [[0.5], [0.5, None]], "accuracy": [[None], [None, 0.5]]},
}


def made_up(generator, lift=0.0):
    return {(0, 0): generator.random(40), (1, 0): generator.random(40) + lift, (1, 1): generator.random(40)}


def test_scores_come_back_by_user_and_their_mean_is_the_score(tmp_path):
    scores = made_up(np.random.default_rng(0))
    run = write_run(tmp_path / "run", scores)
    assert run.tasks == ("next", "age")
    bootstrap = Bootstrap([[run]], draws=50)
    for (stage, task), values in scores.items():
        assert bootstrap.score(0, 0, stage, task)[0] == pytest.approx(values.mean())
    change = (scores[1, 0].mean() / scores[0, 0].mean() - 1) * 100
    assert backward_transfer(bootstrap, 0, 0, 0, 1)[0] == pytest.approx(change)


def test_differences_are_paired(tmp_path):
    """What is better by the same amount for every user is better by that amount in every draw; its own score is not that sure."""
    runs = []
    for seed in range(3):
        plain = made_up(np.random.default_rng(seed))
        lifted = {place: values + 0.25 for place, values in plain.items()}
        runs.append([write_run(tmp_path / f"{seed}-{name}", scores) for name, scores in (("plain", plain), ("lifted", lifted))])
    bootstrap = Bootstrap(runs, draws=200)
    difference = bootstrap.over_seeds(lambda seed: bootstrap.score(seed, 1, 1, 1) - bootstrap.score(seed, 0, 1, 1))
    found = estimate(difference)
    assert (found.low, found.value, found.high) == pytest.approx((0.25, 0.25, 0.25))
    alone = estimate(bootstrap.over_seeds(lambda seed: bootstrap.score(seed, 0, 1, 1)))
    assert alone.high - alone.low > 0.05


def test_of_one_task_nothing_is_said_of_transfer(tmp_path):
    (tmp_path / "one.yaml").write_text("config: configs/six-tasks.yaml\nseeds: [0, 1]\nbaseline: a\nvariants: {a: {}, b: {}}\n")
    plan, cells = read_plan(str(tmp_path / "one.yaml"))
    for cell in cells:
        folder = cell.folder(tmp_path)
        folder.mkdir(parents=True)
        write_json(folder / "results.json", {"tasks": ["next"], "metrics": ["mrr@5"], "scores_by_metric": {"mrr@5": [[0.5]]}})
        write_json(folder / "stages/01-next/state.json", {"scores_by_metric": {"mrr@5": [0.5]}})
        scores = UserScores(USERS, np.random.default_rng(cell.seed).random(40) + (cell.variant == "b"), np.ones(len(USERS), np.int64))
        StageFolder(folder, 0, "next").save_user_scores([("test", "next", scores)])
    comparison = gather(plan, cells, tmp_path, finished=lambda _: True, split="test")
    assert comparison is not None
    tables = markdown(comparison)
    assert "| variant | next (mrr@5) |" in tables
    assert "| b | +1.0000 [+1.0000, +1.0000] |" in tables
    assert "BWT" not in tables
    assert "Further metrics" not in tables


def test_seeds_on_the_same_users_say_no_more_of_these_users(tmp_path):
    """Three runs that score every user alike are as sure as one of them: a split that stays leaves nothing to average over seeds."""
    run = write_run(tmp_path / "run", made_up(np.random.default_rng(0)))
    bootstrap = Bootstrap([[run]] * 3, draws=300)
    assert bootstrap.users == 40
    assert bootstrap.over_seeds(lambda seed: bootstrap.score(seed, 0, 1, 1)) == pytest.approx(bootstrap.score(0, 0, 1, 1))
    # on users of their own, seeds are drawn apart
    others = [replace(run, users=run.users + np.uint64(seed)) for seed in range(3)]
    apart = Bootstrap([[run] for run in others], draws=300)
    assert apart.users == 120
    assert np.corrcoef(apart.score(0, 0, 1, 1)[1:], apart.score(1, 0, 1, 1)[1:])[0, 1] < 0.3


def test_equal_scores_differ_by_nothing_whatever_the_order_of_sums(tmp_path):
    """Ten tenths are one only up to rounding, which must not decide on which side of zero a draw lies."""
    base = made_up(np.random.default_rng(0))
    tenths = np.where(np.arange(40) % 2, 0.1, 0.3)
    runs = [write_run(tmp_path / name, {**base, (1, 1): scores}) for name, scores in (("a", tenths), ("b", 0.4 - tenths))]
    bootstrap = Bootstrap([runs], draws=200)
    total = bootstrap.over_seeds(lambda seed: bootstrap.score(seed, 0, 1, 1) + bootstrap.score(seed, 1, 1, 1) - 0.4)
    assert (total == 0).all()
    assert p_value(total) == 1.0


def test_without_an_example_there_is_no_score(tmp_path):
    """A task that no test user has scores nothing, not zero; and neither does one whose users a draw leaves out."""
    run = write_run(tmp_path / "run", made_up(np.random.default_rng(0)))
    only, none = np.arange(40) == 7, np.zeros(40)
    run.counts[1, 1][:], run.sums[1, 1][:] = only, 0.5 * only
    drawn = Bootstrap([[run]], draws=200).score(0, 0, 1, 1)
    assert drawn[~np.isnan(drawn)] == pytest.approx(0.5)
    assert 0.25 < np.isnan(drawn[1:]).mean() < 0.5  # 1/e of the draws are without the only user
    assert estimate(drawn).low == pytest.approx(0.5)
    run.counts[1, 1][:], run.sums[1, 1][:] = none, none
    assert np.isnan(Bootstrap([[run]], draws=9).score(0, 0, 1, 1)).all()
    nobody = RunScores(run.users[:0], dict.fromkeys(run.sums, none[:0]), dict.fromkeys(run.sums, none[:0]), run.tasks, run.metrics)
    assert np.isnan(Bootstrap([[nobody]], draws=9).score(0, 0, 1, 1)).all()


def plan_file(tmp_path, **fields):
    plan = {"config": "configs/demo.yaml", "seeds": [0, 1], "baseline": "a", "variants": {"a": {}, "b": {"model.channels": 8}}, **fields}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    return str(tmp_path / "plan.yaml")


def test_cells_are_variants_by_seeds_with_the_seed_filled_in(tmp_path):
    _, cells = read_plan(plan_file(tmp_path, set={"dataset": "synthetic:six-tasks-v1?users=200&split_seed={seed}"}))
    assert [(cell.variant, cell.seed) for cell in cells] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [cell.config.seed for cell in cells] == [0, 0, 1, 1]
    assert cells[3].config.dataset.endswith("split_seed=1")
    assert (cells[2].config.model.channels, cells[3].config.model.channels) == (64, 8)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"baseline": "c"}, ("baseline: expected a variant (a, b), got 'c'",)),
        ({"variants": {"a": {"model.chanels": 8}}}, ("variant 'a'", "model.chanels: unknown field; did you mean 'channels'?")),
        ({"variants": {"a": {"method.retention.alfa": 8}}}, ("variant 'a'", "retention.alfa: unknown field; did you mean 'alpha'?")),
        ({"variants": {"a": {}, "x/y": {}}}, ("got 'x/y'",)),
        ({"seeds": []}, ("seeds",)),
        ({"single_task": "b"}, ("single_task: forward transfer is against tasks that are learned alone, which method sinmo does", "'b'")),
        ({"metrics": ["mmr@5"]}, ("metrics: no metric 'mmr@5'; did you mean 'mrr'?",)),
        ({"metrics": ["auroc"], "set": {"evaluate.metrics": ["mrr@5", "auroc"]}}, ("metrics: expected a mean", "got 'auroc'")),
        ({"metrics": ["hr@10"]}, ("variant 'a' does not compute 'hr@10' (its evaluate.metrics: mrr@5, accuracy)",)),
        ({"variants": {"a": {"evaluate.metrics": ["mrr"]}}}, ("variant 'a': evaluate.metrics: expected a cutoff",)),
    ],
)
def test_a_bad_plan_is_told_before_anything_runs(tmp_path, fields, parts):
    with pytest.raises(ConfigError) as caught:
        read_plan(plan_file(tmp_path, **fields))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_the_shipped_plans_are_whole(path):
    plan, cells = read_plan(str(path))
    assert len(cells) == len(plan.variants) * len(plan.seeds)


def test_folds_are_pooled_each_users_score_once(tmp_path):
    """Folds of unequal size: the score is the mean over users, not over folds, and no draw leaves a fold out whole."""
    generator = np.random.default_rng(1)
    sizes, folds = (30, 10), []
    for fold, size in enumerate(sizes):
        scores = {place: np.full(40, float(fold)) for place in ((0, 0), (1, 0), (1, 1))}
        run = write_run(tmp_path / str(fold), scores)
        sums, counts = ({key: values[:size] for key, values in part.items()} for part in (run.sums, run.counts))
        folds.append(RunScores(run.users[:size] + np.uint64(fold), sums, counts, run.tasks, run.metrics))
    bootstrap = Bootstrap([[pooled(folds)]], draws=300, seed=int(generator.integers(9)))
    drawn = bootstrap.score(0, 0, 1, 1)
    assert drawn[0] == pytest.approx(10 / 40)
    assert 0 < drawn[1:].min() < drawn[1:].max() < 1


def write_further(folder, seed=0):
    """A run of `next` and `likes` by MRR, recall (over users) and a hit rate, and of `age` by AUROC alone; one to three examples a user."""
    generator = np.random.default_rng(seed)
    tasks, counts = ("next", "likes", "age"), generator.integers(1, 4, 40)
    columns = {name: generator.random(40) for name in ("mrr@5", "hr@10", "recall@10")}
    write_json(
        folder / "results.json",
        {
            "tasks": list(tasks),
            "metrics": ["mrr@5", "mrr@5", "auroc"],
            "scores_by_metric": {
                **{name: [[0.5], [0.5] * 2, [0.5, 0.5, None]] for name in columns},
                "auroc": [[None], [None] * 2, [None] * 2 + [0.7]],
            },
        },
    )
    items = UserScores(USERS, columns["mrr@5"], counts, {name: columns[name] for name in ("hr@10", "recall@10")})
    age = UserScores(USERS, np.full(40, np.nan), np.ones(40, np.int64))
    for stage, name in enumerate(tasks):
        parts = [("test", task, age if task == "age" else items) for task in tasks[: stage + 1]]
        StageFolder(folder, stage, name).save_user_scores(parts)
    last = {name: [0.5 + seed, 0.25, None] for name in columns} | {"auroc": [None, None, 0.7 + seed / 10]}
    write_json(folder / "stages/03-age/state.json", {"scores_by_metric": last})
    return columns, counts


def test_tables_are_by_the_metric_that_is_asked_for(tmp_path):
    columns, counts = write_further(tmp_path / "run")
    expected = {"mrr@5": columns["mrr@5"].sum() / counts.sum(), "hr@10": columns["hr@10"].sum() / counts.sum()}
    expected["recall@10"] = columns["recall@10"].mean()  # each user counts once
    for name, value in expected.items():
        run = read_run_scores(tmp_path / "run", metrics=["log-loss", name])
        assert run.metrics == (name, name, None)
        assert Bootstrap([[run]], draws=9).score(0, 0, 2, 1)[0] == pytest.approx(value)
    assert read_run_scores(tmp_path / "run").metrics == ("mrr@5", "mrr@5", None)
    assert np.isnan(Bootstrap([[run]], draws=9).score(0, 0, 2, 2)).all()


def test_metrics_that_the_tables_are_not_by_stand_below_without_intervals(tmp_path):
    plan, cells = read_plan(plan_file(tmp_path, set={"evaluate.metrics": ["mrr@5", "hr@10", "recall@10", "auroc"]}), ["hr@10"])
    for cell in cells:
        write_further(cell.folder(tmp_path), cell.seed)
    comparison = gather(plan, cells, tmp_path, finished=lambda _: True, split="test")
    assert comparison is not None
    tables = markdown(comparison)
    assert "| variant | next (hr@10) | likes (hr@10) | age (no mean) |" in tables
    assert "final scores, auroc, mean ± standard deviation over seeds:\n\n| variant | age |\n|---|---|\n| a | 0.7500 ± 0.0707 |" in tables
    assert "final scores, mrr@5," in tables and "final scores, hr@10," not in tables
    assert "nan" not in tables
    # a run without the metric is no reason for a mean over the others
    last = cells[-1].folder(tmp_path) / "stages/03-age/state.json"
    write_json(last, {"scores_by_metric": {"mrr@5": [1.5, 0.25, None], "auroc": [None] * 3}})
    comparison = gather(plan, cells, tmp_path, finished=lambda _: True, split="test")
    assert comparison is not None
    assert "final scores, auroc, mean ± standard deviation over seeds:\n\n| variant | age |\n|---|---|\n" in markdown(comparison)
    assert comparison.further["auroc"]["b"] == [[None, None, pytest.approx(0.7)], [None] * 3]
    assert "| b | – |\n" in markdown(comparison) + "\n"
