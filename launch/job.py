"""A run to train, as the command line hands it to a launcher, and how a process trains its part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dist_teracon import io
from dist_teracon.config.run import RunConfig
from dist_teracon.console import Console
from dist_teracon.runtime import process_group
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.label_job import make_pseudo_labels
from dist_teracon.train.run import train
from dist_teracon.train.run_setup import resolve


@dataclass(frozen=True)
class TrainJob:
    """What `train` was asked for.

    Attributes:
        config: The run's configuration.
        run: The run's folder, or its URI on a store.
        where: Where the configuration came from, for error messages.
        with_single_task: Train every task alone too.
        added: A task to add to a finished run.
        verbose: Log more of what is chosen and why.
        quiet: Show warnings and errors alone.
        until_stage: Stop when this stage is finished.
        begins_with: A run whose first stages are taken over where they are the same.
        labels_of: Train nothing, and make the pseudo-labels of this stage.
    """

    config: RunConfig
    run: Path | str
    where: str
    with_single_task: bool = False
    added: AddedTask | None = None
    verbose: bool = False
    quiet: bool = False
    until_stage: int | None = None
    begins_with: str | None = None
    labels_of: int | None = None


def resolved(job: TrainJob) -> TrainJob:
    """Return the job free of this process's working directory, with every field of its method and backbone.

    Raises:
        ConfigError: an unknown method, backbone, field or value.
    """
    config, _, _ = resolve(job.config, where=job.where)
    added = job.added
    if added is not None and added.vectors is not None and io.is_local(added.vectors):
        added = replace(added, vectors=str(io.local_path(added.vectors).expanduser().absolute()))
    begins_with = job.begins_with
    if begins_with is not None and io.is_local(begins_with):
        begins_with = str(io.local_path(begins_with).expanduser().absolute())
    run = job.run.expanduser().absolute() if isinstance(job.run, Path) else job.run
    return replace(job, config=config, added=added, run=run, begins_with=begins_with)


def train_in_process(job: TrainJob, *, device: torch.device | None = None, console: Console | None = None) -> bool:
    """Train, or make a stage's pseudo-labels, in this process, one of those that torchrun or Ray started, or alone.

    Args:
        job: The run.
        device: Where this process computes, as its launcher assigned it.
        console: What a person sees; by default the main process's standard error.

    Returns:
        Whether this is the main process.
    """
    run: Any = job.run  # a folder; or a URI, where training takes one
    with process_group(device) as runtime:
        console = console or Console(active=runtime.is_main, quiet=job.quiet)
        if job.labels_of is not None:
            make_pseudo_labels(job.config, runtime, run, stage=job.labels_of, where=job.where, console=console)
            return runtime.is_main
        train(
            job.config, runtime, run,
            where=job.where, console=console, with_single_task=job.with_single_task, added=job.added, until_stage=job.until_stage,
            begins_with=job.begins_with,
        )  # fmt: skip
        return runtime.is_main
