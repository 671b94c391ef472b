"""`dist-teracon bench loader`: users a second from the local cache, into plain rows and into packed batches; time to the first batch."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import Timing, alternate, circumstances, markdown_table
from dist_teracon.data.batch_plan import shuffled_rows
from dist_teracon.data.batches import take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import TrainingLoader

# Users read in one round of a measurement.
_USERS = 100_000


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench loader", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the data set of random users lies or will lie; its cache lies beside it")
    parser.add_argument("--users", type=as_count, default=1_470_000)
    parser.add_argument("--items", type=as_count, default=645_974)
    parser.add_argument("--repeats", type=as_count, default=5)
    parser.add_argument("--world-size", type=as_count, default=1, help="measure rank 0 of so many")
    parser.add_argument("--event-columns", action="store_true", help="events have times and types, which batches carry")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        print(json.dumps(_measure(options)))
        return
    command = [sys.executable, "-c", "import sys; from dist_teracon.bench.loader import prepare_set; prepare_set(sys.argv[1:])"]
    event_columns = ["event-columns"] * options.event_columns
    subprocess.run([*command, str(options.folder), str(options.users), str(options.items), *event_columns], check=True)
    # a process of its own, twice: the first fills the cache, the second finds it warm, and neither has written a data set
    inside = [sys.executable, "-m", "dist_teracon.cli", "bench", "loader", *arguments, "--inside"]
    cold, warm = (json.loads(subprocess.run(inside, check=True, capture_output=True, text=True).stdout) for _ in range(2))
    print(_table(cold, warm))
    print(f"\n{options.users} users, rank 0 of {options.world_size}; {circumstances('numpy', 'torch', 'pyarrow')}")


def prepare_set(arguments: Sequence[str]) -> None:
    """Write the data set in a process whose memory is given back."""
    from dist_teracon.bench.scale_data import random_dataset

    event_columns = "event-columns" in arguments
    random_dataset(_set(Path(arguments[0]), event_columns), users=int(arguments[1]), items=int(arguments[2]), event_columns=event_columns)


def _set(folder: Path, event_columns: bool) -> Path:
    return folder / ("set-with-event-columns" if event_columns else "set")


def _measure(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(1)
    os.environ["DIST_TERACON_CACHE"] = str(options.folder / "cache")
    before, began = anonymous_memory(), time.perf_counter()
    dataset = Dataset(str(_set(options.folder, options.event_columns)), cached=True)

    def loader(tasks: Sequence[str], batch: int) -> TrainingLoader:
        chosen = [dataset.info.task(name) for name in tasks]
        return TrainingLoader(dataset, chosen, mask_index=0, batch=batch, seed=0, rank=0, world_size=options.world_size)

    first = loader(["next"], 32)
    next(iter(first.epoch(1)))
    found = {"first batch, s": time.perf_counter() - began, "first batch, CPU s": time.process_time()}
    began_cpu = time.process_time()
    plan_before = anonymous_memory()
    epoch = first.epoch(2)
    found["plan of an epoch, CPU s"] = time.process_time() - began_cpu
    found["plan of an epoch, MB"] = max(0.0, anonymous_memory() - plan_before) / 1e6
    del epoch
    stored = sum(entry.bytes for path, entry in dataset.info.files.items() if path.startswith("users/"))
    found["bytes an event on disk"] = stored / dataset.info.events
    candidates: dict[str, Callable[[], int]] = {"plain rows, shuffled in blocks": lambda: _plain_rows(dataset)}
    for name, tasks, batch in (
        ("packed batches of 32, next item at all positions", ["next"], 32),
        ("packed batches of 1,024, item labels", ["likes"], 1024),
        ("packed batches of 1,024, two tasks joined", ["likes", "profile"], 1024),
    ):
        candidates[name] = _reading(loader(tasks, batch))
    users = {name: run() for name, run in candidates.items()}
    timings: dict[str, Timing] = alternate(candidates, repeats=options.repeats)
    found |= {name: users[name] / timings[name].median for name in candidates}
    found["memory beyond the page cache and the start, MB"] = (anonymous_memory() - before) / 1e6
    began_cpu = time.process_time()
    dataset.train_counts("next")
    found["training targets of `next` counted, CPU s"] = time.process_time() - began_cpu
    return found


def _plain_rows(dataset: Dataset) -> int:
    """Read sequences in the order of a shuffled shard, as training does, without tasks and tensors."""
    read = 0
    for shard in range(dataset.info.shards):
        data = dataset.shard(shard)
        order = shuffled_rows(data.user_hash.shape[0], np.random.default_rng(shard))
        for first in range(0, order.shape[0], 256):
            read += take_rows(data.values, data.offsets, order[first : first + 256], columns=data.columns).rows
        if read >= _USERS:
            break
    return read


def _reading(loader: TrainingLoader) -> Callable[[], int]:
    epoch = loader.epoch(1)

    def read() -> int:
        epoch.step = 0
        return sum(batch.rows for batch in islice(epoch, _USERS // loader.batch))

    return read


def anonymous_memory() -> float:
    """Return this process's resident bytes that are no file's pages."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) * 1024


def _table(cold: dict[str, float], warm: dict[str, float]) -> str:
    def cell(name: str, value: float) -> str:
        return f"{value:,.2f}" if name.endswith((" s", "MB", "on disk")) else f"{value:,.0f} users/s"

    rows = [["first batch while the cache is filled, s", f"{cold['first batch, s']:,.2f}"]]
    rows += [[name, cell(name, value)] for name, value in warm.items()]
    return markdown_table(["", "measured"], rows)
