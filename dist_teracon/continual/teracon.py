"""TERACON: task-specific soft masks with relations, knowledge retention with relation-aware sampling (docs/method.md).

Legend: T tasks, K masked layers, C channels, s scale.
"""

from __future__ import annotations

import copy
import math
import time
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dist_teracon.config import ConfigModel, Examples, Positive, Real, StageTraining, Weight, Whole
from dist_teracon.continual.method import Method, MethodContext, Phase, StageContext
from dist_teracon.continual.pseudo_labels import (
    Store,
    hash_of_weights,
    open_store,
    plain_batch,
    pool_of_users,
    pool_share,
    write_pseudo_labels,
)
from dist_teracon.continual.registry import register
from dist_teracon.continual.replay import ReplayStream
from dist_teracon.continual.sampling import OnItsWay, Strategy, apply_strategy, divide_budget, rotation, sample_size, sampling_rates
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task, folder_of
from dist_teracon.engine.contract import Engine
from dist_teracon.errors import ConfigError
from dist_teracon.models.heads import Head, squared_error_sum
from dist_teracon.models.masks import (
    EMBEDDING_LIMIT,
    Gate,
    Relation,
    RelationInit,
    TaskMasks,
    annealed_scale,
    clamp_embeddings,
    compensated,
)
from dist_teracon.models.network import Network, Role


class RetentionSettings(ConfigModel):
    """How past tasks are kept.

    Attributes:
        alpha: Weight α of the retention loss; 0 switches it off.
        teacher: `store`: pseudo-labels made ahead of time; `online`: the teacher runs in every step, at the step's scale.
        scale: Scale of past tasks' masks in training: `s_max`, where stored labels were made, or `annealed` for comparison.
        sampling: ρ by the formula, its least value for all tasks, or everybody.
        constant: c in ρ.
        minimum: Least rows of a past task in a global batch; not with `budget`.
        budget: Rows of all past tasks together, as a share of the batch, divided by ρ; tasks take turns where there are more of them than
            rows. None: every past task has its own ρ · B rows, at least `minimum`.
        refresh_every: Optimiser steps between two refreshes of ρ.
        normalise: Divide a past task's loss by the variance of its pseudo-labels about their row's mean, so that no task counts more for
            having larger logits.
        pool: Share of users with pseudo-labels; `auto` takes all of a small task's.
    """

    alpha: Weight = 5.0
    teacher: Literal["store", "online"] = "store"
    scale: Literal["s_max", "annealed"] = "s_max"
    sampling: Strategy = "formula"
    constant: Annotated[Real, Field(ge=-1000, le=1000)] = 6.0
    minimum: Examples = 64
    budget: Annotated[Real, Field(gt=0, le=1)] | None = None
    refresh_every: Positive = 10
    normalise: bool = False
    pool: Literal["auto"] | Annotated[Real, Field(gt=0, le=1)] = "auto"


