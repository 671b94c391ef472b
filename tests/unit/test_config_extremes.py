"""Every field of every part of a configuration, given extreme values: accepted and sane, or one error with the dotted field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from dist_teracon.config.deepspeed import DeepSpeedSettings, DeepSpeedZero
from dist_teracon.config.run import RunConfig
from dist_teracon.config.train import TrainConfig
from dist_teracon.config_io import apply_overrides, dump_config, make_config, read_yaml
from dist_teracon.continual.registry import METHODS, resolve_method
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.metrics import check_metrics
from dist_teracon.models.backbone import BACKBONES, resolve_backbone

HUGE = "x" * 100_000
EXTREMES: tuple[Any, ...] = (
    0, -1, 1e24, 2**63, 10**5000, math.nan, math.inf, -math.inf, "", [], {}, HUGE, "9" * 5000, None, True, False,
    [None], {"": None}, {1: 2},
)  # fmt: skip


def parts_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models within an annotation, as `DeepSpeedZero` of `DeepSpeedZero | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from parts_of(argument)


def fields_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field of a model, those of its groups too; a table by name has the one name `age`."""
    for name, field in model.model_fields.items():
        yield (*path, name)
        table = get_args(field.annotation)[:1] == (str,) and getattr(field.annotation, "__origin__", None) is dict
        if table:
            yield (*path, name, "age")
        for part in parts_of(field.annotation):
            yield from fields_of(part, (*path, name, *(["age"] if table else [])))


def configurations() -> dict[str, dict[str, Any]]:
    """Return what each field's value is laid over, by the field's dotted path."""
    base: dict[str, Any] = {"dataset": "d"}
    found = {".".join(path): base for path in fields_of(RunConfig)}
    for name in METHODS:
        kind, _ = resolve_method(make_config({**base, "method": {"name": name}}, where="x"), where="x")
        found |= {".".join(path): {**base, "method": {"name": name}} for path in fields_of(kind.Settings, ("method",))}
    for name in BACKBONES:
        model = {"backbone": {"name": name}}
        shape, _ = resolve_backbone(make_config({**base, "model": model}, where="x").model, where="x")
        found |= {".".join(path): {**base, "model": model} for path in fields_of(shape.Settings, ("model", "backbone"))}
    return found


CONFIGURATIONS = configurations()


def resolved(value: dict[str, Any]) -> RunConfig:
    """Return a configuration, all of it checked as far as it can be without data."""
    config = make_config(value, where="run.yaml")
    resolve_method(config, where="run.yaml")
    resolve_backbone(config.model, where="run.yaml")
    check_metrics(config.evaluate.metrics, where="run.yaml")
    return config


def with_field(value: dict[str, Any], path: str, extreme: Any) -> dict[str, Any]:
    """Return a copy of a mapping with a field set."""
    result = apply_overrides(value, [f"{path}=0"])
    node = result
    *parents, leaf = path.split(".")
    for parent in parents:
        node = node[parent]
    node[leaf] = extreme
    return result


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from numbers(entry)
    elif isinstance(value, int | float):
        yield value


