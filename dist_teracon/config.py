"""The configuration of a run: frozen, validated before anything heavy starts, stored resolved beside the run.

A method's settings are read by the method's own file (`dist_teracon.continual`); here they are carried as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)


class ConfigModel(BaseModel):
    """Base of every part of a configuration: immutable, and an unknown field is an error.

    A group that is given in part keeps its other fields as the default of *that* group has them, which need not be the defaults of its
    class: `train: {later: {epochs: 6}}` changes the epochs of later stages and nothing else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _groups_over_their_defaults(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: _over(defaults.get(name), given) for name, given in value.items()}


def _over(default: Any, given: Any) -> Any:
    """Return a group's fields merged over those of its default object, at every depth; anything else as it is given."""
    if not isinstance(default, ConfigModel) or not isinstance(given, Mapping):
        return given
    fields = {part: getattr(default, part) for part in type(default).model_fields}
    return {**fields, **{part: _over(fields.get(part), value) for part, value in given.items()}}


def _no_boolean(value: Any) -> Any:
    """Refuse `true` and `false`, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004  (pydantic reports values alone)
    return value


# Numbers. Every field has bounds of its own, so that what cannot be meant is an error at once and no loop without an end.
Whole = Annotated[int, BeforeValidator(_no_boolean)]
Real = Annotated[float, BeforeValidator(_no_boolean)]
Positive = Annotated[Whole, Field(ge=1, le=1 << 31)]
Examples = Annotated[Whole, Field(ge=1, le=1 << 24)]
Epochs = Annotated[Whole, Field(ge=0, le=100_000)]
Weight = Annotated[Real, Field(ge=0, le=1e6)]
Share = Annotated[Real, Field(ge=0, lt=1)]
Rate = Annotated[Real, Field(gt=0, lt=10)]


HeadLoss = Literal["auto", "full", "sampled", "gbce"]
Pooling = Literal["last", "mean", "concat"]
EventFeature = Literal["gaps", "types"]

# `auto` takes the exact loss while a head's weights, gradient and Adam's two moments, four bytes each, stay below this.
_FULL_HEAD_BYTES = 4 << 30


class SampledSoftmax(ConfigModel):
    """Sampled softmax with log-Q correction.

    Attributes:
        negatives: Labels drawn a step; with `in_batch` at most so many.
        distribution: `log_uniform` over labels by falling frequency, the same draw on all processes; `in_batch`: the labels of a
            process's other examples, so that results depend on the number of processes.
    """

    negatives: Annotated[Whole, Field(ge=1, le=1 << 20)] = 1024
    distribution: Literal["log_uniform", "in_batch"] = "log_uniform"


class Gbce(ConfigModel):
    """Generalised binary cross-entropy (docs/method.md, Losses of large heads).

    Attributes:
        negatives: Labels drawn a step, all equally often.
        calibration: t: 0 is plain binary cross-entropy, 1 undoes what drawing few negatives does to the probabilities.
    """

    negatives: Annotated[Whole, Field(ge=1, le=1 << 20)] = 256
    calibration: Annotated[Real, Field(ge=0, le=1)] = 0.75


class HeadsConfig(ConfigModel):
    """By what loss heads are trained; scores always rank all labels.

    Attributes:
        default: `full`: cross-entropy, exact over all labels; `sampled`: over drawn ones; `auto`: exact while the head fits, else
            `sampled`; `gbce`: binary cross-entropy of the target against drawn labels.
        by_task: What single tasks do otherwise, by name.
        sampled: How labels are drawn.
        gbce: How many labels are drawn, and how the loss is calibrated.
        label_smoothing: Share of a target's weight that the exact loss spreads evenly over all labels.
    """

    default: HeadLoss = "auto"
    by_task: dict[str, HeadLoss] = {}
    sampled: SampledSoftmax = SampledSoftmax()
    gbce: Gbce = Gbce()
    label_smoothing: Share = 0.0

    def loss_of(self, task: str, *, labels: int, output_dim: int) -> Literal["full", "sampled", "gbce"]:
        """Return by what loss a task's head is trained; a representation has `output_dim` numbers."""
        chosen = self.by_task.get(task, self.default)
        if chosen == "auto":
            return "sampled" if labels * output_dim * 16 > _FULL_HEAD_BYTES else "full"
        return chosen


