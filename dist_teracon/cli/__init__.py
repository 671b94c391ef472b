"""The command line: a file a group of commands, one function a command, each importing what it needs when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from types import FrameType
from typing import TextIO

from dist_teracon import __version__
from dist_teracon.bench import BENCHMARKS
from dist_teracon.cli import data, runs, serve, use
from dist_teracon.cli.arguments import AddCommand, add_quiet, as_count, as_path
from dist_teracon.console import Console, complain, drop_lost_streams, open_missing_streams, print_lines
from dist_teracon.errors import ConfigError, PeerError, TeraconError

# What each command is for, by group, as `dist-teracon --help` lists them.
_COMMANDS = {
    "prepare data": data.COMMANDS,
    "train": runs.TRAIN,
    "use": {**use.COMMANDS, **serve.COMMANDS},
    "look at results": runs.RESULTS,
    "measure": {
        "compare": "run variants on several seeds and write tables with intervals",
        "bench": "time kernels, heads, loader, a step and more; see bench --help",
    },
    "look after machines": {"doctor": "check what a machine or a cluster has, and what is missing"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; a user's mistake is one message without a traceback and exits with 2."""
    open_missing_streams()
    try:
        with _cleaning_up_after_sigterm():
            return _run(arguments)
    finally:
        drop_lost_streams()


@contextmanager
def _cleaning_up_after_sigterm() -> Iterator[None]:
    """Have SIGTERM end the command as an error would, which removes temporary files; a second one ends it at once.

    Commands with more to do take the signal themselves. Nothing is changed where it is taken already, or ignored.
    """
    process = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:  # a copy of this process, whose temporary files these are not
            os.kill(os.getpid(), number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be of a script that the terminal's encoding does not have
    try:
        status: int | None = options.run_command(options)
        sys.stdout.flush()
    except TeraconError as error:
        # of several processes the one that fails says why, and the main one that it stops because of it
        if not isinstance(error, PeerError) or os.environ.get("RANK", "0") == "0":
            complain(f"error: {_of_rank(error)}{error}")
        return 2
    except BrokenPipeError:
        return 141
    except OSError as error:
        # a full disk, a folder without permission: nothing half-written is left, files appear whole or not at all
        from dist_teracon import io

        lost = not error.filename and _is_lost(sys.stdout)
        message = f"standard output cannot be written ({error.strerror})" if lost else io.message_of(error)
        complain(f"error: {message}; what was finished is kept")
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


def _is_lost(stream: TextIO) -> bool:
    """Return whether a stream cannot be written, by an empty line."""
    try:
        print(file=stream, flush=True)
    except OSError:
        return True
    return False


def _of_rank(error: TeraconError) -> str:
    """Return which process of several an error is of, in front of its text."""
    several = os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ
    return f"rank {os.environ['RANK']}: " if several and not isinstance(error, PeerError) else ""


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
    add: AddCommand = partial(_add, commands)
    data.add_commands(add)
    runs.add_train(add)
    use.add_commands(add)
    serve.add_commands(add)
    runs.add_results(add)
    compare = add("compare", _compare)
    compare.add_argument("plan", metavar="PLAN", help="the comparison: a YAML file, or the name of a shipped one, as all-systems")
    compare.add_argument("--out", type=as_path, required=True, help="its folder; the same command again runs what is missing")
    compare.add_argument("--parallel", type=as_count, help="runs at a time (default: one a core, or what the cluster has room for)")
    compare.add_argument(
        "--launcher", choices=("local", "ray"), default="local", help="ray: on a Ray cluster (RAY_ADDRESS) whose nodes all see --out"
    )
    compare.add_argument(
        "--begin-with", type=as_path, action="append", default=[], metavar="DIR",
        help="the folder of another comparison, whose runs' first stages cells take where they are the same; once more for another",
    )  # fmt: skip
    only = compare.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="print what is left to run and how long it takes; run nothing")
    only.add_argument("--tables", action="store_true", help="write the tables of what is finished, also while it runs; run nothing")
    add_quiet(compare)
    compare.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="by which metric the tables are; once more for the other kind of task"
    )
    _add_bench(add)
    doctor = add("doctor", _doctor)
    doctor.add_argument("--ray", metavar="ADDRESS", help="check the nodes of a Ray cluster too, as 10.0.0.1:6379 or auto")
    doctor.add_argument("--json", action="store_true", help="print what was found as JSON")
    return parser


def _command_list() -> str:
    lines = []
    for group, commands in _COMMANDS.items():
        lines += [f"{group}:", *(f"  {name:13}{text}" for name, text in commands.items())]
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


def _add_bench(add: AddCommand) -> None:
    bench = add("bench", _bench)
    bench.usage = "%(prog)s [--help] BENCHMARK ..."
    bench.formatter_class = argparse.RawDescriptionHelpFormatter
    bench.description = "benchmarks:\n" + "\n".join(f"  {name:12}{text}" for name, text in BENCHMARKS.items())
    bench.epilog = "dist-teracon bench BENCHMARK --help lists a benchmark's options."
    bench.add_argument("benchmark", choices=sorted(BENCHMARKS), metavar="BENCHMARK", help=argparse.SUPPRESS)
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS).required = False


def _compare(options: argparse.Namespace) -> int:
    from dist_teracon.compare.cells import CellsError
    from dist_teracon.compare.run import compare, tables_so_far
    from dist_teracon.compare.terminal import fitted
    from dist_teracon.text import terminal_width

    page, failed, console, runner = options.out / "tables.md", None, Console(quiet=options.quiet), None
    if options.dry_run:
        if options.launcher != "local":
            raise ConfigError("--dry-run: measures steps on this machine; leave --launcher out")
        from dist_teracon.compare.dry_run import plan_comparison

        print_lines(
            plan_comparison(
                options.plan, options.out,
                parallel=options.parallel, console=console, metrics=options.metric, begin_with=options.begin_with,
            )
        )  # fmt: skip
        return 0
    if options.launcher == "ray" and not options.tables:
        from dist_teracon.launch.ray_cells import on_ray

        runner = on_ray(options.parallel, console.log)
    try:
        if options.tables:
            tables_so_far(options.plan, options.out, console=console, metrics=options.metric)
        else:
            compare(
                options.plan, options.out,
                parallel=options.parallel, console=console, metrics=options.metric, runner=runner, begin_with=options.begin_with,
            )  # fmt: skip
    except CellsError as error:
        failed = error
    if not options.quiet:
        text = page.read_text(encoding="utf-8")
        print_lines(fitted(text, terminal_width(sys.stdout)) if sys.stdout.isatty() else text.splitlines())
    print(f"tables: {page}")
    if (report := options.out / "report.html").exists():
        print(f"report: {report}")
    if failed is not None:
        complain(f"error: {failed}")
    return 0 if failed is None else 1


def _bench(options: argparse.Namespace) -> None:
    importlib.import_module(f"dist_teracon.bench.{options.benchmark.replace('-', '_')}").main(options.arguments)


def _doctor(options: argparse.Namespace) -> int:
    from dist_teracon.launch.doctor import doctor

    return doctor(ray_address=options.ray, as_json=options.json)
