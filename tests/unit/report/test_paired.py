"""Standard errors over users: by hand, paired, and where the files are not what they should be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_runs import make_run

from dist_teracon.report.html import render
from dist_teracon.report.paired import read_errors
from dist_teracon.report.run_data import read_run

SCHEMA = pa.schema(
    [("split", pa.string()), ("task", pa.string()), ("user_hash", pa.uint64()), ("score", pa.float64()), ("examples", pa.int32())]
)


def write(folder: Path, stage: int, rows: list[tuple[str, str, int, float | None, int]]) -> None:
    path = folder / "stages" / f"{stage:02d}-x" / "scores.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA), path)


def test_errors_of_a_score_and_of_its_change_by_hand(tmp_path: Path) -> None:
    # three users with 1, 2 and 1 examples; the order of the rows says nothing
    write(tmp_path, 1, [("test", "a", 3, 1.0, 1), ("test", "a", 1, 0.0, 1), ("test", "a", 2, 1.0, 2), ("validation", "a", 9, 7.0, 1)])
    write(tmp_path, 2, [("test", "b", 1, 1.0, 1), ("test", "a", 1, 0.0, 1), ("test", "a", 2, 2.0, 2), ("test", "a", 3, 0.5, 1)])
    errors = read_errors(tmp_path, tasks=["a", "b"], metrics=["mrr@5", "accuracy"], stages=2)
    # score 2/4: deviations s − 0.5 n are −0.5, 0, 0.5
    assert errors.scores[0] == (pytest.approx(math.sqrt(0.5 * 3 / 2) / 4), None)
    # change 0.5/4: d − 0.125 n with d = 0, 1, −0.5
    deviations = (-0.125, 1 - 0.25, -0.5 - 0.125)
    assert errors.changes[1][0] == pytest.approx(math.sqrt(sum(value**2 for value in deviations) * 3 / 2) / 4)
    assert errors.scores[1][1] is None  # one user has no spread
    assert errors.forward == (None, None)
    assert errors.unreadable == ()


def test_a_mean_over_users_counts_each_once(tmp_path: Path) -> None:
    write(tmp_path, 1, [("test", "a", 1, 1.0, 5), ("test", "a", 2, 0.0, 1), ("test", "a", 3, 0.5, 2)])
    errors = read_errors(tmp_path, tasks=["a"], metrics=["recall@10"], stages=1)
    assert errors.scores[0][0] == pytest.approx(math.sqrt(0.5 * 3 / 2) / 3)


def test_what_makes_users_easy_in_both_stages_cancels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    easy, first, second = generator.random(400), generator.normal(0, 0.01, 400), generator.normal(0, 0.01, 400)
    for stage, noise in ((1, first), (2, second)):
        write(tmp_path, stage, [("test", "a", user, float(easy[user] + noise[user]), 1) for user in range(400)])
    errors = read_errors(tmp_path, tasks=["a"], metrics=["accuracy"], stages=2)
    assert errors.changes[1][0] == pytest.approx(np.std(second - first, ddof=1) / 20)
    assert (errors.scores[1][0] or 0) > 15 * (errors.changes[1][0] or 1)


def test_forward_errors_are_against_the_run_of_single_tasks(tmp_path: Path) -> None:
    write(tmp_path, 1, [("test", "a", 1, 1.0, 1), ("test", "a", 2, 1.0, 1)])
    write(tmp_path, 2, [("test", "b", 1, 1.0, 1), ("test", "b", 2, 0.0, 1)])
    write(tmp_path / "single-task", 2, [("test", "b", 1, 0.5, 1), ("test", "b", 2, 0.0, 1)])
    errors = read_errors(tmp_path, tasks=["a", "b"], metrics=["accuracy", "accuracy"], stages=2)
    assert errors.forward == (None, pytest.approx(math.sqrt(2 * 0.25**2 * 2) / 2))


@pytest.mark.parametrize("metric", ["auroc", "macro-f1", None, "of-another-version"])
def test_what_is_no_mean_has_no_error(tmp_path: Path, metric: str | None) -> None:
    write(tmp_path, 1, [("test", "a", 1, None, 1), ("test", "a", 2, None, 1)])
    assert read_errors(tmp_path, tasks=["a"], metrics=[metric], stages=1).scores == ((None,),)


def test_other_users_in_the_two_stages_do_not_pair(tmp_path: Path) -> None:
    write(tmp_path, 1, [("test", "a", 1, 1.0, 1), ("test", "a", 2, 0.0, 1)])
    write(tmp_path, 2, [("test", "a", 1, 1.0, 1), ("test", "a", 3, 0.0, 1)])
    assert read_errors(tmp_path, tasks=["a"], metrics=["accuracy"], stages=2).changes[1] == (None,)
    # the same users with other examples, as in another period of the test
    write(tmp_path, 2, [("test", "a", 1, 2.0, 3), ("test", "a", 2, 0.0, 1)])
    assert read_errors(tmp_path, tasks=["a"], metrics=["accuracy"], stages=2).changes[1] == (None,)


def test_a_damaged_file_is_named_on_the_page_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", stages=3)
    damaged = folder / "stages" / "03-3" / "scores.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    run = read_run(folder)
    assert run.errors.unreadable == ("stages/03-3/scores.parquet",)
    assert run.bwt_error[:2] == (None, None)
    assert "stages/03-3/scores.parquet" in render([run])


def test_a_run_without_scores_by_user_has_no_errors(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", users=False))
    assert set(run.bwt_error) == set(run.fwt_error) == set(run.final_error) == {None}


def test_errors_belong_to_the_made_up_scores(run_folder: Path) -> None:
    run, results = read_run(run_folder), json.loads((run_folder / "results.json").read_text())
    for i in range(5):
        # made with a spread of 0.3 of the score in each stage, over 200 users, beside what users have in common
        expected = 0.3 * math.hypot(results["scores"][5][i], results["scores"][i][i]) / math.sqrt(200)
        assert run.bwt_error[i] == pytest.approx(expected, rel=0.15)
