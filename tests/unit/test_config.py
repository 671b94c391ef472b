"""Configuration: every mistake is one message with the dotted field, and what is written is read back the same."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dist_teracon.config.base import ConfigModel
from dist_teracon.config.model import ModelConfig
from dist_teracon.config.run import RunConfig
from dist_teracon.config.train import StageTraining
from dist_teracon.config_io import apply_overrides, dump_config, load_config, make_config, read_yaml, validate
from dist_teracon.continual.registry import METHODS, method_class, resolve_method
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.models.backbone import BACKBONES, resolve_backbone


def wrong(value, *parts):
    with pytest.raises(ConfigError) as caught:
        validate(RunConfig, {"dataset": "d", **value}, where="run.yaml")
    for part in ("run.yaml: ", *parts):
        assert part in str(caught.value)


def test_unknown_fields_name_the_nearest():
    wrong({"model": {"chanels": 3}}, "model.chanels: unknown field; did you mean 'channels'?", "pooling")
    wrong({"sead": 3}, "sead: unknown field; did you mean 'seed'?")
    wrong({"train": {"first": {"learning_rat": 1}}}, "train.first.learning_rat: unknown field; did you mean 'learning_rate'?")
    wrong({"train": {"by_task": {"age": {"epoch": 1}}}}, "train.by_task.age.epoch: unknown field; did you mean 'epochs'?")
    wrong({"zzz": 1}, "zzz: unknown field (known: dataset, evaluate, launch, method,")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"model": {"channels": 0}}, "model.channels"),
        ({"model": {"backbone": 5}}, "model.backbone"),
        ({"seed": -1}, "seed"),
        ({"train": {"zero": 3}}, "train.zero"),
        ({"train": {"first": {"learning_rate": 0}}}, "train.first.learning_rate"),
        ({"train": {"first": {"learning_rate": float("nan")}}}, "train.first.learning_rate"),
        ({"train": {"gradient_clipping": -1}}, "train.gradient_clipping"),
        ({"train": {"max_steps": 0}}, "train.max_steps"),
        ({"train": 5}, "train"),
        ({"evaluate": {"max_users": "many"}}, "evaluate.max_users"),
    ],
)
def test_impossible_values_are_named_with_their_field(value, path):
    bad = value
    for part in path.split("."):
        bad = bad[int(part) if part.isdigit() else part]
    wrong(value, f"{path}: ", f"(is {bad!r})")


def test_values_that_do_not_go_together():
    wrong({"train": {"precision": "bf16", "zero": 0}}, "train: ", "train.zero to 1 or 2")
    wrong({"tasks": ["a", "b", "a"]}, "each once")
    wrong({"tasks": []}, "at least one task")
    wrong({"train": {"report_to": ["wandb", "wandb"]}}, "train.report_to: expected each name once")
    wrong({"model": {"event_features": "gaps"}}, "model.event_features: expected a list, as [one, two] (is 'gaps')")
    wrong({"dataset": None}, "dataset: ")
    with pytest.raises(ConfigError, match="dataset: required field missing"):
        validate(RunConfig, {}, where="run.yaml")


def test_all_mistakes_are_told_at_once():
    wrong({"seed": -1, "model": {"chanels": 3}}, "seed: ", "model.chanels: ")


def test_a_configuration_is_immutable():
    config = validate(RunConfig, {"dataset": "d"}, where="x")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: [1, 2\nseed: 3\n", r"run.yaml:\d+: not valid YAML"),
        ("dataset: a\n\tseed: 3\n", r"run.yaml:2: not valid YAML"),
        ("seed: 1\nmodel: {}\nseed: 2\n", r"run.yaml:3: not valid YAML: duplicate key 'seed'"),
        ("- 1\n", "expected a mapping of fields, got list"),
        ("", "expected a mapping of fields, got NoneType"),
        ("!!python/object/apply:os.getcwd []\n", r"run.yaml:1: not valid YAML"),
    ],
)
def test_what_is_no_mapping_in_yaml(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / "run.yaml"))


def test_files_that_are_no_text_no_file_or_not_there(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"dataset: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(str(tmp_path / "run.yaml"))
    with pytest.raises(DataError, match="expected a file, got a folder"):
        load_config(str(tmp_path))
    with pytest.raises(ConfigError, match=r"dmeo.yaml: no such file; did you mean 'demo.yaml'\?"):
        load_config("configs/dmeo.yaml")


def test_merge_keys_of_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text("a: &base {epochs: 3, batch: 8}\nb: {<<: *base, batch: 16}\n")
    assert read_yaml(str(tmp_path / "run.yaml"))["b"] == {"epochs": 3, "batch": 16}


def test_packaged_configurations_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/demo.yaml").dataset.startswith("synthetic:")
    assert load_config("configs/ml-100k.yaml").tasks is None


def test_settings_of_the_command_line():
    value = {"model": {"channels": 8}, "tasks": ["a"]}
    changed = apply_overrides(value, ["model.channels=64", "train.first.batch=3", "tasks=[b, c]", "method.name=sinmo", "dataset=a=b"])
    assert changed == {
        "model": {"channels": 64}, "tasks": ["b", "c"], "train": {"first": {"batch": 3}}, "method": {"name": "sinmo"}, "dataset": "a=b",
    }  # fmt: skip
    assert value == {"model": {"channels": 8}, "tasks": ["a"]}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.channels", "expected dotted.field=value"),
        ("=3", "expected dotted.field=value"),
        ("model.channels.x=3", "'channels' is 8, it has no fields below it"),
        ("model=[1", "the value is not valid YAML"),
        ("model..channels=3", "model.: unknown field"),
        ("modle.channels=3", r"modle: unknown field; did you mean 'model'\?"),
    ],
)
def test_settings_that_make_no_sense(setting, message):
    with pytest.raises(ConfigError, match=message):
        validate(RunConfig, apply_overrides({"dataset": "d", "model": {"channels": 8}}, [setting]), where="run.yaml")


@given(
    seed=st.integers(0, 2**70), rate=st.floats(1e-9, 9, allow_nan=False), channels=st.integers(1, 4096), name=st.text(min_size=1),
    tasks=st.none() | st.lists(st.text(), min_size=1, unique=True), dilations=st.lists(st.integers(1, 64), min_size=1),
)  # fmt: skip
def test_what_is_dumped_is_read_back(tmp_path_factory, seed, rate, channels, name, tasks, dilations):
    value = {
        "dataset": name, "seed": seed, "tasks": tasks, "model": {"channels": channels, "backbone": {"dilations": dilations}},
        "train": {"first": {"learning_rate": rate}, "by_task": {name: {"batch": 3}}, "precision": "bf16", "zero": 2},
        "method": {"name": "teracon", "retention": {"alpha": rate}},
    }  # fmt: skip
    config = validate(RunConfig, value, where="x")
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(path)) == config


def test_a_tasks_stage_is_the_one_of_its_place_with_its_own_overrides():
    value = {
        "dataset": "d",
        "train": {"first": {"batch": 1}, "second": {"batch": 2}, "later": {"batch": 3}, "by_task": {"c": {"epochs": 7}}},
    }
    train = validate(RunConfig, value, where="x").train
    assert [train.stage(place, task).batch for place, task in enumerate("abcd")] == [1, 2, 3, 3]
    assert [train.stage(place, task).epochs for place, task in enumerate("abcd")] == [train.first.epochs, 100, 7, 100]


@pytest.mark.parametrize("module", ["dist_teracon", "dist_teracon.cli"])
def test_importing_loads_nothing_heavy(module):
    heavy = ("torch", "ray", "deepspeed", "triton", "numpy", "pyarrow", "sklearn", "matplotlib", "pydantic")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("train.first.average", "train.first.ema_decay"),
        ("train.later.earlier_rate", "train.later.pretrained_lr_scale"),
        ("train.second.backbone_rate", "train.second.pretrained_lr_scale"),
        ("train.by_task.age.head_steps", "train.by_task.age.probe_steps"),
        ("train.lazy_tables", "train.sparse_updates"),
        ("model.dilations", "model.backbone.dilations"),
        ("model.kernel_size", "model.backbone.kernel_size"),
    ],
)
def test_the_error_of_a_renamed_field_names_the_new_one(old, new):
    with pytest.raises(ConfigError, match=rf"^run.yaml: {re.escape(old)}: was renamed to {re.escape(new)}$"):
        validate(RunConfig, apply_overrides({"dataset": "d"}, [f"{old}=1"]), where="run.yaml")


def test_a_field_given_alone_leaves_the_others_of_its_stage_at_the_stages_own_defaults():
    config = validate(RunConfig, apply_overrides({"dataset": "d"}, ["train.first.epochs=3", "train.later.batch=8"]), where="x")
    assert config.train.first == RunConfig(dataset="d").train.first.model_copy(update={"epochs": 3})
    assert config.train.later == RunConfig(dataset="d").train.later.model_copy(update={"batch": 8})


def test_a_tasks_own_settings_count_where_they_equal_a_default_and_are_written_alone(tmp_path):
    given = {"age": {"batch": StageTraining().batch, "patience": 0}}
    config = validate(RunConfig, {"dataset": "d", "train": {"by_task": given}}, where="x")
    assert config.train.stage(2, "age") == config.train.later.model_copy(update=given["age"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert read_yaml(str(tmp_path / "config.yaml"))["train"]["by_task"] == given
    assert load_config(str(tmp_path / "config.yaml")).train.stage(2, "age") == config.train.stage(2, "age")


def test_impossible_values_of_a_tasks_own_settings_are_named_with_their_field():
    wrong({"train": {"by_task": {"age": {"epochs": -1}}}}, "train.by_task.age.epochs: ", "(is -1)")
    wrong({"train": {"by_task": {"age": 3}}}, "train.by_task.age: ", "(is 3)")


def test_a_method_without_a_name_is_teracon():
    assert validate(RunConfig, {"dataset": "d", "method": {"annealing": "stage"}}, where="x").method == {
        "name": "teracon",
        "annealing": "stage",
    }


def test_the_preset_gives_way_to_the_fields_of_the_configuration():
    config = make_config({"dataset": "d", "preset": "paper", "train": {"second": {"batch": 256}}}, where="x")
    assert config.train.second == StageTraining(batch=256, learning_rate=1e-3)
    assert config.train.later == StageTraining(batch=1024, learning_rate=1e-4)
    assert config.method["relation_init"] == "reinit"


def _repeats(given: Mapping[str, Any], resolve: Callable[[dict[str, Any]], RunConfig]) -> Iterator[str]:
    """Yield the dotted fields of a mapping that change nothing where they are left out."""
    whole = resolve(copy.deepcopy(dict(given)))

    def leaves(value, path):
        for key, entry in value.items():
            if isinstance(entry, dict) and entry:
                yield from leaves(entry, (*path, key))
            else:
                yield (*path, key)

    for *parents, leaf in leaves(given, ()):
        value = copy.deepcopy(dict(given))
        node = value
        for parent in parents:
            node = node[parent]
        del node[leaf]
        try:
            same = "dataset" in value and resolve(value) == whole
        except ConfigError:  # as of bf16 without ZeRO: it is there for another field's sake
            same = False
        if same:
            yield ".".join([*parents, leaf])


@pytest.mark.parametrize("name", ["demo", "ml-100k", "six-tasks", "ttl", "ttl-gpu"])
def test_shipped_configurations_hold_only_what_differs_from_the_defaults(name):
    given = read_yaml(f"configs/{name}.yaml")
    assert list(_repeats(given, lambda value: make_config(value, where=name))) == []


def _documented() -> list[dict[str, Any]]:
    """Return the configurations in docs/training.md, the whole one first."""
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]


def _with_settings(name: str, settings: Any) -> dict[str, Any]:
    return {"name": name, **settings.model_dump(mode="json")}


def test_the_documents_configuration_is_every_field_with_its_default():
    documented = _documented()[0]
    config = RunConfig(dataset=documented["dataset"])
    method, settings = resolve_method(config, where="x")
    backbone, shape = resolve_backbone(config.model, where="x")
    expected = config.model_dump(mode="json")
    expected["method"], expected["model"]["backbone"] = _with_settings(method.name, settings), _with_settings(backbone.name, shape)
    assert documented == expected


def test_the_documents_have_the_settings_of_every_backbone_with_their_defaults():
    documented = [block["model"]["backbone"] for block in _documented() if "backbone" in block.get("model", {})]
    resolved = [resolve_backbone(ModelConfig(backbone=name), where="x") for name in BACKBONES]
    assert documented == [_with_settings(kind.name, settings) for kind, settings in resolved]


def test_the_documents_have_the_settings_of_every_method_with_their_defaults():
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^method: (\{.*?\}) *(?:#[^\n]*)?$", page, re.MULTILINE | re.DOTALL)
    documented = {block["name"]: block for block in map(yaml.safe_load, blocks)}
    for name in METHODS:
        kind = method_class(name)
        if kind.Settings.model_fields and name != "teracon":
            assert documented.pop(name) == _with_settings(name, kind.Settings())
    assert documented == {}


def groups(model, path=()):
    """Every group of a configuration with its dotted path and its default object."""
    yield path, model
    for name in type(model).model_fields:
        if isinstance(inner := getattr(model, name), ConfigModel):
            yield from groups(inner, (*path, name))


def others(value):
    """Values that some field may take beside the one that it has."""
    tried = (not value, 7, 0.25, 1, 2, "mean", "uniform", "sampled", "in_batch", "on", "bf16", {}, None)
    return [candidate for candidate in tried if candidate != value]


@pytest.mark.parametrize("path", [".".join(path) for path, _ in groups(RunConfig(dataset="d")) if path])
def test_a_group_that_is_given_in_part_keeps_its_own_defaults(path):
    default = RunConfig(dataset="d")
    group = default
    for part in path.split("."):
        group = getattr(group, part)
    tried = 0
    for name in type(group).model_fields:
        # the value that the field has anyway changes nothing
        same = apply_overrides({"dataset": "d"}, [f"{path}.{name}={json.dumps(group.model_dump(mode='json')[name])}"])
        assert validate(RunConfig, same, where="x") == default, name
        # another one changes this field alone
        for value in others(getattr(group, name)):
            try:
                changed = validate(RunConfig, apply_overrides({"dataset": "d"}, [f"{path}.{name}={json.dumps(value)}"]), where="x")
            except ConfigError:
                continue
            before, after = flat(default.model_dump(mode="json")), flat(changed.model_dump(mode="json"))
            differing = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
            # a group of which only what is given is written is a leaf of its own where that is nothing
            allowed = {path, f"{path}.{name}"}
            assert {key for key in differing if key not in allowed and not key.startswith(f"{path}.{name}.")} == set()
            tried += 1
            break
    assert tried >= len(type(group).model_fields) // 2


def flat(value, prefix=""):
    if isinstance(value, dict) and value:
        return {name: leaf for key, entry in value.items() for name, leaf in flat(entry, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


def test_a_preset_is_merged_field_by_field_too():
    paper = make_config({"dataset": "d", "preset": "paper"}, where="x")
    changed = make_config({"dataset": "d", "preset": "paper", "train": {"later": {"epochs": 6}}}, where="x")
    assert changed.train.later == paper.train.later.model_copy(update={"epochs": 6})
    assert changed.model_copy(update={"train": paper.train}) == paper
