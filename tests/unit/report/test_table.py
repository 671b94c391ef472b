"""The printed table, and a run in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import make_run, printed

from dist_teracon.report.run_data import read_run
from dist_teracon.report.table import fitting_grid, score_rows
from dist_teracon.report.values import score_text, signed_text
from dist_teracon.text import cells


def test_printed_table_is_plain_off_a_terminal(run_folder: Path) -> None:
    run = read_run(run_folder)
    plain = printed(run)
    assert all(sign.isascii() for sign in plain)
    lines = [line for line in plain.splitlines() if not set(line) <= {"-"}]
    assert lines[1].split() == list(run.tasks)
    assert lines[2].split() == list(run.metrics)
    names = [row.name for row in score_rows(run)]
    assert [line[: len(name)] for line, name in zip(lines[3:], names, strict=False)] == names
    assert len({len(line) for line in lines[1 : 3 + len(names)]}) <= 1 + len(run.tasks)
    assert names[6:8] == ["final ndcg@10", "final log-loss (lower is better)"]
    transfer = [f"{kind}{suffix}" for kind in ("FWT", "BWT") for suffix in ("", ", standard error", ", absolute")]
    assert names[8:] == ["learned alone", *transfer, "popularity", "majority", "SVD + LR", "test examples"]
    assert plain.count(" 612") == 1  # of the second task
    for row in score_rows(run):
        assert all(cell.replace("±\u00a0", "+-").replace("−", "-").replace("–", "-").replace("\u00a0", " ") in plain for cell in row.cells)


def test_printed_table_on_a_terminal_holds_the_same_numbers(run_folder: Path) -> None:
    run = read_run(run_folder)
    table = printed(run, terminal=True)
    assert all(cell in table for row in score_rows(run) for cell in row.cells)


LONG_NAMES = tuple(f"쇼핑 대분류 {k} 관심 사용자" if k % 2 else f"a-task-with-a-long-name-{k}" for k in range(20))


@pytest.mark.parametrize("names", [None, tuple("abcdefgh"), LONG_NAMES], ids=["six", "eight", "twenty"])
@pytest.mark.parametrize("width", [40, 72, 80, 100, 200])
def test_at_any_width_no_line_is_too_long_and_no_task_or_number_is_missing(
    tmp_path: Path, names: tuple[str, ...] | None, width: int
) -> None:  # fmt: skip
    run = read_run(make_run(tmp_path / "run", names=names))
    lines = printed(run, terminal=True, width=width).splitlines()
    assert max(map(cells, lines)) <= width
    words = [word.strip(",") for word in " ".join(lines).replace("\u00a0", " ").split()]
    for i in range(len(run.tasks)):
        assert {score_text(run.learned[i]), score_text(run.final[i])} <= set(words)
        if run.bwt[i] is not None:
            assert signed_text(run.bwt[i], 1) in words
    # a task a row: the pieces of its name, put together, are the name
    rows = fitting_grid(run, width).rows
    if rows[0][0] == "1":
        starts = [k for k, row in enumerate(rows) if row[0]]
        names_there = ["".join(row[1] for row in rows[k:end]) for k, end in zip(starts, [*starts[1:], None], strict=True)]
        assert [name.replace(" ", "") for name in names_there] == [task.replace(" ", "") for task in run.tasks]
    else:
        assert width >= 100


def test_a_task_has_a_row_where_the_matrix_does_not_fit(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", names=tuple(f"쇼핑-{k}" for k in range(8))))
    lines = printed(run, terminal=True, width=80).splitlines()
    assert lines[1].split() == ["when", "best"]
    assert lines[2].split() == ["task", "metric", "learned", "final", "FWT", "%", "±", "BWT", "%", "±", "baseline"]
    rows = [line.split() for line in lines[4:] if line.startswith(tuple("12345678"))]
    assert [row[1] for row in rows] == list(run.tasks)
    error = 100 * (run.bwt_error[1] or 0) / (run.learned[1] or 1)
    assert rows[1][2:5] == ["mrr@5", score_text(run.learned[1]), score_text(run.final[1])]
    assert rows[1][7:] == [signed_text(run.bwt[1], 1), f"{error:.1f}", "0.0219"]
    # columns stand in line though Hangul takes two cells a sign
    assert len({cells(line[: line.index("mrr@5")]) for line in lines if "mrr@5" in line}) == 1


def test_columns_without_a_value_are_left_out(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", names=tuple("abcdefghi"), extras=False))
    assert printed(run, terminal=True, width=70).splitlines()[2].split() == ["task", "metric", "learned", "final", "BWT", "%", "±"]


def test_a_name_goes_on_in_the_lines_of_further_metrics(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", names=("the first task of all", *(f"task-{k}-of-a-platform" for k in range(7)))))
    lines = printed(run, terminal=True, width=80).splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("1 "))
    assert "mrr@5" in lines[first]
    assert "ndcg@10" in lines[first + 1]
    name = " ".join(line[3:20].strip() for line in lines[first : first + 2])
    assert name.startswith("the first")


def test_names_that_an_encoding_lacks_do_not_stop_the_table(tmp_path: Path) -> None:
    make_run(tmp_path / "run", names=("쇼핑", "b", "c", "d", "e", "f"))
    code = f"""
from pathlib import Path
from dist_teracon.report.run_data import read_run
from dist_teracon.report.table import print_scores
print_scores(read_run(Path({str(tmp_path / "run")!r})))
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert b"??" in done.stdout
    assert done.stdout.isascii()


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=1, names=("a\x1b[2Jb", "b", "c", "d", "e", "f")))
    assert "\x1b" not in printed(run)
    assert "a?[2Jb" in printed(run)


def test_the_table_needs_no_heavy_library() -> None:
    code = "import sys, dist_teracon.report.table; print([m for m in ('matplotlib', 'jinja2', 'torch', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_further_metrics_stand_below_the_stages(run_folder: Path) -> None:
    run = read_run(run_folder)
    ndcg, loss = (row for row in score_rows(run) if row.group == "metrics")
    assert ndcg.cells[3:] == loss.cells[:3] == ("", "", "")
    assert ndcg.cells[0] == score_text(2 * (run.scores[-1][0] or 0))
    assert run.metrics_of(0) == ["mrr@5", "ndcg@10"]
