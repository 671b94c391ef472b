"""Axes of a comparison: their product, its names, and against what each variant is held."""

from __future__ import annotations

import pytest
import yaml

from dist_teracon.compare.axes import expand
from dist_teracon.compare.plan import read_plan
from dist_teracon.errors import ConfigError

AXES = {
    "method": {"teracon": None, "hat": {"train.second.batch": 64}},
    "model.backbone": ["nextitnet", "sasrec"],
    "order": {"as-given": None, "swapped": ["next", "b", "a"]},
    "model.channels": [8],
}


def plan_file(tmp_path, **fields):
    plan = {"config": "configs/demo.yaml", "seeds": [0], "axes": AXES, "baseline": "teracon", **fields}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return str(tmp_path / "plan.yaml")


def test_variants_are_the_product_of_the_axes(tmp_path):
    plan, cells = read_plan(plan_file(tmp_path, variants={"plain": {"model.channels": 4}}))
    assert list(plan.variants) == [
        *(
            f"{method}+{backbone}+{order}"
            for method in ("teracon", "hat")
            for backbone in ("nextitnet", "sasrec")
            for order in AXES["order"]
        ),
        "plain",
    ]
    config = {cell.variant: cell.config for cell in cells}
    hat = config["hat+sasrec+swapped"]
    assert (hat.method["name"], hat.model.backbone["name"], hat.tasks) == ("hat", "sasrec", ("next", "b", "a"))
    assert (hat.train.second.batch, config["teracon+sasrec+swapped"].train.second.batch) == (64, 256)
    assert config["teracon+nextitnet+as-given"].tasks is None
    assert {name: made.model.channels for name, made in config.items() if made.model.channels != 8} == {"plain": 4}


def test_a_baseline_that_is_a_label_is_the_variant_that_differs_in_it_alone(tmp_path):
    plan, _ = read_plan(plan_file(tmp_path, variants={"alone": {"method.name": "sinmo"}}, single_task="alone"))
    assert plan.baseline_of("hat+sasrec+swapped") == "teracon+sasrec+swapped"
    assert plan.baseline_of("teracon+sasrec+swapped") == "teracon+sasrec+swapped"
    assert plan.baseline_of("alone") is None
    assert plan.single_task_of("hat+sasrec+swapped") == "alone"
    by_order, _ = read_plan(plan_file(tmp_path, baseline="as-given"))
    assert by_order.baseline_of("hat+sasrec+swapped") == "hat+sasrec+as-given"


def test_settings_of_another_method_are_refused_and_not_dropped(tmp_path):
    with pytest.raises(ConfigError, match=r"variant 'hat\+nextitnet\+as-given': method.retention: unknown field .method 'hat' has: "):
        read_plan(plan_file(tmp_path, set={"method.retention.minimum": 8}))


def test_groups_add_to_one_another_and_the_variant_wins(tmp_path):
    fields = {
        "set": {"train.second": {"epochs": 3}, "train.second.learning_rate": 9.0e-3, "train.later.batch": 64},
        "axes": {
            "method": {"sinmo": {"train.second": {"weight_decay": 1.0}}, "hat": None},
            "rate": {"r1": None, "r3": {"train.second": {"learning_rate": 3.0e-3}, "train.later": {"epochs": 2}}},
        },
        "variants": {"own": {"train.second": {"learning_rate": 5.0e-3}, "method": {"name": "hat", "s_max": 30.0}}},
        "baseline": "own",
    }
    _, cells = read_plan(plan_file(tmp_path, **fields))
    second = {cell.variant: cell.config.train.second for cell in cells}
    assert {name: (stage.epochs, stage.learning_rate, stage.weight_decay) for name, stage in second.items()} == {
        "sinmo+r1": (3, 9e-3, 1.0), "sinmo+r3": (3, 3e-3, 1.0), "hat+r1": (3, 9e-3, 0.0), "hat+r3": (3, 3e-3, 0.0), "own": (3, 5e-3, 0.0),
    }  # fmt: skip
    later = {cell.variant: (cell.config.train.later.batch, cell.config.train.later.epochs) for cell in cells}
    assert later["hat+r3"] == (64, 2)
    assert next(cell for cell in cells if cell.variant == "own").config.method["s_max"] == 30.0


