"""Running the cells of a comparison: each a process of its own, so many at a time; what is finished stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_teracon import io
from dist_teracon.atomic import atomic_write
from dist_teracon.compare.plan import Cell
from dist_teracon.compare.shared_stages import Donor, donors_of
from dist_teracon.config_io import dump_config
from dist_teracon.console import Console
from dist_teracon.errors import RunError
from dist_teracon.store.holder import hold_folder

# How long the cells of a comparison that was killed have for their last checkpoint.
_GRACE_S = 60.0


class CellsError(RunError):
    """Some cells of a comparison failed, the others went on; the command exits with code 1."""

    def __init__(self, message: str, problems: dict[str, str]) -> None:
        super().__init__(message)
        self.problems = problems


def is_finished(cell: Cell, out: Path) -> bool:
    """Whether a cell's run has scored its last stage."""
    value = results_of(cell, out)
    return value is not None and len(value["scores"]) == len(value["tasks"])


def results_of(cell: Cell, out: Path) -> dict[str, Any] | None:
    """Return what a cell's run has scored so far; None where it has not.

    Raises:
        RunError: the file is not one of a run.
    """
    path = cell.folder(out) / "results.json"
    if not path.exists():
        return None
    value = io.read_json(str(path))
    if not isinstance(value, dict) or not {"tasks", "scores", "metrics", "scores_by_metric"} <= value.keys():
        raise RunError(f"{path}: is no results of a run; was it changed? remove it, and the same command writes it anew")
    return value


@dataclass(frozen=True)
class CellJob:
    """A cell as a process to start, on any machine that sees the comparison's folder.

    Attributes:
        name: The cell in messages.
        config: Its configuration, written.
        run: Its run folder.
        log: Where its output goes.
        cwd: Where relative paths of the configuration begin.
        environment: Variables that it has beside those of the process that starts it.
        donors: Runs that it may begin with.
    """

    name: str
    config: Path
    run: Path
    log: Path
    cwd: Path
    environment: dict[str, str]
    donors: tuple[Donor, ...] = ()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the cell's process, which goes on where it was; it ends with the one that started it, however that one ends."""
        options = ["--run", str(self.run), "--no-report", "--end-with-input"]
        command = [sys.executable, "-m", "dist_teracon.cli", "train", str(self.config), *options]
        if not (self.run / "config.yaml").exists() and self.donors:
            stages, donor = max(((donor.ready(), donor) for donor in self.donors), key=lambda ready: ready[0])
            command += ["--begin-with", str(donor.run)] if stages else []
        with self.log.open("ab") as output:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment}, cwd=self.cwd,
            )  # fmt: skip

    def repeats(self, running: Collection[Path]) -> bool:
        """Whether, started now, it would train a stage that a cell which runs, one of these folders, will soon have."""
        busy = [donor for donor in self.donors if donor.run in running]
        if not busy or (self.run / "config.yaml").exists():
            return False
        ready = max(donor.ready() for donor in self.donors)
        return any(donor.stages > ready for donor in busy)

    def problem(self, code: int) -> str | None:
        """Return the last line of the log of a process that has ended; None for one that has finished the cell."""
        if code == 0:
            return None
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"


def take_next(waiting: list[CellJob], running: Collection[Path]) -> CellJob:
    """Take the job to start beside cells that run, their folders: the first that repeats nothing of theirs, or else the first."""
    place = next((place for place, job in enumerate(waiting) if not job.repeats(running)), 0)
    return waiting.pop(place)


# Runs jobs, and yields each with its problem, or None, as it ends; closed early, it ends those that are running.
Runner = Callable[[Sequence[CellJob]], Generator[tuple[CellJob, str | None], None, None]]


def run_cells(cells: Sequence[Cell], out: Path, *, runner: Runner, console: Console, begin_with: Sequence[Path] = ()) -> None:
    """Run every cell that is not finished; a failed one does not stop the others.

    Args:
        cells: What to run.
        out: The comparison's folder.
        runner: Where they run, and how many at a time.
        console: What a person sees.
        begin_with: Folders of other comparisons, whose runs cells may begin with too.

    Raises:
        CellsError: some did; names them, the last line of each and its log, in `problems` by the cell's name.
    """
    waiting = [cell for cell in cells if not is_finished(cell, out)]
    console.log(f"{len(cells)} cells, {len(cells) - len(waiting)} of them finished")
    failures: dict[str, str] = {}
    if waiting:
        _wait_for_the_killed([cell.folder(out) for cell in waiting], console)
        donors = donors_of(cells, out, begin_with)
        with closing(runner([_job(cell, out, donors.get(cell.name, ())) for cell in waiting])) as ended:
            for done, (job, problem) in enumerate(ended, start=1):
                outcome = "finished" if problem is None else f"failed: {problem}"
                console.log(f"[{done}/{len(waiting)}] {job.name}: {outcome}")
                if problem is not None:
                    failures[job.name] = f"{problem} (log: {job.log})"
    if failures:
        lines = [f"{len(failures)} of {len(cells)} cells failed; the same command runs them again"]
        raise CellsError("\n".join([*lines, *(f"{name}: {problem}" for name, problem in failures.items())]), failures)


def _wait_for_the_killed(runs: Sequence[Path], console: Console) -> None:
    """Wait for cells of a comparison that was killed: each writes a checkpoint yet. One that goes on is told when it is started here."""
    until, told = time.monotonic() + _GRACE_S, False
    for run in runs:
        while (run / ".lock").exists() and _is_held(run) and time.monotonic() < until:
            if not told:
                console.log("cells of a comparison that was killed write their checkpoints; waiting for them")
                told = True
            time.sleep(0.2)


def _is_held(run: Path) -> bool:
    try:
        with hold_folder(run, lambda _: RunError("held")):
            return False
    except RunError:
        return True


def _job(cell: Cell, out: Path, donors: tuple[Donor, ...]) -> CellJob:
    """Write a cell's configuration."""
    name, out = f"{cell.variant}-seed-{cell.seed}", out.absolute()
    config, log = out / "configs" / f"{name}.yaml", out / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(config) as file:
        file.write(dump_config(cell.config).encode())
    own = {name: value for name, value in os.environ.items() if name.startswith("DIST_TERACON_")}
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return CellJob(cell.name, config, cell.folder(out), log, Path.cwd(), {**own, **threads}, donors)


def on_this_machine(parallel: int) -> Runner:
    """Return the runner of processes of this machine, so many at a time, of one thread each."""

    def run(jobs: Sequence[CellJob]) -> Generator[tuple[CellJob, str | None], None, None]:
        waiting, running = list(jobs), dict[Path, subprocess.Popen[bytes]]()
        guard = threading.Lock()

        def one() -> tuple[CellJob, str | None]:
            with guard:
                if not waiting:  # closed meanwhile
                    raise CancelledError
                job = take_next(waiting, running)
                process = running[job.run] = job.start()
            with process:
                code = process.wait()
            with guard:
                del running[job.run]
            return job, job.problem(code)

        with ThreadPoolExecutor(max_workers=parallel) as pool:
            futures = [pool.submit(one) for _ in jobs]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                with guard:
                    waiting.clear()
                    for process in running.values():
                        process.terminate()
                raise

    return run
