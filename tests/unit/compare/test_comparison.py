"""Comparisons of variants that learn their tasks in different orders, cells that are missing, p-values and costs."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from dist_teracon.atomic import write_json
from dist_teracon.compare import run
from dist_teracon.compare.cells import is_finished
from dist_teracon.compare.comparison import gather
from dist_teracon.compare.costs import read_costs
from dist_teracon.compare.paces import batches_of
from dist_teracon.compare.plan import read_plan
from dist_teracon.compare.run import write_tables
from dist_teracon.compare.statistics import holm, p_value
from dist_teracon.compare.tables import costs_table, markdown
from dist_teracon.errors import RunError
from dist_teracon.evaluate.scorer import UserScores
from dist_teracon.train.stage_folder import TAKEN_OVER, StageFolder

USERS = np.arange(30, dtype=np.uint64) * np.uint64(7919)
ORDER = ("next", "수입", "b")


def write_run(folder, tasks, scores, *, metric):
    """A run whose every user scores `scores[stage task][task]`; a task that is not named there scores 1."""
    metrics = [metric] * len(tasks)
    rows = [[scores.get(learned, {}).get(task, 1.0) for task in tasks[: stage + 1]] for stage, learned in enumerate(tasks)]
    write_json(folder / "results.json", {"tasks": tasks, "metrics": metrics, "scores": rows, "scores_by_metric": {metric: rows}})
    for stage, name in enumerate(tasks):
        own = StageFolder(folder, stage, name)
        parts = [("test", task, np.full(30, score)) for task, score in zip(tasks, rows[stage], strict=False)]
        parts += [("validation", task, np.full(30, score)) for _, task, (score, *_) in parts]
        own.save_user_scores([(split, task, UserScores(USERS, values, np.ones(30, np.int64))) for split, task, values in parts])
        by_metric = {metric: rows[stage]}
        write_json(own.path / "state.json", {"scores_by_metric": by_metric, "validation_scores_by_metric": by_metric})
    return folder


def made(tmp_path, *, seeds=(0,), finished=lambda cell: True, metric="mrr@5", **fields):
    plan = {"config": "configs/demo.yaml", "seeds": list(seeds), **fields}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    plan, cells = read_plan(str(tmp_path / "plan.yaml"))
    for cell in filter(finished, cells):
        write_run(cell.folder(tmp_path), list(cell.config.tasks), SCORES.get(cell.variant, {}), metric=metric)
    return plan, cells


SCORES = {
    # the given order: 수입 falls from .8 to .6
    "teracon+given": {"수입": {"수입": 0.8}, "b": {"next": 0.5, "수입": 0.6, "b": 0.4}},
    # the other: b falls from .8 to .2, 수입 is learned last
    "teracon+other": {"b": {"b": 0.8}, "수입": {"next": 0.5, "b": 0.2, "수입": 0.7}},
    # each task alone
    "alone": {"수입": {"수입": 0.5}, "b": {"b": 0.5}},
}
AXES = {"method": ["teracon", "hat"], "order": {"given": list(ORDER), "other": ["next", "b", "수입"]}}
ALONE = {"alone": {"method.name": "sinmo", "tasks": list(ORDER)}}


def test_tasks_are_compared_by_name_whatever_their_order(tmp_path):
    plan, cells = made(tmp_path, axes=AXES, variants=ALONE, baseline="given", single_task="alone")
    comparison = gather(plan, cells, tmp_path, finished=lambda cell: True, split="test")
    assert comparison is not None
    assert comparison.tasks == ORDER

    def value(statistic):
        return comparison.summary(statistic).value

    given, other = "teracon+given", "teracon+other"
    assert [value(comparison.final(given, task)) for task in range(3)] == pytest.approx([0.5, 0.6, 0.4])
    assert [value(comparison.final(other, task)) for task in range(3)] == pytest.approx([0.5, 0.7, 0.2])
    assert value(comparison.learned(other, 2)) == pytest.approx(0.8)
    # BWT is over the tasks before the last one of each order: next falls by half in both
    assert value(comparison.bwt(given)) == pytest.approx((-50 - 25) / 2)
    assert value(comparison.bwt(other)) == pytest.approx((-50 - 75) / 2)
    assert value(comparison.bwt(other, absolute=True)) == pytest.approx((-0.5 - 0.6) / 2)
    assert math.isnan(value(comparison.bwt(other, [1])))
    # FWT is of those behind the first
    assert comparison.fwt(other, 0) is None
    assert value(comparison.fwt(other, 2)) == pytest.approx(60)
    assert value(comparison.fwt(other, 2, absolute=True)) == pytest.approx(0.3)
    assert value(comparison.mean_fwt(given)) == pytest.approx((60 - 20) / 2)
    tables = markdown(comparison)
    assert "| teracon+other | next, b, 수입 |" in tables
    assert "| teracon+other | +0.0000 [+0.0000, +0.0000] | +0.1000 [+0.1000, +0.1000] | -0.2000 [-0.2000, -0.2000] | +0.0 [" in tables
    # mean BWT is held against that of the same tasks: `next`, which both learn before their last
    assert "Final scores less those of `given`; mean BWT over the tasks that neither learns last:" in tables
    assert "Transfer, %; means are of a variant's own tasks, BWT of all but its last, FWT of all but its first:" in tables
    assert "p-values of these differences from `teracon+given`, two-sided, Holm-corrected for 3 comparisons" in tables
    assert "| teracon+other | 1.000 | 0.003 | 0.003 |" in tables
    assert "p-values of these differences from `hat+given`" in tables
    assert "nan" not in tables


def test_variants_with_one_task_more_are_compared_on_the_others(tmp_path):
    plan, cells = made(
        tmp_path, axes={"order": {"without": ["next", "b"], "noisy": ["next", "noise", "b"]}}, baseline="without"
    )  # fmt: skip
    comparison = gather(plan, cells, tmp_path, finished=lambda cell: True, split="test")
    assert comparison is not None
    assert comparison.tasks == ("next", "b")
    assert comparison.last("noisy") == 2


def test_what_is_learned_together_has_no_transfer(tmp_path):
    """MTL's later tasks are learned in one stage: nothing comes after them, so keeping them is no merit."""
    variants = {name: {"method.name": name, "tasks": list(ORDER)} for name in ("sinmo", "mtl", "hat")}
    plan, cells = made(tmp_path, variants=variants, baseline="hat", single_task="sinmo")
    comparison = gather(plan, cells, tmp_path, finished=lambda cell: True, split="test")
    assert comparison is not None
    assert comparison.joint == ("mtl",)
    tables = markdown(comparison)
    assert "Learned together: all tasks of mtl but the first, so they have no FWT and no BWT." in tables
    assert "| mtl | – | – | – | – |\n| hat | +0.0 [" in tables.partition("Transfer, %:")[2]
    assert "| mtl | – | – |\n| hat | +0.0 [" in tables.partition("BWT, %:")[2]
    assert "| mtl | +0.0000 [" in tables.partition("Final scores less those of `hat`")[2]


