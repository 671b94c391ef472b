"""The log of a run, `events.jsonl`: one JSON object a line, sorted here by kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_teracon.report.values import as_list, as_mapping, as_number, as_whole


@dataclass(frozen=True)
class Step:
    """One logged training step; for each past task `rho` has the formula's sampling rate, `rows` the replayed rows of the batch.

    `gradient_norm` and `learning_rate` are of this step; `seconds` (of a step and its parts), `users_per_s`, `memory_bytes` and `mfu`
    are of those since the last one that was logged.
    """

    stage: int
    epoch: int
    step: int
    rho: dict[str, float]
    rows: dict[str, float] = field(default_factory=dict)
    gradient_norm: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    users_per_s: float | None = None
    memory_bytes: int | None = None
    mfu: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Epoch:
    """One epoch of a stage; epoch 0 is the state before training, with a validation score only.

    `error` is the standard error of the validation score, where it was logged.
    """

    stage: int
    phase: str
    epoch: int
    loss: dict[str, float]
    validation: float | None
    metric: str | None
    best: bool
    error: float | None = None


@dataclass(frozen=True)
class Masks:
    """Masks after a stage: cosine of each pair of tasks, and a histogram of mask values over [0, 1] a task."""

    stage: int
    tasks: tuple[str, ...]
    similarity: tuple[tuple[float | None, ...], ...]
    histograms: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class PseudoLabels:
    """A frozen teacher's pass for one past task."""

    stage: int
    past: str
    rows: int | None
    seconds: float | None


@dataclass(frozen=True)
class Events:
    """The log, sorted.

    Attributes:
        method, seed, tasks, world_size, versions: Of the last `run` event.
        metrics: Of that event too: each task's metrics, the one that selects first.
        stages: Task of each stage that was started.
        steps, epochs, masks, pseudo_labels: In the order of the run; of several with one place in it the last counts.
        first_time, last_time: Unix seconds of the first and the last event.
        unreadable: Lines that hold no event, a half-written last one aside.
    """

    method: str | None = None
    seed: int | None = None
    tasks: tuple[str, ...] = ()
    metrics: tuple[tuple[str, ...], ...] = ()
    world_size: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    stages: dict[int, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    masks: tuple[Masks, ...] = ()
    pseudo_labels: tuple[PseudoLabels, ...] = ()
    first_time: float | None = None
    last_time: float | None = None
    unreadable: int = 0

    def epochs_of(self, stage: int) -> list[Epoch]:
        """Return a stage's epochs in their order."""
        return [epoch for epoch in self.epochs if epoch.stage == stage]

    def steps_of(self, stage: int) -> list[Step]:
        """Return a stage's logged steps in their order."""
        return [step for step in self.steps if step.stage == stage]


def read_events(path: Path) -> Events:
    """Read a run's log; a missing file is an empty log."""
    if not path.is_file():
        return Events()
    entries, unreadable = _parse(path)
    start: dict[str, Any] = {}
    stages: dict[int, str] = {}
    # A run that went on after a kill may have logged a place twice; the later one belongs to the tensors that were kept.
    steps: dict[tuple[int, str, int, int], Step] = {}
    epochs: dict[tuple[int, str, int], Epoch] = {}
    masks: dict[int, Masks] = {}
    passes: dict[tuple[int, str], PseudoLabels] = {}
    for entry in entries:
        stage, phase, epoch = as_whole(entry.get("stage")) or 0, str(entry.get("phase", "")), as_whole(entry.get("epoch")) or 0
        match entry["event"]:
            case "run":
                start = entry
            case "stage":
                stages[stage] = str(entry.get("task", ""))
            case "step":
                step = as_whole(entry.get("step")) or 0
                steps[stage, phase, epoch, step] = _step(entry, stage, epoch, step)
            case "epoch":
                epochs[stage, phase, epoch] = _epoch(entry, stage, phase, epoch)
            case "masks":
                masks[stage] = _masks(entry, stage)
            case "pseudo_labels":
                past = str(entry.get("past", ""))
                passes[stage, past] = PseudoLabels(stage, past, as_whole(entry.get("rows")), as_number(entry.get("seconds")))
    times = [time for time in (as_number(entry.get("time")) for entry in entries) if time is not None]
    return Events(
        method=str(start["method"]) if start.get("method") else None,
        seed=as_whole(start.get("seed")),
        tasks=tuple(map(str, as_list(start.get("tasks")))),
        metrics=tuple(tuple(map(str, as_list(names))) for names in as_list(start.get("metrics"))),
        world_size=as_whole(start.get("world_size")),
        versions={str(name): str(version) for name, version in as_mapping(start.get("versions")).items()},
        stages=stages,
        steps=tuple(steps.values()),
        epochs=tuple(epochs.values()),
        masks=tuple(masks.values()),
        pseudo_labels=tuple(passes.values()),
        first_time=min(times, default=None),
        last_time=max(times, default=None),
        unreadable=unreadable,
    )


def _parse(path: Path) -> tuple[list[dict[str, Any]], int]:
    entries: list[dict[str, Any]] = []
    unreadable = 0
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            entry = as_mapping(json.loads(line))
        except ValueError:
            entry = {}
        if isinstance(entry.get("event"), str):
            entries.append(entry)
        elif number < len(lines) - 1:
            unreadable += 1
    return entries, unreadable


def _step(entry: Mapping[str, Any], stage: int, epoch: int, step: int) -> Step:
    timing = as_mapping(entry.get("timing"))
    return Step(
        stage, epoch, step, _numbers(entry.get("rho")), _numbers(entry.get("rows")), as_number(entry.get("gradient_norm")),
        _numbers(timing.get("seconds")), as_number(timing.get("users_per_s")), as_whole(timing.get("memory_bytes")),
        as_number(timing.get("mfu")), as_number(entry.get("learning_rate")),
    )  # fmt: skip


def _epoch(entry: Mapping[str, Any], stage: int, phase: str, epoch: int) -> Epoch:
    metric = entry.get("metric")
    return Epoch(
        stage=stage,
        phase=phase,
        epoch=epoch,
        loss=_numbers(entry.get("loss")),
        validation=as_number(entry.get("validation")),
        metric=str(metric) if metric else None,
        best=entry.get("best") is True,
        error=as_number(entry.get("validation_error")),
    )


def _masks(entry: Mapping[str, Any], stage: int) -> Masks:
    tasks = tuple(map(str, as_list(entry.get("tasks"))))
    histograms = {
        str(task): tuple(as_number(count) or 0.0 for count in as_list(counts))
        for task, counts in as_mapping(entry.get("histograms")).items()
    }
    similarity = tuple(tuple(map(as_number, as_list(row))) for row in as_list(entry.get("similarity")))
    return Masks(stage, tasks, similarity, histograms)


def _numbers(value: object) -> dict[str, float]:
    pairs = ((str(key), as_number(number)) for key, number in as_mapping(value).items())
    return {key: number for key, number in pairs if number is not None}
