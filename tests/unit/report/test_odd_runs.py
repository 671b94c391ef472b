"""Page and table of runs that are unfinished or strange."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from made_runs import make_run, parse, printed

from dist_teracon.report.html import render
from dist_teracon.report.run_data import read_run
from dist_teracon.report.table import score_rows
from dist_teracon.report.values import score_text


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a&b", '"><img src=x onerror=1>', "$x^2$", "_hidden", "쇼핑 대분류", "[red]x[/red]"]
)
def test_a_strange_task_name_is_text(tmp_path: Path, name: str) -> None:
    run = read_run(make_run(tmp_path / "run", stages=2, names=("next", name, "star5", "age", "gender", "occupation")))
    parser = parse(render([run]))
    assert {"script", "img"}.isdisjoint(parser.tags)
    assert any(name in text for text in parser.text)
    assert name in printed(run)
    assert name in printed(run, terminal=True)


def test_an_unfinished_run_without_extras(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=1, extras=False))
    text = " ".join(parse(render([run])).text)
    assert "Unfinished: teracon has learned 1 of 6 tasks" in text
    assert not run.finished
    assert score_text(run.scores[0][0]) in text
    assert [row.name for row in score_rows(run)] == ["after next", "final ndcg@10", "test examples"]
    assert "after next" in printed(run)


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "events.jsonl").write_text('{"event":"run","method":"teracon","seed":3,"tasks":["next","age"],"time":1}\n{"event":"st')
    run = read_run(folder)
    assert (run.tasks, run.seed, run.scores, run.events.unreadable) == (("next", "age"), 3, (), 0)
    parse(render([run]))
    assert "No task has a score yet" in printed(run)


@pytest.mark.usefixtures("undrawn")
def test_each_task_evaluated_once_as_by_single_task_training(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", extras=False, method="sinmo")
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["scores"] = [[None] * j + row[j:] for j, row in enumerate(results["scores"])]
    path.write_text(json.dumps({**results, "bwt": [None] * 6, "bwt_absolute": [None] * 6}))
    run = read_run(folder)
    assert run.finished
    assert run.final == run.learned == tuple(row[-1] for row in results["scores"])
    parse(render([run]))


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_may_have_a_task_without_a_score(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", extras=False)
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["scores"] = [[*row[:3], *(None for _ in row[3:4]), *row[4:]] for row in results["scores"]]
    path.write_text(json.dumps(results))
    run = read_run(folder)
    assert run.finished
    assert run.final[3] is None
    text = " ".join(parse(render([run])).text)
    assert "teracon learned 6 tasks" in text and "Unfinished" not in text
    assert f"no score of {run.tasks[3]}." in text


def test_odd_values_neither_stop_the_page_nor_become_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    zeros = {"tasks": ["a", "b"], "metrics": ["mrr@5", None], "scores": [[0.0], [0.0, None], [math.nan, 0]], "single_task": [0.0, "x"]}
    (folder / "results.json").write_text(json.dumps({**zeros, "fwt": [None, None], "bwt": [None], "test_examples": [0, -1]}))
    (folder / "timing.json").write_text('{"stages": [{"stage": 1, "task": "a", "seconds": 0.0}, {"seconds": null}, 7]}')
    events = [
        {"event": "stage", "stage": "one"},
        {"event": "stage", "stage": 1, "task": "a"},
        {"event": "step", "stage": 1, "step": 0, "rho": {"a": None, "b": 0.0}},
        {"event": "epoch", "stage": 1, "epoch": 0, "loss": {"class/a": math.inf, "retention/b": 0.0}, "validation": math.nan},
        {"event": "epoch", "stage": 9, "epoch": 5, "loss": {"class/z": 1.0}, "validation": 0.5, "best": True},
        {"event": "masks", "stage": 1, "tasks": ["a", "b"], "similarity": [[1, 0.5], [None]], "histograms": {"a": [], "z": [0, 3]}},
        {"event": "pseudo_labels", "stage": 1, "past": "a"},
        {"event": "unknown"},
        [1],
    ]
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n")
    run = read_run(folder)
    page = render([run, run])
    parse(page)
    assert re.findall(r"\b(?:nan|inf)\b", page) == []
    assert "nan" not in printed(run)


def test_many_tasks_with_long_names(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    names = [f"a rather long name of the task number {k}" for k in range(20)]
    scores = [[0.1 + 0.01 * k for k in range(j + 1)] for j in range(20)]
    results = {"tasks": names, "metrics": ["mrr@5"] * 20, "scores": scores, "bwt": [0.0] * 19 + [None]}
    (folder / "results.json").write_text(json.dumps(results))
    text = " ".join(parse(render([read_run(folder)])).text)
    assert all(name in text for name in names)