def test_transfer_is_above_zero_where_a_metric_falls_of_which_less_is_better(tmp_path):
    """From .8 to .6 a log-loss is a gain of a quarter; beside tasks of which more is better, a mean would else add up opposites."""
    variants = {"teracon+given": {"tasks": list(ORDER)}, "alone": {"method.name": "sinmo", "tasks": list(ORDER)}}
    plan, cells = made(tmp_path, metric="log-loss", variants=variants, baseline="alone", single_task="alone")
    comparison = gather(plan, cells, tmp_path, finished=lambda cell: True, split="test")
    assert comparison is not None
    given = "teracon+given"
    assert comparison.summary(comparison.bwt(given, [1])).value == pytest.approx(25)
    assert comparison.summary(comparison.bwt(given, [1], absolute=True)).value == pytest.approx(0.2)
    assert comparison.summary(comparison.fwt(given, 2)).value == pytest.approx(20)
    assert "BWT, %, above zero is better, of log-loss too:" in markdown(comparison)


def test_variants_that_are_scored_on_other_examples_are_not_compared(tmp_path):
    plan, cells = made(tmp_path, variants={name: {"tasks": ["next", "b"]} for name in "ab"}, baseline="a")
    last = StageFolder(cells[1].folder(tmp_path), 1, "b")
    every, fewer = UserScores(USERS, np.ones(30), np.ones(30, np.int64)), UserScores(USERS[1:], np.ones(29), np.ones(29, np.int64))
    last.save_user_scores([("test", "next", every), ("test", "b", fewer)])
    with pytest.raises(RunError, match="seed 0: 'a' and 'b' are scored on other examples of task 'b', so their differences are not paired"):
        gather(plan, cells, tmp_path, finished=lambda cell: True, split="test")


