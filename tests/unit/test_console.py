"""What a person sees while a job runs: on a terminal, in a log, and with --quiet."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from dist_teracon.console import Outlook, bar_line
from dist_teracon.text import cells

LONG = "stage 3/6 쇼핑 대분류 · epoch 4: loss 3.6872, validation mrr@5 0.1206 (best), 0.7\u00a0s"
JOB = f"""
import time
from dist_teracon import console as c
c._BAR_INTERVAL_S = c._PLAIN_INTERVAL_S = 0.0
console = c.Console(quiet=QUIET)
console.outlook = c.Outlook([4, 4], clock=lambda: 30.0 if started else 0.0) if OUTLOOK else None
started = True
console.log({LONG!r})
for item in console.track(iter(range(3)), 3, "쇼핑 대분류, a rather long description of the loop that goes on"):
    console.advance(item + 0.5)
console.update("reading", 1, 4)
console.update("reading", 4, 4)
console.log("warning: a checkpoint is damaged")
c.complain("error: no such run")
c.print_lines([{LONG!r}])
"""


def job(*, quiet: bool = False, outlook: bool = False) -> str:
    """Return the program of the tests: a line, a loop, an update, a warning, an error, a result."""
    return "started = False" + JOB.replace("QUIET", str(quiet)).replace("OUTLOOK", str(outlook))


def on_terminal(code: str, columns: int) -> str:
    """Return what a program prints on a terminal."""
    main, side = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns)}
    with subprocess.Popen([sys.executable, "-c", code], stdin=side, stdout=side, stderr=side, env=environment) as process:
        os.close(side)
        parts = []
        while True:
            try:
                part = os.read(main, 65536)
            except OSError:  # how a terminal says that nobody holds its other side
                break
            if not part:
                break
            parts.append(part)
        assert process.wait() == 0
    os.close(main)
    return b"".join(parts).decode()


def elsewhere(code: str) -> tuple[list[str], list[str]]:
    """Return what a program prints to standard output and to standard error, by lines."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.parametrize("columns", [80, 40])
def test_nothing_on_a_terminal_is_wider_than_it_and_no_number_is_cut(columns: int) -> None:
    output = on_terminal(job(outlook=True), columns)
    pieces = [piece for piece in re.split(r"\r\x1b\[K|\r?\n", output) if piece]
    assert max(map(cells, pieces)) <= columns
    for number in ("3.6872,", "0.1206", "0.7\u00a0s"):
        assert sum(number in piece for piece in pieces) == 2
    assert any("1/3" in piece for piece in pieces)
    assert any(re.match(r"run \d+%, about \d+\u00a0min", piece) for piece in pieces)
    assert output.rstrip().endswith("0.7\u00a0s")


def test_a_terminal_line_makes_room_for_an_error() -> None:
    output = on_terminal(job(), 80)
    assert "\r\x1b[Kdist-teracon: error: no such run\r\n" in output


def test_lines_of_a_log_have_the_time_and_are_whole() -> None:
    out, lines = elsewhere(job(outlook=True))
    stamp = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d "
    assert re.fullmatch(stamp + re.escape(LONG), lines[0])
    assert re.fullmatch(stamp + r"쇼핑.*goes on: 1/3, .*; run 6%, about 7\u00a0min\u00a030\u00a0s left", lines[1])
    assert re.fullmatch(stamp + "warning: a checkpoint is damaged", lines[-2])
    assert lines[-1] == "dist-teracon: error: no such run"
    assert out == [LONG]


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_leaves_warnings_errors_and_results(terminal: bool) -> None:
    code = job(quiet=True, outlook=True)
    if terminal:
        lines = [line.replace("\r\x1b[K", "") for line in on_terminal(code, 200).replace("\r\n", "\n").strip().split("\n")]
    else:
        out, lines = elsewhere(code)
        lines = [re.sub(r"^20\S+ \S+ ", "", line) for line in lines] + out
    assert lines == ["warning: a checkpoint is damaged", "dist-teracon: error: no such run", LONG]


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_outlook_counts_all_epochs_before_a_stage_is_finished() -> None:
    clock = Clock()
    outlook = Outlook([4, 10], clock=clock)
    assert outlook.now() == (0.0, None)
    outlook.at(0.5)
    clock.now += 20
    outlook.at(2.0)
    share, left = outlook.now()
    assert share == pytest.approx(2 / 14)
    assert left == pytest.approx(12 * 10.0)


def test_the_outlook_learns_from_finished_stages_where_early_stopping_ends_them() -> None:
    clock = Clock()
    # the first stage took all of its epochs at 10 s each, the second a fifth of its own at 5 s each
    outlook = Outlook([4, 10, 20], [(4, 40.0), (2, 10.0)], clock=clock)
    share, left = outlook.now()
    assert share == pytest.approx(6 / (6 + 4))
    assert left == pytest.approx(4 * 5.0)
    outlook.at(0.5)
    clock.now += 12
    outlook.at(3.0)
    share, left = outlook.now()
    assert share == pytest.approx(9 / (9 + 1))
    assert left == pytest.approx(4.0)


def test_a_stage_that_takes_longer_than_expected_has_an_epoch_left_until_its_last() -> None:
    clock = Clock()
    outlook = Outlook([2, 10, 10], [(2, 2.0), (1, 1.0)], clock=clock)
    outlook.at(0.5)
    clock.now += 5
    outlook.at(5.0)
    assert outlook.now() == (pytest.approx(8 / 9), pytest.approx(1.0))
    outlook.at(10.0)
    assert outlook.now() == (0.99, None)
    outlook.end_stage(10)
    assert outlook.now() == (1.0, None)


def test_a_stage_that_goes_on_after_a_kill_is_timed_from_there() -> None:
    clock = Clock()
    outlook = Outlook([10], clock=clock)
    clock.now += 3
    outlook.at(6.5)
    clock.now += 3
    outlook.at(8.0)
    assert outlook.now() == (pytest.approx(0.8), pytest.approx(2 * 3.0))


@pytest.mark.parametrize("width", [20, 40, 79, 200])
def test_a_bar_keeps_its_numbers_at_any_width(width: int) -> None:
    line = bar_line("run 38%", "stage 3/6 쇼핑 대분류 · epoch 4", "12/40", 0.5, width)
    assert cells(line) <= width
    assert "run 38%" in line
    assert "12/40" in line
