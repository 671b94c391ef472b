"""One task's stage: what comes before its training, and its phases one after another; no method is known by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dist_teracon.console import LabelledProgress
from dist_teracon.continual.method import Method, StageContext
from dist_teracon.data.schema import Task
from dist_teracon.train.linear_probe import fit_linear_probe
from dist_teracon.train.phase import Carried, PhaseTrainer
from dist_teracon.train.run_folder import EventLog
from dist_teracon.train.run_setup import Run
from dist_teracon.train.stage_folder import StageFolder


@dataclass(frozen=True)
class StageSummary:
    """What a stage took: epochs over all phases, seconds of training and of pseudo-labels."""

    epochs: int
    training_seconds: float
    prepare_seconds: float


class Stage:
    """Learns one task.

    Args:
        run: What all stages share.
        method: Restored to the stage before.
        task: The task to learn.
        folder: The stage's folder.
        events: The run's log.
        label: The stage's name in progress lines.
    """

    def __init__(self, run: Run, method: Method, task: Task, *, folder: StageFolder, events: EventLog, label: str) -> None:
        self.shared, self.method, self.task, self.folder, self.events, self.label = run, method, task, folder, events, label
        self._progress = LabelledProgress(run.console, label)

    def run(self) -> StageSummary:
        """Train all phases, going on from the newest checkpoint if there is one."""
        started = time.monotonic()
        resumed = self.folder.load_checkpoint()
        for problem in self.folder.damaged_checkpoints():
            after = "the stage begins anew" if resumed is None else "the checkpoint before it is used"
            self.shared.console.log(f"warning: {problem}; {after}")
        if self.shared.runtime.is_main:
            self.folder.drop_damaged_checkpoints()
        self.prepare(event=self.events.write if resumed is None else no_event)  # the log of a resumed stage has these events already
        probed = resumed is None and self._fit_linear_probe()
        carried = Carried(time.monotonic() - started, 0, 0.0) if resumed is None else Carried(**resumed.state["carried"])
        for number, phase in enumerate(self.method.phases(self.task)):
            if resumed is not None and number < resumed.phase:
                continue
            here = resumed if resumed is not None and number == resumed.phase else None
            if number:
                self._phase_weights(number, resumed=here is not None)
            trainer = PhaseTrainer(
                self.shared, self.method, phase, number, folder=self.folder, events=self.events, label=self.label, carried=carried
            )
            # a probe's heads, or what the phase before has kept and `begin_phase` made of it, may be the best that validation sees
            state = trainer.run(here, start_is_candidate=probed or number > 0)
            carried = Carried(carried.prepare_seconds, carried.epochs + state.epoch, carried.seconds + state.seconds)
        self.method.end_task()
        return StageSummary(carried.epochs, carried.seconds, carried.prepare_seconds)

    def prepare(self, *, event: Callable[..., None]) -> None:
        """Grow the network by the task and have the method prepare for it, as by pseudo-labels; all ranks call it.

        Args:
            event: Writes an event.
        """
        self.method.begin_task(self.task)
        self.method.prepare(self._context(event))
        self.shared.folder.share_pseudo_labels(self.folder.path, self.shared.runtime)

    def _fit_linear_probe(self) -> bool:
        """Train the new heads alone where the configuration asks for it, each by itself; returns whether any was."""
        phases, training = self.method.phases(self.task), self.method.training(self.task)
        steps = min(training.probe_steps, self.shared.config.train.max_steps or training.probe_steps)
        if not steps or not phases:
            return False
        probed = [self._probe(task, steps) for task in phases[0].tasks if not task.predicts_next]
        return any(probed)

    def _probe(self, task: Task, steps: int) -> bool:
        config, method, model = self.shared.config, self.method, self.shared.config.model
        if model.heads.loss_of(task.name, labels=task.labels, output_dim=method.head(task.name).weight.shape[1]) != "full":
            return False
        began = time.monotonic()
        method.module().to(self.shared.runtime.device)
        probe = fit_linear_probe(
            method, self.shared.dataset, task, steps=steps, dropout=model.dropout, smoothing=model.heads.label_smoothing,
            seed=config.seed, batch=config.evaluate.batch, runtime=self.shared.runtime, progress=self._progress,
        )  # fmt: skip
        if probe is None:
            self.shared.console.log(f"{self.label} · no linear probe of '{task.name}': it has no training or no validation examples")
            return False
        self.events.write("linear_probe", head=task.name, **asdict(probe), seconds=time.monotonic() - began)
        return True

    def _context(self, event: Callable[..., None]) -> StageContext:
        return StageContext(
            dataset=self.shared.dataset,
            runtime=self.shared.runtime,
            folder=self.folder.path,
            training=self.method.training(self.task),
            max_steps=self.shared.config.train.max_steps,
            progress=self._progress,
            event=event,
            log=self.shared.console.log,
        )

    def _phase_weights(self, number: int, *, resumed: bool) -> None:
        """Later phases start from weights that no earlier checkpoint holds whole: keep them, or take them up again."""
        if resumed:
            self.method.load_state_dict(self.folder.phase_start(number))
        elif self.shared.runtime.is_main:
            self.folder.save_phase_start(number, self.method.state_dict())


def no_event(_event: str, **_fields: Any) -> None:
    """Write nothing."""
