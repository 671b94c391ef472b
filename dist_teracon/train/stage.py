"""One task's stage: its phases, epochs, early stopping and checkpoints; knows no method by name."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor

from dist_teracon.config import RunConfig
from dist_teracon.console import Console, LabelledProgress
from dist_teracon.continual.method import Method, Phase, StageContext
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import TrainingLoader
from dist_teracon.data.schema import Split, Task
from dist_teracon.engine.contract import Engine
from dist_teracon.engine.deepspeed_engine import DeepSpeedEngine
from dist_teracon.errors import TrainingError
from dist_teracon.evaluate.metrics import metrics_of
from dist_teracon.evaluate.scorer import score_task, train_counts
from dist_teracon.hashing import stable_hash
from dist_teracon.models.heads import Head
from dist_teracon.models.nextitnet import NextItNet
from dist_teracon.models.sampled_softmax import Negatives
from dist_teracon.runtime import Runtime
from dist_teracon.train.linear_probe import fit_linear_probe
from dist_teracon.train.run_folder import EventLog, StageCheckpoint, StageFolder
from dist_teracon.train.step import LossMeter, LossModule, train_step
from dist_teracon.train.weight_average import PARAMETER, load_parameters, swapped_parameters, update_average


@dataclass
class EarlyStopping:
    """Early stopping on the validation score; a later equal score is no better one."""

    best: float | None = None
    best_epoch: int = 0
    epochs_without_improvement: int = 0

    def take(self, score: float | None, epoch: int) -> bool:
        """Take in an epoch's score; tells whether it is the best so far."""
        better = score is not None and (self.best is None or score > self.best)
        if better:
            self.best, self.best_epoch, self.epochs_without_improvement = score, epoch, 0
        else:
            self.epochs_without_improvement += 1
        return better


@dataclass
class _PhaseState:
    """Where a phase is: everything that its checkpoint holds beside the engine's state."""

    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    best: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StageSummary:
    """What a stage took: epochs over all phases, seconds of training and of pseudo-labels."""

    epochs: int
    training_seconds: float
    prepare_seconds: float


