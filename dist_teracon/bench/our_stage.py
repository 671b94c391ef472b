"""The product's own stage, set up as a run sets it up, so that a benchmark can train its epochs; and the plain ones beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_teracon.bench.eager_baseline import EagerNetwork, EagerStage, PlainBlockStack, padded_examples
from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import make_config
from dist_teracon.console import Console, NoProgress
from dist_teracon.continual.method import Method, StageContext
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.loader import TrainingLoader
from dist_teracon.data.open import open_dataset
from dist_teracon.engine.contract import Engine
from dist_teracon.errors import ConfigError
from dist_teracon.runtime import Runtime
from dist_teracon.train.phase import Carried, PhaseTrainer
from dist_teracon.train.restore import take_up
from dist_teracon.train.run_checks import chosen_tasks
from dist_teracon.train.run_folder import EventLog, RunFolder
from dist_teracon.train.run_setup import Run, method_context, open_on_all_ranks, resolve
from dist_teracon.train.step import train_step

DILATIONS, KERNEL_SIZE = (1, 4) * 4, 3


@dataclass(frozen=True)
class Size:
    """What is trained: the data set, width, examples a step, replayed rows a past task and step, sequences a step of the first stage,
    further settings of retention, pooling."""

    dataset: str
    channels: int
    batch: int
    replayed: int
    first_batch: int = 32
    retention: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = "concat"


def check_stages(dataset: str, stages: Sequence[int]) -> None:
    """Check that a data set has tasks for these stages, before anything is measured.

    Raises:
        ConfigError: it has fewer.
    """
    tasks = len(open_dataset(dataset).info.tasks)
    if max(stages) > tasks:
        raise ConfigError(f"--stages: there is no stage {max(stages)}; {dataset} has {tasks} tasks")


class OurStage:
    """Epochs of one stage of TERACON as `dist-teracon train` takes them, without validation and checkpoints."""

    def __init__(self, method: Method, engine: Engine, loader: TrainingLoader, runtime: Runtime) -> None:
        self.method, self.engine, self.loader, self.runtime = method, engine, loader, runtime
        self.epochs = self.steps = 0

    def epoch(self) -> None:
        """Train one epoch."""
        self.epochs += 1
        self.method.begin_epoch(self.epochs)
        for batch in self.loader.epoch(self.epochs):
            self.step(batch)

    def step(self, batch: PackedBatch) -> None:
        """Take one optimiser step."""
        train_step(self.engine, self.method, batch, runtime=self.runtime, accumulation=1)
        self.steps += 1


def our_stage(size: Size, channels: int, stage: int, precision: str, runtime: Runtime, folder: Path) -> OurStage:
    """Set up stage `stage` (from 1) with fresh weights; its pseudo-labels go below `folder`."""
    config, kind, settings = resolve(_config(size, channels, precision), where="bench")
    console = Console(active=False)
    dataset = open_on_all_ranks(config, runtime, console)
    run = Run(config, dataset, chosen_tasks(config, dataset, where="bench"), runtime, RunFolder(folder), console)
    method = kind(method_context(run), settings)
    take_up(method, run.tasks[: stage - 1], None)
    task = run.tasks[stage - 1]
    method.begin_task(task)
    folder.mkdir(parents=True)
    method.prepare(
        StageContext(
            dataset=dataset, runtime=runtime, folder=folder, training=method.training(task), max_steps=None,
            progress=NoProgress(), event=_silent,
        )
    )  # fmt: skip
    (phase,) = method.phases(task)
    events = EventLog(folder / "events.jsonl", writes=False, position=0)
    trainer = PhaseTrainer(
        run, method, phase, 0, folder=run.stage_folder(stage - 1), events=events, label="bench", carried=Carried(0.0, 0, 0.0)
    )
    return OurStage(method, trainer.engine, trainer.loader, runtime)


def _config(size: Size, channels: int, precision: str) -> RunConfig:
    later = {"batch": size.batch, "learning_rate": 1e-3, "ema_decay": 0.0, "pretrained_lr_scale": 1.0, "probe_steps": 0}
    return make_config(
        {
            "dataset": size.dataset,
            "method": {"name": "teracon", "retention": {"minimum": size.replayed, **size.retention}},
            "model": {
                "channels": channels,
                "item_init": "uniform",
                "pooling": size.pooling,
                "backbone": {"name": "nextitnet", "dilations": DILATIONS, "kernel_size": KERNEL_SIZE},
            },
            "train": {
                "first": {"batch": size.first_batch},
                "second": later,
                "later": later,
                "precision": precision,
                "zero": 1 if precision == "bf16" else 0,
            },
        },
        where="bench",
    )


def eager_stage(size: Size, channels: int, stage: int) -> EagerStage:
    """Set up the same stage in the plain eager way."""
    torch.manual_seed(0)
    dataset = open_dataset(size.dataset)
    tasks = dataset.info.tasks[:stage]
    network = EagerNetwork(dataset.info.items, channels, DILATIONS, KERNEL_SIZE, tasks)
    return EagerStage(network, padded_examples(dataset, tasks[-1]), batch=size.batch, replayed=size.replayed, learning_rate=1e-3)


def plain_stacks(size: Size, channels: int) -> dict[str, Callable[[], object]]:
    """Return the plain stack with masks, and a bare stack of `Conv2d`, norm and ReLU, each forward and backward."""
    torch.manual_seed(0)
    length = open_dataset(size.dataset).info.length_limit
    masked = PlainBlockStack(channels, DILATIONS, KERNEL_SIZE)
    masks = torch.rand(2 * len(DILATIONS), channels, requires_grad=True)
    x = torch.randn(size.batch, length, channels, requires_grad=True)
    bare = _BareStack(channels)
    return {
        "ours plain": lambda: masked(x, masks).sum().backward(),
        "bare Conv2d": lambda: bare(x).sum().backward(),
    }


class _BareStack(nn.Module):
    """The least that computes the blocks with `Conv2d`: its own left padding and no masks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        dilations = list(itertools.chain.from_iterable((d, 2 * d) for d in DILATIONS))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, (1, KERNEL_SIZE), dilation=(1, d), padding=(0, (KERNEL_SIZE - 1) * d)) for d in dilations
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in dilations)

    def forward(self, x_BLC: torch.Tensor) -> torch.Tensor:
        h, length = x_BLC, x_BLC.shape[1]
        for stage, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = torch.relu(norm(conv(h.permute(0, 2, 1).unsqueeze(2))[..., :length].squeeze(2).permute(0, 2, 1)))
            if stage % 2:
                h = x_BLC = x_BLC + h
        return h


def _silent(_event: str, **_fields: Any) -> None:
    pass
