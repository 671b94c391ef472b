"""A run in one sentence: what counts as lost, gained and above a baseline, and by which figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run, write_user_scores

from dist_teracon.report.html import render
from dist_teracon.report.run_data import RunData, read_run
from dist_teracon.report.summary import headline, standard_error
from dist_teracon.report.values import verdict

TASKS = ("next", "star4", "star5", "age")
NB = "\u00a0"


def run_of(folder: Path, first: list[float], last: list[float], *, spread: float = 0.3, users: bool = True, **results: Any) -> RunData:
    """Return a run of four tasks with given scores when learned and at the end, whose changes have a relative error of 3 %."""
    make_run(folder, names=TASKS, extras=False, users=False)
    path = folder / "results.json"
    values = json.loads(path.read_text())
    scores = [[*first[: j + 1]] for j in range(3)] + [last]
    bwt = [*(100 * (b / a - 1) for a, b in zip(first[:3], last, strict=False)), None]
    absolute = [*(b - a for a, b in zip(first[:3], last, strict=False)), None]
    path.write_text(json.dumps({**values, "scores": scores, "bwt": bwt, "bwt_absolute": absolute, **results}))
    if users:
        write_user_scores(folder, TASKS, scores, spread=spread)
    return read_run(folder)


def test_a_loss_counts_only_beyond_its_paired_standard_error(tmp_path: Path) -> None:
    # errors are about 0.3 · √2 / √200 = 3 %
    run = run_of(tmp_path / "run", [0.3, 0.4, 0.5, 0.6], [0.3 * 0.98, 0.4 * 0.9, 0.5 * 1.1, 0.6])
    assert headline(run) == (
        f"teracon learned 4 tasks on data/ml-100k: mean BWT −0.7{NB}%, "
        f"1 of 3 earlier tasks lost more than a standard error by the end (star4 −10.0{NB}±{NB}"
        f"{100 * (run.bwt_error[1] or 0) / 0.4:.1f}{NB}%)."
    )
    within = run_of(tmp_path / "within", [0.3, 0.4, 0.5, 0.6], [0.3 * 0.98, 0.4 * 0.98, 0.5 * 0.98, 0.6])
    assert headline(within).endswith(f"mean BWT −2.0{NB}%, none of 3 earlier tasks lost more than a standard error by the end.")


def test_the_same_scores_are_a_loss_where_users_agree_more(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [0.3, 0.4, 0.5, 0.6], [0.3 * 0.98, 0.4 * 0.98, 0.5 * 0.98, 0.6], spread=0.02)
    assert "3 of 3 earlier tasks lost more than a standard error" in headline(run)


@pytest.mark.usefixtures("undrawn")
def test_sentence_and_tiles_have_one_figure_the_mean(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [0.3, 0.4, 0.5, 0.6], [0.3, 0.4 * 0.7, 0.5, 0.6])
    assert f"mean BWT −10.0{NB}%" in headline(run)
    page = render([run])
    assert f"<b>−10.0{NB}%</b><span>mean BWT</span>" in page
    assert "median" not in page


def test_without_scores_by_user_nothing_is_counted(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [0.3, 0.4, 0.5, 0.6], [0.1, 0.1, 0.1, 0.6], users=False)
    assert headline(run).endswith("(no task with a standard error to judge by).")
    assert "lost" not in headline(run)


def test_forward_transfer_counts_both_sides(tmp_path: Path) -> None:
    alone = [0.3, 0.4 * 0.8, 0.5 * 1.2, 0.6 * 1.01]
    first = [0.3, 0.4, 0.5, 0.6]
    fwt = [None, *(100 * (a / b - 1) for a, b in zip(first[1:], alone[1:], strict=True))]
    differences = [None, *(a - b for a, b in zip(first[1:], alone[1:], strict=True))]
    run = run_of(tmp_path / "run", first, first, single_task=alone, fwt=fwt, fwt_absolute=differences)
    write_user_scores(tmp_path / "run" / "single-task", TASKS, [[None] * j + [alone[j]] for j in range(4)], spread=0.3)
    sentence = headline(read_run(run.folder))
    assert f"mean FWT +2.4{NB}%, 1 of 3 later tasks learned better than alone and 1 worse, beyond a standard error; mean BWT" in sentence


def test_a_score_within_its_error_of_a_baseline_is_not_above_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_of(folder, [0.3, 0.4, 0.5, 0.6], [0.3, 0.4, 0.5, 0.6])
    # the scores' errors are about √(1 + 0.3²) / √200 = 7 %
    table = {"popularity": [0.1, 0.39, 0.9, None], "majority": [None] * 3 + [0.2], "svd_logistic_regression": [None] * 4}
    (folder / "baselines.json").write_text(json.dumps(table))
    assert "2 of 4 tasks end above every baseline (within a standard error: star4; below: star5)." in headline(read_run(folder))


def test_many_losses_are_named_by_the_three_largest(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", names=tuple(f"쇼핑 {k}" for k in range(8)), extras=False, users=False)
    scores = [[0.5] * (j + 1) for j in range(7)] + [[0.5 * (0.9 - 0.05 * k) for k in range(7)] + [0.5]]
    path = folder / "results.json"
    bwt = [-10.0 - 5 * k for k in range(7)]
    values = {"scores": scores, "bwt": [*bwt, None], "bwt_absolute": [*(0.005 * value for value in bwt), None]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    write_user_scores(folder, [f"쇼핑 {k}" for k in range(8)], scores, spread=0.1)
    sentence = headline(read_run(folder))
    assert "7 of 7 earlier tasks lost" in sentence
    assert sentence.index("쇼핑 6 −40.0") < sentence.index("쇼핑 5") < sentence.index("쇼핑 4")
    assert "4 more)" in sentence
    assert "쇼핑 3" not in sentence


def test_standard_error_of_an_accuracy() -> None:
    assert standard_error("accuracy", 0.5, 100) == pytest.approx(0.05)
    assert standard_error("accuracy", 0.5, 0) is None
    assert standard_error("accuracy", None, 10) is None


@pytest.mark.parametrize("metric", ["auroc", "recall@10", "log-loss", None, "of-another-version"])
def test_other_metrics_have_no_such_standard_error(metric: str | None) -> None:
    assert standard_error(metric, 1.5 if metric == "log-loss" else 0.5, 100) is None


def test_a_change_of_just_its_error_is_none_whatever_the_rounding() -> None:
    # of 300 users three gain and one loses: Σ (d − mean)² · U / (U − 1) is 4 exactly, and so are change and error 2/300
    change, error = 2 / 300, math.sqrt((3 * (1 - 2 / 300) ** 2 + (1 + 2 / 300) ** 2 + 296 * (2 / 300) ** 2) * 300 / 299) / 300
    assert error == pytest.approx(change, rel=1e-12)
    for scale in (1.0, 100 / 0.3567, 100 / 0.6733, 3.0, 7.0):
        assert verdict(scale * change, scale * error) == verdict(-change, error) == ""
    assert (verdict(change * 1.001, error), verdict(-change * 1.001, error)) == ("better", "worse")
