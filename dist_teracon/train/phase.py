"""A phase of a stage: epochs of optimiser steps, validation and early stopping, and checkpoints from which it goes on bit for bit."""

from __future__ import annotations

import math
import shlex
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from dist_teracon import io
from dist_teracon.console import LabelledProgress
from dist_teracon.continual.method import Method, Phase
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.loader import Epoch, TrainingLoader
from dist_teracon.data.schema import Split
from dist_teracon.engine.contract import Engine
from dist_teracon.engine.deepspeed_engine import DeepSpeedEngine
from dist_teracon.errors import ConfigError, TeraconError, TrainingError
from dist_teracon.evaluate.metrics import metrics_of
from dist_teracon.evaluate.scorer import score_task, train_counts
from dist_teracon.hashing import stable_hash
from dist_teracon.models.backbone import drops
from dist_teracon.models.gbce import BinaryNegatives
from dist_teracon.models.heads import Head, TiedHead
from dist_teracon.models.item_table import SparseTable
from dist_teracon.models.sampled_softmax import Negatives, SampledLoss
from dist_teracon.train.early_stopping import EarlyStopping
from dist_teracon.train.failure import Failure, save_failure
from dist_teracon.train.learning_rate import LearningRate
from dist_teracon.train.run_folder import EventLog
from dist_teracon.train.run_setup import Run
from dist_teracon.train.stage_folder import StageCheckpoint, StageFolder
from dist_teracon.train.step import LossMeter, LossModule, train_step
from dist_teracon.train.step_flops import StepFlops
from dist_teracon.train.step_watch import KEPT, StepWatch
from dist_teracon.train.stopping import ASK_EVERY
from dist_teracon.train.weight_average import PARAMETER, load_parameters, swapped_parameters, update_average


@dataclass(frozen=True)
class Carried:
    """What a stage took before the present phase: seconds of preparation, epochs and seconds of earlier phases."""

    prepare_seconds: float
    epochs: int
    seconds: float


@dataclass
class PhaseState:
    """Where a phase is: everything that its checkpoint holds beside the engine's state.

    Attributes:
        epoch: Finished epochs; while one is trained, its number, counted from 1.
        steps: Optimiser steps over all epochs.
        seconds: Of training and validation.
        stopping: Early stopping.
        best: Parameters of the best epoch so far; empty before there is one.
        average: Running average of the parameters; empty where there is none.
        within_epoch: Of a checkpoint within an epoch: `step`, and the states of `loader`, `meter` and `method`.
    """

    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    best: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    within_epoch: dict[str, Any] | None = None


@dataclass(frozen=True)
class Validation:
    """A validation score and its standard error over users; None where there is none."""

    value: float | None
    error: float | None


