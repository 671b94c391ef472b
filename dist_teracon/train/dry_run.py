"""`train --dry-run`: what a run will do, before it does it: steps, replayed rows, parameters, memory, time.

Steps follow from the data set's counts. Memory and time are measured on a few real optimiser steps of every stage, in a network that is
thrown away; no run folder is read or written.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from dist_teracon.config.run import RunConfig
from dist_teracon.console import Console
from dist_teracon.continual.method import Method, Phase
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.schema import Split, Task
from dist_teracon.data.summary import users_text
from dist_teracon.evaluate.metrics import check_metrics
from dist_teracon.models.item_table import ItemTable
from dist_teracon.runtime import Runtime
from dist_teracon.text import folded, table_lines
from dist_teracon.train.phase import Carried, PhaseTrainer
from dist_teracon.train.run_checks import check_kernels, check_until_stage, checked_tasks
from dist_teracon.train.run_folder import EventLog, RunFolder
from dist_teracon.train.run_setup import (
    Run,
    method_context,
    open_on_all_ranks,
    resolve,
)
from dist_teracon.train.step import train_step

# Timed steps of a stage, after one that is not timed; fewer where they take long.
_STEPS, _SECONDS = 4, 5.0
_PARTS = ("item table", "backbone", "heads", "masks", "other")


@dataclass(frozen=True)
class PlannedStage:
    """What a stage will do.

    Attributes:
        task: What is learned.
        batch: Examples a step; sequences for a next-item task.
        steps_per_epoch, epochs, steps: The last at most, over all phases: early stopping usually ends a stage before.
        replayed: Least and most rows that a step replays of all past tasks together.
        parameters: Numbers of parameters of the module that the stage trains, by part.
        trained: Those of them that are trained.
        memory: Bytes by what they are for; empty where nothing is trained.
        seconds: Of a step, the median of those timed; None where nothing is trained.
    """

    task: Task
    batch: int
    steps_per_epoch: int
    epochs: int
    steps: int
    replayed: tuple[int, int]
    parameters: dict[str, int]
    trained: int
    memory: dict[str, int]
    seconds: float | None


@dataclass(frozen=True)
class DryRun:
    """What a run will do: its parts, and a line on where it would take place."""

    where: str
    head: tuple[str, ...]
    stages: tuple[PlannedStage, ...]
    parameters: dict[str, int]
    peak: int


def dry_run(config: RunConfig, runtime: Runtime, *, where: str, console: Console, until_stage: int | None = None) -> DryRun:
    """Plan a run, and take a few steps of every stage to see what they need.

    Args:
        config: The run's configuration.
        runtime: This process's place in the world; the default process group exists.
        where: Where the configuration came from, for error messages.
        console: What a person sees meanwhile.
        until_stage: The last stage that is planned, counted from 1.

    Raises:
        TeraconError: a bad configuration or data set, as of the run itself.
    """
    check_kernels(runtime)
    config, kind, settings = resolve(config, where=where)
    check_metrics(config.evaluate.metrics, where=where)
    dataset = open_on_all_ranks(config, runtime, console)
    tasks = checked_tasks(config, kind, dataset, where=where)
    check_until_stage(until_stage, tasks)
    stages = []
    with tempfile.TemporaryDirectory(prefix="dist-teracon-dry-run-") as nowhere:
        run = Run(config, dataset, tasks, runtime, RunFolder(Path(nowhere)), Console(active=False))
        # initial item vectors take minutes on a large set and change neither sizes nor times
        method = kind(replace(method_context(run), item_vectors=None), settings)
        for number, task in enumerate(tasks[:until_stage]):
            console.log(f"stage {number + 1}/{len(tasks)} {task.name}: a few steps")
            method.begin_task(task)
            stages.append(_plan_stage(run, method, number))
            method.end_task()
        parameters = _by_part(method.model())
    info = dataset.info
    head = (
        f"{info.name}: {users_text(info.users, info.notes)}, {info.items - 2:,} items, {info.events:,} events in {info.shards} shards",
        f"method {method.name}, backbone {config.model.backbone['name']}, {config.model.channels} channels, seed {config.seed}",
        f"{runtime.world_size} process(es) on {runtime.device.type}, {torch.get_num_threads()} thread(s) each",
    )
    return DryRun(where, head, tuple(stages), parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _plan_stage(run: Run, method: Method, number: int) -> PlannedStage:
    task, limit = run.tasks[number], run.config.train.max_steps
    training, phases = method.training(task), method.phases(task)
    rows = _training_rows(run, task)
    examples_per_row = task.examples[0] / max(1, rows)
    # a past task replays at most the stage's own training users
    least, most = (min(bound, number * rows) for bound in method.replay_bounds(training.batch, number))
    steps = sum(min(_steps_of(phase) * phase.training.epochs, limit or 1 << 62) for phase in phases)
    trained, seconds = 0, None
    memory: dict[str, int] = {}
    if steps:
        # rows of the stage's own task stand in for the replayed ones, for which there are no pseudo-labels yet
        stand_in = phases[0].training.model_copy(update={"batch": training.batch + round(most * examples_per_row)})
        wanted = min(training.batch / examples_per_row, rows) + most
        trained, memory, seconds = _measure(run, method, replace(phases[0], training=stand_in), number, rows=wanted)
    return PlannedStage(
        task, training.batch, _steps_of(phases[0]) if phases else 0, sum(phase.training.epochs for phase in phases), steps,
        (least, most), _by_part(method.module()), trained, memory, seconds,
    )  # fmt: skip


def _training_rows(run: Run, task: Task) -> int:
    """Return how many users a task trains on."""
    own = own_shards(run.dataset.info.shards, run.runtime.rank, run.runtime.world_size)
    return sum(run.runtime.gather(sum(len(run.dataset.labels(task.name, shard).of(Split.TRAIN).users) for shard in own)))


def _steps_of(phase: Phase) -> int:
    """Return a phase's steps an epoch; a next-item task has an example a sequence."""
    return max(1, -(-sum(task.examples[0] for task in phase.tasks) // phase.training.batch))


def _measure(run: Run, method: Method, phase: Phase, number: int, *, rows: float) -> tuple[int, dict[str, int], float]:
    """Take a few steps; returns trained parameters, bytes by what they are for, and the median seconds of a step of so many rows."""
    accumulation, device = run.config.train.accumulation, run.runtime.device
    nowhere = EventLog(run.folder.path / "events.jsonl", writes=False, position=0)
    trainer = PhaseTrainer(
        run, method, phase, number, folder=run.stage_folder(number), events=nowhere, label="", carried=Carried(0.0, 0, 0.0)
    )
    # what is replayed reaches the past tasks' parts too, which stay out of a step without it
    replays = method.replay_bounds(phase.training.batch, number)[1] > 0 and number > 0
    trained = sum(value.numel() for value in trainer.module.parameters() if value.requires_grad or replays)
    began, seconds, kept = time.monotonic(), [], 0.0
    method.begin_epoch(1)
    for batch in islice(iter(trainer.loader.epoch(1)), 1 + _STEPS):
        with _saved_for_backward(trainer.module) as saved:
            # a small task has fewer rows than it will replay; an empty step still costs something
            share = max(1.0, rows / max(1, run.runtime.world_size * batch.rows))
            start = time.monotonic()
            parts = train_step(trainer.engine, method, batch, runtime=run.runtime, accumulation=accumulation)
            sum(float(part) for part in parts.values())  # waits for the device
            seconds.append(share * (time.monotonic() - start))
        kept = max(kept, share * sum(saved.values()) / accumulation)
        enough = torch.tensor(float(time.monotonic() - began > _SECONDS and run.runtime.is_main))
        if run.runtime.all_reduce_sum(enough):
            break
    trainer.engine.release()
    owners = run.runtime.world_size if run.config.train.zero else 1
    whole = 4 * sum(value.numel() for value in method.model().parameters())
    copies = 4 * sum(value.numel() for part in vars(method).values() if isinstance(part, nn.Module) for value in part.parameters())
    memory = {
        "weights": whole,
        "frozen copy that teaches": max(0, copies - whole),
        "gradients": 4 * trained,
        "Adam's two moments": 8 * trained // owners,
        "activations for the backward pass": round(kept),
        "best epoch, running mean, checkpoint (on the CPU)": 4 * trained * (4 + (phase.training.ema_decay > 0)),
    }
    if device.type == "cuda":
        memory["measured peak on the device"] = torch.cuda.max_memory_allocated(device)
    # the first one makes buffers
    return trained, memory, median(seconds[1:] or seconds)


@contextmanager
def _saved_for_backward(module: nn.Module) -> Iterator[dict[int, int]]:
    """Collect the bytes of what the forward pass keeps for the backward one, by address, without the parameters themselves."""
    own, saved = {value.untyped_storage().data_ptr() for value in module.parameters()}, {}

    def pack(value: Tensor) -> Tensor:
        if value.layout == torch.strided and (address := value.untyped_storage().data_ptr()) not in own:
            saved[address] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield saved


def _by_part(module: nn.Module) -> dict[str, int]:
    """Return numbers of parameters by what they are for."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, ItemTable)}
    found = dict.fromkeys(_PARTS, 0)
    for name, value in module.named_parameters():
        names = name.split(".")
        part = "backbone" if "backbone" in names else "heads" if "heads" in names else "masks" if "masks" in names else "other"
        found["item table" if id(value) in tables else part] += value.numel()
    return {part: number for part, number in found.items() if number}


def dry_run_lines(plan: DryRun) -> list[str]:
    """Return a plan as lines for a terminal of 80 columns."""
    return [
        f"dry run of {plan.where}: no run folder is read or written",
        *plan.head,
        "",
        *_stage_table(plan.stages),
        f"steps in all: at most {sum(stage.steps for stage in plan.stages):,}; early stopping usually ends stages before",
        *_replay_lines(plan.stages),
        "",
        *_parameter_lines(plan),
        "",
        *_memory_lines(plan),
        "",
        *_time_lines(plan.stages),
    ]


def _stage_table(stages: Sequence[PlannedStage]) -> list[str]:
    rows = [
        (str(number), stage.task.name, stage.task.kind, f"{stage.task.examples[0]:,}", f"{stage.batch:,}", f"{stage.steps_per_epoch:,}",
         f"{stage.epochs:,}", f"{stage.steps:,}", "–" if not stage.replayed[1] else "{:,}–{:,}".format(*stage.replayed))
        for number, stage in enumerate(stages, 1)
    ]  # fmt: skip
    heads = ("", "task", "kind", "training examples", "batch", "steps an epoch", "epochs", "steps", "rows replayed a step")
    return table_lines(heads, rows, names=("task", "kind"))


def _replay_lines(stages: Sequence[PlannedStage]) -> list[str]:
    if not any(stage.replayed[1] for stage in stages):
        return []
    most = sum(stage.replayed[1] * stage.steps for stage in stages)
    return [
        f"rows replayed in all: at most {most:,}; how many of a past task between the two",
        "bounds follows from how alike the masks become",
    ]


def _parameter_lines(plan: DryRun) -> list[str]:
    last = plan.stages[-1]
    width = max(map(len, plan.parameters))
    return [
        f"parameters after the last stage: {sum(plan.parameters.values()):,}",
        *(f"  {part:<{width}} {number:>15,}" for part, number in plan.parameters.items()),
        f"  trained in the last stage: {last.trained:,}",
    ]


def _memory_lines(plan: DryRun) -> list[str]:
    measured = [stage for stage in plan.stages if stage.memory]
    if not measured:
        return ["memory: nothing is trained"]
    largest = max(measured, key=lambda stage: sum(stage.memory.values()))
    total = sum(size for name, size in largest.memory.items() if not name.startswith("measured"))
    width = max(map(len, largest.memory))
    return [
        f"memory of a process, largest stage ({largest.task.name}): about {_size(total)}",
        *(f"  {name:<{width}} {_size(size):>10}" for name, size in largest.memory.items() if size),
        "activations are those of a real step; what a step needs for a moment, the",
        f"data read so far and Python come on top: this dry run took {_size(plan.peak)} at most",
    ]


def _time_lines(stages: Sequence[PlannedStage]) -> list[str]:
    timed = [stage for stage in stages if stage.seconds is not None]
    if not timed:
        return ["time: nothing is trained"]
    total = sum(stage.steps * (stage.seconds or 0.0) for stage in timed)
    each = ", ".join(f"{stage.task.name} {1000 * (stage.seconds or 0.0):,.0f}" for stage in timed)
    return [
        f"time: at most about {_duration(total)} of training steps if no stage stops early",
        *folded(f"milliseconds a step: {each}"),
        f"how: the median of up to {_STEPS} real steps of each stage on this machine, as busy as",
        "it is now; further rows of the stage's own task stand in for replayed ones, and",
        "where it has too few of them, the step is scaled by its rows. Not in it: pseudo-",
        "labels, linear probes, validation, scoring, baselines",
    ]


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            return f"{number:.0f} {unit}" if unit in ("B", "KiB") else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
