"""What the methods compute beside their training: bits, factors, compensation, pruning, and what they refuse."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_teracon.config.model import ModelConfig
from dist_teracon.config.train import StageTraining
from dist_teracon.continual.conure import Conure, ConureSettings
from dist_teracon.continual.hat import gradient_factors
from dist_teracon.continual.method import MethodContext, Phase
from dist_teracon.continual.mtl import Mtl
from dist_teracon.continual.peterrec import PeterRec
from dist_teracon.continual.piggyback import packed_bits, unpacked_bits
from dist_teracon.data.schema import Task
from dist_teracon.errors import ConfigError
from dist_teracon.models.backbone import make_backbone, resolve_backbone

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

NEXT = Task("next", "next", 10, 5, (5, 5, 5))
MODEL = ModelConfig(channels=4, backbone={"name": "nextitnet", "dilations": [1]}, dropout=0.0)
SASREC = ModelConfig(channels=4, backbone={"name": "sasrec", "layers": 1, "max_positions": 4}, dropout=0.0)


def _task(name: str) -> Task:
    return replace(NEXT, name=name, kind="profile")


@given(st.lists(st.booleans(), max_size=40))
def test_bits_are_as_they_were_packed(values):
    mask = torch.tensor(values, dtype=torch.bool)
    bits = packed_bits(mask)
    assert bits.dtype == torch.uint8
    assert bits.shape == (-(-len(values) // 8),)
    assert bits.tolist() == np.packbits(np.array(values, dtype=bool), bitorder="little").tolist()
    assert torch.equal(unpacked_bits(bits, mask.shape), mask)


def test_bits_keep_the_shape_of_a_matrix():
    mask = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0)) > 0.4
    assert torch.equal(unpacked_bits(packed_bits(mask), mask.shape), mask)


def _backbone(model):
    return make_backbone(model, num_items=10, generator=torch.Generator().manual_seed(0))


def test_gradients_are_held_by_the_lesser_of_what_a_weight_reads_and_writes():
    a = torch.tensor([[1.0, 0.0, 0.5, 0.2], [0.0, 1.0, 0.3, 0.9]])
    factors = gradient_factors(_backbone(MODEL), a)
    assert factors.keys() == {"conv_weight", "conv_bias"}
    for i in range(4):
        assert factors["conv_bias"][:, i].tolist() == pytest.approx([1 - float(a[0, i]), 1 - float(a[1, i])])
        for j in range(4):
            # the first convolution reads the residual stream, whose a is 1
            assert factors["conv_weight"][0, i, j].tolist() == pytest.approx([1 - float(a[0, i])] * 3)
            assert factors["conv_weight"][1, i, j].tolist() == pytest.approx([1 - min(float(a[1, i]), float(a[0, j]))] * 3)


def test_inner_matrices_which_no_mask_guards_do_not_move():
    a = torch.tensor([[1.0, 0.0, 0.5, 0.2], [0.0, 1.0, 0.3, 0.9]])
    factors = gradient_factors(_backbone(SASREC), a)
    assert not any(bool(factors[f"{part}_{kind}"].any()) for part in ("in", "inner") for kind in ("weight", "bias"))
    for k, part in enumerate(("out", "outer")):
        free = (1 - a[k]).tolist()
        assert factors[f"{part}_bias"][0].tolist() == pytest.approx(free)
        assert factors[f"{part}_weight"][0].tolist() == [pytest.approx([value] * 4) for value in free]


def _conure(model, tasks, **settings):
    training = tuple(StageTraining(batch=4, epochs=1) for _ in tasks)
    return Conure(MethodContext(model=model, seed=0, num_items=10, tasks=tuple(tasks), training=training), ConureSettings(**settings))


@pytest.mark.parametrize(("model", "sizes"), [(MODEL, {"conv_weight": 4 * 4 * 3}), (SASREC, {"in_weight": 48, "out_weight": 16})])
def test_every_task_keeps_three_tenths_of_what_is_free_in_each_matrix(model, sizes):
    tasks = [NEXT, *(_task(f"t{number}") for number in range(3))]
    method = _conure(model, tasks)
    weights = dict(method.network.backbone.named_parameters())
    generator = torch.Generator().manual_seed(1)
    for number, task in enumerate(tasks, start=1):
        method.begin_task(task)
        train, retrain = method.phases(task)
        method.begin_phase(train)
        for name in method.network.matrices:
            free = method.network.owner_of(name) == 0
            weights[name].data[free] = torch.randn(int(free.sum()), generator=generator)
        trained = {name: weights[name].detach().clone() for name in sizes}
        method.begin_phase(retrain)
        for name in sizes:
            owner = method.network.owner_of(name)
            for part, before, after in zip(owner, trained[name], weights[name], strict=True):
                kept, gone = part == number, part == 0
                free = int(kept.sum() + gone.sum())
                assert int(kept.sum()) == math.ceil(0.3 * free)
                assert before[kept].abs().min() >= before[gone].abs().max()
                assert torch.equal(after[~gone], before[~gone])
                assert not after[gone].any()
            assert torch.equal(method.trains[name], owner == number)
        method.end_task()
    assert {name: method.network.owner_of(name)[0].numel() for name in sizes} == sizes


def test_phases_are_as_long_as_the_stage_or_as_asked():
    method = _conure(MODEL, [NEXT], retrain_epochs=0)
    assert [(phase.name, phase.training.epochs) for phase in method.phases(NEXT)] == [("train", 1), ("retrain", 0)]
    assert isinstance(method.phases(NEXT)[0], Phase)


def test_joint_learning_refuses_a_next_item_task_that_is_not_first():
    kind, _ = resolve_backbone(MODEL, where="test")
    Mtl.check([NEXT, _task("a"), _task("b")], kind)
    with pytest.raises(ConfigError, match=r"next-item task 'next' is trained at all positions.*put it first"):
        Mtl.check([_task("a"), NEXT], kind)


def test_more_tasks_than_a_byte_counts_are_refused():
    kind, _ = resolve_backbone(MODEL, where="test")
    Conure.check([NEXT] * 255, kind)
    with pytest.raises(ConfigError, match="at most 255 tasks"):
        Conure.check([NEXT] * 256, kind)


def test_a_backbone_without_a_place_for_patches_is_refused():
    import toy_backbone

    for model in (MODEL, SASREC):
        PeterRec.check([NEXT], resolve_backbone(model, where="test")[0])
    with pytest.raises(ConfigError, match=r"'bag' has no place for them"):
        PeterRec.check([NEXT], toy_backbone.Bag)
