"""`dist-teracon bench workers`: one configuration by several processes, torchrun's or Ray's: examples a second, start, final scores.

Each way trains the whole run in a process of its own, one thread a worker, in turn; a run of the first way and one of the others with
the same seed stand beside each other in time. Scores of one seed differ between ways by the order of sums alone; how much that is, is
held against how much they differ between seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dist_teracon.arguments import as_whole
from dist_teracon.bench.measure import circumstances, markdown_table, run_to_its_end
from dist_teracon.errors import ConfigError


@dataclass(frozen=True)
class Way:
    """How a run is started: `local`, `torchrun:N` or `ray:N`.

    Attributes:
        name: As it was given.
        launcher: The part before the colon.
        workers: N.
    """

    name: str
    launcher: str
    workers: int

    @classmethod
    def parse(cls, name: str) -> Way:
        """Read a way's name.

        Raises:
            ConfigError: it is none of the three.
        """
        launcher, _, count = name.partition(":")
        if launcher == "local" and not count:
            return cls(name, launcher, 1)
        if launcher not in ("torchrun", "ray") or not count.isdecimal() or not int(count):
            raise ConfigError(f"--ways: '{name}' is none of local, torchrun:N, ray:N")
        return cls(name, launcher, int(count))

    def command(self, config: str, run: Path, settings: Sequence[str]) -> list[str]:
        """Return the command that trains a run."""
        options = [config, "--run", str(run), "--no-report"]
        for setting in settings:
            options += ["--set", setting]
        if self.launcher == "torchrun":
            alone = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.workers)]
            return [sys.executable, *alone, "-m", "dist_teracon.launch.torchrun", "--", *options]
        if self.launcher == "ray":
            # three workers share two cores, as they would share a machine's
            share = min(1.0, len(os.sched_getaffinity(0)) / self.workers)
            options += ["--launcher", "ray", "--set", f"launch.workers={self.workers}", "--set", f"launch.cpus_per_worker={share:g}"]
        return [sys.executable, "-m", "dist_teracon.cli", "train", *options]


@dataclass(frozen=True)
class Outcome:
    """What a run took.

    Attributes:
        seconds: From its start to its end.
        training: Of them, of epochs with their validation.
        examples: Training examples that epochs read (of the next-item task: sequences).
        scores: Of the tasks, after the last stage.
    """

    seconds: float
    training: float
    examples: int
    scores: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Return examples a second."""
        return self.examples / self.training


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench workers", description=__doc__)
    parser.add_argument("config", metavar="CONFIG", help="the run that is trained by every way")
    parser.add_argument("--ways", nargs="+", default=["local", "torchrun:2", "ray:2"], metavar="WAY", help="local, torchrun:N, ray:N")
    parser.add_argument("--seeds", nargs="+", type=as_whole, default=[0, 1, 2], metavar="N")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="FIELD=VALUE", help="as of train")
    options = parser.parse_args(arguments)
    ways = [Way.parse(name) for name in options.ways]
    found: dict[str, list[Outcome]] = {way.name: [] for way in ways}
    tasks: list[str] = []
    for seed in options.seeds:
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                outcome, tasks = _train(way, options.config, Path(folder) / "run", [*options.settings, f"seed={seed}"])
            found[way.name].append(outcome)
            print(f"{way.name}, seed {seed}: {outcome.rate:.0f} examples/s, {outcome.seconds:.1f} s", file=sys.stderr, flush=True)
    print(_speeds(found))
    print()
    print(_scores(found, tasks))
    print(f"\n{len(options.seeds)} seeds; one thread a worker; {circumstances('torch', 'deepspeed', 'ray')}")


def _train(way: Way, config: str, run: Path, settings: Sequence[str]) -> tuple[Outcome, list[str]]:
    """Train a run; returns what it took, and its tasks' names.

    Raises:
        RunError: the run failed; has the end of its messages.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.monotonic()
    run_to_its_end(way.command(config, run, settings), f"bench workers: {way.name}", environment=environment)
    return outcome_of(run, time.monotonic() - began)


def outcome_of(run: Path, seconds: float) -> tuple[Outcome, list[str]]:
    """Return what a finished run took, and its tasks' names; an epoch reads every training example once."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    description = json.loads((run / "dataset.json").read_text(encoding="utf-8"))
    examples = {task["name"]: task["examples"][0] for task in description["tasks"]}
    training, read = 0.0, 0
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "epoch" and event["epoch"]:
            training += event["seconds"]
            read += examples[event["task"]]
    return Outcome(seconds, training, read, tuple(results["scores"][-1])), results["tasks"]


def _speeds(found: dict[str, list[Outcome]]) -> str:
    first = next(iter(found))
    rows = []
    for name, outcomes in found.items():
        rates = [outcome.rate for outcome in outcomes]
        ratios = [outcome.rate / other.rate for outcome, other in zip(outcomes, found[first], strict=True)]
        apart = [outcome.seconds - outcome.training for outcome in outcomes]
        rows.append(
            [name, f"{np.median(rates):.0f}", f"{min(rates):.0f} … {max(rates):.0f}", f"{np.median(ratios):.2f}", f"{np.median(apart):.1f}"]
        )
    return markdown_table(["way", "examples/s, median", "range", f"against {first}", "seconds beside epochs"], rows)


def _scores(found: dict[str, list[Outcome]], tasks: Sequence[str]) -> str:
    first = np.array([outcome.scores for outcome in next(iter(found.values()))])
    rows = []
    for name, outcomes in found.items():
        scores = np.array([outcome.scores for outcome in outcomes])
        rows.append([name, *(f"{mean:.4f}" for mean in scores.mean(0)), f"{np.abs(scores - first).max():.1e}"])
    if len(first) > 1:
        rows.append(["deviation over seeds", *(f"{value:.4f}" for value in first.std(0, ddof=1)), ""])
    return markdown_table(["final score", *tasks, "largest difference of a seed"], rows)
