"""Masks: the formulas of docs/method.md, Masks, written out literally, what a new task does to old masks, annealing."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from dist_teracon.models.masks import TaskMasks, annealed_scale, compensated
from dist_teracon.models.network import Network
from dist_teracon.models.nextitnet import NextItNet, NextItNetSettings

K, C, S_MAX = 4, 5, 50.0


def masks_of(tasks, *, dtype=torch.float64, **settings):
    """As after training: every parameter moved off its initial value."""
    masks = TaskMasks(layers=K, channels=C, **settings)
    for task in range(tasks):
        add_and_train(masks, task, dtype)
    return masks


def add_and_train(masks, task, dtype):
    masks.add_task(torch.Generator().manual_seed(task))
    masks.to(dtype)
    generator = torch.Generator().manual_seed(100 + task)
    with torch.no_grad():
        for parameter in masks.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=dtype, generator=generator))


def literal(masks, task, scale, *, extend):
    """`σ(s·(g·e + wᵀX + b))`, element by element, with `X = tanh(s·[e_t ; (e_j ; −e_j) for j ≠ t])`."""
    n, result = masks.tasks, torch.zeros(K, C, dtype=torch.float64)
    e = [embedding.detach() for embedding in masks.embeddings]
    w, b = masks.weights[task].detach(), masks.biases[task].detach()
    g = 1.0 if extend and (task == 0 or masks.gate == "all") else 0.0
    for k, c in itertools.product(range(K), range(C)):
        stacked = [e[task][k]]
        for j in range(n):
            if j != task:
                stacked += [e[j][k], -e[j][k]]
        x = torch.tanh(scale * torch.stack(stacked))  # (2n − 1) × C
        if masks.relation == "dense":
            inner = sum(w[k, c, position] * value for position, value in enumerate(x.flatten())) + b[k, c]
        else:
            inner = sum(w[k, row] * x[row, c] for row in range(2 * n - 1)) + b[k]
        result[k, c] = torch.sigmoid(scale * (g * e[task][k, c] + inner))
    return result


@pytest.mark.parametrize("relation", ["per_channel", "dense"])
@pytest.mark.parametrize("relation_init", ["extend", "reinit"])
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_relation_as_the_formula_is_written(relation, relation_init, tasks):
    masks = masks_of(tasks, relation=relation, relation_init=relation_init)
    scales = [1.5, 50.0, 0.02, 7.0][:tasks]
    got = masks(scales)
    for task in range(tasks):
        wanted = literal(masks, task, scales[task], extend=relation_init == "extend")
        torch.testing.assert_close(got[task].detach(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("relation", ["per_channel", "dense"])
def test_under_gate_all_every_task_has_its_own_embedding_beside_the_relations(relation):
    masks = masks_of(3, relation=relation, gate="all")
    for task, scale in enumerate((4.0, 5.0, 6.0)):
        torch.testing.assert_close(masks([scale] * 3)[task], literal(masks, task, scale, extend=True), rtol=0, atol=1e-12)


def test_a_compensated_gradient_is_that_of_scale_one_times_s_max():
    """The gradient of σ(s·e), s·σ'(s·e), becomes s_max·σ'(e), as long as s·e is within ±50."""
    embedding = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)
    plain = torch.autograd.grad(torch.sigmoid(embedding).sum(), embedding)[0]
    for scale in (0.1, 1.0, 20.0):
        (gradient,) = torch.autograd.grad(torch.sigmoid(scale * embedding).sum(), embedding)
        torch.testing.assert_close(compensated(gradient, embedding, scale=scale, s_max=50.0), 50 * plain, rtol=1e-6, atol=0)
    far = torch.full((1,), 6.0)
    assert compensated(torch.ones(1), far, scale=50.0, s_max=50.0).isfinite()


def test_one_task_and_no_relation_give_plain_masks():
    for masks in (masks_of(1), masks_of(3, relation="none")):
        scales = [2.0, 50.0, 0.02][: masks.tasks]
        for got, scale, embedding in zip(masks(scales), scales, masks.embeddings, strict=True):
            torch.testing.assert_close(got, torch.sigmoid(scale * embedding), rtol=1e-12, atol=0)
        assert len(masks.weights) == len(masks.biases) == 0


@pytest.mark.parametrize("relation", ["per_channel", "dense"])
@pytest.mark.parametrize("gate", ["first", "all"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_extend_leaves_past_masks_and_outputs_as_the_teacher_has_them(relation, gate, dtype, tolerance, pack):
    """At step 0 of stages 2, 3 and 4."""
    generator = torch.Generator().manual_seed(3)
    backbone = NextItNet(NextItNetSettings(dilations=(1, 2)), num_items=20, channels=C, generator=generator)
    network = Network(backbone, TaskMasks(layers=K, channels=C, relation=relation, gate=gate)).to(dtype)
    batch = pack([[1, 2, 3], [4], [5, 6, 7, 8, 9]])
    for stage in range(4):
        teacher = copy.deepcopy(network)
        network.add_task(str(stage), 7, generator=generator)
        network.heads[str(stage)].to(dtype)
        if stage:
            _same_as_teacher(network, teacher, batch, tolerance)
        _move(network, generator, dtype)


def _same_as_teacher(network, teacher, batch, tolerance):
    past = len(teacher.tasks)
    masks, kept = network.mask_table([S_MAX] * (past + 1)), teacher.mask_table([S_MAX] * past)
    torch.testing.assert_close(masks[:past], kept, rtol=0, atol=tolerance)
    for mask_index, name in enumerate(teacher.tasks):
        rows = replace(batch, task_of_row=torch.full_like(batch.task_of_row, mask_index))
        outputs = [net.head(name)(net.encode(rows, table)) for net, table in ((network, masks), (teacher, kept))]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=tolerance, atol=tolerance)


def _move(network, generator, dtype):
    """Stand in for training; full-precision values, so that a detour over fp32 would show."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator).to(dtype))


