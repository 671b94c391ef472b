"""Extreme values that a configuration accepts, trained with for a step a stage; DeepSpeed's own settings in a real engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import results, settings, train_here, write_small

from dist_teracon.config_io import apply_overrides
from dist_teracon.errors import ConfigError, TeraconError

pytestmark = pytest.mark.usefixtures("alone")


def quick(dataset: str, **train: Any) -> dict[str, Any]:
    stage = {"batch": 8, "epochs": 1}
    return settings(dataset, tasks=("next", "age"), first=stage, second=stage, later=stage, max_steps=1, **train)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small(tmp_path_factory.mktemp("data") / "set", users=60)


# The largest and smallest values of fields that decide loops, memory or scale.
ACCEPTED = [
    "train.second.epochs=100000", "train.second.batch=16777216", "train.first.batch=16777216", "train.second.probe_steps=100000",
    "train.second.patience=100000", "train.first.weight_decay=10", "train.first.learning_rate=9.9", "train.accumulation=8",
    "train.second.pretrained_lr_scale=1.0e-300", "train.gradient_clipping=1.0e+6", "train.checkpoint_every.minutes=1.0e-300",
    "train.checkpoint_every.steps=2147483648", "train.log_every=2147483648", "train.first.epochs=0", "evaluate.batch=1048576",
    "evaluate.max_users=2147483648", "evaluate.metrics=[mrr@999999, accuracy]", "seed=340282366920938463463374607431768211456",
    "model.backbone.dilations=[65536]", "model.backbone.kernel_size=5", "model.dropout=0.999999", "model.heads.label_smoothing=0.999999",
    "model.heads.default=sampled", "method.s_max=10000", "method.s_max=1", "method.retention.alpha=1.0e+6",
    "method.retention.constant=1000", "method.retention.constant=-1000", "method.retention.minimum=16777216",
    "method.retention.pool=1.0e-300", "method.mask_regulariser=1.0e+6", "method.embedding_range=[-6, 6]",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("setting", ACCEPTED)
def test_what_is_accepted_trains_or_says_why_not(setting: str, dataset: str, tmp_path: Path) -> None:
    value = apply_overrides(quick(dataset), [setting])
    try:
        run = train_here(value, tmp_path / "run")
    except TeraconError as error:
        assert setting.partition("=")[0] in str(error) or "is not a finite number" in str(error)
        return
    assert len(results(run)["scores"]) == 2


def test_more_micro_batches_than_examples_are_refused_before_anything_is_written(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.accumulation: expected at most as many micro-batches as a step has examples \(8 for"):
        train_here(quick(dataset, accumulation=9), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_deepspeeds_own_settings_run(zero: int, dataset: str, tmp_path: Path) -> None:
    flags = ("overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions", "use_multi_rank_bucket_allreduce")
    group = {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000, **dict.fromkeys(flags, False), "round_robin_gradients": True}
    further = {"zero_optimization": group, "communication_data_type": "fp32", "gradient_predivide_factor": 2.0, "memory_breakdown": False}
    run = train_here(quick(dataset, zero=zero, deepspeed=further), tmp_path / "further")
    plain = train_here(quick(dataset, zero=zero), tmp_path / "plain")
    assert results(run)["scores"] == results(plain)["scores"]
