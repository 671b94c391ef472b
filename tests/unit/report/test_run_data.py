"""Reading a run folder: finished, cut off, broken, or none at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import TASKS, make_run

from dist_teracon.errors import DataError, RunError
from dist_teracon.report.html import render, write_report
from dist_teracon.report.run_data import _is_read, read_run
from dist_teracon.report.summary import headline


def test_results_of_the_learned_tasks_alone_take_the_planned_ones_from_the_log(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", stages=2)
    path = folder / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "tasks": results["tasks"][:2], "metrics": results["metrics"][:2]}))
    run = read_run(folder)
    assert run.tasks == tuple(name for name, _, _ in TASKS)
    assert run.metrics[3] == "accuracy"
    assert "2 of 6 tasks" in headline(run)


@pytest.mark.usefixtures("undrawn")
def test_log_lines_written_twice_or_broken(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", stages=2)
    epoch = {"event": "epoch", "stage": 1, "phase": "train", "epoch": 1, "loss": {"class/next": 7.5}, "validation": None, "metric": "mrr@5"}
    with (folder / "events.jsonl").open("a") as file:
        file.write("not json\n" + json.dumps(epoch) + "\n" + '{"event": "epo')
    events = read_run(folder).events
    assert events.unreadable == 1
    again = [entry for entry in events.epochs_of(1) if entry.epoch == 1]
    assert [entry.loss for entry in again] == [{"class/next": 7.5}]
    assert "1 lines could not be read" in render([read_run(folder)])


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        read_run(tmp_path / "missing")
    with pytest.raises(RunError, match="is no run"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="no run folder given"):
        write_report([], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "baselines.json").write_text('{"popularity": [')
    with pytest.raises(DataError, match=r"baselines\.json: not valid JSON"):
        read_run(folder)
    (folder / "baselines.json").unlink()
    (folder / "results.json").write_text('{"format_version": 2}')
    with pytest.raises(RunError, match="format version 2"):
        read_run(folder)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match="not valid YAML"):
        read_run(folder)


@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("results.json", True),
        ("stages/03-star5/scores.parquet", True),
        ("single-task/stages/03-star5/scores.parquet", True),
        ("stages/03-star5/model.safetensors", False),
    ],
)
def test_of_a_run_on_a_store_only_what_reports_read_is_fetched(path: str, read: bool) -> None:
    assert _is_read(path) == read
