"""What each method promises, on whole runs of three tasks on both backbones: what stays, what moves, and how many bytes a task is."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import BACKBONES, events, results, settings, train_here, weights, what_lasts, write_small
from torch import Tensor

from dist_teracon import cli
from dist_teracon.continual.hat import gradient_factors
from dist_teracon.continual.method import Method
from dist_teracon.data.batches import PackedBatch
from dist_teracon.errors import ConfigError
from dist_teracon.train import phase as phase_module
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.restore import restore_method

METHODS: dict[str, dict[str, Any]] = {
    "mtl": {"name": "mtl"},
    "peterrec": {"name": "peterrec"},
    "piggyback": {"name": "piggyback"},
    "hat": {"name": "hat", "embedding_range": [-1, 1]},  # so that masks close some channels in a short run too
    "conure": {"name": "conure"},
    "lowrank": {"name": "lowrank"},
}
APART = ("peterrec", "piggyback", "conure", "lowrank")  # no past task changes, by a single bit
TASKS = ("next", "likes", "age")
STAGES = ("01-next", "02-likes", "03-age")
C, LABELS, WIDTH = 8, {"next": 40, "likes": 12, "age": 3}, 16
# masked layers, weights of their matrices, numbers of LayerNorms
SIZES = {"nextitnet": (4, 4 * C * C * 3, 2 * 4 * C), "sasrec": (4, 2 * 6 * C * C, 2 * 4 * C + 2 * C)}
# rows and columns of each matrix
SHAPES = {"nextitnet": [(C, 3 * C)] * 4, "sasrec": [(3 * C, C), (C, C), (C, C), (C, C)] * 2}

Train = Callable[..., Path]


def config(dataset: str, backbone: str, method: dict[str, Any] | str, *, tasks: tuple[str, ...] = TASKS, **train: Any) -> dict[str, Any]:
    """Return a small run's configuration: weight decay in every stage, which must not touch what is frozen."""
    stage = {"learning_rate": 0.01, "batch": 16, "epochs": 2, "weight_decay": 0.1, "ema_decay": 0.5}
    values = settings(dataset, method=method, tasks=tasks, **dict.fromkeys(("first", "second", "later"), stage), **train)
    values["model"] = {**values["model"], "backbone": BACKBONES[backbone], "dropout": 0.2}
    return values


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A smaller data set than other tests', of 96 users in two shards."""
    return write_small(tmp_path_factory.mktemp("small") / "set", users=96, shards=2)


@pytest.fixture(scope="module")
def trained(alone: None, small: str, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a method on a backbone once."""
    made: dict[tuple[str, str], Path] = {}

    def train(backbone: str, method: str) -> Path:
        if (backbone, method) not in made:
            folder = tmp_path_factory.mktemp(f"{method}-{backbone}") / "run"
            made[backbone, method] = train_here(config(small, backbone, METHODS[method], checkpoint_every={"steps": 3}), folder)
        return made[backbone, method]

    return train


def encoded(run: Path, task: str, stage: int) -> Tensor:
    """Return some users' representations for a task, as a stage left it."""
    method = restore_method(run, stage=stage)
    batch = PackedBatch.from_sequences([[5, 9, 3, 17, 22], [4], [30, 31, 8]], mask_index=method.mask_index(task))
    with torch.no_grad():
        return torch.cat([method.encode(batch, task), method.head(task)(method.encode(batch, task))], dim=1)


def numbers(run: Path, stage: str) -> int:
    """Return the bytes of a stage's tensors."""
    return sum(value.numel() * value.element_size() for value in weights(run, stage).values())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_three_tasks_are_learned_and_every_stage_comes_back_from_its_folder(trained: Train, backbone: str, method: str) -> None:
    run = trained(backbone, method)
    scores = results(run)["scores"]
    assert [len(row) for row in scores] == [1, 2, 3]
    for stage, task in enumerate(TASKS[:2], start=1):
        epochs = [event["loss"] for event in events(run, "epoch") if event["stage"] == stage and event["epoch"]]
        assert epochs[-1][f"class/{task}"] < epochs[0][f"class/{task}"]
    for number, stage in enumerate(STAGES, start=1):
        restored = restore_method(run, stage=number)
        assert restored.learned == list(TASKS[:number])
        assert {name: value.dtype for name, value in restored.state_dict().items()} == {
            name: value.dtype for name, value in weights(run, stage).items()
        }
        assert all(torch.equal(value, weights(run, stage)[name]) for name, value in restored.state_dict().items())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", APART)
def test_past_tasks_answer_with_the_same_bits_after_every_later_stage(trained: Train, backbone: str, method: str) -> None:
    run = trained(backbone, method)
    for first, task in enumerate(TASKS[:2], start=1):
        answers = [encoded(run, task, stage) for stage in range(first, 4)]
        assert all(torch.equal(before, after) for before, after in pairwise(answers))
    assert results(run)["bwt_absolute"] == [0.0, 0.0, None]
    assert not torch.equal(encoded(run, "likes", 3)[:, :WIDTH], encoded(run, "next", 3)[:, :WIDTH])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["peterrec", "piggyback", "lowrank"])
