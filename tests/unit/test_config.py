"""Configuration: every mistake is one message with the dotted field, and what is written is read back the same."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_teracon.config import RunConfig
from dist_teracon.config_io import apply_overrides, dump_config, load_config, read_yaml, validate
from dist_teracon.errors import ConfigError, DataError


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
    wrong({"zzz": 1}, "zzz: unknown field (known: dataset, evaluate, method,")


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
    wrong({"dataset": None}, "dataset: ")
    with pytest.raises(ConfigError, match="dataset: this field is wanted and missing"):
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
        ("seed: 1\nmodel: {}\nseed: 2\n", r"run.yaml:3: not valid YAML: 'seed' stands there twice"),
        ("- 1\n", "a mapping of fields is wanted, this is list"),
        ("", "a mapping of fields is wanted"),
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
        ("model.channels", "write it as dotted.field=value"),
        ("=3", "write it as dotted.field=value"),
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
