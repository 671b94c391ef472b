"""`dist-teracon bench replay`: what replayed rows cost by the number of tasks, with a floor a task and with a budget for all.

The data are random; only cost and memory are measured, of the stage of the last task. What a budget keeps is a matter of whole runs
(`dist-teracon compare`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_teracon.arguments import as_count, as_share
from dist_teracon.bench.measure import alternate, circumstances, markdown_table, median_ratio, peak_memory, use_one_thread


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if min(options.tasks) < 2:
        parser.error("argument --tasks: expected numbers of 2 or more, since the stage that is measured replays past tasks")
    use_one_thread()
    from dist_teracon.runtime import process_group

    print(circumstances("dist-teracon", "torch", "deepspeed"))
    rows = []
    with process_group() as runtime, tempfile.TemporaryDirectory() as folder:
        for tasks in options.tasks:
            rows += _rows(options, tasks, runtime, Path(folder) / str(tasks))
    header = ["tasks", "replay", "rows a step", "CPU-ms a step", "times no replay", "pseudo-labels, KiB"]
    print(markdown_table(header, rows))
    print(f"\npeak memory of this process: {peak_memory() / 2**20:.0f} MiB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dist-teracon bench replay", description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=as_count, nargs="+", default=[6, 12, 20, 40], help="numbers of tasks (default: 6 12 20 40)")
    parser.add_argument("--users", type=as_count, default=4000, help="users, all with labels of every task (default: 4000)")
    parser.add_argument("--items", type=as_count, default=5000, help="size of the catalogue (default: 5000)")
    parser.add_argument("--length", type=as_count, default=30, help="items of a sequence (default: 30)")
    parser.add_argument("--channels", type=as_count, default=64, help="width (default: 64)")
    parser.add_argument("--batch", type=as_count, default=256, help="examples a step (default: 256)")
    parser.add_argument("--minimum", type=as_count, nargs="*", default=[1, 64], help="floors, rows a past task (default: 1 64)")
    parser.add_argument(
        "--budget", type=as_share, nargs="*", default=[0.125, 0.25], help="budgets, shares of the batch (default: 0.125 0.25)"
    )
    parser.add_argument(
        "--tasks-per-step", type=as_count, nargs="*", default=[1], help="each budget also in turns of so many past tasks (default: 1)"
    )
    parser.add_argument("--repeats", type=as_count, default=3, help="epochs of each that count (default: 3)")
    return parser


def _candidates(options: argparse.Namespace) -> Mapping[str, Mapping[str, Any]]:
    """Return settings of retention by what the table calls them."""
    floors = {f"at least {minimum} rows a task": {"minimum": minimum} for minimum in options.minimum}
    budgets: dict[str, dict[str, Any]] = {}
    for budget in options.budget:
        budgets[f"budget {budget:g}"] = {"budget": budget}
        for tasks in options.tasks_per_step:
            budgets[f"budget {budget:g}, {tasks} task{'s' if tasks > 1 else ''} a step"] = {"budget": budget, "tasks_per_step": tasks}
    return {"none": {"alpha": 0.0}, **floors, **budgets}


def _rows(options: argparse.Namespace, tasks: int, runtime: Any, folder: Path) -> list[list[str]]:
    from dist_teracon.bench.our_stage import Size, our_stage

    dataset = random_dataset(folder / "set", tasks, users=options.users, items=options.items, length=options.length)
    candidates = _candidates(options)
    stages = {
        name: our_stage(
            Size(dataset, options.channels, options.batch, replayed=1, retention=retention),
            options.channels, tasks, "fp32", runtime, folder / str(number),
        )
        for number, (name, retention) in enumerate(candidates.items())
    }  # fmt: skip
    timings = alternate({name: stage.epoch for name, stage in stages.items()}, repeats=options.repeats)
    rows = []
    for number, (name, stage) in enumerate(stages.items()):
        steps = stage.steps // stage.epochs
        drawn = sum(stage.method.logs().get("rows", {}).values())
        size = sum(path.stat().st_size for path in (folder / str(number)).rglob("*.arrow")) / 2**10
        ratio = median_ratio(timings[name], timings["none"])
        rows.append([str(tasks), name, str(drawn), f"{1000 * timings[name].median / steps:.1f}", f"{ratio:.2f}", f"{size:.1f}"])
    return rows


def random_dataset(folder: Path, tasks: int, *, users: int, items: int, length: int) -> str:
    """Write a set of random data with a next-item task and, in turn, profile tasks of 8 labels and item tasks of up to 1,000."""
    import numpy as np

    from dist_teracon.bench.scale_data import random_tables
    from dist_teracon.data.prepare.pipeline import write_dataset
    from dist_teracon.data.schema import SplitRule

    tables = random_tables(users=users, items=items, length=length)
    likes, profile = tables.labels
    classes = likes.classes[: min(1000, items)]
    labels = []
    for number in range(1, tasks):
        generator = np.random.default_rng(number)
        kind = profile if number % 2 else replace(likes, classes=classes)
        values = generator.integers(0, len(kind.classes), len(kind.values)).astype(np.int32)
        labels.append(replace(kind, name=f"task-{number:02d}", values=values))
    write_dataset(replace(tables, labels=labels), str(folder), SplitRule(), shards=2)
    return str(folder)
