"""Small data sets and runs of them, in this process or in worlds of processes."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import validate
from dist_teracon.console import Console
from dist_teracon.continual.registry import resolve_method
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.schema import SplitRule
from dist_teracon.hashing import stable_hash
from dist_teracon.runtime import Runtime
from dist_teracon.train.run import train

HELPERS = Path(__file__).parent
LIMIT_S = 500
ALONE = Runtime(0, 1, torch.device("cpu"))
TASKS = ("next", "likes", "age", "gender")
# methods that count and train nothing
UNTRAINED = ("popularity", "itemknn", "svdlr")
# every backbone, as small as it goes
BACKBONES: dict[str, dict[str, Any]] = {
    "nextitnet": {"name": "nextitnet", "dilations": [1, 2]},
    "sasrec": {"name": "sasrec", "layers": 2, "max_positions": 16},
}
# plain training, whatever the stages' defaults are
PLAIN_STAGE = {"weight_decay": 0.0, "ema_decay": 0.0, "pretrained_lr_scale": 1.0, "probe_steps": 0}


def small_tables(*, users: int = 160, items: int = 40, likes_in_shard: int | None = None, shards: int = 8) -> Tables:
    """Return tables of four tasks whose labels follow from the sequence; `likes` has users of one shard only where asked."""
    generator = np.random.default_rng(5)
    lengths = generator.integers(3, 11, users)
    taste = generator.integers(0, 4, users)
    values = ((np.repeat(taste, lengths) * 10 + generator.integers(0, 12, int(lengths.sum()))) % items).astype(np.int32)
    hashes = np.array([stable_hash(f"user {user}") for user in range(users)], dtype=np.uint64)
    everyone = np.arange(users)
    liking = everyone if likes_in_shard is None else np.flatnonzero(hashes % np.uint64(shards) == likes_in_shard)
    counts = generator.integers(1, 4, liking.shape[0])
    liked = np.concatenate(
        [(3 * taste[user] + generator.choice(6, size=count, replace=False)) % 12 for user, count in zip(liking, counts, strict=True)]
    )
    return Tables(
        name="small",
        items=[f"i{item}" for item in range(items)],
        sequences=SequenceTable([f"u{user}" for user in range(users)], hashes, values, _ends(lengths)),
        labels=[
            LabelTable("likes", "item", [f"l{label}" for label in range(12)], liking, liked.astype(np.int32), _ends(counts)),
            _profile("age", everyone[::2], taste[::2] % 3, 3),
            _profile("gender", everyone, taste % 2, 2),
        ],
        length_limit=10,
    )


def _ends(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _profile(name: str, users: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> LabelTable:
    return LabelTable(name, "profile", [f"c{c}" for c in range(classes)], users, labels.astype(np.int32), np.arange(len(users) + 1))


def write_small(folder: Path, *, shards: int = 8, **options: Any) -> str:
    """Write small tables as a data set; returns its URI."""
    write_dataset(small_tables(shards=shards, **options), str(folder), SplitRule(train=0.6, validation=0.2, test=0.2), shards=shards)
    return str(folder)


def settings(dataset: str, *, method: dict[str, Any] | str = "teracon", tasks: Sequence[str] = TASKS[:3], **train: Any) -> dict[str, Any]:
    """Return a small run's configuration as a mapping; further arguments are fields of `train`."""
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 2}
    stages = {name: {**PLAIN_STAGE, **train.pop(name, stage)} for name in ("first", "second", "later")}
    return {
        "dataset": dataset,
        "tasks": list(tasks),
        "method": {"name": method} if isinstance(method, str) else method,
        "model": {"channels": 8, "backbone": {"name": "nextitnet", "dilations": [1, 2]}, "item_init": "uniform", "dropout": 0.0},
        "train": {**stages, "log_every": 1, **train},
    }


def checked(values: dict[str, Any]) -> RunConfig:
    """Validate a configuration and its method's settings."""
    config = validate(RunConfig, values, where="test")
    resolve_method(config, where="test")
    return config


def train_here(values: dict[str, Any], folder: Path, **options: Any) -> Path:
    """Train in this process, whose group of one exists; returns the run's folder."""
    train(checked(values), ALONE, folder, where="test", console=Console(active=False), **options)
    return folder


def events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return a run's events, of one kind or all."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if kind is None or line["event"] == kind]


def results(run: Path) -> dict[str, Any]:
    """Return a run's results."""
    value: dict[str, Any] = json.loads((run / "results.json").read_text())
    return value


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    """Return a finished stage's weights."""
    from dist_teracon.train.stage_folder import load_tensors

    return load_tensors(run / "stages" / stage / "model.safetensors")


def what_lasts(run: Path) -> dict[str, bytes]:
    """Return the bytes of everything in a run that does not depend on time."""
    kept = [run / "results.json", *run.glob("stages/*/model.safetensors"), *run.glob("stages/*/pseudo_labels/*/*.arrow")]
    return {str(path.relative_to(run)): path.read_bytes() for path in kept}


def timeless(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event without what depends on time."""
    return {key: value for key, value in event.items() if key not in ("time", "seconds", "timing")}


def run_worlds(jobs: Sequence[dict[str, Any]], folder: Path) -> list[list[int]]:
    """Run jobs one after another, each in a fresh world of processes; see `worlds.py`.

    Returns:
        The exit codes of each job's ranks; a signal's number is negative.
    """
    log = folder / "worlds.log"
    codes = _ask_worlds(
        {"jobs": list(jobs), "environment": {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}, "log": str(log)}
    )
    said = log.read_text()
    assert isinstance(codes, list), (codes, said[-3000:])
    for job, code in zip(jobs, codes, strict=True):
        assert any(code) or not job.get("moment"), f"never came to {job['moment']}"
        assert not any(code) or job.get("fails") or job.get("moment"), (job, code, said[-4000:])
    return codes


def run_command(arguments: Sequence[str], folder: Path, *, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `dist-teracon` in a process of its own, whose imports are done (see `worlds.py`), in a folder."""
    log = folder / "command.log"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **(environment or {})}
    code = _ask_worlds({"command": [*arguments], "folder": str(folder), "environment": variables, "log": str(log)})
    return subprocess.CompletedProcess([*arguments], code, Path(f"{log}.out").read_text(), log.read_text())


@functools.cache
def _worlds() -> subprocess.Popen[str]:
    """Return the server of worlds, which ends with this process: its standard input does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, str(HELPERS / "worlds.py")]
    server = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    atexit.register(server.communicate)
    return server


def _ask_worlds(request: dict[str, Any]) -> Any:
    """Return the server's answer; what takes too long, or breaks it off, ends the server and everything that it has started."""
    server = _worlds()
    assert server.stdin is not None and server.stdout is not None
    answer = ""
    try:
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        if select.select([server.stdout], [], [], LIMIT_S)[0]:
            answer = server.stdout.readline()
        assert answer, f"the server of worlds did not answer in {LIMIT_S} s: {Path(request['log']).read_text()[-3000:]}"
    finally:
        if not answer:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            _worlds.cache_clear()
    return json.loads(answer)
