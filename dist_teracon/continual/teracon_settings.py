"""TERACON's settings, as a configuration's `method` has them (docs/training.md; what they do: docs/method.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dist_teracon.config.base import ConfigModel, Examples, Positive, Real, Weight, Whole
from dist_teracon.continual.sampling import Strategy
from dist_teracon.models.masks import EMBEDDING_LIMIT, Gate, Relation, RelationInit


class RetentionSettings(ConfigModel):
    """How past tasks are kept.

    Attributes:
        alpha: Weight α of the retention loss; 0 switches it off.
        teacher: `store`: pseudo-labels made ahead of time; `online`: the teacher runs in every step, at the step's scale.
        store: In which numbers pseudo-labels are kept: `fp32`, or `fp16`, half as many bytes, rounded to three digits.
        heads: `trained`: past tasks' heads learn on; `frozen`: they stay as they are, and the loss of one with more labels than a
            representation has numbers goes through the Gram matrix of its weights, without a logit.
        scale: Scale of past tasks' masks in training: `s_max`, where stored labels were made, or `annealed` for comparison.
        sampling: ρ by the formula, its least value for all tasks, or everybody.
        constant: c in ρ.
        minimum: Least rows of a past task in a global batch; not with `budget`.
        budget: Rows of all past tasks together, as a share of the batch, divided by ρ; tasks take turns where there are more of them than
            rows. None: every past task has its own ρ · B rows, at least `minimum`.
        tasks_per_step: With `budget`: past tasks that share a step's rows at most, in turns; each task more in a step costs as much as
            many rows. None: all of them.
        refresh_every: Optimiser steps between two refreshes of ρ.
        normalise: Divide a past task's loss by the variance of its pseudo-labels about their row's mean, so that no task counts more for
            having larger logits.
        pool: Share of users with pseudo-labels; `auto` takes all of a small task's.
    """

    alpha: Weight = 5.0
    teacher: Literal["store", "online"] = "store"
    store: Literal["fp32", "fp16"] = "fp32"
    heads: Literal["trained", "frozen"] = "trained"
    scale: Literal["s_max", "annealed"] = "s_max"
    sampling: Strategy = "formula"
    constant: Annotated[Real, Field(ge=-1000, le=1000)] = 6.0
    minimum: Examples = 64
    budget: Annotated[Real, Field(gt=0, le=1)] | None = None
    tasks_per_step: Positive | None = None
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
        later_embedding_range: Those of the tasks after the first one, whose mask may then begin open and theirs not; None for the same.
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
    later_embedding_range: tuple[Real, Real] | None = None
    mask_lr_scale: Annotated[Real, Field(gt=0, le=1e4)] = 1.0
    gradient_compensation: bool = False
    mask_regulariser: Weight = 0.0
    regularised: Literal["first", "all"] = "first"
    regulariser_schedule: Literal["constant", "scale", "decay"] = "constant"
    retention: RetentionSettings = RetentionSettings()

    @model_validator(mode="after")
    def _range_ascends(self) -> TeraconSettings:
        for name, bounds in (("embedding_range", self.embedding_range), ("later_embedding_range", self.later_embedding_range)):
            if bounds is not None and not -EMBEDDING_LIMIT <= bounds[0] <= bounds[1] <= EMBEDDING_LIMIT:
                raise ValueError(f"{name} ascends within ±{EMBEDDING_LIMIT:g}, not {list(bounds)}")
        if self.retention.tasks_per_step is not None and self.retention.budget is None:
            raise ValueError("retention.tasks_per_step divides a budget: set retention.budget, as 0.25")
        if self.retention.normalise and self.retention.teacher == "online":
            raise ValueError("retention.normalise takes the variance of stored pseudo-labels: set retention.teacher to store")
        if self.gate == "all" and (self.relation == "none" or self.relation_init == "reinit"):
            raise ValueError("gate: all is for masks with relations that are extended: set relation_init to extend")
        return self