def test_without_a_task_in_common_there_is_nothing_to_compare(tmp_path):
    plan, cells = made(tmp_path, axes={"order": {"one": ["next"], "other": ["b"]}}, baseline="one")
    with pytest.raises(RunError, match="no task in common"):
        gather(plan, cells, tmp_path, finished=lambda cell: True, split="test")


def test_a_variant_without_runs_hides_no_other_and_is_named(tmp_path):
    def finished(cell):
        return cell.variant != "c" and (cell.variant, cell.seed) != ("b", 1)

    variants = {name: {"tasks": ["next", "b"]} for name in "abc"}
    plan, cells = made(tmp_path, seeds=(0, 1), finished=finished, variants=variants, baseline="a")
    page = write_tables(plan, cells, tmp_path, problems={"c, seed 0": "out of memory (log: x)"}).read_text()
    assert "seed 0; 2 variants (without c, not finished on these seeds). [95 % bootstrap interval over users]" in page
    assert (
        "3 of 6 cells:\n\n- c, seed 0: out of memory (log: x)\n- b, seed 1: not run to its end\n- c, seed 1: not run to its end\n" in page
    )
    assert "\n| b | +0.0000" in page


def test_an_older_page_goes_where_a_new_one_cannot_be_made(tmp_path, monkeypatch):
    plan, cells = made(tmp_path, variants={name: {"tasks": ["next", "b"]} for name in "ab"}, baseline="a")
    (tmp_path / "report.html").write_text("older scores", encoding="utf-8")

    def fails(*_):
        raise RunError("matplotlib is not installed")

    monkeypatch.setattr(run, "write_page", fails)
    assert write_tables(plan, cells, tmp_path, problems={}).exists()
    assert not (tmp_path / "report.html").exists()


def test_without_the_baseline_there_are_no_differences(tmp_path):
    variants = {name: {"tasks": ["next", "b"]} for name in "ab"}
    plan, cells = made(tmp_path, finished=lambda cell: cell.variant == "b", variants=variants, baseline="a")
    page = write_tables(plan, cells, tmp_path, problems={}).read_text()
    assert "No differences: the baseline `a` has no finished runs of these seeds." in page


def test_holm_multiplies_the_smallest_most_and_never_descends():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    found = holm([0.01, math.nan, 0.04])
    assert (found[0], found[2]) == pytest.approx((0.02, 0.04))
    assert math.isnan(found[1])


def test_p_is_small_where_draws_lie_on_one_side_and_agrees_with_the_interval():
    one_side = np.concatenate([[0.1], np.linspace(0.01, 0.2, 199)])
    assert p_value(one_side) == pytest.approx(2 / 200)
    assert p_value(-one_side) == pytest.approx(2 / 200)
    assert p_value(np.zeros(200)) == 1.0
    assert math.isnan(p_value(np.full(10, math.nan)))
    generator = np.random.default_rng(0)
    for shift in (1.6, 1.9, 2.0, 2.3):
        draws = np.concatenate([[shift], shift + generator.standard_normal(1999)])
        low = np.percentile(draws[1:], 2.5)
        assert (p_value(draws) < 0.05) == (low > 0)