def test_the_backbone_stays_as_the_first_task_left_it(trained: Train, backbone: str, method: str) -> None:
    first, *later = (weights(trained(backbone, method), stage) for stage in STAGES)
    shared = [name for name in first if name.startswith("backbone.")]
    assert shared
    assert all(torch.equal(first[name], after[name]) for after in later for name in shared)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_patches_and_norms_of_a_task_train_in_its_stage_alone(trained: Train, backbone: str) -> None:
    _, second, third = (weights(trained(backbone, "peterrec"), stage) for stage in STAGES)
    own = [name for name in second if name.startswith("patches.likes.")]
    assert all(torch.equal(second[name], third[name]) for name in own)
    moved = [name for name in own if "norms." in name]
    assert moved
    for name in moved:
        assert not torch.equal(second[name], second[f"backbone.{name.rpartition('.')[2]}"]), name
    assert second["patches.likes.up"].abs().min() > 0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_low_rank_task_adds_matrices_of_its_rank_and_weighs_earlier_ones(trained: Train, backbone: str) -> None:
    run = trained(backbone, "lowrank")
    method: Any = restore_method(run)
    frozen = dict(method.network.backbone.named_parameters())
    for task, rank in (("likes", 4), ("age", 8)):  # its own and, weighed, the one before
        for name, value in method.inserted(task)["weights"].items():
            added = (value - frozen[name]).flatten(2)
            ranks = torch.linalg.matrix_rank(added, rtol=1e-4)
            assert ((ranks > 0) & (ranks <= rank)).all()
    gates = [value for name, value in method.network.named_parameters() if "gates.likes" in name]
    assert gates
    assert all(gate.abs().min() > 0 for gate in gates)


