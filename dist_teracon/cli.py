"""The command line: one function a command, each importing what it needs when it runs."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dist_teracon import __version__
from dist_teracon.bench import BENCHMARKS
from dist_teracon.console import Console
from dist_teracon.errors import ConfigError, TeraconError
from dist_teracon.inference.commands import COMMANDS as INFERENCE
from dist_teracon.inference.commands import add_commands

if TYPE_CHECKING:
    from dist_teracon.console import Progress
    from dist_teracon.data.schema import DatasetInfo

# What each command is for, by group, as `dist-teracon --help` lists them.
_COMMANDS = {
    "prepare data": {"prepare": "turn raw logs into a data set"},
    "train": {"train": "learn the tasks in order; the same command again resumes"},
    "use": INFERENCE,
    "look at results": {
        "report": "print a run's table and write report.html, several runs side by side",
        "verify": "check every file of a run or of a data set for damage",
    },
    "measure": {
        "compare": "run variants on several seeds and write tables with intervals",
        "bench": "time kernels, heads, loader, preparation, a step; see bench --help",
    },
}


def _formats() -> tuple[str, ...]:
    """Return the formats of raw data that `prepare` reads; their readers are heavy to import."""
    from dist_teracon.data.sources.registry import SOURCES

    return (*SOURCES, "synthetic")


class _Choices:
    """Choices of an argument, looked up when it is parsed or its help is printed."""

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; a user's mistake is one message without a traceback and exits with 2."""
    options = _parser().parse_args(arguments)
    try:
        status: int | None = options.run_command(options)
    except TeraconError as error:
        print(f"dist-teracon: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141
    except OSError as error:
        # a full disk, a folder without permission: nothing half-written is left, files appear whole or not at all
        print(f"dist-teracon: error: {_system_message(error)}; what was finished is kept", file=sys.stderr)
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
    return status or 0


def _system_message(error: OSError) -> str:
    """Return the message of an error of the operating system, with the file where it has one."""
    full = error.errno == errno.ENOSPC or "No space left" in str(error)
    message = "the disk is full" if full else error.strerror or str(error)
    return f"{error.filename}: {message}" if error.filename else message


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dist-teracon",
        usage="%(prog)s [--help | --version] COMMAND ...",
        description="Universal user representations that keep learning.\n\n" + _command_list(),
        epilog="dist-teracon COMMAND --help lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dist-teracon {__version__}")
    commands = parser.add_subparsers(required=True, prog=parser.prog, metavar="COMMAND", help=argparse.SUPPRESS)
    _add_prepare(commands)
    _add_train(commands)
    add_commands(partial(_add, commands))
    report = _add(commands, "report", _report)
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; the first in full, all side by side")
    report.add_argument("--out", type=Path, help="the page (default: report.html in the first run)")
    verify = _add(commands, "verify", _verify)
    verify.add_argument("paths", nargs="+", metavar="PATH", help="run folders and data sets; exits with 1 where a file is damaged")
    compare = _add(commands, "compare", _compare)
    compare.add_argument("plan", help="the comparison (YAML), as in configs/compare/")
    compare.add_argument("--out", type=Path, required=True, help="its folder; the same command again runs what is missing")
    compare.add_argument("--parallel", type=int, help="runs at a time (default: one a core)")
    compare.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="by which metric the tables are; once more for the other kind of task"
    )
    _add_bench(commands)
    return parser


def _command_list() -> str:
    lines = []
    for group, commands in _COMMANDS.items():
        lines += [f"{group}:", *(f"  {f'{name} ':9}{text}" for name, text in commands.items())]
    return "\n".join(lines)


_Commands = argparse._SubParsersAction


def _add(
    commands: _Commands[argparse.ArgumentParser], name: str, run: Callable[[argparse.Namespace], int | None]
) -> argparse.ArgumentParser:
    """Add a command that `run` carries out."""
    (text,) = (group[name] for group in _COMMANDS.values() if name in group)
    parser = commands.add_parser(name, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run_command=run)
    return parser


def _add_bench(commands: _Commands[argparse.ArgumentParser]) -> None:
    bench = _add(commands, "bench", _bench)
    bench.usage = "%(prog)s [--help] BENCHMARK ..."
    bench.formatter_class = argparse.RawDescriptionHelpFormatter
    bench.description = "benchmarks:\n" + "\n".join(f"  {name:12}{text}" for name, text in BENCHMARKS.items())
    bench.epilog = "dist-teracon bench BENCHMARK --help lists a benchmark's options."
    bench.add_argument("benchmark", choices=sorted(BENCHMARKS), metavar="BENCHMARK", help=argparse.SUPPRESS)
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS).required = False


def _add_prepare(commands: _Commands[argparse.ArgumentParser]) -> None:
    prepare = _add(commands, "prepare", _prepare)
    prepare.usage = "%(prog)s FORMAT SRC OUT [options]\n       %(prog)s synthetic OUT [options]"
    prepare.add_argument("format", choices=_Choices(_formats), metavar="FORMAT", help="what SRC holds: %(choices)s")
    prepare.add_argument("paths", nargs="+", metavar="SRC OUT", help="folder of raw files (not for synthetic) and of the data set")
    prepare.add_argument("--recipe", help="YAML file: how tasks are made from events")
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


def _add_train(commands: _Commands[argparse.ArgumentParser]) -> None:
    train = _add(commands, "train", _train)
    train.usage = "%(prog)s CONFIG --run RUN [options]"
    train.add_argument("config", metavar="CONFIG", help="run configuration (YAML)")
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
    train.add_argument("--verbose", action="store_true", help="log more of what is chosen and why")


def _prepare(options: argparse.Namespace) -> None:
    from dist_teracon.data.summary import dataset_lines

    expected = 1 if options.format == "synthetic" else 2
    if len(options.paths) != expected:
        raise ConfigError(
            f"prepare synthetic: expected one path, the data set's folder, got {len(options.paths)}: "
            "dist-teracon prepare synthetic OUT --users 20000"
            if options.format == "synthetic"
            else f"prepare {options.format}: expected two paths, got {len(options.paths)}: dist-teracon prepare {options.format} SRC OUT"
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
    """Prepare what is added beside the old version, in as many shards, and merge the two."""
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
    added_now = info.notes["appended"][-1]
    Console().log(f"{options.append} and {added_now['users']} users, {added_now['items']} items, tasks: {', '.join(added_now['tasks'])}")
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
            _show(options.run, [options.run], options.run / "report.html")


def _compare(options: argparse.Namespace) -> None:
    from dist_teracon.compare.run import compare

    page = compare(options.plan, options.out, parallel=options.parallel, console=Console(), metrics=options.metric)
    print(page.read_text(encoding="utf-8"))
    print(f"tables: {page}")


def _bench(options: argparse.Namespace) -> None:
    importlib.import_module(f"dist_teracon.bench.{options.benchmark}").main(options.arguments)


def _report(options: argparse.Namespace) -> None:
    _show(options.runs[0], options.runs, options.out or options.runs[0] / "report.html")


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


def _show(run: Path, runs: Sequence[Path], page: Path) -> None:
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
