"""Breaks a run at random points, in random ways, and checks that the same command then ends with the same bits as an undisturbed run.

    python tests/chaos/chaos.py --points 100 --seed 0 [--from 0 --to 50] [--faults kill,SIGTERM] [--small] [--folder DIR]

The run learns the six tasks of `six-tasks-v1`, prepared on first use, with pseudo-labels, a linear probe, averages of weights and a
checkpoint every few steps. The same seed gives the same points. Prints a line a trial, and how many were tried and how many were equal.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]

import ray_faults  # noqa: F401  adds its kinds of fault
import torch
from commands import Command, Place, count_events, in_child, what_lasts
from faults import FAULTS, Fault, MissedError, Trial, WrongError
from s3_server import client, environment, proxy_process, s3_server

from dist_teracon.engine.deepspeed_engine import _import_deepspeed

BUCKET = "chaos"
# A dead holder on another machine is waited for as long.
LEASE_S = "2"
_DRAWS = 20


@dataclass(frozen=True)
class Undisturbed:
    """An undisturbed run of some number of processes: what lasts of it, its operations on a disk or a store, its seconds and events."""

    lasts: dict[str, str]
    counts: dict[str, int]
    seconds: float
    events: int


def configuration(*, small: bool) -> dict[str, Any]:
    """Return the run's configuration; a small one has two tasks."""
    stage = {"learning_rate": 0.01, "batch": 64, "epochs": 2, "ema_decay": 0.5, "pretrained_lr_scale": 0.5, "probe_steps": 25}
    return {
        "dataset": "synthetic:six-tasks-v1?users=100" if small else "synthetic:six-tasks-v1?users=300",
        "tasks": ["next", "profile-2"] if small else None,
        "method": {"name": "teracon", "retention": {"refresh_every": 2, "minimum": 8}},
        "model": {"channels": 8, "backbone": {"name": "nextitnet", "dilations": [1, 2]}, "item_init": "uniform", "dropout": 0.2},
        "evaluate": {"max_users": 32},
        "train": {
            "first": {**stage, "batch": 16}, "second": stage, "later": stage, "log_every": 2,
            "checkpoint_every": {"minutes": None, "steps": 3},
        },
    }  # fmt: skip


class Chaos:
    """Trials, and the undisturbed runs that they are held against.

    Args:
        folder: Where everything lies.
        seed: Of all trials.
        small: Take the small run.
    """

    def __init__(self, folder: Path, *, seed: int, small: bool) -> None:
        self.folder, self.seed, self.config = folder, seed, configuration(small=small)
        self.variables: dict[str, str] = {}
        self.store: Callable[[bool], None] | None = None
        self._undisturbed: dict[tuple[bool, int], Undisturbed] = {}

    @contextlib.contextmanager
    def with_store(self) -> Iterator[None]:
        """Run an S3 server, and a proxy before it that can fail."""
        with s3_server() as port, proxy_process(port) as (proxy, fails):
            in_child(lambda: client(port).mkdir(BUCKET))
            self.variables = {**environment(proxy), "DIST_TERACON_LEASE_S": LEASE_S}
            self.store = fails
            yield

    def place(self, name: str, *, on_store: bool) -> Place:
        """Return a new place."""
        here = self.folder / name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        run = f"s3://{BUCKET}/{name}" if on_store else str(here / "run")
        return Place(run, here / "cache", here / "scratch", here / "log.txt", self.variables if on_store else {})

    def undisturbed(self, *, on_store: bool, ranks: int) -> Undisturbed:
        """Return the undisturbed run of that kind, made when it is first asked for."""
        kind = on_store, ranks
        if kind not in self._undisturbed:
            place = self.place(f"undisturbed-{'store' if on_store else 'disk'}-{ranks}", on_store=on_store)
            began, counts = time.monotonic(), place.log.with_name("counts.json")
            codes = Command(self.config, place, ranks=ranks, counts=counts).wait()
            if any(codes):
                raise SystemExit(f"the undisturbed run fails with {codes}; see {place.log}")
            found = Undisturbed(what_lasts(place), json.loads(counts.read_text()), time.monotonic() - began, count_events(place))
            other = self._undisturbed.get((not on_store, ranks))
            if other is not None and other.lasts != found.lasts:
                raise SystemExit("undisturbed runs on a disk and on a store differ")
            self._undisturbed[kind] = found
            print(f"undisturbed, {place.run}: {found.seconds:.1f} s, operations {found.counts}", flush=True)
        return self._undisturbed[kind]

    def trial(self, number: int, kind: Fault) -> str:
        """Do one trial; returns what is wrong, or nothing."""
        whole = self.undisturbed(on_store=kind.on_store, ranks=kind.ranks)
        for draw in range(_DRAWS):
            place = self.place(f"trial-{number}", on_store=kind.on_store)
            if kind.on_store and draw:
                place = self.place(f"trial-{number}-{draw}", on_store=True)
            trial = Trial(
                random.Random(f"{self.seed}/{number}/{draw}"), self.config, place, kind.ranks, whole.counts, whole.seconds, whole.events,
                self.store if kind.on_store else None,
            )  # fmt: skip
            try:
                problem = self._problem(kind, trial, whole)
            except MissedError:
                continue
            print(f"{number + 1:4} {kind.name}: {'; '.join(trial.notes)}: {problem or 'equal'}", flush=True)
            if not problem:
                shutil.rmtree(self.folder / place.cache.parent.name, ignore_errors=True)
            return problem
        print(f"{number + 1:4} {kind.name}: nothing to act on in {_DRAWS} draws", flush=True)
        return "nothing to act on"

    @staticmethod
    def _problem(kind: Fault, trial: Trial, whole: Undisturbed) -> str:
        try:
            left = kind.act(trial)
            if left is not None and any(codes := left.wait()):
                trial.notes.append(f"ended with {codes}")
        except WrongError as error:
            return str(error)
        codes = trial.start().wait()
        if any(codes):
            return f"the same command fails with {codes}; see {trial.place.log}"
        lasts = what_lasts(trial.place)
        differing = sorted(name for name in {*lasts, *whole.lasts} if lasts.get(name) != whole.lasts.get(name))
        return f"{len(differing)} files differ: {', '.join(differing[:4])}" if differing else ""


