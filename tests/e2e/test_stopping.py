"""SIGTERM and SIGINT: the step is finished, the state saved, and the same command ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import events, run_worlds, settings, timeless, what_lasts

from dist_teracon.train.stopping import StopSignals, stop_signals


@pytest.fixture(scope="module")
def config(small: str) -> dict[str, Any]:
    return settings(small, tasks=("next", "likes"), checkpoint_every={"minutes": None, "steps": None})


@pytest.fixture(scope="module")
def runs(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[list[int]]]]:
    """Runs that were stopped, and undisturbed ones; with the exit codes of each command."""
    folder = tmp_path_factory.mktemp("stopped")
    one = {"config": config, "run": str(folder / "one")}
    two = {"config": {**config, "train": {**config["train"], "zero": 2}}, "run": str(folder / "two"), "world": 2}
    jobs = [
        {**one, "run": str(folder / "whole-one")},
        {**two, "run": str(folder / "whole-two"), "spared": "torch._dynamo"},  # seconds of the start, for nothing
        {**one, "moment": "SIGTERM:2:5"},
        {**one, "moment": "SIGINT:2:3"},
        one,
        {**two, "moment": "SIGTERM:2:5"},  # one of the two gets it
        two,
    ]
    codes = run_worlds(jobs, folder)
    return folder, {"one": codes[2:5], "two": codes[5:]}


def test_the_exit_codes_are_those_of_the_signals(runs: tuple[Path, dict[str, list[list[int]]]]) -> None:
    assert runs[1] == {"one": [[143], [130], [0]], "two": [[143, 143], [0, 0]]}


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_stopped_run_ends_bit_for_bit_as_undisturbed(runs: tuple[Path, dict[str, list[list[int]]]], name: str) -> None:
    stopped, whole = runs[0] / name, runs[0] / f"whole-{name}"
    assert what_lasts(stopped) == what_lasts(whole)
    assert [timeless(event) for event in events(stopped)] == [timeless(event) for event in events(whole)]


def test_the_state_after_the_step_is_kept(config: dict[str, Any], tmp_path: Path) -> None:
    run_worlds([{"config": config, "run": str(tmp_path / "run"), "moment": "SIGTERM:2:5"}], tmp_path)
    (checkpoint,) = (tmp_path / "run/stages/02-likes/progress").iterdir()
    assert checkpoint.name == "phase-0-epoch-00000-step-00000005"


@pytest.fixture
def taken() -> Iterator[None]:
    """Have this process take SIGINT and SIGHUP, which it may have been started to ignore: in the background of a shell, by `nohup`."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("taken")
def test_where_nothing_is_to_be_saved_a_signal_ends_the_run_at_once() -> None:
    with stop_signals(says=False), pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    with stop_signals(says=False), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("taken")
def test_a_terminal_that_closes_stops_a_run_as_sigterm_does_however_often_it_says_so() -> None:
    with stop_signals(says=False) as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == signal.SIGHUP
    with pytest.raises(SystemExit) as ended:
        stop.stop(signal.SIGHUP)
    assert ended.value.code == 129


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_signals(says=False) as stop:
            os.kill(os.getpid(), number)
            assert not stop.received
    finally:
        signal.signal(number, before)


def test_handlers_are_given_back_and_other_threads_leave_them_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals(says=False) as stop:
        assert signal.getsignal(signal.SIGTERM) == stop.handle
    assert signal.getsignal(signal.SIGTERM) == before
    seen: list[Any] = []

    def elsewhere() -> None:
        with stop_signals() as stop:
            seen.extend([isinstance(stop, StopSignals), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [True, before]


def test_a_second_signal_does_not_wait() -> None:
    code = (
        "import os, signal, time\n"
        "from dist_teracon.train.stopping import stop_signals\n"
        "with stop_signals() as stop, stop.deferred():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(stop.received, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "15\n")
    assert "SIGTERM: stopping after this step and its checkpoint" in ended.stderr
