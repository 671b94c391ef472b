"""The `launch` group of a run's configuration, and DeepSpeed's settings from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import dump_config, load_config, make_config
from dist_teracon.errors import ConfigError
from dist_teracon.train.config_changes import compare_configs


def config(**launch: Any) -> RunConfig:
    return make_config({"dataset": "d", "launch": launch}, where="test")


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ({"workers": 0}, "launch.workers: "),
        ({"workers": 2, "min_workers": 3}, "min_workers is 3, more than workers (2)"),
        ({"gpus_per_worker": 2}, "launch.gpus_per_worker: "),
        ({"placement": "PAK"}, "launch.placement: "),
        ({"resources_per_worker": {"GPU": 1}}, "'GPU' has a field of its own: launch.gpus_per_worker"),
        ({"max_failures": -2}, "launch.max_failures: "),
        ({"wokers": 2}, "launch.wokers: unknown field; did you mean 'workers'?"),
    ],
)
def test_what_no_cluster_can_do_is_refused_by_name(launch: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as told:
        config(**launch)
    assert said in str(told.value)


def test_a_run_may_go_on_with_other_workers_and_says_what_that_means() -> None:
    change = compare_configs(config(workers=2), config(workers=3, min_workers=1), tasks=["a"], finished=0)
    assert change.problem == ""
    assert change.notes == [
        "launch.min_workers is now 1 (was None): last digits may differ",
        "launch.workers is now 3 (was 2): last digits may differ",
    ]


def with_file(folder: Path, settings: Any, **train: Any) -> RunConfig:
    (folder / "ds.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    (folder / "run.yaml").write_text(yaml.safe_dump({"dataset": "d", "train": {"deepspeed": str(folder / "ds.json"), **train}}))
    return load_config(str(folder / "run.yaml"))


@pytest.mark.parametrize(
    ("name", "zero", "precision"),
    [("zero0", 0, "fp32"), ("zero1", 1, "fp32"), ("zero2", 2, "fp32"), ("zero1-bf16", 1, "bf16"), ("zero2-bf16", 2, "bf16")],
)
def test_the_shipped_files_set_the_fields_they_stand_for(name: str, zero: int, precision: str) -> None:
    train = make_config({"dataset": "d", "train": {"deepspeed": f"configs/deepspeed/{name}.json"}}, where="test").train
    assert (train.zero, train.precision) == (zero, precision)
    further = train.deepspeed.given().get("zero_optimization", {})
    assert "stage" not in further
    assert ("reduce_bucket_size" in further) == (zero > 0)


def test_a_file_keeps_its_further_settings_and_leaves_auto_to_this_program(tmp_path: Path) -> None:
    settings = {
        "train_batch_size": "auto", "gradient_clipping": 0.5, "gradient_accumulation_steps": 2, "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock_breakdown": True,
    }  # fmt: skip
    found = with_file(tmp_path, settings)
    assert (found.train.zero, found.train.gradient_clipping, found.train.accumulation) == (2, 0.5, 2)
    assert found.train.deepspeed.given() == {"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True}
    assert make_config(yaml.safe_load(dump_config(found)), where="again") == found  # the run no longer needs the file


@pytest.mark.parametrize(
    ("settings", "train", "said"),
    [
        ({"zero_optimization": {"stage": 1}}, {"zero": 2}, "gives 1 and train.zero is 2; leave one of them out"),
        ({"train_batch_size": 8}, {}, "'train_batch_size' follows from the stages' batch"),
        ({"zero_optimization": {"stage": 3}}, {}, "train.zero: "),
        ({"fp16": {"enabled": True}}, {}, "train.precision: "),
        ("{", {}, "not valid JSON"),
        ("[]", {}, "expected a mapping of DeepSpeed's settings, got list"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path: Path, settings: Any, train: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as told:
        with_file(tmp_path, settings, **train)
    assert said in str(told.value)


def test_a_file_that_is_not_there_names_the_shipped_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"zero3.json: no such file; did you mean 'zero\d.json'\? \(shipped in configs/deepspeed: .*zero2-bf16"
    ):
        make_config({"dataset": "d", "train": {"deepspeed": "configs/deepspeed/zero3.json"}}, where="test")
