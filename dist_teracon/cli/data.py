"""The commands on data: `init`, `prepare`, `inspect`; each imports what it needs when it runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dist_teracon.cli.arguments import AddCommand, Choices, add_quiet, as_count, as_share
from dist_teracon.console import Console, print_lines
from dist_teracon.errors import ConfigError

if TYPE_CHECKING:
    from dist_teracon.console import Progress
    from dist_teracon.data.recipe import Recipe
    from dist_teracon.data.schema import DatasetInfo

# What each command is for, as `dist-teracon --help` lists them.
COMMANDS = {
    "init": "look at raw files and write a recipe with comments",
    "prepare": "turn raw logs into a data set",
    "inspect": "show a few users of a data set as a person reads them",
}


def add_commands(add: AddCommand) -> None:
    """Add the commands to the command line."""
    _add_init(add)
    _add_prepare(add)
    _add_inspect(add)


def _add_prepare(add: AddCommand) -> None:
    prepare = add("prepare", _prepare)
    prepare.usage = "%(prog)s FORMAT SRC OUT [options]\n       %(prog)s synthetic OUT [options]"
    prepare.add_argument("format", choices=Choices(formats), metavar="FORMAT", help="what SRC holds: %(choices)s")
    prepare.add_argument("paths", nargs="+", metavar="SRC OUT", help="folder of raw files (not for synthetic) and of the data set")
    prepare.add_argument("--recipe", help="YAML file, or the name of a shipped one: how tasks are made from events")
    prepare.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a recipe's field, as split.seed=1")
    prepare.add_argument(
        "--split",
        choices=("users", "rows", "last"),
        help="split by user, by row, or leave each user's last items out; overrides the recipe",
    )
    prepare.add_argument("--max-bad-rows", type=as_share, default=0.001, metavar="SHARE", help="stop past this share of malformed rows")
    prepare.add_argument("--shards", type=as_count, help="number of shards (default: from the size)")
    prepare.add_argument("--cluster", action="store_true", help="sequence-csv, ttl: work on a Ray cluster (RAY_ADDRESS or a Ray job)")
    prepare.add_argument("--append", metavar="DATASET", help="write OUT as a new version of DATASET, with new users, tasks and items added")
    prepare.add_argument("--refresh", action="store_true", help="with --append: take old users' histories of today, too")
    prepare.add_argument(
        "--max-unmatched", type=as_share, default=0.5, metavar="SHARE", help="stop where more of the ids of users (items) have no partner"
    )
    prepare.add_argument("--min-count", type=as_count, metavar="N", help="items of fewer occurrences count as unseen; overrides the recipe")
    prepare.add_argument("--users", type=as_count, help="synthetic: number of users (default: 20,000; 1.47 million for ttl)")
    prepare.add_argument("--like", default="six-tasks-v1", help="synthetic: which set, six-tasks-v1 or ttl")
    prepare.add_argument("--raw", action="store_true", help="synthetic ttl: the raw files of the public format instead of a data set")
    add_quiet(prepare)


def _add_init(add: AddCommand) -> None:
    init = add("init", _init)
    init.add_argument("folder", metavar="FOLDER", help="raw files of any format that `prepare` reads")
    init.add_argument("--out", default="recipe.yaml", metavar="RECIPE", help="the recipe (default: recipe.yaml here); never overwritten")


def _add_inspect(add: AddCommand) -> None:
    inspect = add("inspect", _inspect)
    inspect.add_argument("dataset", metavar="DATASET", help="folder or URI of a data set, or synthetic:six-tasks-v1?users=2000")
    inspect.add_argument("--users", type=as_count, default=3, metavar="N", help="show so many users (default: 3)")
    inspect.add_argument("--user", metavar="ID", help="show this user")
    inspect.add_argument("--task", metavar="TASK", help="show users with labels of this task, and its most frequent labels")


def formats() -> tuple[str, ...]:
    """Return the formats of raw data that `prepare` reads; their readers are heavy to import."""
    from dist_teracon.data.sources.registry import format_names

    return (*format_names(), "synthetic")


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
    options: argparse.Namespace, out: str, recipe: Recipe | None, progress: Progress, *, shown: str | None = None, **known: Any
) -> DatasetInfo:
    if options.format == "synthetic":
        return _prepare_synthetic(options, out, progress, shown=shown)
    from dist_teracon.data.prepare.pipeline import prepare

    return prepare(
        options.format, options.paths[0], out, recipe=recipe, split=options.split,
        max_bad_rows=options.max_bad_rows, min_count=options.min_count, shards=options.shards, cluster=options.cluster,
        max_unmatched=options.max_unmatched, shown=shown, log=Console(quiet=options.quiet).log, progress=progress, **known,
    )  # fmt: skip


def _append(options: argparse.Namespace, progress: Progress) -> DatasetInfo:
    """Prepare what is added beside the new version, in as many shards, and merge the two."""
    from dist_teracon.data.prepare.appending import append_prepared, refuse_shape_options
    from dist_teracon.data.prepare.pipeline import prepared_fingerprint
    from dist_teracon.data.schema import read_dataset_info

    refuse_shape_options(options.shards, options.split)
    parent, recipe, out = read_dataset_info(options.append), _recipe(options), options.paths[-1]
    options.shards, options.split = parent.shards, parent.split.by
    known: dict[str, Any] = {"known_inputs": parent.inputs, "keep_earlier": parent.leaves_out_taken}

    def fingerprint() -> str | None:
        return None if options.format == "synthetic" else prepared_fingerprint(
            options.format, options.paths[0], recipe, split=options.split, max_bad_rows=options.max_bad_rows,
            min_count=options.min_count, shards=options.shards, **known,
        )  # fmt: skip

    return append_prepared(
        options.append, out, lambda folder: _prepare_into(options, folder, recipe, progress, shown=out, **known),
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