def test_costs_are_what_each_stage_adds(tmp_path):
    write_json(tmp_path / "results.json", {"tasks": ["next", "수입"]})
    weights = {"table": torch.zeros(10, 4)}
    for number, task in enumerate(("next", "수입")):
        if number:
            weights |= {"head": torch.zeros(3, 2), "owner": torch.zeros(40, dtype=torch.uint8)}
        stage = StageFolder(tmp_path, number, task).path
        stage.mkdir(parents=True)
        save_file(weights, stage / "model.safetensors", metadata={"format": "pt"})
        (stage / "timing.json").write_text(json.dumps({"seconds": 2.5 + number}))
    costs = read_costs(tmp_path)
    first, second = costs["next"], costs["수입"]
    assert (first.seconds, first.parameters, first.bytes) == (2.5, 40, 160)
    assert (second.seconds, second.parameters, second.bytes) == (3.5, 6, 6 * 4 + 40)


def test_stages_that_were_taken_over_are_told(tmp_path):
    plan, cells = made(tmp_path, variants={name: {"tasks": ["next", "b"]} for name in "ab"}, baseline="a")
    for number, cell in enumerate(cells):
        for stage, task in enumerate(("next", "b")):
            own = StageFolder(cell.folder(tmp_path), stage, task).path
            save_file({"table": torch.zeros(10, 4 + stage)}, own / "model.safetensors", metadata={"format": "pt"})
            seconds = 60.125 if stage == 0 else 30.5 + number  # a stage that is taken over has the other's times to the last digit
            (own / "timing.json").write_text(json.dumps({"stage": stage + 1, "seconds": seconds}))
    comparison = gather(plan, cells, tmp_path, finished=lambda cell: True, split="test")
    assert comparison is not None
    table = costs_table(comparison)
    assert table is not None
    assert table.title.endswith("included. 1 of 4 stages were taken over from another run, and have the seconds that it took:")
    assert table.rows[1] == ("b", "60.1 s, 40 (160 B)", "31.5 s, 10 (40 B)", "91.6 s, 50 (200 B)")


def test_costs_of_some_runs_alone_say_of_how_many(tmp_path):
    plan, cells = made(tmp_path, variants={"a": {"tasks": ["next"]}}, baseline="a", seeds=[0, 1])
    for number, cell in enumerate(cells):
        own = StageFolder(cell.folder(tmp_path), 0, "next").path
        (own / "timing.json").write_text(json.dumps({"seconds": 60.0}))
        if number == 0:
            save_file({"table": torch.zeros(10, 4)}, own / "model.safetensors", metadata={"format": "pt"})
    comparison = gather(plan, cells, tmp_path, finished=lambda cell: True, split="test")
    table = None if comparison is None else costs_table(comparison)
    assert table is not None
    assert table.rows[0][1] == "60.0 s, 40 (160 B), of 1 of 2 runs"


def two_runs(tmp_path, **fields):
    return made(tmp_path, variants={name: {"tasks": ["next", "b"]} for name in "ab"}, baseline="a", **fields)


def read(plan, cells, tmp_path):
    return gather(plan, cells, tmp_path, finished=lambda cell: True, split="test")


def test_scores_by_user_that_are_not_what_the_run_wrote_are_no_scores(tmp_path):
    plan, cells = two_runs(tmp_path)
    stage = cells[1].folder(tmp_path) / "stages/02-b"
    state = json.loads((stage / "state.json").read_text())
    noted = hashlib.sha256((stage / "scores.parquet").read_bytes()).hexdigest()
    write_json(stage / "state.json", {**state, "files": {"scores.parquet": noted}})
    assert read(plan, cells, tmp_path) is not None
    parquet = stage / "scores.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-1] + b"\0")
    with pytest.raises(RunError, match=r"02-b/scores\.parquet: the file was damaged or changed since it was written"):
        read(plan, cells, tmp_path)
    write_json(stage / "state.json", state)  # of a run that notes no checksum
    with pytest.raises(RunError, match=r"02-b/scores\.parquet: cannot be read \("):
        read(plan, cells, tmp_path)
    write_json(cells[1].folder(tmp_path) / "results.json", {})
    with pytest.raises(RunError, match=r"results\.json: is no results of a run"):
        is_finished(cells[1], tmp_path)