def test_parallel_patches_read_a_layers_input(alone: None, small: str, tmp_path: Path) -> None:
    method = {"name": "peterrec", "insertion": "parallel", "reduction": 3}
    run = train_here(config(small, "nextitnet", method, tasks=TASKS[:2]), tmp_path / "run")
    assert weights(run, "02-likes")["patches.likes.down"].shape == (4, 3, 8)  # ⌈8 / 3⌉ wide
    restored = restore_method(run)
    batch = PackedBatch.from_sequences([[5, 9, 3, 17, 22]])
    parallel = restored.encode(batch, "likes")
    restored.network.patches["likes"].serial = True  # type: ignore[attr-defined]
    assert not torch.allclose(parallel, restored.encode(batch, "likes"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_piggyback_task_is_the_first_ones_weights_under_bits(trained: Train, backbone: str) -> None:
    run = trained(backbone, "piggyback")
    method: Any = restore_method(run)
    for task in ("likes", "age"):
        for name, value in method.inserted(task)["weights"].items():
            own = weights(run, STAGES[0])[f"backbone.{name}"]
            taken = value != 0
            assert torch.equal(value[taken], own[taken])
            assert 0.2 < taken.float().mean() < 1  # some were masked out
    assert not any(name.startswith("real.") for name in method.state_dict())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_weights_that_no_task_owns_are_zero_and_owned_ones_stay(trained: Train, backbone: str) -> None:
    run = trained(backbone, "conure")
    stages = [weights(run, stage) for stage in STAGES]
    matrices = [name.removeprefix("owner.") for name in stages[0] if name.startswith("owner.")]
    assert matrices
    for number, stage in enumerate(stages, start=1):
        for name in matrices:
            weight, owner = stage[f"backbone.{name}"], stage[f"owner.{name}"]
            assert not weight[owner == 0].any()
            assert (weight[owner == number] != 0).float().mean() > 0.9
            assert int(owner.max()) == number
            assert {int((part == 1).sum()) for part in owner} == {math.ceil(0.3 * owner[0].numel())}
    for before, after in pairwise(stages):
        for name, value in before.items():
            if name.removeprefix("backbone.") in matrices:
                owned = before[f"owner.{name.removeprefix('backbone.')}"] > 0
                assert torch.equal(value[owned], after[name][owned])
            elif not name.startswith("owner."):
                assert torch.equal(value, after[name]), name
    told = [(event["phase"], event["epoch"]) for event in events(run, "epoch") if event["stage"] == 2]
    assert told == [("train", 0), ("train", 1), ("train", 2), ("retrain", 0), ("retrain", 1), ("retrain", 2)]


def test_retraining_hands_on_the_pruned_weights_where_no_epoch_is_better(alone: None, small: str, tmp_path: Path) -> None:
    values = config(small, "nextitnet", "conure", tasks=TASKS[:2])
    values["train"]["second"] = {**values["train"]["second"], "learning_rate": 1e-9}  # nothing moves by as much as a rank
    begun: dict[str, Tensor] = {}

    def keep(trainer: Any, state: Any, _batch: PackedBatch) -> None:
        if trainer.phase.name == "retrain" and not state.steps and len(trainer.method.learned) == 2:
            begun.update({name: value.clone() for name, value in trainer.method.state_dict().items()})

    run = train_here(values, tmp_path / "run", before_step=keep)
    best = {(event["phase"], event["epoch"]): event["best"] for event in events(run, "epoch") if event["stage"] == 2}
    assert [best["train", epoch] for epoch in range(3)] == [False, True, False]
    assert [best["retrain", epoch] for epoch in range(3)] == [True, False, False]
    assert begun
    assert all(torch.equal(value, begun[name]) for name, value in weights(run, STAGES[1]).items())


@pytest.mark.parametrize(("zero", "method"), [(1, "conure"), (2, "conure"), (2, "piggyback"), (1, "peterrec"), (2, "hat")])
def test_frozen_weights_stay_bit_equal_on_masters_in_bf16(alone: None, small: str, tmp_path: Path, zero: int, method: str) -> None:
    run = train_here(config(small, "nextitnet", method, tasks=TASKS[:2], zero=zero, precision="bf16"), tmp_path / "run")
    before, after = weights(run, STAGES[0]), weights(run, STAGES[1])
    items = "backbone.item_embedding.weight"
    assert torch.equal(before[items], after[items])
    assert (before[items].bfloat16().float() != before[items]).any()  # they were no bf16 numbers to begin with
    if method == "hat":
        held = before["cumulative"] == 1
        assert held.any()
        assert torch.equal(before["backbone.conv_bias"][held], after["backbone.conv_bias"][held])
    else:
        assert results(run)["bwt_absolute"] == [0.0, None]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_weights_that_past_tasks_hold_do_not_move(trained: Train, backbone: str) -> None:
    run = trained(backbone, "hat")
    for number, (before, after) in enumerate(pairwise([weights(run, stage) for stage in STAGES]), start=1):
        restored: Any = restore_method(run, stage=number)
        factors = gradient_factors(restored.network.backbone, before["cumulative"])
        assert (before["cumulative"] == 1).any()
        moved = 0
        for name, factor in factors.items():
            same = before[f"backbone.{name}"] == after[f"backbone.{name}"]
            assert same[factor == 0].all()
            moved += int((~same).sum())
        assert moved
        for name, value in before.items():
            if name != "cumulative" and name.removeprefix("backbone.") not in factors:
                assert torch.equal(value, after[name]), name  # embeddings, LayerNorms, past heads and masks
        assert (after["cumulative"] >= before["cumulative"]).all()
        assert torch.equal(restore_method(run, stage=number + 1).masks()[:number], restored.masks())  # type: ignore[index]


def test_what_no_mask_guards_may_train_in_later_stages(alone: None, small: str, tmp_path: Path) -> None:
    method = {"name": "hat", "norms": "free", "embeddings": "free"}
    run = train_here(config(small, "sasrec", method, tasks=TASKS[:2]), tmp_path / "run")
    before, after = weights(run, STAGES[0]), weights(run, STAGES[1])
    for name in ("norm_weight", "last_norm_bias", "item_embedding.weight", "position_embedding"):
        assert not torch.equal(before[f"backbone.{name}"], after[f"backbone.{name}"]), name


def test_without_regulariser_and_compensation_the_first_stage_is_teracons(alone: None, small: str, tmp_path: Path) -> None:
    plain = {"name": "hat", "mask_regulariser": 0.0, "gradient_compensation": False, "embedding_range": [0.0, 2.0]}
    runs = {}
    for name, method in (("hat", plain), ("teracon", {"name": "teracon"})):
        runs[name] = train_here(config(small, "nextitnet", method, tasks=TASKS[:1]), tmp_path / name)
    ours, theirs = (weights(run, STAGES[0]) for run in runs.values())
    assert ours.keys() - theirs.keys() == {"cumulative"}
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert results(runs["hat"])["scores"] == results(runs["teracon"])["scores"]


def test_regulariser_and_compensation_act(alone: None, small: str, tmp_path: Path) -> None:
    def masks(name: str, **options: Any) -> Tensor:
        method = {"name": "hat", **options}
        return weights(train_here(config(small, "nextitnet", method, tasks=TASKS[:1]), tmp_path / name), STAGES[0])["masks.embeddings.0"]

    plain = masks("plain", mask_regulariser=0.0, gradient_compensation=False)
    assert masks("closing", mask_regulariser=5.0, gradient_compensation=False).mean() < plain.mean() - 0.01
    assert not torch.allclose(masks("compensated", mask_regulariser=0.0), plain, atol=1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_joint_tasks_take_one_stage_and_the_first_task_stays(trained: Train, backbone: str) -> None:
    run = trained(backbone, "mtl")
    assert {event["stage"] for event in events(run, "step")} == {1, 2}
    assert list(events(run, "step")[-1]["loss"]) == ["class/age", "class/likes"]
    assert {event["stage"]: event["metric"] for event in events(run, "epoch")} == {1: "mrr@5", 2: "mean of accuracy and mrr@5"}
    first, second, third = (weights(run, stage) for stage in STAGES)
    assert all(torch.equal(value, third[name]) for name, value in second.items())
    assert all(torch.equal(value, third[name]) for name, value in first.items())
    assert not torch.equal(third["first.backbone.item_embedding.weight"], third["joint.backbone.item_embedding.weight"])
    # nothing is transferred between tasks that are learned together; 0 would read as nothing forgotten
    assert (results(run)["bwt"], results(run)["fwt"]) == ([None] * 3, None)
    assert cli.main(["report", str(run), "--quiet"]) == 0


def test_heads_of_joint_tasks_start_from_a_probe_each(alone: None, small: str, tmp_path: Path) -> None:
    values = config(small, "nextitnet", "mtl")
    values["train"]["second"] = {**values["train"]["second"], "epochs": 0, "probe_steps": 30}
    run = train_here(values, tmp_path / "run")
    assert [(event["stage"], event["head"]) for event in events(run, "linear_probe")] == [(2, "age"), (2, "likes")]
    values["train"]["second"] = {**values["train"]["second"], "probe_steps": 0}
    fresh = weights(train_here(values, tmp_path / "fresh"), STAGES[2])
    for task in ("likes", "age"):
        assert not torch.equal(weights(run, STAGES[2])[f"joint.heads.{task}.weight"], fresh[f"joint.heads.{task}.weight"])


@pytest.mark.parametrize("start", ["first", "scratch"])
def test_the_order_of_joint_tasks_does_not_matter(alone: None, small: str, tmp_path: Path, start: str) -> None:
    method = {"name": "mtl", "start": start}
    orders = (("next", "likes", "age", "gender"), ("next", "gender", "age", "likes"))
    runs = [train_here(config(small, "nextitnet", method, tasks=order), tmp_path / order[1]) for order in orders]
    ours, theirs = (weights(run, f"04-{order[3]}") for run, order in zip(runs, orders, strict=True))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    scores = [dict(zip(order, results(run)["scores"][3], strict=True)) for run, order in zip(runs, orders, strict=True)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_task_takes_the_bytes_that_the_documents_promise(trained: Train, backbone: str) -> None:
    layers, matrices, norms = SIZES[backbone]
    patches = layers * (2 * C * 2 + 2 + C)
    network = sum(value.numel() for name, value in weights(trained(backbone, "hat"), STAGES[0]).items() if name.startswith("backbone."))
    experts = sum(4 * 4 * (rows + columns) for rows, columns in SHAPES[backbone])  # of rank 4
    for number, (task, (before, after)) in enumerate(zip(TASKS[1:], pairwise(STAGES), strict=True)):
        head = 4 * (LABELS[task] * WIDTH + LABELS[task])
        promised = {
            "hat": head + 4 * layers * C,
            "conure": head,
            "piggyback": head + matrices // 8,
            "peterrec": head + 4 * (patches + norms),
            "lowrank": head + experts + 4 * number * len(SHAPES[backbone]),
        }
        for method, size in promised.items():
            assert numbers(trained(backbone, method), after) - numbers(trained(backbone, method), before) == size, method
    heads = sum(4 * (LABELS[task] * WIDTH + LABELS[task]) for task in TASKS[1:])
    joint = trained(backbone, "mtl")
    assert numbers(joint, STAGES[1]) - numbers(joint, STAGES[0]) == 4 * network + heads
    owners = [value for name, value in weights(trained(backbone, "conure"), STAGES[0]).items() if name.startswith("owner.")]
    assert sum(value.numel() * value.element_size() for value in owners) == matrices


class Killed(BaseException):
    """Stands for a kill: nothing on the way catches it."""


PHASES = {**dict.fromkeys(METHODS, ("train",)), "conure": ("train", "retrain")}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("method", "phase"), [(method, phase) for method, phases in PHASES.items() for phase in phases])
def test_a_run_stopped_in_any_phase_ends_bit_for_bit_as_undisturbed(
    trained: Train, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, method: str, phase: str
) -> None:
    real, begin, seen = phase_module.train_step, phase_module.PhaseTrainer.__init__, []

    def begins(self: Any, run: Any, of: Method, now: Any, *arguments: Any, **options: Any) -> None:
        seen.append((len(of.learned), now.name))
        begin(self, run, of, now, *arguments, **options)

    def dying_step(*arguments: Any, **options: Any) -> Any:
        seen.append(seen[-1])
        if seen[-1] == (2, phase) and seen.count(seen[-1]) == 6:  # its fifth step, after the checkpoint at the third
            raise Killed
        return real(*arguments, **options)

    values = config(small, backbone, METHODS[method], checkpoint_every={"steps": 3})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(phase_module.PhaseTrainer, "__init__", begins)
        patch.setattr(phase_module, "train_step", dying_step)
        train_here(values, tmp_path / "run")
    train_here(values, tmp_path / "run")
    assert what_lasts(tmp_path / "run") == what_lasts(trained(backbone, method))


def test_what_a_method_cannot_learn_is_refused_before_a_run_is_begun(alone: None, small: str, trained: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"test: tasks: method 'mtl' .* next-item task 'next'"):
        train_here(config(small, "nextitnet", "mtl", tasks=("likes", "next")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    values = config(small, "nextitnet", "mtl", checkpoint_every={"steps": 3})
    with pytest.raises(ConfigError, match="learns its tasks together, so no task can be added to a run"):
        train_here(values, trained("nextitnet", "mtl"), added=AddedTask("gender"))


@pytest.mark.parametrize("method", ["peterrec", "piggyback", "hat", "conure", "lowrank"])
def test_a_task_is_added_to_a_finished_run(alone: None, small: str, tmp_path: Path, method: str) -> None:
    values = config(small, "nextitnet", method, tasks=TASKS[:2])
    run = train_here(values, tmp_path / "run")
    train_here(values, run, added=AddedTask("age"))
    assert restore_method(run).learned == list(TASKS)
    assert len(results(run)["scores"][2]) == 3


@pytest.mark.parametrize("method", ["piggyback", "hat", "lowrank"])
def test_a_method_is_restored_whatever_the_memory_holds_that_its_weights_get(alone: None, small: str, tmp_path: Path, method: str) -> None:
    run = train_here(config(small, "nextitnet", METHODS[method], max_steps=1), tmp_path / "run")
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        restored = restore_method(run)
    finally:
        torch.use_deterministic_algorithms(False)
    kept = weights(run, "03-age")
    assert restored.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in restored.state_dict().items())