class TeraconSettings(ConfigModel):
    """TERACON's settings.

    Attributes:
        s_max: Largest scale of the masks, and that of inference.
        annealing: `epoch`: from 1/s_max at an epoch's first batch to s_max at its last; `paper`: as published, short of s_max;
            `stage`: once, over the first `annealing_epochs` epochs, and s_max from then on.
        annealing_epochs: See `annealing`.
        relation, relation_init, gate: See `TaskMasks`.
        embedding_range: Bounds of initial task embeddings.
        mask_lr_scale: Factor on the learning rate of the present task's embedding and relation layer.
        gradient_compensation: Undo what the masks' scale does to the gradient of the present task's embedding (`compensated`).
        mask_regulariser: Weight of the mean of the present task's mask in the loss; the published code has it off.
        regularised: Whose: the `first` task's, or that of `all`.
        regulariser_schedule: `constant`; `scale`: times s/s_max, so that it acts while masks are hard; `decay`: divided by the epoch.
        retention: How past tasks are kept.
    """

    s_max: Annotated[Real, Field(ge=1, le=10_000)] = 50.0
    annealing: Literal["epoch", "paper", "stage"] = "epoch"
    annealing_epochs: Annotated[Whole, Field(ge=1, le=100_000)] = 5
    relation: Relation = "per_channel"
    relation_init: RelationInit = "extend"
    gate: Gate = "first"
    embedding_range: tuple[Real, Real] = (0.0, 2.0)
    mask_lr_scale: Annotated[Real, Field(gt=0, le=1e4)] = 1.0
    gradient_compensation: bool = False
    mask_regulariser: Weight = 0.0
    regularised: Literal["first", "all"] = "first"
    regulariser_schedule: Literal["constant", "scale", "decay"] = "constant"
    retention: RetentionSettings = RetentionSettings()

    @model_validator(mode="after")
    def _range_ascends(self) -> TeraconSettings:
        low, high = self.embedding_range
        if not -EMBEDDING_LIMIT <= low <= high <= EMBEDDING_LIMIT:
            raise ValueError(f"embedding_range ascends within ±{EMBEDDING_LIMIT:g}, not {list(self.embedding_range)}")
        if self.retention.normalise and self.retention.teacher == "online":
            raise ValueError("retention.normalise takes the variance of stored pseudo-labels: set retention.teacher to store")
        if self.gate == "all" and (self.relation == "none" or self.relation_init == "reinit"):
            raise ValueError("gate: all is for masks with relations that are extended: set relation_init to extend")
        return self


# Rows a shard that the variance of a task's pseudo-labels is taken of.
_VARIANCE_ROWS = 256