def test_the_seed_stands_for_itself_at_every_depth(tmp_path):
    variants = {"a": {"model.item_init": {"file": "vectors-{seed}.npy"}}}
    _, cells = read_plan(plan_file(tmp_path, axes={}, variants=variants, baseline="a", seeds=[0, 7]))
    assert [cell.config.model.item_init.file for cell in cells] == ["vectors-0.npy", "vectors-7.npy"]


def test_labels_of_numbers_are_named_as_they_stand(tmp_path):
    plan, _ = read_plan(plan_file(tmp_path, axes={"model.channels": [8, 16]}, baseline=16))
    assert plan.baseline_of("8") == "16"


RATES = {"r1": None, "r3": {"train.second.learning_rate": 3.0e-3}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": [0, 0]}, r"seeds: expected each once, got \[0, 0\]"),
        ({"seeds": [True]}, "seeds.0: expected a number"),
        ({"set": {"seed": 7}}, "set: gives every cell the seed 7; expected `seeds`"),
        ({"variants": {"x": {"seed": 7}}}, "variants: 'x': gives every cell the seed 7"),
        ({"axes": {"a": {"x": None, "x+y": None}, "b": {"y+z": None, "z": None}}}, "give the variant 'x\\+y\\+z', as other ones do"),
        ({"axes": {"train.second.epochs": [1, "1"]}}, "axis 'train.second.epochs': two of its labels read '1'"),
        ({"axes": {"method": {"hat": {"train.second": {"learning_rate": 5.0e-3}}, "sinmo": None}, "rate": RATES}},
         "the axes 'method' \\('hat'\\) and 'rate' \\('r3'\\) both give train.second.learning_rate"),
        ({"axes": {"method": ["hat", "sinmo"], "rate": RATES}, "variants": {"r1": {}}, "baseline": "r1"},
         "variants: 'r1' is also a label of the axis 'rate'"),
    ],
)  # fmt: skip
def test_what_could_mean_two_things_is_refused(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        read_plan(plan_file(tmp_path, **fields))


def test_the_axes_own_names_need_no_field():
    points = expand({"rate": {"slow": {"train.second.learning_rate": 0.1}, "fast": None}})
    assert {name: point.fields for name, point in points.items()} == {"slow": {"train.second.learning_rate": 0.1}, "fast": {}}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"axes": {"method": ["teracon", "hatt"]}}, "variant 'hatt': method.name: no method 'hatt'; did you mean 'hat'?"),
        ({"axes": {"rate": [1, 2]}}, "axis 'rate': a list of values is for a field of the configuration"),
        ({"axes": {"method": []}}, "axis 'method': expected a list of values, or a mapping of labels, got []"),
        ({"axes": {"method": ["hat", "hat"]}}, "axis 'method': expected plain values, each once"),
        ({"axes": {"seed": [0, 1]}}, "axis 'seed': is no axis; expected `seeds` in its place"),
        ({"axes": {"tasks": {"a": None}}}, "axis 'tasks': is no axis; expected `order` in its place"),
        ({"axes": {"order": {"other": "next"}}}, "axis 'order', 'other': expected a list of tasks"),
        ({"axes": {"rate": {"slow": 3}}}, "axis 'rate', 'slow': expected dotted fields as a mapping, or nothing, got 3"),
        ({"axes": {"order": {"same": None}, "rate": {"same": None}}}, "label 'same' stands on the axes 'order' and 'rate'"),
        ({"axes": {"method": ["teracon"], "order": {"a": ["x", "x"]}}}, "expected at least one task, and each once"),
        ({"axes": {"method": ["teracon", "hat"]}, "variants": {"hat": {}}}, "'hat' comes from the axes already"),
        ({"baseline": "tera"}, "baseline: expected a variant or a label of an axis (teracon, nextitnet"),
        ({"axes": {"dataset": ["a/b", "c"]}, "baseline": "c"}, "got 'a/b'"),
        ({"experiment": "reversd"}, "experiment: "),
        ({"experiment": "reversed"}, "expected an axis 'order', and a label of it as the baseline, got baseline 'teracon'"),
        ({"references": ["mtl"]}, "references: expected a variant or a label of an axis (teracon, nextitnet"),
    ],
)
def test_bad_axes_are_told_before_anything_runs(tmp_path, fields, part):
    with pytest.raises(ConfigError) as caught:
        read_plan(plan_file(tmp_path, **fields))
    assert part in str(caught.value)
