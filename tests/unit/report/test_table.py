"""The printed table, and a run in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import make_run, printed

from dist_teracon.report.run_data import read_run
from dist_teracon.report.summary import headline, standard_error
from dist_teracon.report.table import score_rows
from dist_teracon.report.values import score_text


def test_printed_table_is_plain_off_a_terminal(run_folder: Path) -> None:
    run = read_run(run_folder)
    plain = printed(run)
    assert all(sign.isascii() for sign in plain)
    lines = plain.splitlines()
    head = next(k for k, line in enumerate(lines) if "star4 (mrr@5)" in line)
    names = [row.name for row in score_rows(run)]
    assert [line[: len(name)] for line, name in zip(lines[head + 1 :], names, strict=False)] == names
    assert len({len(line) for line in lines[head : head + len(names) + 1] if line.strip()}) <= 2 + len(run.tasks)
    assert names[6:8] == ["final ndcg@10", "final log-loss (lower is better)"]
    assert names[8:] == ["learned alone", "FWT", "FWT, absolute", "BWT", "BWT, absolute", "popularity", "majority", "SVD + LR"]
    for row in score_rows(run):
        assert all(cell.replace("−", "-").replace("–", "-").replace("\u00a0", " ") in plain for cell in row.cells)


def test_printed_table_on_a_terminal_holds_the_same_numbers(run_folder: Path) -> None:
    run = read_run(run_folder)
    table = printed(run, terminal=True)
    assert all(cell in table for row in score_rows(run) for cell in row.cells)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=1, names=("a\x1b[2Jb", "b", "c", "d", "e", "f")))
    assert "\x1b" not in printed(run)
    assert "a?[2Jb" in printed(run)


def test_the_table_needs_no_heavy_library() -> None:
    code = "import sys, dist_teracon.report.table; print([m for m in ('matplotlib', 'jinja2', 'torch', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_headline_counts_what_the_numbers_say(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results |= {"fwt": [None, 10.0, -2.0, 0.0, 4.0, 6.0], "bwt": [-1.0, 2.0, -7.5, 0.0, 0.0, None]}
    results["scores"][-1] = [0.03, 0.03, 0.05, 0.4255, 0.8, 0.3]
    path.write_text(json.dumps(results))
    sentence = headline(read_run(folder))
    assert sentence == (
        "teracon learned 6 tasks on ml-100k: 3 of 5 later tasks scored above the same task learned alone (median FWT +4.0\u00a0%), "
        "2 of 5 earlier tasks lost score by the end (most: star5, BWT −7.5\u00a0%), and 5 of 6 tasks end above every baseline (not age)."
    )


def test_standard_error_of_an_accuracy() -> None:
    assert standard_error("accuracy", 0.5, 100) == pytest.approx(0.05)
    assert standard_error("accuracy", 0.5, 0) is None
    assert standard_error("accuracy", None, 10) is None


@pytest.mark.parametrize("metric", ["auroc", "recall@10", "log-loss", None, "of-another-version"])
def test_other_metrics_have_no_such_standard_error(metric: str | None) -> None:
    assert standard_error(metric, 1.5 if metric == "log-loss" else 0.5, 100) is None


def test_further_metrics_stand_below_the_stages(run_folder: Path) -> None:
    run = read_run(run_folder)
    ndcg, loss = (row for row in score_rows(run) if row.group == "metrics")
    assert ndcg.cells[3:] == loss.cells[:3] == ("", "", "")
    assert ndcg.cells[0] == score_text(2 * (run.scores[-1][0] or 0))
    assert run.metrics_of(0) == ["mrr@5", "ndcg@10"]
