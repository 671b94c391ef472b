"""The command line: one function a command, each importing what it needs when it runs."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from dist_teracon import __version__
from dist_teracon.bench import BENCHMARKS
from dist_teracon.console import Console, complain, print_lines
from dist_teracon.errors import ConfigError, PeerError, TeraconError
from dist_teracon.inference.commands import COMMANDS as INFERENCE
from dist_teracon.inference.commands import add_commands

if TYPE_CHECKING:
    from dist_teracon.config import RunConfig
    from dist_teracon.console import Progress
    from dist_teracon.data.recipe import Recipe
    from dist_teracon.data.schema import DatasetInfo
    from dist_teracon.report.run_data import RunData

# What each command is for, by group, as `dist-teracon --help` lists them.
_COMMANDS = {
    "prepare data": {
        "init": "look at raw files and write a recipe with comments",
        "prepare": "turn raw logs into a data set",
        "inspect": "show a few users of a data set as a person reads them",
    },
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
    "look after machines": {"doctor": "check what a machine or a cluster has, and what is missing"},
}


def _count(text: str) -> int:
    """Return an option's whole number of 1 or more."""
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got '{text[:40]}'")
    return int(text)


def _share(text: str) -> float:
    """Return an option's share, 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got '{text[:40]}'")
    return value


def _formats() -> tuple[str, ...]:
    """Return the formats of raw data that `prepare` reads; their readers are heavy to import."""
    from dist_teracon.data.sources.registry import SOURCES

    return (*SOURCES, "synthetic")


def _path(text: str) -> Path:
    """Return an option's path, `~` being the home folder."""
    from dist_teracon.io import local_path

    return local_path(text)


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
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be of a script that the terminal's encoding does not have
    try:
        status: int | None = options.run_command(options)
    except TeraconError as error:
        # of several processes the one that fails says why, and the main one that it stops because of it
        if not isinstance(error, PeerError) or os.environ.get("RANK", "0") == "0":
            complain(f"error: {_of_rank(error)}{error}")
        return 2
    except BrokenPipeError:
        return 141
    except OSError as error:
        # a full disk, a folder without permission: nothing half-written is left, files appear whole or not at all
        complain(f"error: {_system_message(error)}; what was finished is kept")
        return 2
    except Exception as error:
        from dist_teracon import io

        if not io.is_store_error(error):
            raise
        complain(f"error: a store does not answer as it should ({io.redacted(error)}); what was finished is kept")
        return 2
    except KeyboardInterrupt:
        complain("stopped; the same command goes on from here")
        return 130
    return status or 0


def _of_rank(error: TeraconError) -> str:
    """Return which process of several an error is of, in front of its text."""
    several = os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ
    return f"rank {os.environ['RANK']}: " if several and not isinstance(error, PeerError) else ""


def _system_message(error: OSError) -> str:
    """Return the message of an error of the operating system, with the file where it has one."""
    full = error.errno == errno.ENOSPC or "No space left" in str(error)
    message = "the disk is full" if full else error.strerror or str(error)
    if not error.filename:
        return message
    from dist_teracon.io import shown_path

    return f"{shown_path(Path(str(error.filename)))}: {message}"


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
    _add_init(commands)
    _add_prepare(commands)
    _add_inspect(commands)
    _add_train(commands)
    add_commands(partial(_add, commands))
    report = _add(commands, "report", _report)
    report.add_argument("runs", nargs="+", type=_place, metavar="RUN", help="run folders or URIs; the first in full, all side by side")
    report.add_argument(
        "--out", type=_path, help="the page (default: report.html in the first run); its tables as CSV and JSON lie beside it"
    )
    _add_quiet(report)
    verify = _add(commands, "verify", _verify)
    verify.add_argument(
        "paths", nargs="+", metavar="PATH", help="runs and data sets, folders or URIs; exits with 1 where a file is damaged"
    )
    compare = _add(commands, "compare", _compare)
    compare.add_argument("plan", help="the comparison (YAML), as in configs/compare/")
    compare.add_argument("--out", type=_path, required=True, help="its folder; the same command again runs what is missing")
    compare.add_argument("--parallel", type=_count, help="runs at a time (default: one a core)")
    _add_quiet(compare)
    compare.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="by which metric the tables are; once more for the other kind of task"
    )
    _add_bench(commands)
    doctor = _add(commands, "doctor", _doctor)
    doctor.add_argument("--ray", metavar="ADDRESS", help="check the nodes of a Ray cluster too, as 10.0.0.1:6379 or auto")
    doctor.add_argument("--json", action="store_true", help="print what was found as JSON")
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