@pytest.mark.parametrize("relation_init", ["extend", "reinit"])
def test_a_new_task_keeps_the_modules_dtype(relation_init):
    masks = masks_of(2, relation_init=relation_init)
    masks.add_task(torch.Generator())
    assert {parameter.dtype for parameter in masks.parameters()} == {torch.float64}


def test_reinit_makes_past_masks_jump_to_about_one():
    masks = masks_of(2, relation_init="reinit")
    before = masks([S_MAX] * 2)
    masks.add_task(torch.Generator().manual_seed(9))
    after = masks([S_MAX] * 3)[:2]
    assert (after - before).abs().max() > 0.5
    assert after.mean() > 0.9


def test_initial_values():
    masks = TaskMasks(layers=16, channels=256, embedding_range=(-1.0, 3.0))
    for _ in range(2):
        masks.add_task(torch.Generator().manual_seed(1))
    for embedding in masks.embeddings:
        assert -1 <= embedding.min() < -0.9
        assert 2.9 < embedding.max() <= 3
    # the first task keeps its plain mask, the new one has a fresh relation layer
    assert not masks.weights[0].any()
    assert not masks.biases[0].any()
    assert 0.005 < masks.weights[1].std() < 0.015
    assert (masks.biases[1] == 0.1).all()


def test_later_tasks_may_begin_in_a_range_of_their_own():
    masks = TaskMasks(layers=16, channels=256, later_embedding_range=(-2.0, -1.0))
    for _ in range(3):
        masks.add_task(torch.Generator().manual_seed(1))
    bounds = [(float(embedding.detach().min()), float(embedding.detach().max())) for embedding in masks.embeddings]
    assert 0 <= bounds[0][0] < bounds[0][1] <= 2
    assert all(-2 <= low < high <= -1 for low, high in bounds[1:])


def test_each_task_has_its_own_scale():
    masks = masks_of(3)
    mixed = masks([S_MAX, S_MAX, 2.0])
    torch.testing.assert_close(mixed[:2], masks([S_MAX] * 3)[:2], rtol=0, atol=0)
    torch.testing.assert_close(mixed[2], masks([2.0] * 3)[2], rtol=0, atol=0)
    assert not torch.allclose(mixed[2], masks([S_MAX] * 3)[2])


def test_gradients_flow_from_a_past_mask_to_the_new_task():
    masks = masks_of(2)
    masks([1.0, 1.0])[0].sum().backward()
    assert masks.embeddings[1].grad.abs().sum() > 0


def test_bf16_embeddings_give_masks_in_fp32():
    masks = masks_of(2, dtype=torch.bfloat16)
    assert masks([S_MAX] * 2).dtype == torch.float32


def test_annealing():
    scales = [annealed_scale(batch, 5, s_max=S_MAX) for batch in range(5)]
    assert scales == pytest.approx([0.02, 12.515, 25.01, 37.505, 50.0])
    assert annealed_scale(0, 1, s_max=S_MAX) == S_MAX
    paper = [annealed_scale(batch, 4, s_max=S_MAX, paper=True) for batch in range(4)]
    assert paper == pytest.approx([0.02, 12.515, 25.01, 37.505])
    assert annealed_scale(0, 1, s_max=S_MAX, paper=True) == pytest.approx(0.02)


def test_masks_of_n_tasks_take_the_bytes_that_the_documents_promise():
    for tasks in (1, 2, 3, 7):
        numbers = sum(parameter.numel() for parameter in masks_of(tasks).parameters())
        assert 4 * numbers == 4 * tasks * K * C + (0 if tasks == 1 else 8 * K * tasks**2)
