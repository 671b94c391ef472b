"""The commands on runs: `train`, `report`, `verify`, `replay`; each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_teracon.cli.arguments import AddCommand, add_quiet, as_count, as_path, as_place
from dist_teracon.console import Console, complain, print_lines
from dist_teracon.errors import ConfigError, TeraconError

if TYPE_CHECKING:
    from dist_teracon.config.run import RunConfig
    from dist_teracon.launch.job import TrainJob
    from dist_teracon.report.run_data import RunData

# What each command is for, as `dist-teracon --help` lists them.
TRAIN = {
    "train": "learn the tasks in order; the same command again resumes",
    "pseudo-label": "make a stage's pseudo-labels ahead of its training",
}
RESULTS = {
    "report": "print a run's table and write its page, report.html",
    "verify": "check every file of a run or of a data set for damage",
    "replay": "find where a NaN or Inf began, by the batch that a run kept",
}


def add_train(add: AddCommand) -> None:
    """Add `train` and `pseudo-label` to the command line."""
    train = add("train", _train)
    train.usage = "%(prog)s CONFIG --run RUN [options]\n       %(prog)s CONFIG --dry-run [options]"
    add_train_options(train)
    train.add_argument("--end-with-input", action="store_true", help="stop, as after SIGTERM, when standard input ends")
    labels = add("pseudo-label", _pseudo_label)
    labels.add_argument("run", metavar="RUN", type=as_place, help="the run's folder, or its URI on a store")
    labels.add_argument("--stage", type=as_count, required=True, help="whose past tasks; the stage before it is finished")
    labels.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as launch.workers=8; no field that a result depends on"
    )
    labels.add_argument(
        "--launcher", choices=("local", "ray"), default="local", help="ray: on a Ray cluster, on CPUs or GPUs (launch.gpus_per_worker)"
    )
    add_quiet(labels)


def add_train_options(train: argparse.ArgumentParser) -> None:
    """Add the options of `train`, which launchers share."""
    train.add_argument("config", metavar="CONFIG", help="run configuration: a YAML file, or the name of a shipped one, as ml-100k")
    train.add_argument("--run", type=as_place, help="folder of the run, or its URI on a store, as s3://bucket/run")
    train.add_argument(
        "--scratch", metavar="DIR", help="where a run on a store is written on this machine (default: DIST_TERACON_SCRATCH, or temporary)"
    )
    train.add_argument("--dry-run", action="store_true", help="print steps, parameters, memory and time of the run; train nothing")
    train.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field, as model.channels=64")
    train.add_argument(
        "--launcher", choices=("local", "ray"), default="local", help="ray: on a Ray cluster (RAY_ADDRESS), or Ray on this machine"
    )
    train.add_argument("--until-stage", type=as_count, metavar="N", help="stop when stage N is finished; without it the run goes on")
    train.add_argument(
        "--begin-with", metavar="RUN", help="take the first stages from this run, as far as they are the same; the others are trained"
    )
    train.add_argument("--with-single-task", action="store_true", help="train every task alone too, for forward transfer")
    train.add_argument(
        "--add-task", metavar="NAME", help="one more stage on a finished run; the data set may be a version made by --append"
    )
    train.add_argument(
        "--new-items", choices=("unseen", "neighbours", "text"), default="unseen", help="with --add-task: what new items start as"
    )
    train.add_argument("--item-vectors", metavar="FILE", help="with --new-items text: Parquet with the columns item and vector")
    train.add_argument("--no-report", action="store_true", help="leave out table and page at the end")
    volume = train.add_mutually_exclusive_group()
    volume.add_argument("--verbose", action="store_true", help="log more of what is chosen and why")
    add_quiet(volume)


def _train(options: argparse.Namespace) -> int:
    from dist_teracon.config_io import load_config
    from dist_teracon.console import set_up_logging

    if (Path(options.config) / "dataset.json").is_file():
        raise ConfigError(
            f"{options.config}: is a data set; train takes a configuration (YAML) that names it, as "
            f"configs/ml-100k.yaml --set dataset={options.config}"
        )
    config = load_config(options.config, options.set)
    if options.dry_run:
        _dry_run(config, options)
        return 0
    if options.run is None:
        raise ConfigError("train: expected the folder of the run, as --run runs/first (or --dry-run, which needs none)")
    if isinstance(options.run, Path):
        from dist_teracon import io

        io.output_folder(str(options.run))
    if options.add_task is None and (options.new_items != "unseen" or options.item_vectors is not None):
        raise ConfigError("--new-items and --item-vectors say what a task's new items start as; they go with --add-task NAME")
    set_up_logging(verbose=options.verbose)
    if options.scratch is not None:
        os.environ["DIST_TERACON_SCRATCH"] = str(Path(options.scratch).expanduser().absolute())
    from dist_teracon.launch.job import TrainJob, train_in_process
    from dist_teracon.train.add_task import AddedTask
    from dist_teracon.train.stopping import end_with_input

    if options.end_with_input:
        end_with_input()
    added = None if options.add_task is None else AddedTask(options.add_task, options.new_items, options.item_vectors)
    job = TrainJob(
        config, options.run, options.config,
        with_single_task=options.with_single_task, added=added, verbose=options.verbose, quiet=options.quiet,
        until_stage=options.until_stage, begins_with=options.begin_with,
    )  # fmt: skip
    if options.launcher == "ray":
        if status := _on_ray(job):
            return status
    elif not train_in_process(job):
        return 0
    if not options.no_report:
        _show([options.run], None, quiet=options.quiet)
    return 0


def _on_ray(job: TrainJob) -> int:
    from dist_teracon.launch.ray_train import WorkersError, train_on_ray

    try:
        train_on_ray(job, Console(quiet=job.quiet))
    except WorkersError as error:
        complain(f"error: {error}")
        return 1
    return 0


def _pseudo_label(options: argparse.Namespace) -> int:
    from dist_teracon.console import set_up_logging
    from dist_teracon.launch.job import TrainJob, train_in_process
    from dist_teracon.train.label_job import config_of_run

    set_up_logging(verbose=False)
    config = config_of_run(options.run, options.set)
    job = TrainJob(config, options.run, str(options.run), quiet=options.quiet, labels_of=options.stage)
    if options.launcher == "ray":
        return _on_ray(job)
    train_in_process(job)
    return 0


def _dry_run(config: RunConfig, options: argparse.Namespace) -> None:
    if options.add_task is not None or options.with_single_task or options.begin_with is not None:
        raise ConfigError("--dry-run: plans the stages of CONFIG alone; leave --add-task, --with-single-task and --begin-with out")
    if options.launcher != "local":
        raise ConfigError("--dry-run: plans for this machine; leave --launcher out (torchrun plans for its processes)")
    from dist_teracon.console import set_up_logging

    set_up_logging(verbose=options.verbose)
    from dist_teracon.runtime import process_group
    from dist_teracon.train.dry_run import dry_run, dry_run_lines

    with process_group() as runtime:
        console = Console(active=runtime.is_main, quiet=options.quiet)
        plan = dry_run(config, runtime, where=options.config, console=console, until_stage=options.until_stage)
        if runtime.is_main:
            print("\n".join(dry_run_lines(plan)))


def add_results(add: AddCommand) -> None:
    """Add `report`, `verify` and `replay` to the command line."""
    report = add("report", _report)
    report.add_argument("runs", nargs="+", type=as_place, metavar="RUN", help="run folders or URIs; the first in full, all side by side")
    report.add_argument(
        "--out", type=as_path, help="the page (default: report.html in the first run); its tables as CSV and JSON lie beside it"
    )
    add_quiet(report)
    verify = add("verify", _verify)
    verify.add_argument(
        "paths", nargs="+", metavar="PATH", help="runs and data sets, folders or URIs; exits with 1 where a file is damaged"
    )
    replay = add("replay", _replay)
    replay.add_argument("file", metavar="FILE", help="a batch in the run's folder failures, which the run's error names")
    replay.add_argument("--run", metavar="RUN", help="the run, where the file lies elsewhere by now")
    add_quiet(replay)


def _report(options: argparse.Namespace) -> None:
    _show(options.runs, options.out, quiet=options.quiet)


def _verify(options: argparse.Namespace) -> int:
    from dist_teracon.train.verify import verify

    damaged = 0
    for path in options.paths:
        checked = list(verify(path))
        problems = [(name, problem) for name, problem in checked if problem]
        for name, problem in problems:
            print(f"{name}: {problem.removeprefix(f'{name}: ')}")
        print(f"{path}: {len(checked)} files checked, {len(problems)} damaged")
        damaged += len(problems)
    return int(damaged > 0)


def _replay(options: argparse.Namespace) -> int:
    from dist_teracon.console import set_up_logging

    set_up_logging(verbose=False)
    from dist_teracon.runtime import process_group
    from dist_teracon.train.replay import finding_lines, replay

    with process_group() as runtime:
        failure, found = replay(options.file, runtime, run=options.run, console=Console(quiet=options.quiet))
    print_lines(finding_lines(failure, found))
    return 0 if found.found else 1


def _show(runs: Sequence[Path | str], page: Path | None, *, quiet: bool) -> None:
    """Write the page and the tables of all runs, by default into the first one, also on a store; then print the first run's table.

    In this order, since nobody may read what is printed: `train … | head` ends with the first line that finds no reader.
    """
    from dist_teracon import io
    from dist_teracon.report.run_data import read_run
    from dist_teracon.report.table import print_scores

    known = [read_run(run) for run in runs]
    first = runs[0]
    if page is None and isinstance(first, str):

        def upload(path: Path) -> str:
            uri = io.join(first, path.name)
            io.put(path, uri)
            return uri

        with tempfile.TemporaryDirectory() as folder:
            tables, written = _write_page(known, Path(folder) / "report.html", put=upload)
    else:
        tables, written = _write_page(known, page or Path(first) / "report.html", put=str)
    if not quiet:
        print_scores(known[0])
    if known[0].version_note:
        print_lines([known[0].version_note])
    if not quiet:
        print_lines([f"tables: {', '.join(tables)}"])
    if isinstance(written, str):
        print(f"report: {written}")
    else:
        complain(f"warning: the tables are whole, the page is left out: {written}")


def _write_page(known: Sequence[RunData], page: Path, *, put: Callable[[Path], str]) -> tuple[list[str], str | TeraconError]:
    """Write page and tables; `put` brings a file to where it is read, and returns that. Returns where they are, or why there is no page."""
    from dist_teracon.report.export import write_tables
    from dist_teracon.report.html import write_page

    tables = [put(path) for path in write_tables(known, page)]
    try:
        return tables, put(write_page(known, page))
    except TeraconError as error:
        return tables, error