@register
class Teracon(Method):
    """One network for all tasks; a frozen copy of the stage before teaches it the past tasks."""

    name = "teracon"
    Settings = TeraconSettings

    def __init__(self, context: MethodContext, settings: TeraconSettings) -> None:
        super().__init__(context, settings)
        self.options, self.retention = settings, settings.retention
        backbone = context.backbone(context.tasks[0])
        low, high = settings.embedding_range
        self.network = Network(
            backbone,
            TaskMasks(
                layers=backbone.num_masked_layers,
                channels=backbone.channels,
                relation=settings.relation,
                relation_init=settings.relation_init,
                gate=settings.gate,
                embedding_range=(low, high),
            ),
        )
        self.teacher: Network | None = None
        self.teacher_hash = ""
        self.teacher_masks: Tensor | None = None
        self.streams: dict[str, ReplayStream] = {}
        self.variances: dict[str, float] = {}
        self.rates: list[float] = []
        self.pending: OnItsWay | None = None
        self.steps_taken = 0
        self.batch = 1
        self.present_scale = settings.s_max
        self.drawn: dict[str, int] = {}

    # -- a task begins and ends

    def begin_task(self, task: Task) -> None:
        taught = bool(self.learned) and not self.context.for_use
        self.teacher = copy.deepcopy(self.network).requires_grad_(False) if taught else None
        self.learned.append(task.name)
        self.network.add_task(task.name, task.labels, generator=self.context.generator(f"task:{task.name}"))
        self.streams, self.rates, self.pending, self.steps_taken = {}, [], None, 0
        self.variances = {}

    def prepare(self, context: StageContext) -> None:
        if self.teacher is None or self.retention.alpha == 0:
            return
        device = context.runtime.device
        self.teacher_hash = hash_of_weights(self.teacher.state_dict())
        self.teacher.to(device)
        self.teacher_masks = self._teacher_masks(self.options.s_max)
        self.network.to(device)
        self.rates = self._measure_rates().tolist()
        self.batch = context.training.batch
        for past in self.learned[:-1]:
            self.streams[past] = self._open_stream(context, past)

    def end_task(self) -> None:
        self.teacher, self.teacher_masks, self.streams = None, None, {}

    # -- training

    def module(self) -> nn.Module:
        return self.network

    def parameter_groups(self, phase: Any) -> list[dict[str, Any]]:
        for past in self.learned[:-1]:
            # without retention nothing reaches past heads, and every parameter handed to the engine must take part
            self.network.head(past).requires_grad_(bool(self.streams))
        return super().parameter_groups(phase)

    def is_pretrained(self, role: Role) -> bool:
        """Also past tasks' heads, embeddings and relation layers: Adam makes whole steps of small gradients, too."""
        return super().is_pretrained(role) if role.task is None else role.task != self.learned[-1]

    def lr_scale(self, role: Role, training: StageTraining) -> float:
        scale = super().lr_scale(role, training)
        return scale * self.options.mask_lr_scale if role.part == "mask" and not self.is_pretrained(role) else scale

    def gradient_hooks(self, phase: Phase) -> None:
        if not self.options.gradient_compensation:
            return
        assert self.network.masks is not None
        embedding = self.network.masks.embeddings[-1]
        embedding.register_hook(lambda gradient: compensated(gradient, embedding, scale=self.present_scale, s_max=self.options.s_max))

    def decay_parameters(self) -> set[str]:
        """In later stages the new head's alone: a pull towards zero made what past tasks read drift (docs/log/)."""
        return {name for name in super().decay_parameters() if len(self.learned) == 1 or self.role(name).part == "head"}

    def begin_epoch(self, epoch: int) -> None:
        for stream in self.streams.values():
            stream.begin_epoch(epoch)

    def add_replay(self, batch: PackedBatch) -> PackedBatch:
        if not self.streams:
            return batch
        self._refresh_rates()
        parts, terms = [], []
        for past, size in zip(self.learned, self._sample_sizes(batch), strict=False):
            rows, targets, total = self.streams[past].draw(size)
            if targets is None:
                scale = self._scale(batch)
                targets = self._teach(plain_batch(rows, self.mask_index(past)), past, self._teacher_masks(scale), logits=True)
            parts.append((rows, self.mask_index(past)))
            terms.append((past, targets, total))
            self.drawn[past] = total
        return batch.with_retention(parts, terms)

    def replay_bounds(self, batch: int, past: int) -> tuple[int, int]:
        """By ρ's bounds: masks are positive, so that their cosine is at least 0."""
        if self.retention.alpha == 0 or not past:
            return 0, 0
        if self.retention.budget is not None:
            return self._budget_rows(batch), self._budget_rows(batch)
        rates = [0.5 - 0.5 * math.tanh(self.retention.constant * cosine / 2) for cosine in (0.0, 1.0)]  # 1 - σ(c·cos)
        low, high = (1.0, 1.0) if self.retention.sampling == "all" else (min(rates), max(rates))
        minimum = self.retention.minimum
        return past * sample_size(low, batch, minimum=minimum), past * sample_size(high, batch, minimum=minimum)

    def _sample_sizes(self, batch: PackedBatch) -> list[int]:
        """Return the replayed rows of each past task in the global batch."""
        rates = apply_strategy(self.rates, self.retention.sampling)
        if self.retention.budget is None:
            return [sample_size(rate, self.batch, minimum=self.retention.minimum) for rate in rates]
        return divide_budget(rates, self._budget_rows(self.batch), offset=rotation(self.context.seed, batch.epoch, batch.step))

    def _budget_rows(self, batch: int) -> int:
        assert self.retention.budget is not None
        return sample_size(self.retention.budget, batch, minimum=1)

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        scale = self.present_scale = self._scale(batch)
        past_scale = scale if self.retention.scale == "annealed" or self.retention.teacher == "online" else self.options.s_max
        masks = self.network.mask_table([past_scale] * (len(self.learned) - 1) + [scale])
        hidden = self.network.encode(batch, masks)
        terms = self.classification_losses(batch, hidden)
        counts = self._counts(batch)
        for part in batch.retention:
            head = self.network.head(part.task)
            error = squared_error_sum(head, hidden.index_select(0, part.index), part.targets, self._stored_head(part.task))
            weight, rows = counts[part.task]
            mean = error / (rows * head.labels * self.variances.get(part.task, 1.0))
            terms[f"retention/{part.task}"] = self.retention.alpha * weight * mean
        if masks is not None and (weight := self._regulariser(batch, scale)):
            terms["masks"] = self.whole_term(weight * masks[-1].mean(), batch)
        return terms

    def _counts(self, batch: PackedBatch) -> dict[str, tuple[float, int]]:
        """Return a past task's weight, and the rows that the sum over its rows is divided by.

        ρ_j/Σρ and its own rows. On a budget these are divided in the same proportion: every row counts alike, and a task that has no row
        in this step has more in others.
        """
        if self.retention.budget is not None:
            rows = max(1, sum(part.total for part in batch.retention))
            return {part.task: (1.0, rows) for part in batch.retention}
        shares = dict(zip(self.learned, _normalised(self.rates), strict=False))
        return {part.task: (shares[part.task], max(1, part.total)) for part in batch.retention}

    def _regulariser(self, batch: PackedBatch, scale: float) -> float:
        """Return the weight of the mean of the present task's mask at this step."""
        options = self.options
        if len(self.learned) > 1 and options.regularised == "first":
            return 0.0
        by_schedule = {"constant": 1.0, "scale": scale / options.s_max, "decay": 1 / max(1, batch.epoch)}
        return options.mask_regulariser * by_schedule[options.regulariser_schedule]

    def project(self, engine: Engine) -> None:
        masks = self.network.masks
        assert masks is not None
        engine.edit_masters(masks.embeddings, clamp_embeddings)
        self.steps_taken += 1

    def logs(self) -> dict[str, Any]:
        if not self.streams:
            return {}
        return {"rho": dict(zip(self.learned, self.rates, strict=False)), "rows": dict(self.drawn)}

    def _scale(self, batch: PackedBatch) -> float:
        s_max = self.options.s_max
        if self.options.annealing == "stage":
            over = batch.steps * self.options.annealing_epochs
            return annealed_scale(min((batch.epoch - 1) * batch.steps + batch.step, over - 1), over, s_max=s_max)
        return annealed_scale(batch.step, batch.steps, s_max=s_max, paper=self.options.annealing == "paper")

    def _refresh_rates(self) -> None:
        """Take over ρ as it was launched one interval ago, so that no step waits for the device, and launch it anew."""
        if self.steps_taken % self.retention.refresh_every:
            return
        if self.pending is not None:
            self.rates = self.pending.tolist()
        self.pending = OnItsWay(self._measure_rates())

    def _measure_rates(self) -> Tensor:
        """Return ρ, on the device."""
        assert self.teacher_masks is not None
        with torch.no_grad():
            table = self.network.mask_table([self.options.s_max] * len(self.learned))
            assert table is not None
            return sampling_rates(table[-1], self.teacher_masks, constant=self.retention.constant)

    # -- the teacher

    def _teacher_masks(self, scale: float) -> Tensor:
        assert self.teacher is not None
        with torch.no_grad():
            table = self.teacher.mask_table([scale] * (len(self.learned) - 1))
        assert table is not None
        return table

    def _stored_head(self, past: str) -> Head | None:
        """The frozen head that turns stored representations into logits, for tasks of more labels than channels."""
        assert self.teacher is not None
        head = self.teacher.head(past)
        return head if self.retention.teacher == "store" and head.labels > self.network.backbone.output_dim else None

    @torch.no_grad()
    def _teach(self, batch: PackedBatch, past: str, masks: Tensor, *, logits: bool) -> Tensor:
        assert self.teacher is not None
        hidden = self.teacher.encode(batch.to(masks.device), masks, positions="last")
        result: Tensor = self.teacher.head(past)(hidden) if logits else hidden
        return result

    def _open_stream(self, context: StageContext, past: str) -> ReplayStream:
        dataset, runtime, task = context.dataset, context.runtime, self.learned[-1]
        shards = own_shards(dataset.info.shards, runtime.rank, runtime.world_size)
        online = self.retention.teacher == "online"
        info = dataset.info.task(task)
        share = pool_share(
            1.0 if online else self.retention.pool,
            users=info.users,
            largest_rate=self._largest_rate(),
            batch=self.batch,
            max_steps=context.max_steps,
        )
        pool = pool_of_users(dataset, task, past, seed=self.context.seed, share=share, shards=shards)
        sizes = [sum(of_shard) for of_shard in zip(*runtime.gather([len(rows) for rows in pool]), strict=True)]
        if not sum(sizes):
            raise ConfigError(
                f"method.retention.pool: a share of {share:g} of the {info.users} users of task '{task}' holds nobody, and "
                f"'{past}' would be forgotten; take a larger share, or auto"
            )
        targets = None
        if not online:
            folder, began = context.folder / "pseudo_labels" / folder_of(past), time.monotonic()
            masks, logits = self.teacher_masks, self._stored_head(past) is None
            assert masks is not None
            written = write_pseudo_labels(
                lambda batch: self._teach(batch, past, masks, logits=logits),
                dataset, pool, folder=folder, mask_index=self.mask_index(past), shards=shards,
                teacher=self.teacher_hash, log=context.log,
            )  # fmt: skip
            for _ in context.progress.track(written, len(shards), f"pseudo-labels of {past}"):
                pass
            width = self.network.head(past).labels if logits else self.network.backbone.output_dim
            targets = open_store(folder, pool, shards, width)
            facts = {"rows": sum(sizes), "share": share, "seconds": time.monotonic() - began}
            if self.retention.normalise:
                facts["variance"] = self.variances[past] = self._variance(context, targets, past)
            context.event("pseudo_labels", past=past, **facts)
        return ReplayStream(dataset, pool, targets, key=f"replay:{task}:{past}", seed=self.context.seed, shards=shards, sizes=sizes)

    def _largest_rate(self) -> float:
        """Return the largest share of a batch that one past task's rows are."""
        rates = apply_strategy(self.rates, self.retention.sampling)
        if self.retention.budget is None:
            return max(rates)
        return max(_normalised(rates)) * self._budget_rows(self.batch) / self.batch

    def _variance(self, context: StageContext, targets: Store, past: str) -> float:
        """Mean square of a past task's pseudo-logits about their row's mean, of some rows a shard, the same at any world size."""
        head, parts = self._stored_head(past), []
        for shard, made in targets.shards.items():
            logits = torch.from_numpy(made[:_VARIANCE_ROWS].astype("float32"))
            if head is not None:
                logits = head(logits.to(head.weight.device, head.weight.dtype)).detach()
            centred = logits.double() - logits.double().mean(1, keepdim=True)
            parts.append((shard, float(centred.square().sum()), centred.numel()))
        sums = sorted(entry for of_rank in context.runtime.gather(parts) for entry in of_rank)
        return max(sum(entry[1] for entry in sums) / max(1, sum(entry[2] for entry in sums)), torch.finfo(torch.float32).tiny)

    # -- inference and state

    def mask_index(self, task: str) -> int:
        return self.learned.index(task)

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        return self.network.encode(batch, self.masks(), positions="last")

    def head(self, task: str) -> Head:
        return self.network.head(task)

    def masks(self) -> Tensor | None:
        return self.network.mask_table([self.options.s_max] * len(self.learned))

    def model(self) -> nn.Module:
        return self.network

    def stage_state(self) -> dict[str, Any]:
        pending = None if self.pending is None else self.pending.tolist()
        streams = {past: stream.state_dict() for past, stream in self.streams.items()}
        return {"rates": self.rates, "pending": pending, "steps_taken": self.steps_taken, "streams": streams}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        self.rates, self.steps_taken = state["rates"], state["steps_taken"]
        self.pending = None if state["pending"] is None else OnItsWay(torch.tensor(state["pending"]))
        for past, stream in self.streams.items():
            stream.load_state_dict(state["streams"][past])


def _normalised(rates: list[float]) -> list[float]:
    if not rates:
        return []
    total = sum(rates)
    return [rate / total for rate in rates] if total > 0 else [1 / len(rates)] * len(rates)
