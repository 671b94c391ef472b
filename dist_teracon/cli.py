"""The command line: one sub-command a job, each importing what it needs when it runs."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_teracon import __version__
from dist_teracon.bench import BENCHMARKS
from dist_teracon.console import Console
from dist_teracon.errors import ConfigError, TeraconError

if TYPE_CHECKING:
    from dist_teracon.console import Progress
    from dist_teracon.data.schema import DatasetInfo

_FORMATS = ("recbole", "movielens", "sequence-csv", "ttl", "tenrec", "events", "synthetic")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is told without a traceback and exits with 2."""
    options = _parser().parse_args(arguments)
    try:
        options.job(options)
    except TeraconError as error:
        print(f"dist-teracon: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141
    except OSError as error:
        # a full disk, a folder without permission: nothing half-written is left, files appear whole or not at all
        print(f"dist-teracon: error: {_told(error)}; what was finished is kept", file=sys.stderr)
        return 2
    except Exception as error:
        from dist_teracon import io

        if not io.is_store_error(error):
            raise
        print(
            f"dist-teracon: error: a store does not answer as it should ({io.redacted(error)}); what was finished is kept", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("dist-teracon: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _told(error: OSError) -> str:
    """Return what an error of the system says, and of which file where it knows."""
    full = error.errno == errno.ENOSPC or "No space left" in str(error)
    said = "the disk is full" if full else error.strerror or str(error)
    return f"{error.filename}: {said}" if error.filename else said


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dist-teracon", description="Universal user representations that keep learning: prepare data, train, report."
    )
    parser.add_argument("--version", action="version", version=f"dist-teracon {__version__}")
    jobs = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(jobs)
    _add_train(jobs)
    compare = jobs.add_parser("compare", help="run variants of a configuration on several seeds and write tables with intervals")
    compare.add_argument("plan", help="the comparison (YAML), as in configs/compare/")
    compare.add_argument("--out", type=Path, required=True, help="its folder; the same command again runs what is missing")
    compare.add_argument("--parallel", type=int, help="runs at a time (default: one a core)")
    compare.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="by which metric the tables are; once more for the other kind of task"
    )
    compare.set_defaults(job=_compare)
    report = jobs.add_parser("report", help="write report.html of one or several runs and print the table")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; the first in full, all side by side")
    report.add_argument("--out", type=Path, help="the page (default: report.html in the first run)")
    report.set_defaults(job=_report)
    bench = jobs.add_parser("bench", help="measure: " + ", ".join(BENCHMARKS), add_help=False)
    bench.add_argument("what", choices=sorted(BENCHMARKS), help="; ".join(f"{name}: {text}" for name, text in BENCHMARKS.items()))
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="the benchmark's own, see dist-teracon bench WHAT --help")
    bench.set_defaults(job=_bench)
    return parser


