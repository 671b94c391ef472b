"""`dist-teracon bench checkpoint`: what a checkpoint within an epoch costs, of a run on a disk or on a store.

The run is trained with checkpoints every so many steps and without any, in turn, each in a process of its own. Two figures of a
checkpoint: for how long no step was taken because of it, and how much longer the epochs took, which has also what an upload beside
training takes from it (and whatever else the machine did meanwhile: give it many steps). Over the time between two checkpoints of a run
(`train.checkpoint_every.minutes`) they are its share of training.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np

from dist_teracon import io
from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import circumstances, markdown_table, run_to_its_end
from dist_teracon.config.train import CheckpointEvery
from dist_teracon.config_io import load_config
from dist_teracon.errors import RunError


@dataclass(frozen=True)
class Outcome:
    """What a run took.

    Attributes:
        epochs: Seconds of its epochs, with validation.
        count: Checkpoints within epochs that the log knows of.
        waited: Seconds in which no step was taken because of them.
        model: Bytes of the weights.
    """

    epochs: float
    count: int
    waited: float
    model: int


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    options = _parser().parse_args(arguments)
    every = load_config(options.config, options.settings).train.checkpoint_every.minutes
    minutes = CheckpointEvery().minutes if every is None else every
    assert minutes is not None
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for place in options.run or [temporary]:
            pairs = [(_train(options, place, saves=True), _train(options, place, saves=False)) for _ in range(options.repeats)]
            rows.append(["disk" if place == temporary else place, *cells(pairs, minutes)])
    share = f"of {minutes:g} minutes"
    print(markdown_table(["run on", "weights, MiB", "checkpoints", "s without a step", share, "s longer", share], rows))
    print(f"\nseconds of a checkpoint, medians of {options.repeats}; {circumstances('dist-teracon', 'torch')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dist-teracon bench checkpoint", description=__doc__)
    parser.add_argument("config", metavar="CONFIG", help="the run that is trained")
    parser.add_argument("--run", nargs="+", metavar="PLACE", help="folders or URIs below which runs go (default: a temporary folder)")
    parser.add_argument("--stages", type=as_count, default=1, metavar="N", help="train the first N stages (default: 1)")
    parser.add_argument("--steps", type=as_count, default=50, metavar="N", help="optimiser steps of a stage (default: 50)")
    parser.add_argument("--every", type=as_count, default=10, metavar="N", help="steps between two checkpoints (default: 10)")
    parser.add_argument("--repeats", type=as_count, default=3, help="pairs of runs (default: 3)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="FIELD=VALUE", help="as of train")
    return parser


def cells(pairs: Sequence[tuple[Outcome, Outcome]], minutes: float) -> list[str]:
    """Return the table's cells of runs with checkpoints and without.

    Args:
        pairs: Each with checkpoints first.
        minutes: Between two checkpoints of a run.

    Raises:
        RunError: no checkpoint was written.
    """
    if not all(saved.count for saved, _ in pairs):
        raise RunError("bench checkpoint: no checkpoint was written within an epoch; give more --steps, or fewer to --every")
    waited = float(np.median([saved.waited / saved.count for saved, _ in pairs]))
    longer = float(np.median([(saved.epochs - plain.epochs) / saved.count for saved, plain in pairs]))
    shares = [f"{seconds / (60 * minutes):.2%}" for seconds in (waited, longer)]
    first = pairs[0][0]
    return [f"{first.model / 2**20:.1f}", str(first.count), f"{waited:.3f}", shares[0], f"{longer:.3f}", shares[1]]


def _train(options: argparse.Namespace, place: str, *, saves: bool) -> Outcome:
    """Train a run below a place and remove it again.

    Raises:
        RunError: the run failed; has the end of its messages.
    """
    fields = {
        "max_steps": options.steps, "log_every": options.every, "checkpoint_every.minutes": "null",
        "checkpoint_every.steps": options.every if saves else "null",
    }  # fmt: skip
    with _new_run(place) as run, tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "dist_teracon.cli", "train", options.config, "--run", run, "--no-report"]
        command += ["--until-stage", str(options.stages), "--scratch", scratch]
        for setting in [*options.settings, *(f"train.{name}={value}" for name, value in fields.items())]:
            command += ["--set", setting]
        run_to_its_end(command, "bench checkpoint: the run")
        folder = Path(run) if io.is_local(run) else next(path.parent for path in Path(scratch).rglob("events.jsonl"))
        return outcome_of(folder)


@contextmanager
def _new_run(place: str) -> Iterator[str]:
    """Yield where a new run goes below a folder or URI; what is written there is removed."""
    import fsspec

    run = io.join(place, f"bench-{uuid4().hex[:12]}")
    try:
        yield run
    finally:
        files, path = fsspec.core.url_to_fs(run)
        if files.exists(path):
            files.rm(path, recursive=True)


def outcome_of(folder: Path) -> Outcome:
    """Return what a run took, by its log."""
    epochs = waited = 0.0
    count = 0
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "epoch" and event["epoch"]:
            epochs += event["seconds"]
        written = event.get("timing", {}).get("checkpoints", {})
        count += written.get("count", 0)
        waited += written.get("seconds", 0.0)
    model = max(path.stat().st_size for path in folder.rglob("stages/*/model.safetensors"))
    return Outcome(epochs, count, waited, model)