def test_other_users_of_a_score_when_learned_are_not_paired_either(tmp_path):
    plan, cells = two_runs(tmp_path)
    own = StageFolder(cells[1].folder(tmp_path), 0, "next")
    own.save_user_scores([("test", "next", UserScores(USERS[:20], np.ones(20), np.ones(20, np.int64)))])
    with pytest.raises(RunError, match="'a' and 'b' are scored on other examples of task 'next' when it was learned"):
        read(plan, cells, tmp_path)


def test_a_run_that_diverged_hides_no_other(tmp_path):
    plan, cells = two_runs(tmp_path)
    plan = plan.model_copy(update={"metrics": ("log-loss",)})
    for cell in cells:
        folder, diverged = cell.folder(tmp_path), cell.variant == "b"
        results = json.loads((folder / "results.json").read_text())
        rows = [[0.5], [0.5, 0.25]] if not diverged else [[0.5], [0.5, None]]
        write_json(folder / "results.json", {**results, "scores_by_metric": {**results["scores_by_metric"], "log-loss": rows}})
        for number, name in enumerate(("next", "b")):
            values = [np.full(30, rows[-1][task] or math.inf) for task in range(number + 1)]
            ones, each = np.ones(30), np.ones(30, np.int64)
            parts = [(task, UserScores(USERS, ones, each, {"log-loss": value})) for task, value in enumerate(values)]
            StageFolder(folder, number, name).save_user_scores([("test", ("next", "b")[task], part) for task, part in parts])
    comparison = read(plan, cells, tmp_path)
    assert comparison is not None
    assert comparison.metrics == ("log-loss", "log-loss")
    values = [[comparison.summary(comparison.final(variant, task)).value for task in (0, 1)] for variant in "ab"]
    assert values[0] == [0.5, 0.25]
    assert values[1][0] == 0.5
    assert math.isnan(values[1][1])


def test_a_task_without_a_mean_leaves_the_means_of_the_others(tmp_path):
    plan, cells = made(tmp_path, variants={name: {"tasks": ["next", "b", "c"]} for name in "ab"}, baseline="a")
    for cell in cells:
        path = cell.folder(tmp_path) / "results.json"
        results = json.loads(path.read_text())
        rows = {
            "mrr@5": [[None if task == 1 else value for task, value in enumerate(row)] for row in results["scores"]],
            "auroc": [[value if task == 1 else None for task, value in enumerate(row)] for row in results["scores"]],
        }
        write_json(path, {**results, "metrics": ["mrr@5", "auroc", "mrr@5"], "scores_by_metric": rows})
    comparison = read(plan, cells, tmp_path)
    assert comparison is not None
    assert comparison.metrics == ("mrr@5", None, "mrr@5")
    assert comparison.summary(comparison.bwt("a")).value == 0
    assert "Transfer, %; without b, which no metric judges that is a mean:" in markdown(comparison)


def test_stages_from_another_comparison_are_told_too(tmp_path):
    plan, cells = two_runs(tmp_path)
    for number, cell in enumerate(cells):
        for stage, task in enumerate(("next", "b")):
            own = StageFolder(cell.folder(tmp_path), stage, task).path
            save_file({"table": torch.zeros(10, 4 + stage)}, own / "model.safetensors", metadata={"format": "pt"})
            timing = {"stage": stage + 1, "seconds": 60.125 + number}
            write_json(own / "timing.json", {**timing, TAKEN_OVER: True} if stage == 0 else timing)
    comparison = read(plan, cells, tmp_path)
    assert comparison is not None
    table = costs_table(comparison)
    assert table is not None
    assert ". 2 of 4 stages were taken over from another run" in table.title


def test_a_batch_is_that_of_the_stage_whatever_else_a_task_has_of_its_own(tmp_path):
    config = {"dataset": "d", "train": {"by_task": {"b": {"learning_rate": 1e-3}, "c": {"batch": 8}}, "later": {"batch": 64}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert batches_of(tmp_path, ["next", "a", "b", "c", "d"]) == {"next": 32, "a": 256, "b": 64, "c": 8, "d": 64}