class ModelConfig(ConfigModel):
    """The shared backbone (docs/method.md, Backbones).

    Attributes:
        backbone: `name` and the backbone's own settings, as `{name: nextitnet, dilations: [1, 4]}`; a name alone takes its defaults.
        channels: Width C of items and representations.
        pooling: What the representation holds of the sequence as a whole: `mean` adds the normalised mean of its items, `concat` puts it
            beside the last position's vector (twice as wide then), `last` (as published) has none.
        item_init: Initial item vectors: `svd` of which items the first task's training users take together, or `uniform` (as published).
        event_features: What is read of events beside their items, if the data set keeps it: `gaps`, the time since the one before; `types`.
        dropout: Share of the entries of items and representations that are dropped in training; none of replayed rows.
        heads: By what loss the tasks' heads are trained.
    """

    backbone: dict[str, Any] = {"name": "nextitnet"}
    channels: Annotated[Whole, Field(ge=1, le=4096)] = 256
    pooling: Pooling = "concat"
    item_init: Literal["uniform", "svd"] = "svd"
    event_features: tuple[EventFeature, ...] = ()
    dropout: Share = 0.3
    heads: HeadsConfig = HeadsConfig()

    @field_validator("event_features")
    @classmethod
    def _each_once(cls, value: tuple[EventFeature, ...]) -> tuple[EventFeature, ...]:
        if len(set(value)) < len(value):
            raise ValueError("expected each feature once")
        return value

    @field_validator("backbone", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        """Take a name for a backbone with its default settings, and settings without a name for the default backbone's."""
        if isinstance(value, str):
            return {"name": value}
        return {"name": "nextitnet", **value} if isinstance(value, dict) else value


class StageTraining(ConfigModel):
    """How one stage trains.

    Attributes:
        learning_rate: Adam's.
        batch: Examples a global batch; sequences for the next-item task.
        epochs: At most so many.
        patience: Stop after so many epochs without a better validation score; 0 never stops early.
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


# DeepSpeed settings that are derived, and from what.
_DEEPSPEED_TAKEN = {
    "train_batch_size": "the stages' batch",
    "train_micro_batch_size_per_gpu": "the stages' batch",
    "gradient_accumulation_steps": "train.accumulation",
    "gradient_clipping": "train.gradient_clipping",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "data_types": "train.precision",
    "optimizer": "the method's parameter groups",
    "scheduler": "train.*.learning_rate",
    "steps_per_print": "train.log_every",
    "zero_optimization.stage": "train.zero",
}


class DeepSpeedZero(ConfigModel):
    """DeepSpeed's `zero_optimization`, as far as ZeRO 0 to 2 with this program's own optimiser and checkpoints read it.

    Attributes:
        reduce_bucket_size, allgather_bucket_size: Elements that are reduced or gathered at a time; so large a buffer is held.
        overlap_comm: Reduce gradients while others are computed.
        contiguous_gradients, reduce_scatter, allgather_partitions, use_multi_rank_bucket_allreduce, round_robin_gradients,
            parameter_alignment: As DeepSpeed documents them.
    """

    reduce_bucket_size: Positive | None = None
    allgather_bucket_size: Positive | None = None
    overlap_comm: bool | None = None
    contiguous_gradients: bool | None = None
    reduce_scatter: bool | None = None
    allgather_partitions: bool | None = None
    use_multi_rank_bucket_allreduce: bool | None = None
    round_robin_gradients: bool | None = None
    parameter_alignment: bool | None = None


class CommsLogger(ConfigModel):
    """DeepSpeed's log of collective operations."""

    enabled: bool | None = None
    verbose: bool | None = None
    prof_all: bool | None = None
    prof_ops: tuple[str, ...] | None = None
    debug: bool | None = None


class DeepSpeedSettings(ConfigModel):
    """DeepSpeed's own settings that this program leaves to the user, under DeepSpeed's names; None leaves DeepSpeed's default.

    Attributes:
        zero_optimization: Of ZeRO; its stage is `train.zero`.
        communication_data_type: In which numbers gradients are exchanged.
        gradient_predivide_factor: Gradients are divided by it before they are summed over ranks, and by the rest after.
        wall_clock_breakdown, memory_breakdown, dump_state, comms_logger: What DeepSpeed prints.
    """

    zero_optimization: DeepSpeedZero | None = None
    communication_data_type: Literal["fp32", "fp16", "bf16"] | None = None
    gradient_predivide_factor: Annotated[Real, Field(ge=1, le=65_536)] | None = None
    wall_clock_breakdown: bool | None = None
    memory_breakdown: bool | None = None
    dump_state: bool | None = None
    comms_logger: CommsLogger | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_further_settings(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            zero = value.get("zero_optimization")
            inside = [f"zero_optimization.{name}" for name in zero] if isinstance(zero, Mapping) else []
            for key in (*value, *inside):
                if key in _DEEPSPEED_TAKEN:
                    raise ValueError(f"'{key}' follows from {_DEEPSPEED_TAKEN[key]}; set that instead")
        return value

    def given(self) -> dict[str, Any]:
        """Return the settings that are given, as DeepSpeed takes them."""
        return self.model_dump(mode="json", exclude_none=True)


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
        sparse_updates: Adam on item tables, and on heads with a sampled loss, of which a batch reads few rows: `on` advances the rows
            that a step reads (`engine/sparse_adamw.py`), `off` all; `auto` is `on` for tables of 100,000 rows or more, where ZeRO is
            0 and clipping is off.
        checkpoint_every: How often a stage is saved within an epoch.
        log_every: Optimiser steps between two `step` events.
        deepspeed: Further DeepSpeed settings beside those that follow from this configuration; in a file also the path of a
            DeepSpeed JSON (`config_io.py`), whose ZeRO stage, precision, clipping and accumulation become the fields above.
    """

    first: StageTraining = StageTraining(batch=32, epochs=16, weight_decay=1.0, ema_decay=0.8)
    second: StageTraining = StageTraining(batch=256, ema_decay=0.7, pretrained_lr_scale=0.1, probe_steps=400)
    later: StageTraining = StageTraining(batch=256, ema_decay=0.7, pretrained_lr_scale=0.1, probe_steps=400)
    by_task: dict[str, StageTraining] = {}
    max_steps: Positive | None = None
    zero: Annotated[Literal[0, 1, 2], BeforeValidator(_no_boolean)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_clipping: Weight = 0.0
    accumulation: Annotated[Whole, Field(ge=1, le=65_536)] = 1
    sparse_updates: Literal["auto", "on", "off"] = "auto"
    checkpoint_every: CheckpointEvery = CheckpointEvery()
    log_every: Positive = 10
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


class EvaluateConfig(ConfigModel):
    """Evaluation.

    Attributes:
        metrics: Names of metrics (`evaluate/metrics.py`); each task has those for its kind, and the first of them selects: it stops
            early, and R, FWT and BWT hold it.
        max_users: Score at most so many users a task and split, drawn by the run's seed; for trials.
        batch: Users encoded at a time.
        exclude_seen: Rank without the items of the user's history, in tasks whose labels are items; None as the data set's recipe has it
            (`repeats: false`).
    """

    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("mrr@5", "accuracy")
    max_users: Positive | None = None
    batch: Annotated[Whole, Field(ge=1, le=1 << 20)] = 512
    exclude_seen: bool | None = None


class LaunchConfig(ConfigModel):
    """What `train --launcher ray` asks a Ray cluster for (docs/distributed.md); no result depends on it but for rounding.

    Attributes:
        workers: Processes that train together.
        min_workers: Start and go on with as few as these while the cluster has no more; None: always all `workers`.
        cpus_per_worker: CPUs that a worker reserves.
        gpus_per_worker: GPUs that a worker reserves; None: one where the cluster has any, else none.
        resources_per_worker: Further resources, as `{memory: 8.0e9}` (bytes) or the names that a cluster gives its own.
        placement: How workers are spread over nodes.
        max_failures: After how many failures of workers the run is given up, -1 for never; a user's mistake ends it at once.
        resize_seconds: With `min_workers`, how often the number of workers is reconsidered while all is well.
        wait_minutes: How long to wait for nodes that have the resources.
    """

    workers: Annotated[Whole, Field(ge=1, le=65_536)] = 1
    min_workers: Annotated[Whole, Field(ge=1, le=65_536)] | None = None
    cpus_per_worker: Annotated[Real, Field(gt=0, le=4096)] = 1.0
    gpus_per_worker: Annotated[Real, Field(ge=0, le=1)] | None = None
    resources_per_worker: dict[str, Annotated[Real, Field(gt=0)]] = {}
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    max_failures: Annotated[Whole, Field(ge=-1, le=1 << 31)] = 3
    resize_seconds: Annotated[Real, Field(gt=0, le=86_400)] = 60.0
    wait_minutes: Annotated[Real, Field(gt=0, le=10_080)] = 10.0

    @model_validator(mode="after")
    def _fewer_at_least(self) -> LaunchConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than workers ({self.workers})")
        return self

    @field_validator("resources_per_worker")
    @classmethod
    def _have_fields_of_their_own(cls, value: dict[str, float]) -> dict[str, float]:
        own = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}
        if taken := [name for name in value if name in own]:
            raise ValueError(f"'{taken[0]}' has a field of its own: launch.{own[taken[0]]}")
        return value


class RunConfig(ConfigModel):
    """A whole run.

    Attributes:
        dataset: Folder or URI of a prepared data set, or `synthetic:six-tasks-v1?users=2000`, prepared on first use.
        preset: `paper` merges this configuration over the published recipe (`configs/presets/paper.yaml`).
        tasks: Which tasks, in which order; None for the data set's in its order.
        seed: Seed of initial values, batches and samples.
        method: `name` (TERACON where none is given) and the method's own settings.
        launch: What a Ray cluster is asked for.
    """

    dataset: Annotated[str, Field(min_length=1)]
    preset: Literal["paper"] | None = None
    tasks: tuple[str, ...] | None = None
    seed: Annotated[Whole, Field(ge=0, le=1 << 128)] = 0
    method: dict[str, Any] = {"name": "teracon"}
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    launch: LaunchConfig = LaunchConfig()

    @field_validator("method")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {"name": "teracon", **value}

    @model_validator(mode="after")
    def _tasks_once(self) -> RunConfig:
        if self.tasks is not None and (not self.tasks or len(set(self.tasks)) < len(self.tasks)):
            raise ValueError("tasks: expected at least one task, and each once")
        return self
