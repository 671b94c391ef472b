"""A made-up shop: events with types and times in raw ids, a recipe, and a small run trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import validate
from dist_teracon.console import Console
from dist_teracon.continual.method import MethodContext
from dist_teracon.continual.open_inputs import names_read
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.moments import Moments
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.models.history_start import history_start
from dist_teracon.runtime import process_group
from dist_teracon.train.run import train
from dist_teracon.train.run_folder import RunFolder
from dist_teracon.train.run_setup import input_sizes, resolve
from dist_teracon.train.stage_folder import FORMAT_VERSION

LENGTH = 8
RECIPE: dict[str, Any] = {
    "name": "shop",
    "history": {"events": {"type": "view"}, "length": LENGTH, "minimum": 3, "min_count": 2, "repeats": False},
    "tasks": {
        "buys": {"kind": "item", "events": {"type": "buy"}, "repeats": False},
        "category": {"kind": "item", "events": {"type": "buy"}, "label": "category"},
        "club": {"kind": "profile"},
    },
    "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
}
CONFIG: dict[str, Any] = {
    "tasks": ["next", "buys", "club"],
    "model": {"channels": 8, "backbone": {"name": "nextitnet", "dilations": [1, 2]}, "item_init": "uniform", "dropout": 0.0},
    "evaluate": {"metrics": ["mrr@5", "hr@3", "accuracy"]},
    "train": {name: {"learning_rate": 0.01, "batch": 64, "epochs": 1, "probe_steps": 0} for name in ("first", "second", "later")},
}


def write_events(folder: Path, *, users: int = 120, seed: int = 0) -> Path:
    """Write `events.parquet` (views and buys of items `p…`, some of them twice), `items.csv` and `users.csv`."""
    generator = np.random.default_rng(seed)
    rows: list[tuple[str, str, float, str]] = []
    for user in range(users):
        taste, count = user % 4, int(generator.integers(4, 14))
        viewed = [f"p{taste * 6 + int(item):02d}" for item in generator.permutation(12)[:count] % 24]
        at = 1.7e9 + 1000.0 * user
        rows += [(f"u{user:03d}", item, at + 10 * place, "view") for place, item in enumerate(viewed)]
        bought = [item for item in (f"p{place:02d}" for place in generator.permutation(24)) if item not in viewed][:2]
        rows += [(f"u{user:03d}", item, at + 500 + place, "buy") for place, item in enumerate(bought)]
    rows.append(("u000", "rare", 1.7e9 - 5, "view"))  # once only: below min_count
    order = generator.permutation(len(rows))
    user, item, timestamp, kind = (pa.array([rows[row][column] for row in order]) for column in range(4))
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"user": user, "item": item, "timestamp": timestamp, "type": kind}), folder / "events.parquet")
    (folder / "items.csv").write_text("item,category\n" + "".join(f"p{item:02d},c{item % 3}\n" for item in range(24)))
    (folder / "users.csv").write_text("user,club\n" + "".join(f"u{user:03d},{'yes' if user % 4 < 2 else 'no'}\n" for user in range(users)))
    return folder


def prepare_shop(events: Path, out: Path, **changes: Any) -> str:
    """Prepare the shop's data set; `changes` replace fields of the recipe."""
    prepare("events", str(events), str(out), recipe=parse_recipe({**RECIPE, **changes}), shards=8)
    return str(out)


def train_shop(dataset: str, run: Path, **changes: Any) -> Path:
    """Train a small run on it; `changes` replace fields of the configuration."""
    with process_group() as runtime:
        train(_config(dataset, changes), runtime, run, where="test", console=Console(active=False))
    return run


def make_shop_run(dataset: str, run: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a run as training leaves it, in a second, with weights that are drawn instead of trained."""
    opened, folder = Dataset(dataset), RunFolder(run)
    config, kind, settings = resolve(_config(dataset, changes), where="test")
    tasks = tuple(opened.info.task(name) for name in config.tasks or ())
    training = tuple(config.train.stage(position, task.name) for position, task in enumerate(tasks))
    types = opened.info.history.types
    opened.read_inputs(names_read(config.model, opened.info))
    start = None
    if config.model.history_features:
        opened.moments = Moments.of_dataset(opened.info, opened.last_event(range(opened.info.shards)))
        start = history_start(opened, tasks[0], config.model, seed=config.seed)
    context = MethodContext(
        config.model, config.seed, opened.info.items, tasks, training, num_types=types, inputs=input_sizes(opened),
        history=None if start is None else lambda _task: start,
    )  # fmt: skip
    method = kind(context, settings)
    folder.create_or_verify(config, opened.info, [task.name for task in tasks])
    folder.keep_vocabularies(opened, tasks)
    generator = torch.Generator().manual_seed(seed)
    for position, task in enumerate(tasks):
        method.begin_task(task)
        method.end_task()
        with torch.no_grad():
            for name, parameter in method.model().named_parameters():
                if "norm" not in name and "masks" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        state = {"format_version": FORMAT_VERSION, "stage": position + 1, "task": task.name, "learned": list(method.learned)}
        read = opened.inputs_read
        state |= {"items": opened.info.items, "types": types, "input_values": {part.name: part.values for part in (*read.user, *read.item)}}
        if "recency" in config.model.event_features:
            state["moment"] = opened.last_event(range(opened.info.shards))
        folder.stage(position, task.name).finish(method.state_dict(), state)
    return run


def _config(dataset: str, changes: dict[str, Any]) -> RunConfig:
    return validate(RunConfig, {"dataset": dataset, **CONFIG, **changes}, where="test")
