"""`dist-teracon compare`: run every cell, write the tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dist_teracon import io
from dist_teracon.compare.cells import is_finished, run_cells
from dist_teracon.compare.plan import read_plan
from dist_teracon.compare.tables import gather, markdown
from dist_teracon.console import Console
from dist_teracon.errors import ConfigError, RunError


def compare(uri: str, out: Path, *, parallel: int | None, console: Console, metrics: Sequence[str] = ()) -> Path:
    """Run a comparison's unfinished cells and write `tables.md` of the seeds that all variants have finished.

    Args:
        uri: The comparison (YAML).
        out: Its folder; `cells/<variant>/seed-<n>` are ordinary runs.
        parallel: Processes at a time; one a core where None.
        console: What a person sees.
        metrics: By which metrics the tables are, in place of the comparison's own.

    Returns:
        The tables' file.

    Raises:
        ConfigError: the comparison or a cell's configuration is wrong, or no run may go at a time.
        RunError: cells failed; the tables of what is there are written all the same.
    """
    if parallel is not None and parallel < 1:
        raise ConfigError(f"--parallel: expected 1 run at a time or more, got {parallel}")
    plan, cells = read_plan(uri, metrics)
    failed: RunError | None = None
    try:
        run_cells(cells, out, parallel=(os.cpu_count() or 1) if parallel is None else parallel, console=console)
    except RunError as error:
        failed = error
    page = out / "tables.md"
    parts = []
    for split in ("validation", "test"):
        comparison = gather(plan, cells, out, finished=lambda cell: is_finished(cell, out), split=split)
        if comparison is not None:
            parts.append(f"# {split}\n\n{markdown(comparison)}")
    with io.atomic_write(page) as file:
        file.write("\n".join(parts).encode())
    if failed is not None:
        raise failed
    return page
