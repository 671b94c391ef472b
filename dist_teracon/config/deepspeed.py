"""The group `train.deepspeed`: DeepSpeed's own settings, as far as they are left to the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dist_teracon.config.base import ConfigModel, Positive, Real

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
