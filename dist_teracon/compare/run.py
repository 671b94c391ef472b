"""`dist-teracon compare`: run every cell, write the tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dist_teracon.atomic import atomic_write
from dist_teracon.compare.cells import CellsError, Runner, is_finished, on_this_machine, run_cells
from dist_teracon.compare.checks import check_cells, check_folder
from dist_teracon.compare.chosen import chosen_tables
from dist_teracon.compare.comparison import gather
from dist_teracon.compare.page import Result, write_page
from dist_teracon.compare.plan import Cell, Plan, read_plan
from dist_teracon.compare.shared_stages import check_others
from dist_teracon.compare.tables import costs_table, markdown, tables_of
from dist_teracon.console import Console, complain
from dist_teracon.errors import ConfigError, RunError, TeraconError
from dist_teracon.store.holder import hold_folder


def compare(
    uri: str, out: Path, *,
    parallel: int | None, console: Console, metrics: Sequence[str] = (), runner: Runner | None = None, begin_with: Sequence[Path] = (),
) -> Path:  # fmt: skip
    """Run a comparison's unfinished cells and write `tables.md` of the seeds that all variants have finished.

    Args:
        uri: The comparison (YAML).
        out: Its folder; `cells/<variant>/seed-<n>` are ordinary runs.
        parallel: Processes at a time; one a core where None. A runner that is given has a number of its own.
        console: What a person sees.
        metrics: By which metrics the tables are, in place of the comparison's own.
        runner: Where cells run; on this machine where None.
        begin_with: Folders of other comparisons: cells take the first stages of their runs, where they are the same.

    Returns:
        The tables' file.

    Raises:
        ConfigError: the comparison or a cell's configuration is wrong, a method cannot learn its tasks, or the folder is another's.
        DataError: a data set is not there; nothing was run.
        RunError: another process is running the comparison.
        CellsError: cells failed; the tables of what is there are written all the same.
    """
    if parallel is not None and parallel < 1:
        raise ConfigError(f"--parallel: expected 1 run at a time or more, got {parallel}")
    plan, cells = read_plan(uri, metrics)
    check_folder(cells, out)
    check_cells(plan, cells, out, where=uri, console=console)
    check_others(begin_with)
    with _held(out):
        return _run_and_write(
            plan, cells, out, runner=runner or on_this_machine(parallel or os.cpu_count() or 1), console=console, begin_with=begin_with
        )


def tables_so_far(uri: str, out: Path, *, console: Console, metrics: Sequence[str] = ()) -> Path:
    """Write the tables of the cells that are finished, also while others run; runs nothing. Arguments and errors as of `compare`.

    Raises:
        RunError: no cell is finished.
    """
    plan, cells = read_plan(uri, metrics)
    check_folder(cells, out)
    finished = sum(is_finished(cell, out) for cell in cells)
    if not finished:
        raise RunError(f"--tables: none of {len(cells)} cells in {out} is finished; leave --tables out to run them")
    check_cells(plan, cells, out, where=uri, console=console)
    console.log(f"{len(cells)} cells, {finished} of them finished")
    return write_tables(plan, cells, out, problems={})


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Hold a comparison's folder, which is made if it is not there: two that write it would mix their configurations, logs and tables."""
    out.mkdir(parents=True, exist_ok=True)

    def busy(holder: str) -> RunError:
        return RunError(f"--out {out}: another process is running this comparison{holder}; wait for it or name another folder")

    with hold_folder(out, busy):
        yield


def _run_and_write(
    plan: Plan, cells: Sequence[Cell], out: Path, *, runner: Runner, console: Console, begin_with: Sequence[Path]
) -> Path:  # fmt: skip
    failed: CellsError | None = None
    try:
        run_cells(cells, out, runner=runner, console=console, begin_with=begin_with)
    except CellsError as error:
        failed = error
    page = write_tables(plan, cells, out, problems={} if failed is None else failed.problems)
    if failed is not None:
        raise failed
    return page


def write_tables(plan: Plan, cells: Sequence[Cell], out: Path, *, problems: Mapping[str, str]) -> Path:
    """Write `tables.md` and `report.html` of the cells that are finished, with a list of those that are not.

    Where a library for the page is missing, the page is left out, which is told; that of an earlier call is removed, its scores are older.

    Args:
        plan: The comparison.
        cells: All of its cells.
        out: Its folder.
        problems: Why a cell failed, by its name.
    """
    finished = {cell.name for cell in cells if is_finished(cell, out)}
    found = {split: gather(plan, cells, out, finished=lambda cell: cell.name in finished, split=split) for split in ("validation", "test")}
    validation, test = found["validation"], found["test"]
    result = Result(
        plan=plan,
        cells=len(cells),
        splits={split: (comparison, tables_of(comparison)) for split, comparison in found.items() if comparison is not None},
        chosen=[] if validation is None or test is None or plan.experiment else chosen_tables(validation, test),
        costs=None if test is None else costs_table(test),
        unfinished={cell.name: problems.get(cell.name, "not run to its end") for cell in cells if cell.name not in finished},
    )
    page = out / "tables.md"
    with atomic_write(page) as file:
        file.write(_markdown(result).encode())
    try:
        write_page(result, out / "report.html")
    except TeraconError as error:
        (out / "report.html").unlink(missing_ok=True)
        complain(f"warning: the tables are whole, the page is left out: {error}")
    return page


def _markdown(result: Result) -> str:
    parts = [f"# {split}\n\n{markdown(comparison, tables)}" for split, (comparison, tables) in result.splits.items()]
    if result.chosen:
        parts.append("# chosen on validation\n\n" + "\n\n".join(table.markdown() for table in result.chosen) + "\n")
    if result.costs is not None:
        parts.append(f"# costs\n\n{result.costs.markdown()}\n")
    if result.unfinished:
        lines = [f"- {name}: {problem}\n" for name, problem in result.unfinished.items()]
        parts.append(f"# unfinished\n\n{len(result.unfinished)} of {result.cells} cells:\n\n{''.join(lines)}")
    return "\n".join(parts)