class Stage:
    """Learns one task.

    Args:
        config: The run's.
        method: Restored to the stage before.
        dataset: The data set.
        task: The task to learn.
        runtime: This process's place in the world.
        folder: The stage's folder.
        events: The run's log.
        console: What a person sees.
        label: How the stage is called in progress lines.
    """

    def __init__(
        self, config: RunConfig, method: Method, dataset: Dataset, task: Task, *,
        runtime: Runtime, folder: StageFolder, events: EventLog, console: Console, label: str,
    ) -> None:  # fmt: skip
        self.config, self.method, self.dataset, self.task = config, method, dataset, task
        self.runtime, self.folder, self.events, self.console, self.label = runtime, folder, events, console, label
        self._progress = LabelledProgress(console, label)

    def run(self) -> StageSummary:
        """Train all phases, going on from the last finished epoch if there is one."""
        started = time.monotonic()
        resumed = self.folder.load_checkpoint()
        self.method.begin_task(self.task)
        self.method.prepare(self._context(tells=resumed is None))
        self._started = resumed is None and self._start_head()
        prepared = time.monotonic() - started
        if resumed is not None:
            prepared = resumed.state["prepare_seconds"]
        epochs, seconds = (resumed.state["earlier_epochs"], resumed.state["earlier_seconds"]) if resumed else (0, 0.0)
        for number, phase in enumerate(self.method.phases(self.task)):
            if resumed is not None and number < resumed.phase:
                continue
            here = resumed if resumed is not None and number == resumed.phase else None
            if number:
                self._phase_weights(number, resumed=here is not None)
            self._earlier = {"prepare_seconds": prepared, "earlier_epochs": epochs, "earlier_seconds": seconds}
            state = self._train_phase(number, phase, here)
            epochs, seconds = epochs + state.epoch, seconds + state.seconds
        self.method.end_task()
        return StageSummary(epochs, seconds, prepared)

    def _start_head(self) -> bool:
        """Train the new head alone where the configuration says so; tells whether it did."""
        training, model = self.method.training(self.task), self.config.model
        steps = min(training.probe_steps, self.config.train.max_steps or training.probe_steps)
        if not steps or self.task.predicts_next or not self.method.phases(self.task) or self._is_sampled(self.task):
            return False
        began = time.monotonic()
        self.method.module().to(self.runtime.device)
        start = fit_linear_probe(
            self.method, self.dataset, self.task, steps=steps, dropout=model.dropout, smoothing=model.heads.label_smoothing,
            seed=self.config.seed, batch=self.config.evaluate.batch, runtime=self.runtime, progress=self._progress,
        )  # fmt: skip
        self.events.write("head_start", **asdict(start), seconds=time.monotonic() - began)
        return True

    def _context(self, *, tells: bool) -> StageContext:
        return StageContext(
            dataset=self.dataset,
            runtime=self.runtime,
            folder=self.folder.path,
            training=self.method.training(self.task),
            max_steps=self.config.train.max_steps,
            progress=self._progress,
            # the log of a resumed stage has these events already
            event=self.events.write if tells else _silent,
        )

    def _phase_weights(self, number: int, *, resumed: bool) -> None:
        """Later phases start from weights that no earlier checkpoint holds whole: keep them, or take them up again."""
        if resumed:
            self.method.load_state_dict(self.folder.phase_start(number))
        elif self.runtime.is_main:
            self.folder.save_phase_start(number, self.method.state_dict())

    def _train_phase(self, number: int, phase: Phase, resumed: StageCheckpoint | None) -> _PhaseState:
        self.method.begin_phase(phase)
        groups = self.method.parameter_groups(phase)
        self.method.gradient_hooks(phase)
        self.method.negatives = self._negatives(phase)
        module = LossModule(self.method)
        engine = DeepSpeedEngine(module, groups, config=self.config.train, runtime=self.runtime, lazy=self._lazy_tables())
        loader = TrainingLoader(
            self.dataset, phase.tasks, mask_index=self.method.mask_index(phase.tasks[0].name), batch=phase.training.batch,
            seed=self.config.seed, rank=self.runtime.rank, world_size=self.runtime.world_size, gather=self.runtime.gather,
            noise=self.config.model.dropout > 0,
        )  # fmt: skip
        state = self._resume(engine, resumed) if resumed is not None else _PhaseState()
        if resumed is None:
            self._settle_start(engine, phase, state)
        while not self._done(phase, state):
            began = time.monotonic()
            state.epoch += 1
            means = self._train_epoch(engine, loader, phase, state)
            score, better, snapshot = self._settle_epoch(engine, module, phase, state)
            state.seconds += time.monotonic() - began
            self._tell_epoch(phase, state, means, score, better=better, seconds=time.monotonic() - began)
            self._save(number, state, snapshot)
            del snapshot  # three times the weights, which would stay beside the next epoch's
        engine.release()
        load_parameters(module, state.best if phase.select and state.best else state.average)
        return state

    def _settle_start(self, engine: Engine, phase: Phase, state: _PhaseState) -> None:
        """Score the weights before training; with a head that was started they are kept until an epoch's are better."""
        score = self._validate(phase)
        better = self._started and state.stopping.take(score, 0)
        if better:
            state.best = _parameters(engine.state_dict())
        self._started = False  # a later phase starts from what the one before has kept
        self._tell_epoch(phase, state, {}, score, better=better)

    def _settle_epoch(
        self, engine: Engine, module: LossModule, phase: Phase, state: _PhaseState
    ) -> tuple[float | None, bool, dict[str, Tensor]]:
        """Score an epoch's weights, or their average, and keep the best; returns score, whether it is the best, the engine's state."""
        snapshot = engine.state_dict()
        weights = _parameters(snapshot)
        if keep := phase.training.ema_decay:
            weights = state.average = update_average(state.average, weights, keep=keep, epoch=state.epoch)
        with swapped_parameters(module, state.average):
            score = self._validate(phase)
        better = state.stopping.take(score, state.epoch)
        if better:
            state.best = weights
        return score, better, snapshot

    def _negatives(self, phase: Phase) -> dict[str, Negatives]:
        """What the heads with a sampled loss draw from; said once."""
        model, found = self.config.model, {}
        for task in phase.tasks:
            if not self._is_sampled(task):
                continue
            settings = model.heads.sampled
            counts = train_counts(self.dataset, task.name, self.runtime)
            seed = stable_hash(f"{self.config.seed}:negatives:{task.name}") >> 1
            found[task.name] = Negatives(settings.negatives, settings.distribution, counts, seed)
            self.console.log(
                f"{self.label} · {task.labels} labels: softmax over {settings.negatives} sampled ones ({settings.distribution}); "
                "scores rank all"
            )
        return found

    def _is_sampled(self, task: Task) -> bool:
        width = self.method.head(task.name).weight.shape[1]
        return self.config.model.heads.is_sampled(task.name, labels=task.labels, width=width)

    def _lazy_tables(self) -> bool:
        """Have large tables give sparse gradients: the item table, and heads with a sampled loss, whose every label is not read."""
        sampled = [self.method.head(task) for task in self.method.negatives]
        found = False
        for part in self.method.module().modules():
            if isinstance(part, NextItNet):
                part.sparse = self.config.train.uses_sparse_updates(part.items.shape[0])
                found |= part.sparse
            elif isinstance(part, Head):
                part.sparse = any(part is head for head in sampled) and self.config.train.uses_sparse_updates(part.labels)
                found |= part.sparse
        return found

    def _done(self, phase: Phase, state: _PhaseState) -> bool:
        limit, patience = self.config.train.max_steps, phase.training.patience
        return (
            state.epoch >= phase.training.epochs
            or (limit is not None and state.steps >= limit)
            or bool(patience and state.stopping.best is not None and state.stopping.epochs_without_improvement >= patience)
        )

    def _train_epoch(self, engine: Engine, loader: TrainingLoader, phase: Phase, state: _PhaseState) -> dict[str, float]:
        meter = LossMeter(self.runtime)
        self.method.begin_epoch(state.epoch)
        limit, every = self.config.train.max_steps, self.config.train.log_every
        batches = loader.epoch(state.epoch)
        steps = batches.steps if limit is None else min(batches.steps, limit - state.steps)
        with closing(iter(batches)) as ready:
            for batch in self._progress.track(islice(ready, steps), steps, f"epoch {state.epoch}"):
                meter.add(train_step(engine, self.method, batch, runtime=self.runtime, accumulation=self.config.train.accumulation))
                state.steps += 1
                if state.steps % every == 0 or batch.step + 1 == batch.steps:
                    self._tell_step(phase, state, batch, meter.fetch())
        self._check(meter.fetch(), state.steps, phase)
        return meter.means()

    def _tell_step(self, phase: Phase, state: _PhaseState, batch: PackedBatch, losses: list[dict[str, float]]) -> None:
        self._check(losses, state.steps, phase)
        self.events.write(
            "step", phase=phase.name, epoch=state.epoch, step=state.steps, batch=batch.step, loss=losses[-1], **self.method.logs()
        )

    def _check(self, losses: list[dict[str, float]], last_step: int, phase: Phase) -> None:
        for step, terms in enumerate(losses, start=last_step - len(losses) + 1):
            bad = [name for name, value in terms.items() if not math.isfinite(value)]
            if bad:
                self.events.write("failure", phase=phase.name, step=step, terms=bad)
                self.events.commit()
                raise TrainingError(
                    f"task '{self.task.name}', phase '{phase.name}', step {step}: the loss {', '.join(bad)} is not a finite number. "
                    f"Try a lower learning rate (now {phase.training.learning_rate:g}), train.gradient_clipping=1.0 "
                    f"(now {self.config.train.gradient_clipping:g}), or train.precision=fp32 (now {self.config.train.precision}); "
                    "with a new --run folder; this one keeps its finished stages"
                )

    def _validate(self, phase: Phase) -> float | None:
        """Mean validation score of the phase's tasks; None where no task has validation examples."""
        scores = [
            score_task(
                self.method, self.dataset, task.name, Split.VALIDATION, metrics=metrics_of(task, self.config.evaluate.metrics)[:1],
                runtime=self.runtime, batch=self.config.evaluate.batch, max_users=self.config.evaluate.max_users,
                seed=self.config.seed, progress=self._progress,
            ).value
            for task in phase.tasks
        ]  # fmt: skip
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known else None

    def _tell_epoch(
        self, phase: Phase, state: _PhaseState, means: dict[str, float], score: float | None, *, better: bool, seconds: float = 0.0
    ) -> None:
        metric = metrics_of(phase.tasks[0], self.config.evaluate.metrics)[0].name
        self.events.write(
            "epoch", phase=phase.name, epoch=state.epoch, loss=means, validation=score, metric=metric, best=better, seconds=seconds
        )
        told = "–" if score is None else f"{score:.4f}"
        if better and not state.epoch:
            self.console.log(f"{self.label} · start: validation {metric} {told}")
        if state.epoch:
            loss = sum(means.values())
            mark = " (best)" if better else ""
            self.console.log(f"{self.label} · epoch {state.epoch}: loss {loss:.4f}, validation {metric} {told}{mark}, {seconds:.1f} s")

    def _save(self, number: int, state: _PhaseState, engine_state: dict[str, Tensor]) -> None:
        if self.runtime.is_main:
            small: dict[str, Any] = {
                "steps": state.steps,
                "seconds": state.seconds,
                "best": state.stopping.best,
                "best_epoch": state.stopping.best_epoch,
                "waited": state.stopping.epochs_without_improvement,
                "method": self.method.stage_state(),
                "events_bytes": self.events.commit(),
                **self._earlier,
            }
            self.folder.save_checkpoint(StageCheckpoint(number, state.epoch, small, engine_state, state.best, state.average))
        self.runtime.barrier()

    def _resume(self, engine: Engine, checkpoint: StageCheckpoint) -> _PhaseState:
        engine.load_state_dict(checkpoint.engine)
        saved = checkpoint.state
        self.method.load_stage_state(saved["method"])
        self.console.log(f"{self.label} · going on after epoch {checkpoint.epoch}")
        stopping = EarlyStopping(saved["best"], saved["best_epoch"], saved["waited"])
        return _PhaseState(checkpoint.epoch, saved["steps"], saved["seconds"], stopping, checkpoint.best, checkpoint.average)


def _parameters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters among an engine's state."""
    return {name: value for name, value in state.items() if name.startswith(PARAMETER)}


def _silent(_event: str, **_fields: Any) -> None:
    pass
