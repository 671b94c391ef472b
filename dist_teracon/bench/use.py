"""`dist-teracon bench use`: exports against plain inference, a cold process, and an event added to a state, on runs with drawn weights."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dist_teracon.arguments import as_count
from dist_teracon.bench.added_event import AddedEvent
from dist_teracon.bench.measure import PeakMemory, alternate, circumstances, markdown_table, median_ratio
from dist_teracon.bench.scale_data import random_dataset
from dist_teracon.config_io import make_config
from dist_teracon.continual.method import MethodContext
from dist_teracon.data.dataset import Dataset
from dist_teracon.inference.export import export
from dist_teracon.inference.export_job import ExportOptions
from dist_teracon.inference.model import PretrainedModel, from_pretrained
from dist_teracon.inference.sources import UserSource, of_dataset
from dist_teracon.train.run_folder import RunFolder
from dist_teracon.train.run_setup import resolve
from dist_teracon.train.stage_folder import FORMAT_VERSION

_TASK = "next"


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench use", description=__doc__)
    parser.add_argument("--channels", nargs="+", type=as_count, default=[64, 256], metavar="C", help="widths of the models (64 256)")
    parser.add_argument("--users", type=as_count, default=4000, help="of the data set that is exported (4000)")
    parser.add_argument("--items", type=as_count, default=50_000, help="of the data set (50000)")
    parser.add_argument("--events", type=as_count, default=100, help="of a user (100)")
    parser.add_argument("--repeats", type=as_count, default=3, help="rounds of export and plain inference (3)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep data set and runs there, as for bench serve (temporary)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dist-teracon-bench-use-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = random_dataset(folder / "data", users=options.users, items=options.items, length=options.events)
        runs = {channels: drawn_run(data, folder / f"run-{channels}", channels=channels) for channels in options.channels}
        rows = [_export_row(run, channels, Path(temporary), repeats=options.repeats) for channels, run in runs.items()]
        print(markdown_table(["width", "plain, users/s", "export, users/s", "export / plain", "memory beyond the model, MB"], rows))
        print()
        print(markdown_table(["cold process, width", "import, s", "and from_pretrained, s", "and one encode, s"],
                             [[str(channels), *_cold(run)] for channels, run in runs.items()]))  # fmt: skip
        print()
        header = ["width", f"{options.events} events encoded, CPU ms", "their last added", "times less", "one beyond the limit added"]
        print(markdown_table(header, [[str(channels), *_added(run, options.events)] for channels, run in runs.items()]))
    print(f"\n{options.users} users, {options.events} events, {options.items} items, {torch.get_num_threads()} threads; "
          f"{circumstances('torch', 'pyarrow')}")  # fmt: skip


def drawn_run(dataset: str, run: Path, *, channels: int) -> Path:
    """Write a run of one stage as training leaves it, with its initial weights, or find that it is there."""
    folder = RunFolder(run)
    if folder.exists:
        return run
    opened = Dataset(dataset)
    values = {"dataset": dataset, "tasks": [_TASK], "model": {"channels": channels, "item_init": "uniform"}}
    config, kind, settings = resolve(make_config(values, where="bench"), where="bench")
    task = opened.info.task(_TASK)
    method = kind(MethodContext(config.model, config.seed, opened.info.items, (task,), (config.train.stage(0, _TASK),)), settings)
    folder.create_or_verify(config, opened.info, [_TASK])
    folder.keep_vocabularies(opened, (task,))
    method.begin_task(task)
    method.end_task()
    state = {"format_version": FORMAT_VERSION, "stage": 1, "task": _TASK, "learned": list(method.learned), "items": opened.info.items}
    folder.stage(0, _TASK).finish(method.state_dict(), state)
    return run


def _export_row(run: Path, channels: int, folder: Path, *, repeats: int) -> list[str]:
    """Return users a second of plain inference and of the export, and what the export holds beyond the model."""
    model = from_pretrained(run)
    source = of_dataset(model, model.config.dataset, log=lambda _: None)
    users = sum(len(source.users(part)) for part in range(source.parts))

    def write() -> None:
        export(model, source, str(folder / "out"), ExportOptions(tasks=(_TASK,)))
        shutil.rmtree(folder / "out")

    with PeakMemory() as memory:
        write()
    timings = alternate(
        {"plain": lambda: _plain(model, source), "export": write}, repeats=repeats, warm_up=0, clock=time.perf_counter
    )  # fmt: skip
    share = median_ratio(timings["plain"], timings["export"])
    rates = [f"{users / timings[name].median:,.0f}" for name in ("plain", "export")]
    return [str(channels), *rates, f"{share:.0%}", f"{memory.most / 1e6:.0f}"]


def _plain(model: PretrainedModel, source: UserSource) -> None:
    """Encode every user, and keep nothing."""
    for part in range(source.parts):
        histories = source.histories(part)
        for first in range(0, len(histories), 512):
            model.vectors(histories.between(first, min(first + 512, len(histories))), _TASK)


_PROGRAM = """
import sys, time
began = time.perf_counter()
import dist_teracon
imported = time.perf_counter() - began
model = dist_teracon.from_pretrained(sys.argv[1])
loaded = time.perf_counter() - began
model.encode([["1", "2", "3"]])
print(imported, loaded, time.perf_counter() - began)
"""


def _cold(run: Path) -> list[str]:
    """Return seconds from the first line of a new process to its import, its model, and its first vector; medians of three."""
    found = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", _PROGRAM, str(run)], check=True, capture_output=True, text=True)
        found.append([float(value) for value in done.stdout.split()])
    return [f"{value:.2f}" for value in np.median(found, axis=0)]


def _added(run: Path, events: int) -> list[str]:
    """Return CPU milliseconds of a history encoded and of its last event added, their ratio, and of an event beyond the length limit."""
    found = AddedEvent.measured(from_pretrained(run), _TASK, repeats=100, events=events)
    encode, extend, beyond = (f"{timing.median * 1e3:.2f}" for timing in (found.encode, found.extend, found.beyond))
    return [encode, extend, f"{found.ratio:.1f}", beyond]
