"""`dist-teracon bench replay` runs and prints what it measured; its times are not asserted."""

from __future__ import annotations

from pathlib import Path

from small_runs import run_command


def test_rows_follow_the_number_of_tasks_on_a_floor_and_not_on_a_budget(tmp_path: Path) -> None:
    size = ["--tasks", "3", "5", "--users", "120", "--items", "30", "--length", "6", "--channels", "8", "--batch", "16", "--repeats", "1"]
    done = run_command(["bench", "replay", *size, "--minimum", "4", "--budget", "0.5", "--tasks-per-step", "1"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith(("| 3 |", "| 5 |"))]
    assert [(row[0], row[1], row[2]) for row in cells] == [
        ("3", "none", "0"), ("3", "at least 4 rows a task", "8"), ("3", "budget 0.5", "8"),
        ("3", "budget 0.5, 1 task a step", "8"),
        ("5", "none", "0"), ("5", "at least 4 rows a task", "16"), ("5", "budget 0.5", "8"),
        ("5", "budget 0.5, 1 task a step", "8"),
    ]  # fmt: skip
    assert all(float(row[3]) > 0 for row in cells)
    assert all((float(row[5]) > 0) == (row[1] != "none") for row in cells)
