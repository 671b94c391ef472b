"""The group `train`: the stages, precision, ZeRO, checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_serializer, field_validator, model_validator

from dist_teracon.config.base import ConfigModel, Epochs, Examples, Positive, Rate, Real, Share, Weight, Whole, no_boolean
from dist_teracon.config.deepspeed import DeepSpeedSettings


class StageTraining(ConfigModel):
    """How one stage trains.

    Attributes:
        learning_rate: Adam's.
        batch: Examples a global batch; sequences for the next-item task.
        epochs: At most so many.
        patience: Stop after so many epochs without a better validation score; 0 never stops early.
        schedule: How the learning rate goes over the steps (`train/learning_rate.py`): `constant`; `linear` and `cosine` fall to 0 over
            all `epochs`, and are stopped early as well; `plateau` multiplies the rate by `plateau_factor`, at most `plateau_cuts` times,
            where the stage would stop early, and goes on.
        warmup_steps: The rate rises to its value over so many steps first.
        weight_decay: Decoupled (AdamW's), of the backbone's matrices and the new head's, TERACON's later stages the head's alone.
        ema_decay: What is validated and handed on is a running average of the weights at the ends of epochs, of which an epoch keeps this
            share; 0: the weights of the epoch alone.
        pretrained_lr_scale: Factor on the learning rate of what earlier stages trained: the backbone, and past tasks' heads and masks.
        probe_steps: Before the stage, so many steps of the new head alone, on representations of some training users; validation may keep
            this start. None for the next-item task and for heads with a sampled loss.
    """

    learning_rate: Rate = 1e-3
    batch: Examples = 1024
    epochs: Epochs = 100
    patience: Epochs = 5
    schedule: Literal["constant", "linear", "cosine", "plateau"] = "constant"
    warmup_steps: Annotated[Whole, Field(ge=0, le=10_000_000)] = 0
    plateau_factor: Annotated[Real, Field(gt=0, lt=1)] = 0.3
    plateau_cuts: Annotated[Whole, Field(ge=1, le=100)] = 2
    weight_decay: Annotated[Real, Field(ge=0, le=10)] = 0.0
    ema_decay: Share = 0.0
    pretrained_lr_scale: Annotated[Real, Field(gt=0, le=1)] = 1.0
    probe_steps: Annotated[Whole, Field(ge=0, le=100_000)] = 0


class CheckpointEvery(ConfigModel):
    """How often a stage is saved within an epoch; at the end of every epoch it is saved anyway.

    Attributes:
        minutes: After so many; None for never.
        steps: After every so many optimiser steps of a phase; None for never.
    """

    minutes: Annotated[Real, Field(gt=0, le=525_600)] | None = 10.0
    steps: Positive | None = None


# `sparse_updates: auto` updates only the rows that a step reads in tables of at least so many rows.
_LAZY_FROM = 100_000


class TrainConfig(ConfigModel):
    """Training (docs/method.md, Training).

    Attributes:
        first, second, later: The stages of T1, of T2 and of the tasks after them. A field that is not given is that of the stage's own
            defaults below.
        by_task: What single tasks do otherwise than their stage, by name. Of each only the fields that are given count.
        max_steps: Stop each phase after so many optimiser steps; for trials.
        zero: DeepSpeed's ZeRO stage.
        precision: `bf16` computes in bf16 with fp32 masters in the optimiser and needs ZeRO 1 or 2.
        gradient_clipping: Largest norm of the gradient; 0 switches clipping off.
        accumulation: Micro-batches a step; at most as many as a stage's batch has examples.
        balance: Which process computes which of a batch's rows. `shards`: those of its own shards; `machine`: the processes of a machine
            share the rows of all their shards by length, and each reads all of these.
        sparse_updates: Adam on item tables, and on heads with a sampled loss, of which a batch reads few rows: `on` advances the rows
            that a step reads (`engine/sparse_adamw.py`), `off` all; `auto` is `on` for tables of 100,000 rows or more, where ZeRO is
            0 and clipping is off.
        checkpoint_every: How often a stage is saved within an epoch.
        log_every: Optimiser steps between two `step` events.
        report_to: Where the curves are shown while the run trains: `tensorboard` writes its files into the run's folder, `wandb` and
            `mlflow` go by their own environment variables; an empty list is nowhere.
        deepspeed: Further DeepSpeed settings beside those that follow from this configuration; in a file also the path of a
            DeepSpeed JSON (`config_io.py`), whose ZeRO stage, precision, clipping and accumulation become the fields above.
    """

    first: StageTraining = StageTraining(batch=32, epochs=16, weight_decay=1.0, ema_decay=0.8)
    second: StageTraining = StageTraining(batch=256, ema_decay=0.7, pretrained_lr_scale=0.1, probe_steps=400)
    later: StageTraining = StageTraining(batch=256, ema_decay=0.7, pretrained_lr_scale=0.1, probe_steps=400)
    by_task: dict[str, StageTraining] = {}
    max_steps: Positive | None = None
    zero: Annotated[Literal[0, 1, 2], BeforeValidator(no_boolean)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_clipping: Weight = 0.0
    accumulation: Annotated[Whole, Field(ge=1, le=65_536)] = 1
    balance: Literal["shards", "machine"] = "shards"
    sparse_updates: Literal["auto", "on", "off"] = "auto"
    checkpoint_every: CheckpointEvery = CheckpointEvery()
    log_every: Positive = 10
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()

    @field_serializer("deepspeed")
    def _only_given_settings(self, value: DeepSpeedSettings) -> dict[str, Any]:
        return value.given()

    @field_serializer("by_task")
    def _only_given_fields(self, value: dict[str, StageTraining]) -> dict[str, dict[str, Any]]:
        return {task: training.model_dump(exclude_unset=True) for task, training in value.items()}

    @model_validator(mode="after")
    def _masters(self) -> TrainConfig:
        if self.precision == "bf16" and self.zero == 0:
            raise ValueError("precision bf16 keeps its fp32 masters in ZeRO: set train.zero to 1 or 2")
        return self

    @field_validator("report_to")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("expected each name once")
        return value

    @field_validator("sparse_updates", mode="before")
    @classmethod
    def _yaml_reads_on_and_off_as_booleans(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _lazy(self) -> TrainConfig:
        if self.sparse_updates == "on" and (self.zero or self.gradient_clipping):
            raise ValueError(
                "sparse_updates on: the table's gradient holds the rows that a step reads; ZeRO 1 and 2 cannot partition it, nor clipping "
                "measure: set train.zero and train.gradient_clipping to 0, or sparse_updates to auto or off"
            )
        return self

    def uses_sparse_updates(self, rows: int) -> bool:
        """Return whether only the rows that a step reads are updated in a table of so many rows."""
        if self.sparse_updates == "auto":
            return rows >= _LAZY_FROM and not self.zero and not self.gradient_clipping
        return self.sparse_updates == "on"

    def stage(self, position: int, task: str) -> StageTraining:
        """Return the settings of the task at `position` (0 for T1)."""
        base = (self.first, self.second)[position] if position < 2 else self.later
        override = self.by_task.get(task)
        return base if override is None else base.model_copy(update=override.model_dump(exclude_unset=True))
