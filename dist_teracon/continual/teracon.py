"""TERACON: task-specific soft masks with relations, knowledge retention with relation-aware sampling (docs/method.md).

Legend: T tasks, K masked layers, C channels, s scale.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dist_teracon.config.train import StageTraining
from dist_teracon.continual.method import Method, MethodContext, Phase, StageContext
from dist_teracon.continual.pools import OpenPools, open_pools, variances_of
from dist_teracon.continual.pseudo_labels import plain_batch, write_pseudo_labels
from dist_teracon.continual.registry import register
from dist_teracon.continual.replay import ReplayStream
from dist_teracon.continual.replayed_users import PastPool, covered_rate
from dist_teracon.continual.sampling import (
    OnItsWay,
    apply_strategy,
    divide_budget,
    normalised,
    rotation,
    sample_size,
    sampling_rates,
)
from dist_teracon.continual.target_store import Store, hash_of_weights, open_store
from dist_teracon.continual.teracon_settings import TeraconSettings
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.schema import Task
from dist_teracon.engine.contract import Engine
from dist_teracon.errors import ConfigError
from dist_teracon.models.heads import Head, gram_of, squared_distance_sum, squared_error_sum
from dist_teracon.models.masks import (
    TaskMasks,
    annealed_scale,
    clamp_embeddings,
    compensated,
)
from dist_teracon.models.network import Network, Role


@register
class Teracon(Method):
    """One network for all tasks; a frozen copy of the stage before teaches it the past tasks (Kim et al., *Task Relation-aware Continual
    User Representation Learning*, KDD 2023).

    Each task has a soft mask on every masked layer, made from its own embedding and from relations to the other tasks' (`TaskMasks`).
    Nothing of the network is frozen: past tasks' heads, embeddings and relations train on, held by the retention loss, the mean squared
    error to the teacher's answers on some of the present task's users, ρ_j of the batch for a past task j. The teacher alone is frozen.

    Memory a task: 4·K·C bytes of embedding, and its head; relations of n tasks, from the second on, are 8·K·n² bytes in all
    (`per_channel`). While a stage is trained also the teacher, and the pseudo-labels of past tasks.

    Deviates from the paper, and from its published code: pseudo-labels are made ahead of time at `s_max`; relations of past tasks are
    extended by columns of zeros and not drawn anew; ρ of a batch has a floor of rows; the retention loss goes by means. The list with
    reasons is docs/method.md, Choices; `preset: paper` is the published recipe.
    """

    name = "teracon"
    later_settings = frozenset({"retention", "gate", "later_embedding_range"})
    Settings = TeraconSettings

    def __init__(self, context: MethodContext, settings: TeraconSettings) -> None:
        super().__init__(context, settings)
        self.options, self.retention = settings, settings.retention
        if self.retention.heads == "frozen" and context.model.heads.tied and not context.for_use:
            raise ConfigError(
                f"method.retention.heads: frozen past heads stay as they are, and that of '{context.model.heads.tied[0]}' is tied to the "
                "item embeddings, which are trained on; take trained, or leave the task out of model.heads.tied"
            )
        backbone = context.backbone(context.tasks[0])
        self.network = Network(
            backbone,
            TaskMasks(
                layers=backbone.num_masked_layers,
                channels=backbone.channels,
                relation=settings.relation,
                relation_init=settings.relation_init,
                gate=settings.gate,
                embedding_range=settings.embedding_range,
                later_embedding_range=settings.later_embedding_range,
            ),
        )
        self.teacher: Network | None = None
        self.teacher_hash = ""
        self.teacher_masks: Tensor | None = None
        self.streams: dict[str, ReplayStream] = {}
        self.pool_rate, self.pools_grow = 0.0, False  # the rate that the pools were made for, and whether they leave users out
        self.epoch = 0  # the one that has begun, of the present task
        self.stage: StageContext | None = None
        self.grams: dict[str, Tensor] = {}
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
        self.network.add_task(task.name, task.labels, generator=self.context.generator(f"task:{task.name}"), tied=self.context.ties(task))
        self.streams, self.rates, self.pending, self.steps_taken = {}, [], None, 0
        self.variances, self.grams, self.epoch = {}, {}, 0

    def prepare(self, context: StageContext) -> None:
        if self.teacher is None or self.retention.alpha == 0:
            return
        device = context.runtime.device
        self.teacher_hash = hash_of_weights(self.teacher.state_dict())
        self.teacher.to(device)
        self.teacher_masks = self._teacher_masks(self.options.s_max)
        self.network.to(device)
        self.rates = self._measure_rates().tolist()
        self.batch, self.stage = context.training.batch, context
        if self.retention.heads == "frozen":
            wide = [past for past in self.learned[:-1] if self.teacher.head(past).labels > self.network.backbone.output_dim]
            self.grams = {past: gram_of(self.teacher.head(past)) for past in wide}
        opened, stores = self._open_streams(self._largest_rate())
        if self.retention.normalise:
            self.variances = variances_of(stores, {past: self._stored_head(past) for past in stores}, context.runtime)
        if stores:
            opened.log_passes(self.variances)

    @property
    def makes_pseudo_labels(self) -> bool:
        return bool(self.learned) and self.retention.alpha > 0 and self.retention.teacher == "store"

    def end_task(self) -> None:
        self.teacher, self.teacher_masks, self.streams, self.stage, self.grams = None, None, {}, None, {}

    # -- training

    def module(self) -> nn.Module:
        return self.network

    def parameter_groups(self, phase: Any) -> list[dict[str, Any]]:
        for past in self.learned[:-1]:
            # without retention nothing reaches past heads, and every parameter handed to the engine must take part
            self.network.head(past).requires_grad_(bool(self.streams) and self.retention.heads == "trained")
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
        if epoch != self.epoch:  # an epoch that is resumed within has chosen its pools already, by the rates that it began with
            self._grow_pools()
        self.epoch = epoch
        for stream in self.streams.values():
            stream.begin_epoch(epoch)

    def _grow_pools(self) -> None:
        covered = covered_rate(self.pool_rate, batch=self.batch, minimum=self._floor())
        if self.stage is not None and self.pools_grow and (rate := self._largest_rate()) > covered:
            before = sum(stream.size for stream in self.streams.values())
            self._open_streams(rate)
            if (now := sum(stream.size for stream in self.streams.values())) > before:
                self.stage.log(f"ρ has grown to {rate:.3g}: pools hold {now} rows of past tasks instead of {before}")

    def add_replay(self, batch: PackedBatch) -> PackedBatch:
        if not self.streams:
            return batch
        self._refresh_rates()
        parts, terms = [], []
        for past, size in zip(self.learned, self._sample_sizes(batch), strict=False):
            rows, targets, total = self.streams[past].draw(size)
            if targets is None:
                targets = self._answer_online(plain_batch(rows, self.mask_index(past)), past, self._scale(batch))
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

    def replayed_outputs(self, past: str) -> int:
        """By the Gram matrix's columns, where the loss goes through one."""
        return self.grams[past].shape[1] if past in self.grams else super().replayed_outputs(past)

    def _sample_sizes(self, batch: PackedBatch) -> list[int]:
        """Return the replayed rows of each past task in the global batch."""
        rates = apply_strategy(self.rates, self.retention.sampling)
        if self.retention.budget is None:
            return [sample_size(rate, self.batch, minimum=self.retention.minimum) for rate in rates]
        rows, offset = self._budget_rows(self.batch), rotation(self.context.seed, batch.epoch, batch.step)
        return divide_budget(rates, rows, offset=offset, parts=self._budget_parts(rows))

    def _budget_rows(self, batch: int) -> int:
        assert self.retention.budget is not None
        rows = sample_size(self.retention.budget, batch, minimum=1)
        return rows - rows % self._budget_parts(rows)

    def _budget_parts(self, rows: int) -> int:
        return min(self.retention.tasks_per_step or rows, rows)

    def loss(self, batch: PackedBatch) -> dict[str, Tensor]:
        scale = self.present_scale = self._scale(batch)
        past_scale = scale if self.retention.scale == "annealed" or self.retention.teacher == "online" else self.options.s_max
        masks = self.network.mask_table([past_scale] * (len(self.learned) - 1) + [scale])
        hidden = self.network.encode(batch, masks)
        terms = self.classification_losses(batch, hidden)
        counts = self._counts(batch)
        for part in batch.retention:
            head, chosen = self.network.head(part.task), hidden.index_select(0, part.index)
            if (gram := self.grams.get(part.task)) is not None:
                error = squared_distance_sum(gram, chosen, part.targets)
            else:
                error = squared_error_sum(head, chosen, part.targets, self._stored_head(part.task))
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
        shares = dict(zip(self.learned, normalised(self.rates), strict=False))
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
    def _answer_online(self, batch: PackedBatch, past: str, scale: float) -> Tensor:
        """Return the teacher's answers at a step's scale: logits, or representations where the loss goes through a Gram matrix."""
        assert self.teacher is not None
        masks = self._teacher_masks(scale)
        hidden = self.teacher.encode(batch.to(masks.device), masks, positions="last")
        answers: Tensor = hidden if past in self.grams else self.teacher.head(past)(hidden)
        return answers

    @torch.inference_mode()
    def answer(self, batch: PackedBatch, parts: Sequence[tuple[str, int]]) -> list[Tensor]:
        """Return what the store keeps of the teacher's answers at `s_max`, past task by past task (`write_pseudo_labels`)."""
        assert self.teacher is not None and self.teacher_masks is not None
        hidden = self.teacher.encode(batch.to(self.teacher_masks.device), self.teacher_masks, positions="last")
        answers = zip(parts, hidden.split([rows for _, rows in parts]), strict=True)
        return [chosen if self._stored_head(past) is not None else self.teacher.head(past)(chosen) for (past, _), chosen in answers]

    def _open_streams(self, rate: float) -> tuple[OpenPools, dict[str, Store]]:
        """Open the streams on pools for this largest share of a batch that a past task's rows are; the teacher makes missing answers.

        All ranks call it.
        """
        assert self.stage is not None
        online = self.retention.teacher == "online"
        opened = open_pools(
            self.stage, self.learned, seed=self.context.seed, setting=1.0 if online else self.retention.pool, largest_rate=rate,
            batch=self.batch, minimum=self._floor(),
        )  # fmt: skip
        stores = {} if online else self._make_labels(opened.pools, opened.shards)
        self.streams, self.pool_rate = opened.streams(stores), rate
        self.pools_grow = self.retention.pool == "auto" and opened.share < 1
        return opened, stores

    def _make_labels(self, pools: Sequence[PastPool], shards: range) -> dict[str, Store]:
        """Have the store hold the teacher's answers for the pools; those that are there are kept."""
        assert self.stage is not None
        folder = self.stage.folder / "pseudo_labels"
        written = write_pseudo_labels(
            self.answer, self.stage.dataset, pools, folder=folder, shards=shards,
            teacher=self.teacher_hash, half=self.retention.store == "fp16", log=self.stage.log,
        )  # fmt: skip
        for _ in self.stage.progress.track(written, len(shards) * len(pools), "pseudo-labels"):
            pass
        return {pool.task: open_store(folder, pool, shards, self._width(pool.task)) for pool in pools}

    def _width(self, past: str) -> int:
        return self.network.backbone.output_dim if self._stored_head(past) is not None else self.network.head(past).labels

    def _floor(self) -> int:
        """Return the least rows of a past task a step."""
        return self.retention.minimum if self.retention.budget is None else 0

    def _largest_rate(self) -> float:
        """Return the largest share of a batch that one past task's rows are by ρ."""
        rates = apply_strategy(self.rates, self.retention.sampling)
        if self.retention.budget is None:
            return max(rates)
        return max(normalised(rates)) * self._budget_rows(self.batch) / self.batch

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
        state = {"rates": self.rates, "pending": pending, "steps_taken": self.steps_taken, "streams": streams}
        return {**state, "pool_rate": self.pool_rate, "epoch": self.epoch}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        self.rates, self.steps_taken, self.epoch = state["rates"], state["steps_taken"], state.get("epoch", 0)
        self.pending = None if state["pending"] is None else OnItsWay(torch.tensor(state["pending"]))
        if self.stage is not None and state.get("pool_rate", self.pool_rate) != self.pool_rate:
            self._open_streams(state["pool_rate"])
        for past, stream in self.streams.items():
            stream.load_state_dict(state["streams"][past])