def _add_prepare(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prepare = jobs.add_parser("prepare", help="turn raw logs into a data set")
    prepare.add_argument("format", choices=_FORMATS, help="what SRC holds")
    prepare.add_argument("paths", nargs="+", metavar="SRC OUT", help="folder of raw files (not for synthetic) and of the data set")
    prepare.add_argument("--recipe", help="YAML file that says how tasks come from events")
    prepare.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a recipe's field, as split.seed=1")
    prepare.add_argument("--split", choices=("users", "rows"), help="split by user or by row; overrides the recipe")
    prepare.add_argument("--max-bad-rows", type=float, default=0.001, metavar="SHARE", help="stop past this share of malformed rows")
    prepare.add_argument("--shards", type=int, help="number of shards (default: from the size)")
    prepare.add_argument("--cluster", action="store_true", help="sequence-csv, ttl: work on a Ray cluster (RAY_ADDRESS or a Ray job)")
    prepare.add_argument("--append", metavar="DATASET", help="write OUT as a new version of DATASET, with new users, tasks and items added")
    prepare.add_argument("--min-count", type=int, metavar="N", help="items of fewer occurrences count as unseen; overrides the recipe")
    prepare.add_argument("--users", type=int, help="synthetic: number of users (default: 20,000; 1.47 million for ttl)")
    prepare.add_argument("--like", default="six-tasks-v1", help="synthetic: which set, six-tasks-v1 or ttl")
    prepare.add_argument("--raw", action="store_true", help="synthetic ttl: the raw files of the public format instead of a data set")
    prepare.set_defaults(job=_prepare)


def _add_train(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = jobs.add_parser("train", help="learn the tasks in order; the same command again resumes")
    train.add_argument("config", help="run configuration (YAML)")
    train.add_argument("--run", type=Path, required=True, help="folder of the run")
    train.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field, as model.channels=64")
    train.add_argument("--with-single-task", action="store_true", help="train every task alone too, for forward transfer")
    train.add_argument(
        "--add-task", metavar="NAME", help="one more stage on a finished run; the data set may be a version made by --append"
    )
    train.add_argument(
        "--new-items", choices=("unseen", "neighbours", "text"), default="unseen", help="with --add-task: what new items start as"
    )
    train.add_argument("--item-vectors", metavar="FILE", help="with --new-items text: Parquet with the columns item and vector")
    train.add_argument("--no-report", action="store_true", help="leave out table and page at the end")
    train.add_argument("--verbose", action="store_true", help="tell more of what is chosen and why")
    train.set_defaults(job=_train)


def _prepare(options: argparse.Namespace) -> None:
    from dist_teracon.data.summary import dataset_lines

    wanted = 1 if options.format == "synthetic" else 2
    if len(options.paths) != wanted:
        raise ConfigError(
            "prepare synthetic wants one path, the data set's folder: dist-teracon prepare synthetic OUT --users 20000"
            if options.format == "synthetic"
            else f"prepare {options.format} wants two paths: dist-teracon prepare {options.format} SRC OUT"
        )
    if options.raw:
        _raw_files(options, Console())
        return
    info = _prepare_into(options, options.paths[-1], Console()) if options.append is None else _append(options, Console())
    print("\n".join(dataset_lines(info)))


def _raw_files(options: argparse.Namespace, progress: Progress) -> None:
    from dist_teracon.data.synthetic.ttl import raw_files

    if (options.format, options.like) != ("synthetic", "ttl") or options.append is not None:
        raise ConfigError("--raw: raw files are written by 'prepare synthetic OUT --like ttl --raw' alone")
    raw_files(options.paths[0], users=options.users, progress=progress)


def _prepare_into(options: argparse.Namespace, out: str, progress: Progress) -> DatasetInfo:
    if options.format == "synthetic":
        if options.set or options.recipe:
            raise ConfigError("--recipe, --set: synthetic data follows no recipe; see --users, --like, --split, --shards")
        return _prepare_synthetic(options, out, progress)
    from dist_teracon.config_io import apply_overrides, read_yaml
    from dist_teracon.data.prepare.pipeline import prepare
    from dist_teracon.data.recipe import parse_recipe

    recipe = None
    if options.recipe or options.set:
        recipe = parse_recipe(
            apply_overrides(read_yaml(options.recipe) if options.recipe else {}, options.set), where=options.recipe or "--set"
        )
    return prepare(
        options.format, options.paths[0], out, recipe=recipe, split=options.split,
        max_bad_rows=options.max_bad_rows, min_count=options.min_count, shards=options.shards, cluster=options.cluster,
        log=Console().log, progress=progress,
    )  # fmt: skip


def _append(options: argparse.Namespace, progress: Progress) -> DatasetInfo:
    """Prepare what is added beside the old version, in as many shards, and lay the two together."""
    from dist_teracon import io
    from dist_teracon.data.prepare.versions import append
    from dist_teracon.data.schema import read_dataset_info

    parent = read_dataset_info(options.append)
    if options.shards is not None or options.split is not None:
        raise ConfigError("--append: shards and split are those of the old version; leave --shards and --split out")
    options.shards, options.split = parent.shards, parent.split.by
    out = options.paths[-1]
    # on the disk of the result: what is added may be larger than the system's folder of temporary files
    beside = io.local_path(out).absolute().parent if io.is_local(out) else None
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".added-", dir=beside) as folder:
        added = str(Path(folder) / "added")
        _prepare_into(options, added, progress)
        info = append(options.append, added, out)
    told = info.notes["appended"][-1]
    Console().log(f"{options.append} and {told['users']} users, {told['items']} items, tasks: {', '.join(told['tasks'])}")
    return info


def _prepare_synthetic(options: argparse.Namespace, out: str, progress: Progress) -> DatasetInfo:
    from dist_teracon.data.schema import SplitRule

    split = SplitRule(by=options.split or "users")
    if options.like == "ttl":
        from dist_teracon.data.synthetic.ttl import prepare_ttl

        return prepare_ttl(
            out,
            users=options.users,
            split=options.split,
            min_count=options.min_count,
            shards=options.shards,
            log=Console().log,
            progress=progress,
        )
    from dist_teracon.data.prepare.pipeline import prepare_tables
    from dist_teracon.data.synthetic.six_tasks import DEFAULT_USERS, parse_synthetic

    users = DEFAULT_USERS if options.users is None else options.users
    tables = parse_synthetic(f"synthetic:{options.like}?users={users}")
    return prepare_tables(tables, out, split, shards=options.shards, log=Console().log)


def _train(options: argparse.Namespace) -> None:
    from dist_teracon.config_io import load_config
    from dist_teracon.console import set_up_logging

    config = load_config(options.config, options.set)
    if "://" in str(options.run) or str(options.run).startswith(("s3:/", "gs:/")):
        raise ConfigError(f"--run {options.run}: a run folder lies on a local disk; data sets may lie on any store")
    if options.add_task is None and (options.new_items != "unseen" or options.item_vectors is not None):
        raise ConfigError("--new-items and --item-vectors say what a task's new items start as; they go with --add-task NAME")
    set_up_logging(verbose=options.verbose)
    from dist_teracon.runtime import process_group
    from dist_teracon.train.add_task import AddedTask
    from dist_teracon.train.run import train

    with process_group() as runtime:
        console = Console(active=runtime.is_main)
        added = None if options.add_task is None else AddedTask(options.add_task, options.new_items, options.item_vectors)
        train(config, runtime, options.run, where=options.config, console=console, with_single_task=options.with_single_task, added=added)
        if runtime.is_main and not options.no_report:
            _tell(options.run, [options.run], options.run / "report.html")


def _compare(options: argparse.Namespace) -> None:
    from dist_teracon.compare.run import compare

    page = compare(options.plan, options.out, parallel=options.parallel, console=Console(), metrics=options.metric)
    print(page.read_text(encoding="utf-8"))
    print(f"tables: {page}")


def _bench(options: argparse.Namespace) -> None:
    importlib.import_module(f"dist_teracon.bench.{options.what}").main(options.arguments)


def _report(options: argparse.Namespace) -> None:
    _tell(options.runs[0], options.runs, options.out or options.runs[0] / "report.html")


def _tell(run: Path, runs: Sequence[Path], page: Path) -> None:
    """Print the table of a run and write the page of all."""
    from dist_teracon.report.html import write_report
    from dist_teracon.report.run_data import read_run
    from dist_teracon.report.table import print_scores

    print_scores(read_run(run))
    try:
        print(f"report: {write_report(runs, page)}")
    except TeraconError as error:
        print(f"the table is whole, the page is left out: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