class PhaseTrainer:
    """Trains one phase.

    Args:
        run: What all stages share.
        method: Has begun the task and prepared for it.
        phase: The phase.
        number: Of the phase in its stage, from 0.
        folder: The stage's folder.
        events: The run's log.
        label: The stage's name in progress lines.
        carried: What the stage took before.
    """

    def __init__(
        self, run: Run, method: Method, phase: Phase, number: int, *,
        folder: StageFolder, events: EventLog, label: str, carried: Carried,
    ) -> None:  # fmt: skip
        self.shared, self.method, self.phase, self.number = run, method, phase, number
        self.folder, self.events, self.label, self.carried = folder, events, label, carried
        self.config, self.runtime = run.config, run.runtime
        self._progress = LabelledProgress(run.console, label)
        method.begin_phase(phase)
        groups = method.parameter_groups(phase)
        method.gradient_hooks(phase)
        method.negatives = self._negatives()
        self.module = LossModule(method)
        self.engine: Engine = DeepSpeedEngine(
            self.module, groups, config=self.config.train, runtime=self.runtime, sparse_updates=self._choose_sparse_updates()
        )
        self.loader = TrainingLoader(
            run.dataset, phase.tasks, mask_index=method.mask_index(phase.tasks[0].name), batch=phase.training.batch,
            seed=self.config.seed, rank=self.runtime.rank, world_size=self.runtime.world_size, gather=self.runtime.gather,
            dropout_keys=drops(self.config.model),
            shared_by=self.runtime.ranks_of_machine() if self.config.train.balance == "machine" else None,
        )  # fmt: skip
        self._saved_at = time.monotonic()
        self.watch = StepWatch(self.runtime.device)
        self.engine.when_exchanging(lambda: self.watch.mark("wait"), lambda: self.watch.mark("backward"))
        self._gradient_square = torch.zeros(())
        self._rate = LearningRate(phase.training, self.config.train.max_steps, lambda line: run.console.log(f"{label} · {line}"))
        self._flops = StepFlops(method, self.runtime, self.config.train.precision)

    def run(self, resumed: StageCheckpoint | None, *, start_is_candidate: bool) -> PhaseState:
        """Train to the end, from a checkpoint where there is one.

        Args:
            resumed: The checkpoint.
            start_is_candidate: The weights before training are kept until an epoch's are better.
        """
        state = PhaseState()
        if resumed is None:
            self._validate_start(state, is_candidate=start_is_candidate)
        else:
            state = self._resume(resumed)
        while not self._done(state):
            with self.shared.stop.deferred():
                self._run_epoch(state)
        self.engine.release()
        load_parameters(self.module, state.best if self.phase.select and state.best else state.average)
        return state

    def _done(self, state: PhaseState) -> bool:
        if state.within_epoch is not None:
            return False
        limit, training = self.config.train.max_steps, self.phase.training
        at_limit = limit is not None and state.steps >= limit
        return state.epoch >= training.epochs or at_limit or state.stopping.is_exhausted(training.patience)

    # -- an epoch

    def _run_epoch(self, state: PhaseState) -> None:
        """Train an epoch, validate it and save it."""
        began = time.monotonic()
        state.epoch += 1
        means = self._train_epoch(state, began)
        score, better, snapshot = self._validate_epoch(state)
        seconds = time.monotonic() - began
        state.seconds += seconds
        self._log_epoch(state, means, score, better=better, seconds=seconds)
        self._rate.cut_if_due(state.stopping, state.epoch)
        self._save(state, snapshot)
        if number := self.shared.stop.agreed(self.runtime):
            self.shared.stop.stop(number)

    def _train_epoch(self, state: PhaseState, began: float) -> dict[str, float]:
        """Take an epoch's steps, the remaining ones of an epoch that was resumed; returns the mean of each loss term."""
        meter, first = LossMeter(self.runtime), 0
        self.method.begin_epoch(state.epoch)
        if (saved := state.within_epoch) is not None:
            first, state.within_epoch = saved["loader"]["step"], None
            meter.load_state_dict(saved["meter"])
            self.method.load_stage_state(saved["method"])
        limit, every = self.config.train.max_steps, self.config.train.log_every
        batches = self.loader.epoch(state.epoch, first=first)
        steps = batches.steps - first if limit is None else min(batches.steps - first, limit - state.steps)
        with closing(iter(batches)) as ready:
            self.watch.mark("data")
            for batch in self._progress.track(islice(ready, steps), steps, f"epoch {state.epoch}"):
                last = batch.step + 1 == batches.steps
                logs = (state.steps + 1) % every == 0 or last
                self._rate.before_step(self.engine, state.steps, steps_of_epoch=batches.steps, cuts=state.stopping.cuts)
                if self.shared.before_step is not None:
                    self.shared.before_step(self, state, batch)
                meter.add(
                    train_step(
                        self.engine, self.method, batch, runtime=self.runtime, accumulation=self.config.train.accumulation,
                        watch=self.watch, measure=self._measure_gradient if logs else None,
                    )
                )  # fmt: skip
                state.steps += 1
                self.watch.mark("")
                self.shared.console.advance(self.carried.epochs + state.epoch - 1 + (batch.step + 1) / batches.steps)
                if logs:
                    self._log_step(state, batch, meter.fetch())
                elif self._looks(state.steps):
                    self._check(meter.fetch(), state.steps)
                number = self._stop_due(state.steps, is_last=last)
                if number or self._checkpoint_due(state.steps, logs=logs):
                    self._save_within_epoch(state, batches, meter, time.monotonic() - began)
                if number:
                    self.shared.stop.stop(number)
                self.watch.mark("data")
        self.watch.mark("")
        self._check(meter.fetch(), state.steps)
        return meter.means()

    def _measure_gradient(self) -> None:
        self._gradient_square = self.engine.gradient_square()

    def _looks(self, steps: int) -> bool:
        """Return whether to look at the losses of a step that is not logged: at all where nobody has to wait for them, and while the
        batch of a loss that is not finite is still at hand."""
        return (self.runtime.world_size == 1 and self.runtime.device.type == "cpu") or steps % KEPT == 0

    def _validate_start(self, state: PhaseState, *, is_candidate: bool) -> None:
        """Score the weights before training."""
        score = self._validate()
        better = is_candidate and state.stopping.update(score.value, 0)
        if better:
            state.best = _parameters(self.engine.state_dict())
        self._log_epoch(state, {}, score, better=better)

    def _validate_epoch(self, state: PhaseState) -> tuple[Validation, bool, dict[str, Tensor]]:
        """Score an epoch's weights, or their average, and keep the best; returns score, whether it is the best, the engine's state."""
        snapshot = self._state(state.steps)
        weights = _parameters(snapshot)
        if keep := self.phase.training.ema_decay:
            weights = state.average = update_average(state.average, weights, keep=keep, epoch=state.epoch)
        with swapped_parameters(self.module, state.average):
            score = self._validate()
        better = state.stopping.update(score.value, state.epoch)
        if better:
            state.best = weights
        return score, better, snapshot

    def _validate(self) -> Validation:
        """Mean validation score of the phase's tasks; None where no task has validation examples."""
        scores = [
            score_task(
                self.method, self.shared.dataset, task.name, Split.VALIDATION, metrics=metrics_of(task, self.config.evaluate.metrics)[:1],
                runtime=self.runtime, batch=self.config.evaluate.batch, max_users=self.config.evaluate.max_users, seed=self.config.seed,
                exclude_seen=self.config.evaluate.exclude_seen, progress=self._progress,
            )
            for task in self.phase.tasks
        ]  # fmt: skip
        known = [score for score in scores if score.value is not None]
        errors = [score.error for score in known if score.error is not None]
        return Validation(
            sum(score.value or 0.0 for score in known) / len(known) if known else None,
            math.hypot(*errors) / len(errors) if errors and len(errors) == len(known) else None,
        )

    # -- what is trained, and how

    def _negatives(self) -> dict[str, SampledLoss]:
        """Return what the heads with a sampled loss draw from, and log it once."""
        heads = self.config.model.heads
        found: dict[str, SampledLoss] = {}
        for task in self.phase.tasks:
            if isinstance(self.method.head(task.name), TiedHead) != (task.name in heads.tied):
                raise ConfigError(f"model.heads.tied: method '{self.method.name}' makes no tied heads; leave '{task.name}' out")
            loss = heads.loss_of(task.name, labels=task.labels, output_dim=self.method.head(task.name).weight.shape[1])
            if loss == "full":
                continue
            seed = stable_hash(f"{self.config.seed}:negatives:{task.name}") >> 1
            if loss == "sampled":
                counts = train_counts(self.shared.dataset, task.name, self.runtime)
                drawn = f"softmax over {heads.sampled.negatives} sampled ones ({heads.sampled.distribution})"
                found[task.name] = Negatives(heads.sampled.negatives, heads.sampled.distribution, counts, seed)
            else:
                against = BinaryNegatives(heads.gbce.negatives, heads.gbce.calibration, task.labels, seed)
                drawn = f"binary cross-entropy against {against.drawn} drawn ones, β = {against.power:.4g}"
                found[task.name] = against
                if self.number == 0:  # a resumed phase takes its checkpoint's afterwards
                    with torch.no_grad():
                        self.method.head(task.name).bias.copy_(against.start(train_counts(self.shared.dataset, task.name, self.runtime)))
            self.shared.console.log(f"{self.label} · {task.labels} labels: {drawn}; scores rank all")
        return found

    def _choose_sparse_updates(self) -> bool:
        """Have large tables give sparse gradients: item tables, and heads with a sampled loss, of which a batch reads few rows."""
        sampled = [self.method.head(task) for task in self.method.negatives]
        for part in self.method.module().modules():
            if isinstance(part, SparseTable) and not isinstance(part, TiedHead):
                reads_few = not isinstance(part, Head) or any(part is head for head in sampled)
                part.sparse = reads_few and self.config.train.uses_sparse_updates(part.num_rows)
        for part in self.method.module().modules():
            # an exact loss reads every row of the table that its head is tied to
            if isinstance(part, TiedHead) and part.sparse and not any(part is head for head in sampled):
                part.table.sparse = False
                self.shared.console.log(f"{self.label} · a tied head reads all item embeddings: each step updates every row")
        return any(isinstance(part, SparseTable) and part.sparse for part in self.method.module().modules())

    # -- logs

    def _log_step(self, state: PhaseState, batch: PackedBatch, losses: list[dict[str, float]]) -> None:
        self._check(losses, state.steps)
        where = {"phase": self.phase.name, "epoch": state.epoch, "step": state.steps, "batch": batch.step}
        norm = math.sqrt(float(self.runtime.all_reduce_sum(self._gradient_square)))
        timing = self.watch.read(self.runtime)
        if (share := self._flops.share_of_peak(self.watch.batches[-1], timing["seconds"]["step"])) is not None:
            timing["mfu"] = share
        rates = {"gradient_norm": norm, "learning_rate": self._rate.value}
        self.events.write("step", **where, loss=losses[-1], **rates, **self.method.logs(), timing=timing)

    def _check(self, losses: list[dict[str, float]], last_step: int) -> None:
        for step, terms in enumerate(losses, start=last_step - len(losses) + 1):
            bad = [name for name, value in terms.items() if not math.isfinite(value)]
            if bad:
                self._give_up(step, bad, f"the loss {', '.join(bad)} is not a finite number", past=last_step - step)

    def _state(self, last_step: int) -> dict[str, Tensor]:
        """Return the engine's state, checked: after a step no loss has seen the weights yet, and nothing broken is saved or scored.

        Raises:
            TrainingError: weights or their moments are not finite numbers.
        """
        snapshot = self.engine.state_dict()
        if bad := [name for name, value in snapshot.items() if not _is_finite(value)]:
            shown = ", ".join(name.replace("/trained.", " ") for name in bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            self._give_up(last_step, bad, f"after it, a value of {shown} is not a finite number")
        return snapshot

    def _give_up(self, step: int, bad: list[str], problem: str, *, past: int = 0) -> NoReturn:
        """End the run with the batch of a step kept, which lies `past` steps back.

        Raises:
            TrainingError: always.
        """
        self.events.write("failure", phase=self.phase.name, step=step, terms=bad)
        self.events.commit()
        train = self.config.train
        kept = self._keep_batch(step, bad, problem, past)
        self.shared.folder.commit()
        raise TrainingError(
            f"task '{self.phase.tasks[0].name}', phase '{self.phase.name}', step {step}: {problem}. "
            f"{kept}Try a lower learning rate "
            f"(now {self.phase.training.learning_rate:g}), train.gradient_clipping=1.0 (now {train.gradient_clipping:g}), or "
            f"train.precision=fp32 (now {train.precision}); with a new --run folder; this one keeps its finished stages"
        )

    def _keep_batch(self, step: int, bad: list[str], problem: str, past: int) -> str:
        """Write this rank's share of a step's batch; returns how a person finds out more by it."""
        if past >= len(self.watch.batches):
            return ""
        failure = Failure(
            int(self.events.stage.get("stage", 0)), self.phase.tasks[0].name, self.number, self.phase.name, step, self.runtime.rank,
            self.runtime.world_size, tuple(bad), problem,
        )  # fmt: skip
        try:
            name = save_failure(self.shared.folder.path, failure, self.watch.batches[-1 - past])
        except (TeraconError, OSError) as error:
            return f"Its batch could not be kept ({io.message_of(error)}). "
        return f"Its batch is kept: `dist-teracon replay {shlex.quote(f'{self.shared.folder}/{name}')}` finds where that begins. "

    def _log_epoch(self, state: PhaseState, means: dict[str, float], score: Validation, *, better: bool, seconds: float = 0.0) -> None:
        names = dict.fromkeys(metrics_of(task, self.config.evaluate.metrics)[0].name for task in self.phase.tasks)
        metric = next(iter(names)) if len(names) == 1 else f"mean of {' and '.join(names)}"
        where = {"phase": self.phase.name, "epoch": state.epoch}
        self.events.write(
            "epoch", **where, loss=means, validation=score.value, validation_error=score.error, metric=metric, best=better, seconds=seconds
        )
        shown = "–" if score.value is None else f"{score.value:.4f}"
        if better and not state.epoch:
            self.shared.console.log(f"{self.label} · start: validation {metric} {shown}")
        if state.epoch:
            loss, mark = sum(means.values()), " (best)" if better else ""
            self.shared.console.log(
                f"{self.label} · epoch {state.epoch}: loss {loss:.4f}, validation {metric} {shown}{mark}, {seconds:.1f} s"
            )

    # -- checkpoints

    def _checkpoint_due(self, steps: int, *, logs: bool) -> bool:
        """Return whether a checkpoint within the epoch is due; the clock is asked where steps are logged, the main process's counts."""
        every = self.config.train.checkpoint_every
        if every.steps is not None and steps % every.steps == 0:
            return True
        if every.minutes is None or not logs:
            return False
        due = time.monotonic() - self._saved_at >= 60 * every.minutes
        return bool(self.runtime.all_reduce_sum(torch.tensor(float(due and self.runtime.is_main))))

    def _stop_due(self, steps: int, *, is_last: bool) -> int:
        """Return the signal after which to save and stop, or 0; several processes ask one another some steps apart."""
        if self.runtime.world_size > 1 and not is_last and steps % min(ASK_EVERY, self.config.train.log_every):
            return 0
        return self.shared.stop.agreed(self.runtime)

    def _save_within_epoch(self, state: PhaseState, batches: Epoch, meter: LossMeter, seconds: float) -> None:
        self._check(meter.fetch(), state.steps)
        began = time.monotonic()
        within = {"loader": batches.state_dict(), "meter": meter.state_dict(), "method": self.method.stage_state()}
        self._save(state, self._state(state.steps), within=within, seconds=seconds, began=began)

    def _save(
        self, state: PhaseState, engine: dict[str, Tensor], *, within: dict[str, Any] | None = None, seconds: float = 0.0,
        began: float | None = None,
    ) -> None:  # fmt: skip
        began = time.monotonic() if began is None else began
        if self.runtime.is_main:
            small: dict[str, Any] = {
                "steps": state.steps,
                "seconds": state.seconds + seconds,
                "stopping": asdict(state.stopping),
                "method": self.method.stage_state(),
                "within_epoch": within,
                "events_bytes": self.events.commit(),
                "carried": asdict(self.carried),
            }
            self.shared.folder.check_place()
            epoch, step = (state.epoch, 0) if within is None else (state.epoch - 1, within["loader"]["step"])
            self.folder.save_checkpoint(StageCheckpoint(self.number, epoch, step, small, engine, state.best, state.average))
            self.shared.folder.commit()
        self.runtime.barrier()
        self._saved_at = time.monotonic()
        self.watch.saved(self._saved_at - began)

    def _resume(self, checkpoint: StageCheckpoint) -> PhaseState:
        self.engine.load_state_dict(checkpoint.engine)
        saved = checkpoint.state
        self.method.load_stage_state(saved["method"])
        where = f"step {checkpoint.step} of epoch {checkpoint.epoch + 1}" if checkpoint.step else f"epoch {checkpoint.epoch}"
        self.shared.console.log(f"{self.label} · going on after {where}")
        stopping = EarlyStopping(**saved["stopping"])
        return PhaseState(
            checkpoint.epoch, saved["steps"], saved["seconds"], stopping, checkpoint.best, checkpoint.average, saved["within_epoch"]
        )


def _is_finite(value: Tensor) -> bool:
    """Return whether all numbers are finite, without a second tensor of that size."""
    return not value.is_floating_point() or not value.numel() or all(math.isfinite(float(end)) for end in value.aminmax())


def _parameters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters among an engine's state."""
    return {name: value for name, value in state.items() if name.startswith(PARAMETER)}