def _add_quiet(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--quiet", action="store_true", help="print warnings, errors and the last line alone")


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
    prepare.add_argument("--recipe", help="YAML file, or the name of a shipped one: how tasks are made from events")
    prepare.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a recipe's field, as split.seed=1")
    prepare.add_argument("--split", choices=("users", "rows"), help="split by user or by row; overrides the recipe")
    prepare.add_argument("--max-bad-rows", type=_share, default=0.001, metavar="SHARE", help="stop past this share of malformed rows")
    prepare.add_argument("--shards", type=_count, help="number of shards (default: from the size)")
    prepare.add_argument("--cluster", action="store_true", help="sequence-csv, ttl: work on a Ray cluster (RAY_ADDRESS or a Ray job)")
    prepare.add_argument("--append", metavar="DATASET", help="write OUT as a new version of DATASET, with new users, tasks and items added")
    prepare.add_argument("--refresh", action="store_true", help="with --append: take old users' histories of today, too")
    prepare.add_argument(
        "--max-unmatched", type=_share, default=0.5, metavar="SHARE", help="stop where more of the ids of users (items) have no partner"
    )
    prepare.add_argument("--min-count", type=_count, metavar="N", help="items of fewer occurrences count as unseen; overrides the recipe")
    prepare.add_argument("--users", type=_count, help="synthetic: number of users (default: 20,000; 1.47 million for ttl)")
    prepare.add_argument("--like", default="six-tasks-v1", help="synthetic: which set, six-tasks-v1 or ttl")
    prepare.add_argument("--raw", action="store_true", help="synthetic ttl: the raw files of the public format instead of a data set")
    _add_quiet(prepare)


def _add_init(commands: _Commands[argparse.ArgumentParser]) -> None:
    init = _add(commands, "init", _init)
    init.add_argument("folder", metavar="FOLDER", help="raw files of any format that `prepare` reads")
    init.add_argument("--out", default="recipe.yaml", metavar="RECIPE", help="the recipe (default: recipe.yaml here); never overwritten")


def _add_inspect(commands: _Commands[argparse.ArgumentParser]) -> None:
    inspect = _add(commands, "inspect", _inspect)
    inspect.add_argument("dataset", metavar="DATASET", help="folder or URI of a data set, or synthetic:six-tasks-v1?users=2000")
    inspect.add_argument("--users", type=_count, default=3, metavar="N", help="show so many users (default: 3)")
    inspect.add_argument("--user", metavar="ID", help="show this user")
    inspect.add_argument("--task", metavar="TASK", help="show users with labels of this task, and its most frequent labels")


def _add_train(commands: _Commands[argparse.ArgumentParser]) -> None:
    train = _add(commands, "train", _train)
    train.usage = "%(prog)s CONFIG --run RUN [options]\n       %(prog)s CONFIG --dry-run [options]"
    add_train_options(train)


def add_train_options(train: argparse.ArgumentParser) -> None:
    """Add the options of `train`, which launchers share."""
    train.add_argument("config", metavar="CONFIG", help="run configuration (YAML)")
    train.add_argument("--run", type=_place, help="folder of the run, or its URI on a store, as s3://bucket/run")
    train.add_argument(
        "--scratch", metavar="DIR", help="where a run on a store is written on this machine (default: DIST_TERACON_SCRATCH, or temporary)"
    )
    train.add_argument("--dry-run", action="store_true", help="print steps, parameters, memory and time of the run; train nothing")
    train.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field, as model.channels=64")
    train.add_argument(
        "--launcher", choices=("local", "ray"), default="local", help="ray: on a Ray cluster (RAY_ADDRESS), or Ray on this machine"
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
    _add_quiet(volume)


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
        _raw_files(options, Console(quiet=options.quiet))
        return
    if options.refresh and options.append is None:
        raise ConfigError("--refresh goes with --append DATASET: it takes old users' histories from SRC, too")
    console = Console(quiet=options.quiet)
    info = _append(options, console) if options.append is not None else _prepare_into(options, options.paths[-1], _recipe(options), console)
    lines = dataset_lines(info)
    print_lines(lines[:1] if options.quiet else lines)


def _raw_files(options: argparse.Namespace, progress: Progress) -> None:
    from dist_teracon.data.synthetic.ttl import raw_files

    if (options.format, options.like) != ("synthetic", "ttl") or options.append is not None:
        raise ConfigError("--raw: raw files are written by 'prepare synthetic OUT --like ttl --raw' alone")
    raw_files(options.paths[0], users=options.users, progress=progress)


def _recipe(options: argparse.Namespace) -> Recipe | None:
    """Return the recipe that the options name and override."""
    from dist_teracon.config_io import apply_overrides, read_yaml
    from dist_teracon.data.recipe import parse_recipe

    if options.format == "synthetic" and (options.set or options.recipe):
        raise ConfigError("--recipe, --set: synthetic data follows no recipe; see --users, --like, --split, --shards")
    if not (options.recipe or options.set):
        return None
    value = apply_overrides(read_yaml(options.recipe, folder="recipes") if options.recipe else {}, options.set)
    return parse_recipe(value, where=options.recipe or "--set")


def _prepare_into(
    options: argparse.Namespace, out: str, recipe: Recipe | None, progress: Progress, *, shown: str | None = None
) -> DatasetInfo:
    if options.format == "synthetic":
        return _prepare_synthetic(options, out, progress, shown=shown)
    from dist_teracon.data.prepare.pipeline import prepare

    return prepare(
        options.format, options.paths[0], out, recipe=recipe, split=options.split,
        max_bad_rows=options.max_bad_rows, min_count=options.min_count, shards=options.shards, cluster=options.cluster,
        max_unmatched=options.max_unmatched, shown=shown, log=Console(quiet=options.quiet).log, progress=progress,
    )  # fmt: skip


def _append(options: argparse.Namespace, progress: Progress) -> DatasetInfo:
    """Prepare what is added beside the new version, in as many shards, and merge the two."""
    from dist_teracon.data.prepare.appending import append_prepared, refuse_shape_options
    from dist_teracon.data.prepare.pipeline import prepared_fingerprint
    from dist_teracon.data.schema import read_dataset_info

    refuse_shape_options(options.shards, options.split)
    parent, recipe, out = read_dataset_info(options.append), _recipe(options), options.paths[-1]
    options.shards, options.split = parent.shards, parent.split.by

    def fingerprint() -> str | None:
        return None if options.format == "synthetic" else prepared_fingerprint(
            options.format, options.paths[0], recipe, split=options.split, max_bad_rows=options.max_bad_rows,
            min_count=options.min_count, shards=options.shards,
        )  # fmt: skip

    return append_prepared(
        options.append, out, lambda folder: _prepare_into(options, folder, recipe, progress, shown=out),
        recipe=recipe, min_count=options.min_count, refresh=options.refresh,
        synthetic=options.format == "synthetic", fingerprint=fingerprint, log=Console(quiet=options.quiet).log,
    )  # fmt: skip


def _prepare_synthetic(options: argparse.Namespace, out: str, progress: Progress, *, shown: str | None) -> DatasetInfo:
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
            shown=shown,
            log=Console(quiet=options.quiet).log,
            progress=progress,
        )
    from dist_teracon.data.prepare.pipeline import prepare_tables
    from dist_teracon.data.synthetic.six_tasks import DEFAULT_USERS, parse_synthetic

    users = DEFAULT_USERS if options.users is None else options.users
    tables = parse_synthetic(f"synthetic:{options.like}?users={users}")
    return prepare_tables(tables, out, split, shards=options.shards, log=Console(quiet=options.quiet).log)


def _init(options: argparse.Namespace) -> None:
    from dist_teracon.data.init.recipe import init_recipe

    print("\n".join(init_recipe(options.folder, options.out)))


def _inspect(options: argparse.Namespace) -> None:
    from dist_teracon.data.inspection import inspect_lines
    from dist_teracon.data.open import open_dataset

    dataset = open_dataset(options.dataset, log=Console().log)
    print("\n".join(inspect_lines(dataset, users=options.users, user=options.user, task=options.task)))


def _train(options: argparse.Namespace) -> int:
    from dist_teracon.config_io import load_config
    from dist_teracon.console import set_up_logging

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
        os.environ["DIST_TERACON_SCRATCH"] = str(Path(options.scratch).absolute())
    from dist_teracon.launch.job import TrainJob, train_in_process
    from dist_teracon.train.add_task import AddedTask

    added = None if options.add_task is None else AddedTask(options.add_task, options.new_items, options.item_vectors)
    job = TrainJob(config, options.run, options.config, options.with_single_task, added, options.verbose, options.quiet)
    if options.launcher == "ray":
        from dist_teracon.launch.ray_train import WorkersError, train_on_ray

        try:
            train_on_ray(job, Console(quiet=options.quiet))
        except WorkersError as error:
            complain(f"error: {error}")
            return 1
    elif not train_in_process(job):
        return 0
    if not options.no_report:
        _show([options.run], None, quiet=options.quiet)
    return 0


def _dry_run(config: RunConfig, options: argparse.Namespace) -> None:
    if options.add_task is not None or options.with_single_task:
        raise ConfigError("--dry-run: plans the stages of CONFIG alone; leave --add-task and --with-single-task out")
    from dist_teracon.console import set_up_logging

    set_up_logging(verbose=options.verbose)
    from dist_teracon.runtime import process_group
    from dist_teracon.train.dry_run import dry_run, dry_run_lines

    with process_group() as runtime:
        plan = dry_run(config, runtime, where=options.config, console=Console(active=runtime.is_main, quiet=options.quiet))
        if runtime.is_main:
            print("\n".join(dry_run_lines(plan)))


def _compare(options: argparse.Namespace) -> None:
    from dist_teracon.compare.run import compare
    from dist_teracon.compare.terminal import fitted
    from dist_teracon.text import terminal_width

    page = compare(options.plan, options.out, parallel=options.parallel, console=Console(quiet=options.quiet), metrics=options.metric)
    if not options.quiet:
        text = page.read_text(encoding="utf-8")
        print_lines(fitted(text, terminal_width(sys.stdout)) if sys.stdout.isatty() else text.splitlines())
    print(f"tables: {page}")


def _bench(options: argparse.Namespace) -> None:
    importlib.import_module(f"dist_teracon.bench.{options.benchmark.replace('-', '_')}").main(options.arguments)


def _doctor(options: argparse.Namespace) -> int:
    from dist_teracon.launch.doctor import doctor

    return doctor(ray_address=options.ray, as_json=options.json)


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


def _place(text: str) -> Path | str:
    """Return the place of a run: a folder, or a URI as it is written."""
    from dist_teracon import io

    return io.local_path(text) if io.is_local(text) else text.rstrip("/")


def _show(runs: Sequence[Path | str], page: Path | None, *, quiet: bool) -> None:
    """Print the table of the first run, and write the page and the tables of all, by default into the first run, also on a store."""
    from dist_teracon import io
    from dist_teracon.report.run_data import read_run
    from dist_teracon.report.table import print_scores

    known = [read_run(run) for run in runs]
    if not quiet:
        print_scores(known[0])
    if known[0].version_note:
        print_lines([known[0].version_note])
    first = runs[0]
    if page is None and isinstance(first, str):

        def upload(path: Path) -> str:
            uri = io.join(first, path.name)
            io.put(path, uri)
            return uri

        with tempfile.TemporaryDirectory() as folder:
            _write_page(known, Path(folder) / "report.html", quiet=quiet, put=upload)
    else:
        _write_page(known, page or Path(first) / "report.html", quiet=quiet, put=str)


def _write_page(known: Sequence[RunData], page: Path, *, quiet: bool, put: Callable[[Path], str]) -> None:
    """Write page and tables; `put` brings a file to where it is read, and returns that."""
    from dist_teracon.report.export import write_tables
    from dist_teracon.report.html import write_page

    tables = [put(path) for path in write_tables(known, page)]
    if not quiet:
        print(f"tables: {', '.join(tables)}")
    try:
        print(f"report: {put(write_page(known, page))}")
    except TeraconError as error:
        complain(f"warning: the tables are whole, the page is left out: {error}")


if __name__ == "__main__":
    sys.exit(main())
