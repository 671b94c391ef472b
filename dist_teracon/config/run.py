"""A run's whole configuration, with the groups `evaluate` and `launch`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dist_teracon.config.base import ConfigModel, Positive, Real, Whole
from dist_teracon.config.model import ModelConfig
from dist_teracon.config.train import TrainConfig


class EvaluateConfig(ConfigModel):
    """Evaluation.

    Attributes:
        metrics: Names of metrics (`evaluate/metrics.py`); each task has those for its kind, and the first of them selects: it stops
            early, and R, FWT and BWT hold it.
        max_users: Score at most so many users a task and split, drawn by the run's seed; for trials.
        batch: Users encoded at a time.
        exclude_seen: Rank without the items of the user's history, in tasks whose labels are items; None as the data set's recipe has it
            (`repeats: false`).
        period: Of a data set whose test has several periods (`split.test_periods`), the one on which a task is scored: its `own`, that of
            the stage that learned it, after every stage; or the `present` one, that of the stage just learned.
    """

    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("mrr@5", "accuracy")
    max_users: Positive | None = None
    batch: Annotated[Whole, Field(ge=1, le=1 << 20)] = 512
    exclude_seen: bool | None = None
    period: Literal["own", "present"] = "own"


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