def main() -> int:
    """Run the program; the exit status is 1 where a trial was not equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument(
        "--from", dest="first", type=int, default=0, metavar="N", help="begin with this trial, from 0: a part of the points"
    )
    parser.add_argument("--to", type=int, metavar="N", help="end before this trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default="", help="only these kinds, separated by commas")
    parser.add_argument("--also", action="append", default=[], metavar="MODULE", help="a module with further kinds")
    parser.add_argument("--small", action="store_true", help="two tasks instead of six")
    parser.add_argument("--folder", type=Path, help="kept afterwards; by default a temporary one")
    options = parser.parse_args()
    for module in options.also:
        importlib.import_module(module)
    kinds = [FAULTS[name] for name in options.faults.split(",")] if options.faults else list(FAULTS.values())
    torch.set_num_threads(1)
    _import_deepspeed()
    for library in (
        "sklearn.decomposition",
        "sklearn.linear_model",
        "tensorboardX",
        "s3fs",
    ):  # what runs import on their way
        importlib.import_module(library)
    gc.freeze()  # each stage's end collects; what was imported is not looked through again
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chaos = Chaos(folder, seed=options.seed, small=options.small)
        if any(kind.on_store for kind in kinds):
            stack.enter_context(chaos.with_store())
        return _report(chaos, kinds, range(options.first, options.points if options.to is None else options.to))


def _report(chaos: Chaos, kinds: list[Fault], numbers: range) -> int:
    began, tried, equal, problems = time.monotonic(), Counter[str](), Counter[str](), []
    for number in numbers:
        kind = kinds[number % len(kinds)]
        try:
            problem = chaos.trial(number, kind)
        except Exception:
            traceback.print_exc()
            problem = "the program of the trials failed"
        tried[kind.name] += 1
        equal[kind.name] += not problem
        if problem:
            problems.append(f"{number + 1} {kind.name}: {problem}")
    print(f"\n{'fault':32} tried equal")
    for kind in kinds:
        print(f"{kind.name:32} {tried[kind.name]:5} {equal[kind.name]:5}")
    print(f"{'all':32} {tried.total():5} {equal.total():5}   seed {chaos.seed}, {time.monotonic() - began:.0f} s")
    print("\n".join(problems))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
