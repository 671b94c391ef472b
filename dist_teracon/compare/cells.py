"""Running the cells of a comparison: each a process of its own, so many at a time; what is finished stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from dist_teracon import io
from dist_teracon.compare.plan import Cell
from dist_teracon.config_io import dump_config
from dist_teracon.console import Console
from dist_teracon.errors import RunError


class CellsError(RunError):
    """Some cells of a comparison failed, the others went on; the command exits with code 1."""

    def __init__(self, message: str, problems: dict[str, str]) -> None:
        super().__init__(message)
        self.problems = problems


def is_finished(cell: Cell, out: Path) -> bool:
    """Whether a cell's run has scored its last stage."""
    results = cell.folder(out) / "results.json"
    if not results.exists():
        return False
    value = io.read_json(str(results))
    return len(value["scores"]) == len(value["tasks"])


def run_cells(cells: Sequence[Cell], out: Path, *, parallel: int, console: Console) -> None:
    """Run every cell that is not finished; a failed one does not stop the others.

    Args:
        cells: What to run.
        out: The comparison's folder.
        parallel: Processes at a time, one thread each.
        console: What a person sees.

    Raises:
        CellsError: some did; names them, the last line of each and its log, in `problems` by the cell's name.
    """
    waiting = [cell for cell in cells if not is_finished(cell, out)]
    console.log(f"{len(cells)} cells, {len(cells) - len(waiting)} of them finished; {parallel} at a time")
    failures: dict[str, str] = {}
    running: set[subprocess.Popen[bytes]] = set()
    guard = threading.Lock()
    with ThreadPoolExecutor(max_workers=parallel) as pool:
        futures = {pool.submit(_run_cell, cell, out, running, guard): cell for cell in waiting}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                cell = futures[future]
                problem = future.result()
                outcome = "finished" if problem is None else f"failed: {problem}"
                console.log(f"[{done}/{len(waiting)}] {cell.name}: {outcome}")
                if problem is not None:
                    failures[cell.name] = f"{problem} (log: {_log(cell, out)})"
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with guard:
                for process in running:
                    process.terminate()
            raise
    if failures:
        lines = [f"{len(failures)} of {len(cells)} cells failed; the same command runs them again"]
        raise CellsError("\n".join([*lines, *(f"{name}: {problem}" for name, problem in failures.items())]), failures)


def _log(cell: Cell, out: Path) -> Path:
    return out / "logs" / f"{cell.variant}-seed-{cell.seed}.log"


def _run_cell(cell: Cell, out: Path, running: set[subprocess.Popen[bytes]], guard: threading.Lock) -> str | None:
    """Run one cell to its end; returns the last line of its log if it failed."""
    log, written = _log(cell, out), out / "configs" / f"{cell.variant}-seed-{cell.seed}.yaml"
    log.parent.mkdir(parents=True, exist_ok=True)
    with io.atomic_write(written) as file:
        file.write(dump_config(cell.config).encode())
    command = [sys.executable, "-m", "dist_teracon.cli", "train", str(written), "--run", str(cell.folder(out)), "--no-report"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        with guard:
            running.add(process)
        code = process.wait()
        with guard:
            running.discard(process)
    if code == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"
