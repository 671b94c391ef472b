"""The tables of a report as files: the same numbers, for programs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import make_run

from dist_teracon import cli
from dist_teracon.errors import RunError
from dist_teracon.report.export import write_tables
from dist_teracon.report.run_data import read_run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_of_two_runs_hold_what_the_runs_hold(tmp_path: Path) -> None:
    names = ("next", '쇼핑, "대분류"\n둘째 줄', "c", "d", "e", "f")
    runs = [read_run(make_run(tmp_path / f"seed-{seed}", names=names, seed=seed)) for seed in (0, 1)]
    tasks, stages, whole = write_tables(runs, tmp_path / "both.html")
    assert [path.name for path in (tasks, stages, whole)] == ["both.csv", "both.stages.csv", "both.json"]
    by_task = rows_of(tasks)
    assert [(row["run"], row["task"]) for row in by_task] == [(f"seed-{seed}", name) for seed in (0, 1) for name in names]
    for row, run, i in zip(by_task, [runs[0]] * 6 + [runs[1]] * 6, [*range(6)] * 2, strict=True):
        for column, value in (("learned", run.learned[i]), ("final", run.final[i]), ("bwt_percent", run.bwt[i])):
            assert float(row[column] or "nan") == pytest.approx(float("nan") if value is None else value, nan_ok=True)
        assert row["bwt_error"] == ("" if run.bwt_error[i] is None else str(run.bwt_error[i]))
    by_stage = rows_of(stages)
    selecting = [row for row in by_stage if row["selects"] == "true" and row["run"] == "seed-0"]
    assert [float(row["score"]) for row in selecting] == [value for row in runs[0].scores for value in row if value is not None]
    assert len(by_stage) == 2 * 2 * 21  # two metrics a task, of two runs
    value = json.loads(whole.read_text(encoding="utf-8"))
    assert value["format_version"] == 1
    assert [entry["run"] for entry in value["runs"]] == ["seed-0", "seed-1"]
    assert value["runs"][0]["tasks"][1]["task"] == names[1]
    assert value["runs"][0]["tasks"][0]["final"] == runs[0].final[0]
    assert [entry["score"] for entry in value["runs"][1]["scores"] if entry["selects"]][-1] == runs[1].final[-1]


@pytest.mark.parametrize("page", ["results.html", "dataset", "config.yaml"])
def test_no_file_of_a_run_is_replaced(tmp_path: Path, page: str) -> None:
    folder = make_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(RunError, match=r"would replace .*, a file of the run or data set itself"):
        write_tables([read_run(folder)], folder / page)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    write_tables([read_run(folder)], tmp_path / page)


def test_a_run_that_has_only_begun_has_heads_without_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "events.jsonl").write_text('{"event":"run","method":"teracon","seed":3,"tasks":["next","age"],"time":1}\n')
    tasks, stages, _ = write_tables([read_run(folder)], folder / "report.html")
    assert [row["final"] for row in rows_of(tasks)] == ["", ""]
    assert stages.read_text().startswith("run,method,seed,stage,after,number,task,metric,selects,score,error")
    assert rows_of(stages) == []


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_page_and_tables_and_quiet_prints_the_last_line_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    assert cli.main(["report", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        f"tables: {folder / 'report.csv'}, {folder / 'report.stages.csv'}, {folder / 'report.json'}",
        f"report: {folder / 'report.html'}",
    ]
    assert any("star4" in line for line in lines)
    assert cli.main(["report", str(folder), "--quiet", "--out", str(tmp_path / "other.html")]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'other.html'}\n"
    assert (tmp_path / "other.csv").read_bytes() == (folder / "report.csv").read_bytes()


def test_page_and_tables_are_written_where_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        ended = subprocess.run([sys.executable, "-m", "dist_teracon", "report", str(folder)], stdout=theirs, check=False)
    finally:
        os.close(theirs)
    assert ended.returncode == 141
    assert (folder / "report.html").is_file()
    assert (folder / "report.csv").is_file()