def test_the_walk_finds_fields_of_every_kind() -> None:
    expected = {"seed", "tasks", "model.heads.sampled.negatives", "train.later.probe_steps", "train.by_task.age.epochs"}
    expected |= {"train.deepspeed.zero_optimization.reduce_bucket_size", "train.checkpoint_every.minutes", "evaluate.metrics"}
    expected |= {"method.retention.pool", "method.s_max", "model.backbone.dilations", "model.backbone.layers"}
    assert expected <= set(CONFIGURATIONS)


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS))
def test_extreme_values_are_sane_or_refused_by_name(path: str) -> None:
    for extreme in EXTREMES:
        try:
            config = resolved(with_field(CONFIGURATIONS[path], path, extreme))
        except ConfigError as error:
            text = str(error)
            # a list's or a table's own entries are named below it; what two fields decide together names the group
            named = any(f"run.yaml: {name}" in text for name in (path, path.rpartition(".")[0]) if name) or path.rpartition(".")[2] in text
            assert named, text[:300]
            assert len(text) < 2500, text[:300]
            continue
        # what is accepted has a bound, and comes back from YAML as it is
        assert all(math.isfinite(number) and abs(number) <= 2**128 for number in numbers(config.model_dump(mode="json")))
        assert len(dump_config(config)) < 210_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"train": {"accumulation": 10**9}}, "train.accumulation: Input should be less than or equal to 65536 (is 1000000000)"),
        ({"train": {"later": {"probe_steps": 1e24}}}, "train.later.probe_steps: "),
        ({"model": {"backbone": {"dilations": [1e24]}}}, "run.yaml: model.backbone.dilations.0: "),
        ({"model": {"heads": {"sampled": {"negatives": 2e9}}}}, "model.heads.sampled.negatives: "),
        ({"train": {"deepspeed": {"zero_optimization": 5}}}, "train.deepspeed.zero_optimization: expected a mapping of fields (is 5)"),
        ({"train": {"deepspeed": {"foo": 1}}}, "train.deepspeed.foo: unknown field"),
        ({"train": {"deepspeed": {"zero_optimization": {"overlap_com": 1}}}}, "overlap_com: unknown field; did you mean 'overlap_comm'?"),
        ({"train": {"deepspeed": {"wall_clock_breakdown": "maybe"}}}, "train.deepspeed.wall_clock_breakdown: "),
        (
            {"train": {"deepspeed": {"optimizer": {"type": "Adam"}}}},
            "train.deepspeed: 'optimizer' follows from the method's parameter groups",
        ),
        ({"train": {"deepspeed": {"zero_optimization": {"stage": 3}}}}, "'zero_optimization.stage' follows from train.zero"),
        ({"train": {"zero": True}}, "train.zero: expected a number (is True)"),
        ({"train": {"first": {"epochs": True}}}, "train.first.epochs: expected a number (is True)"),
        ({"method": {"retention": {"pool": 2}}}, "run.yaml: method.retention.pool: "),
        ({"dataset": ""}, "dataset: "),
        ({"model": {"channels": 10, "backbone": {"name": "sasrec", "heads": 4}}}, "run.yaml: model.backbone.heads: expected a divisor of "),
    ],
)
def test_values_that_once_hung_or_ended_in_a_traceback(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved({"dataset": "d", **value})
    assert message in str(caught.value)


def test_a_field_that_may_be_one_of_several_things_is_named_once() -> None:
    with pytest.raises(ConfigError) as caught:
        resolved({"dataset": "d", "method": {"retention": {"pool": 2}}})
    assert str(caught.value).count("\n") == 0
    assert "method.retention.pool: Input should be 'auto' (is 2) or: method.retention.pool: Input should be less than or equal to 1" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"retention": {"tasks_per_step": 2}}, "retention.tasks_per_step divides a budget: set retention.budget, as 0.25"),
        (
            {"retention": {"normalise": True, "teacher": "online"}},
            "takes the variance of stored pseudo-labels: set retention.teacher to store",
        ),
        ({"gate": "all", "relation": "none"}, "set relation_init to extend"),
        ({"embedding_range": [1, 0]}, "embedding_range ascends within ±6, not [1.0, 0.0]"),
    ],
)
def test_settings_of_teracon_that_do_not_go_together(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved({"dataset": "d", "method": {"name": "teracon", **method}})
    assert message in str(caught.value)


def test_numbers_of_thousands_of_digits_and_groups_that_hold_themselves(tmp_path: Any) -> None:
    (tmp_path / "long.yaml").write_text(f"dataset: d\nseed: {'9' * 5000}\n")
    with pytest.raises(ConfigError, match=r"long.yaml:2: not valid YAML"):
        read_yaml(str(tmp_path / "long.yaml"))
    (tmp_path / "circle.yaml").write_text("model: &a {heads: *a}\n")
    with pytest.raises(ConfigError, match="a group holds itself"):
        read_yaml(str(tmp_path / "circle.yaml"))


def test_the_methods_settings_alone_are_those_of_the_default_method() -> None:
    config = resolved(apply_overrides({"dataset": "d"}, ["method.s_max=20"]))
    method, settings = resolve_method(config, where="x")
    assert (method.name, settings.model_dump()["s_max"]) == ("teracon", 20)


def test_deepspeeds_fields_are_deepspeeds_own() -> None:
    from dist_teracon.engine.deepspeed_engine import _import_deepspeed

    _import_deepspeed()
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    settings = {
        "zero_optimization": {"reduce_bucket_size": 7, "allgather_bucket_size": 8, "overlap_comm": False, "contiguous_gradients": False},
        "communication_data_type": "bf16", "gradient_predivide_factor": 2.0, "wall_clock_breakdown": True, "memory_breakdown": True,
        "dump_state": True, "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
    }  # fmt: skip
    given = TrainConfig.model_validate({"deepspeed": settings}).deepspeed.given()
    assert given == settings
    assert set(DeepSpeedZero.model_fields) <= set(DeepSpeedZeroConfig.model_fields)
    taken = DeepSpeedConfig({**given, "train_micro_batch_size_per_gpu": 1})
    assert taken.zero_config.reduce_bucket_size == 7
    assert str(taken.communication_data_type) == "torch.bfloat16"
    assert (taken.gradient_predivide_factor, taken.wall_clock_breakdown, taken.memory_breakdown, taken.dump_state) == (
        2.0,
        True,
        True,
        True,
    )
    assert isinstance(taken.comms_config.comms_logger, CommsLoggerConfig)
    assert set(settings) == set(DeepSpeedSettings.model_fields)
