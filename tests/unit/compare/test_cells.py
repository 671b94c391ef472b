"""The order in which cells of a comparison are started."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dist_teracon.compare.cells import CellJob, on_this_machine, take_next
from dist_teracon.compare.shared_stages import Donor

TASKS = ("next", "likes")


def finish(run: Path, stages: int) -> None:
    """Give a run so many finished stages."""
    from dist_teracon.train.run_folder import RunFolder

    for number, task in enumerate(TASKS[:stages]):
        path = RunFolder(run).stage(number, task).path
        path.mkdir(parents=True)
        (path / "state.json").write_text("{}")
    assert RunFolder(run).finished_stages(TASKS) == stages


@pytest.fixture
def jobs(tmp_path: Path) -> list[CellJob]:
    """Of two methods two rates each, whose first stage is the same."""

    def job(name: str, other: str) -> CellJob:
        donor = Donor(tmp_path / other, TASKS, 1)
        return CellJob(name, tmp_path / f"{name}.yaml", tmp_path / name, tmp_path / f"{name}.log", tmp_path, {}, (donor,))

    return [job("a-slow", "a-fast"), job("a-fast", "a-slow"), job("b-slow", "b-fast"), job("b-fast", "b-slow")]


def names(jobs: list[CellJob]) -> list[str]:
    return [job.name for job in jobs]


def test_a_cell_waits_for_a_stage_that_another_one_trains(jobs: list[CellJob], tmp_path: Path) -> None:
    running: list[Path] = []
    for expected in ("a-slow", "b-slow"):
        job = take_next(jobs, running)
        assert job.name == expected
        running.append(job.run)
    assert names(jobs) == ["a-fast", "b-fast"]
    # the stage is there, though the run goes on
    finish(tmp_path / "b-slow", 1)
    assert take_next(jobs, running).name == "b-fast"
    # a place that is free is used, be it for a stage that is trained twice
    assert take_next(jobs, running).name == "a-fast"
    assert not jobs


def test_cells_that_have_begun_or_whose_others_do_not_run_go_first_to_last(jobs: list[CellJob], tmp_path: Path) -> None:
    running = [jobs[0].run]
    assert jobs[1].repeats(running) and not jobs[1].repeats([])
    jobs[1].run.mkdir()
    (jobs[1].run / "config.yaml").write_text("")
    assert not jobs[1].repeats(running)
    assert [take_next(jobs[1:], running).name for _ in range(2)] == ["a-fast", "a-fast"]


def test_what_a_third_cell_has_finished_is_not_waited_for(jobs: list[CellJob], tmp_path: Path) -> None:
    third = Donor(tmp_path / "elsewhere", TASKS, 1)
    job = CellJob("a-fast", *[tmp_path] * 4, {}, (*jobs[1].donors, third))
    assert job.repeats([jobs[0].run])
    finish(tmp_path / "elsewhere", 1)
    assert not job.repeats([jobs[0].run])


def test_closed_early_no_further_cell_is_started(jobs: list[CellJob], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def start(job: CellJob) -> subprocess.Popen[bytes]:
        started.append(job.name)
        return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({0 if job.name == 'a-slow' else 60})"])

    monkeypatch.setattr(CellJob, "start", start)
    with closing(on_this_machine(2)(jobs)) as ended:
        assert next(ended)[0].name == "a-slow"
    # the third may have been started when the first ended, and was ended with the second
    assert started[:2] == ["a-slow", "b-slow"] and len(started) <= 3
