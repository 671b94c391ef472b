"""The contract of a continual-learning method; a method is one file beside this one, and a line in `registry.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dist_teracon.config.base import ConfigModel
from dist_teracon.config.model import ModelConfig
from dist_teracon.config.train import StageTraining
from dist_teracon.console import Log, Progress, no_log
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Task
from dist_teracon.engine.contract import Engine
from dist_teracon.hashing import stable_hash
from dist_teracon.models.backbone import Backbone, make_backbone
from dist_teracon.models.heads import Head, cross_entropy_sum, head_key
from dist_teracon.models.history_features import HistoryStart
from dist_teracon.models.input_embedding import NO_INPUTS, InputSizes
from dist_teracon.models.item_table import ItemTable
from dist_teracon.models.network import Network, Role
from dist_teracon.models.sampled_softmax import SampledLoss
from dist_teracon.runtime import Runtime


@dataclass(frozen=True)
class Phase:
    """A stretch of training within a stage.

    Attributes:
        name: As in events, `train` for a method with one phase.
        tasks: What is learned; several for joint learning.
        training: Learning rate, batch, epochs, patience.
        select: Keep the weights of the epoch with the best validation score of `tasks`, or in a phase after the first those that it began
            with where no epoch's are better; else the last epoch's.
    """

    name: str
    tasks: tuple[Task, ...]
    training: StageTraining
    select: bool = True


@dataclass(frozen=True)
class StageContext:
    """What a method may reach beyond its own weights while a task is learned.

    Attributes:
        dataset: The data set.
        runtime: This process's place in the world.
        folder: The stage's folder, for files of the method's own.
        training: The stage's settings.
        max_steps: Optimiser steps that the stage will take at most, or None.
        progress: Shows how far a long loop is.
        event: Writes an event to the run's log.
        log: Takes a line for a person.
    """

    dataset: Dataset
    runtime: Runtime
    folder: Path
    training: StageTraining
    max_steps: int | None
    progress: Progress
    event: Callable[..., None]
    log: Log = no_log


@dataclass(frozen=True)
class MethodContext:
    """What a method is built from.

    Attributes:
        model: The backbone's configuration.
        seed: Of initial values and samples.
        num_items: Size of the item table.
        tasks: All tasks in the order in which they will be learned.
        training: Stage settings, one a task.
        item_vectors: Initial item vectors [V, C] from a task's own training users, where they are not drawn.
        for_use: The method is restored to be used and not to be trained, so what training alone needs may be left out.
        num_types: Types of events, the unknown one included; 0 where the data set keeps none.
        inputs: Side features that the model reads.
        history: What features of whole histories start from, for a first task; None where weights are about to be loaded.
        finished: Tasks whose stages are finished: weights of these are about to be loaded, and nothing is computed for their start.
    """

    model: ModelConfig
    seed: int
    num_items: int
    tasks: tuple[Task, ...]
    training: tuple[StageTraining, ...]
    item_vectors: Callable[[Task], Tensor] | None = None
    for_use: bool = False
    num_types: int = 0
    inputs: InputSizes = NO_INPUTS
    history: Callable[[Task], HistoryStart | None] | None = None
    finished: frozenset[str] = frozenset()

    def backbone(self, task: Task, *, stage: Task | None = None) -> Backbone:
        """Build the configured backbone for a first task; what is drawn is the same each time.

        Args:
            task: Whose training users initial item vectors come from.
            stage: The task whose stage starts from these weights; None for `task` itself.
        """
        fresh = (stage or task).name not in self.finished
        vectors = self.item_vectors(task) if fresh and self.item_vectors is not None else None
        history = self.history(task) if fresh and self.history is not None else None
        return make_backbone(
            self.model, num_items=self.num_items, generator=self.generator("backbone"), item_vectors=vectors,
            num_types=self.num_types, inputs=self.inputs, history=history,
        )  # fmt: skip

    def ties(self, task: Task) -> bool:
        """Return whether a task's head has the items' embeddings as its weights."""
        return task.name in self.model.heads.tied

    def generator(self, purpose: str) -> torch.Generator:
        """Return a generator of initial values of its own for each purpose, so that they depend on seed and purpose alone."""
        return torch.Generator().manual_seed(stable_hash(f"{self.seed}:{purpose}") >> 1)


class Method(ABC):
    """A way to learn tasks one after another.

    The trainer's order of calls for a task: `begin_task`, `prepare`, then for each of `phases`: `begin_phase`, `parameter_groups`,
    `gradient_hooks` (before the engine is made), the steps (`begin_epoch`, `add_replay`, `loss`, `project`), then `end_task`.
    A finished stage is restored by `begin_task` and `end_task` for every learned task, and `load_state_dict`.
    A stage resumed in a later phase gets the weights with which that phase began by `load_state_dict`, then its `begin_phase`; those of
    the phases before are not called again. So what a phase decides (what is pruned, what is frozen) lies in `state_dict`, as buffers.
    After a phase the module's parameters are new objects: a method keeps no references to them.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[ConfigModel]] = ConfigModel
    # whether a finished run can learn one more task (`--add-task`)
    adds_tasks: ClassVar[bool] = True
    # whether a stage follows from its task and those before it, whichever come later; else the first stage alone does (`--begin-with`)
    stages_stand_alone: ClassVar[bool] = True
    # fields of `Settings`, or groups of them, of which the first stage reads nothing
    later_settings: ClassVar[frozenset[str]] = frozenset()
    # where the first stage is nothing but the training of a plain network in one phase, without masks and whatever the method's settings
    # are, what stands in `state_dict` before the names of that network, `{task}` being the first task's key; such methods have this stage
    # in common (`--begin-with`)
    plain_first_network: ClassVar[str | None] = None

    @classmethod
    def check(cls, tasks: Sequence[Task], backbone: type[Backbone]) -> None:
        """Refuse tasks, an order or a backbone that the method cannot learn; called before anything runs.

        Raises:
            ConfigError: it cannot.
        """

    @classmethod
    def trained_with(cls, task: str, tasks: Sequence[str]) -> Sequence[str]:
        """Return the tasks whose labels share rows with a task's, itself among them: what is closed to one of them is closed to all.

        Args:
            task: Its name.
            tasks: All of the run, in their order.
        """
        return (task,)

    def __init__(self, context: MethodContext, settings: ConfigModel) -> None:
        self.context = context
        self.settings = settings
        self.learned: list[str] = []
        # tasks in training whose labels are too many for the exact loss; set by the trainer before a phase
        self.negatives: dict[str, SampledLoss] = {}

    @abstractmethod
    def begin_task(self, task: Task) -> None:
        """Grow for a task. Initial values depend on the setup alone."""

    def prepare(self, context: StageContext) -> None:
        """Do what the task needs of the data before training, as pseudo-labels."""

    @property
    def makes_pseudo_labels(self) -> bool:
        """Whether `prepare` of a task after the first makes pseudo-labels, and finds those that an earlier call of it has made."""
        return False

    def phases(self, task: Task) -> Sequence[Phase]:
        """Return the phases of a task's stage; none where nothing is trained in it."""
        return (Phase("train", (task,), self.training(task)),)

    def begin_phase(self, phase: Phase) -> None:
        """Get ready for a phase, as by pruning or freezing."""

    @abstractmethod
    def module(self) -> nn.Module:
        """Return the module that the present task trains; the engine wraps it."""

    def parameter_groups(self, phase: Phase) -> list[dict[str, Any]]:
        """Return Adam's groups; parameters that are in none must not require gradients."""
        training = phase.training
        decayed = self.decay_parameters() if training.weight_decay else set()
        parts: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.module().named_parameters():
            if not parameter.requires_grad:
                continue
            rate = training.learning_rate * self.lr_scale(self.role(name), training)
            parts.setdefault((rate, training.weight_decay if name in decayed else 0.0), []).append(parameter)
        return [{"params": part, "lr": rate, "weight_decay": decay} for (rate, decay), part in parts.items()]

    def role(self, name: str) -> Role:
        """Return what a parameter of the present task's module is for."""
        network = self.module()
        assert isinstance(network, Network), "a method whose module is no Network overrides `role`"
        return network.role(name)

    def lr_scale(self, role: Role, training: StageTraining) -> float:
        """Return the factor on the learning rate of a parameter of this role."""
        return training.pretrained_lr_scale if self.is_pretrained(role) else 1.0

    def is_pretrained(self, role: Role) -> bool:
        """Return whether earlier stages trained such a parameter, so that `pretrained_lr_scale` applies: the backbone, after T1."""
        return len(self.learned) > 1 and role.part == "backbone"

    def decay_parameters(self) -> set[str]:
        """Return the module's parameters that weight decay acts on: the backbone's matrices and the present task's head's."""
        network = self.module()
        assert isinstance(network, Network), "a method whose module is no Network overrides `decay_parameters`"
        return {f"backbone.{name}" for name in network.backbone.decay_parameters()} | {f"heads.{head_key(self.learned[-1])}.weight"}

    def gradient_hooks(self, phase: Phase) -> None:
        """Register hooks that edit gradients; called before the engine is made."""

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch, counted from 1."""

    def add_replay(self, batch: PackedBatch) -> PackedBatch:
        """Add rows to a batch, as replayed users."""
        return batch

    def replay_bounds(self, batch: int, past: int) -> tuple[int, int]:
        """Return the least and the most rows that a step replays of `past` tasks together, beside a batch of so many examples."""
        return 0, 0

    def replayed_outputs(self, past: str) -> int:
        """Return by how many columns a replayed row's representation is multiplied for a past task's loss: its labels'."""
        return self.head(past).labels

    @abstractmethod
    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Return the loss as named terms, each `weight · local sum / global count`.

        Every trainable parameter takes part, also where this rank holds no rows.
        """

    def project(self, engine: Engine) -> None:
        """Correct the weights after a step, on the engine's masters."""

    def logs(self) -> dict[str, Any]:
        """Return the fields of a step's event beside the loss."""
        return {}

    def end_task(self) -> None:
        """Settle the task that was learned."""

    @abstractmethod
    def mask_index(self, task: str) -> int:
        """Return the row of the mask table that a task's rows use."""

    @abstractmethod
    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        """Return the representations under the task's own weights or masks, as at inference: [B, C]."""

    @abstractmethod
    def head(self, task: str) -> Head:
        """Return a task's head."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Return the module that holds the weights of all tasks learned so far."""

    def network_of(self, task: str) -> Network | None:
        """Return the network that a learned task is computed by; None for a method without."""
        network = self.model()
        return network if isinstance(network, Network) else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return all weights of the tasks learned so far, by name."""
        return {name: value.detach() for name, value in self.model().state_dict().items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave; the structure has been grown by `begin_task`."""
        self.model().load_state_dict(tensors)

    def item_tables(self) -> list[str]:
        """Return the names in `state_dict` of the matrices that have a row an item; these grow with the catalogue."""
        return [f"{name}.weight" for name, part in self.model().named_modules() if isinstance(part, ItemTable)]

    @property
    def masks_alone(self) -> bool:
        """Whether `model()`'s backbone under `masks()` is all that `encode` computes: not where weights change or modules come in."""
        return True

    def stage_state(self) -> dict[str, Any]:
        """Return the small state in the middle of a stage, as JSON values, beyond weights."""
        return {}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        """Take over what `stage_state` gave."""

    def masks(self) -> Tensor | None:
        """Return all tasks' masks at inference [T, K, C] for the report, or None for a method without."""
        return None

    def training(self, task: Task) -> StageTraining:
        """Return a task's stage settings."""
        return self.context.training[[known.name for known in self.context.tasks].index(task.name)]

    @staticmethod
    def whole_term(value: Tensor, batch: PackedBatch) -> Tensor:
        """Return this micro-batch's part of a loss term that does not depend on its rows, as a regulariser.

        Every micro-batch of every rank computes the whole term, and their losses are summed (docs/method.md, Retention).
        """
        world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return value / (world_size * batch.num_micro_batches)

    def classification_losses(self, batch: PackedBatch, hidden: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy terms of a batch's examples."""
        terms = {}
        for part in batch.examples:
            head, chosen = self.head(part.task), hidden.index_select(0, part.index)
            if (negatives := self.negatives.get(part.task)) is not None:
                with record_function("heads"):
                    loss = negatives.loss(head, chosen, part.labels, epoch=batch.epoch, step=batch.step)
            else:
                loss = cross_entropy_sum(head, chosen, part.labels, smoothing=self.context.model.heads.label_smoothing)
            terms[f"class/{part.task}"] = loss / max(1, part.total)
        return terms
