"""The network meets what the public implementation computes (tests/golden/README.md), to 1e-9 in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dist_teracon.continual.sampling import sampling_rates
from dist_teracon.data.batches import PackedBatch
from dist_teracon.models.heads import cross_entropy_sum, squared_error_sum
from dist_teracon.models.masks import TaskMasks
from dist_teracon.models.network import Network
from dist_teracon.models.nextitnet import NextItNet, NextItNetSettings

GOLDEN = Path(__file__).parents[2] / "golden" / "teracon_reference.npz"
BLOCKS, TASKS = 2, 3


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files if key != "meta"}


def _fill(parameter, value):
    parameter.data = torch.as_tensor(value, dtype=torch.float64)


def build(golden, prefix, tasks):
    generator = torch.Generator().manual_seed(0)
    backbone = NextItNet(NextItNetSettings(dilations=[1, 4]), num_items=50, channels=16, generator=generator)
    network = Network(backbone, TaskMasks(layers=4, channels=16, relation_init="reinit")).double()
    block = f"{prefix}/residual_blocks."
    stages = [(b, part) for b in range(BLOCKS) for part in (1, 2)]
    _fill(backbone.item_embedding.weight, golden[f"{prefix}/embeding.weight"])
    _fill(backbone.conv_weight, np.stack([golden[f"{block}{b}.conv{p}.weight"][:, :, 0] for b, p in stages]))
    _fill(backbone.conv_bias, np.stack([golden[f"{block}{b}.conv{p}.bias"] for b, p in stages]))
    _fill(backbone.norm_weight, np.stack([golden[f"{block}{b}.ln{p}.weight"] for b, p in stages]))
    _fill(backbone.norm_bias, np.stack([golden[f"{block}{b}.ln{p}.bias"] for b, p in stages]))
    for task in range(tasks):
        weight = golden[f"{prefix}/task_classifier.{task}.weight"]
        network.add_task(str(task), weight.shape[0], generator=generator)
        _fill(network.head(str(task)).weight, weight)
        _fill(network.head(str(task)).bias, golden[f"{prefix}/task_classifier.{task}.bias"])
    for task in range(tasks):
        _fill(network.masks.embeddings[task], np.concatenate([golden[f"{block}{b}.ec.{task}.weight"] for b in range(BLOCKS)]))
        _fill(network.masks.weights[task], np.concatenate([golden[f"{block}{b}.mlp{p}.{task}.weight"] for b, p in stages]))
        _fill(network.masks.biases[task], np.concatenate([golden[f"{block}{b}.mlp{p}.{task}.bias"] for b, p in stages]))
    return network


def _batch(golden, task):
    sequences = torch.as_tensor(golden["input/sequences"])
    rows, length = sequences.shape
    offsets, tasks = torch.arange(rows + 1) * length, torch.full((rows,), task, dtype=torch.int32)
    return PackedBatch(values=sequences.flatten().int(), row_offsets=offsets, task_of_row=tasks, positions="last")


def _close(actual, expected):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("s", [3.0, 50.0])
@pytest.mark.parametrize("task", range(TASKS))
def test_masks_and_logits(golden, s, task):
    network = build(golden, "param", TASKS)
    masks = network.mask_table([s] * TASKS)
    _close(masks[task], golden[f"out/s={s}/task={task}/masks"])
    last = network.encode(_batch(golden, task), masks, positions="last")
    _close(network.head(str(task))(last), golden[f"out/s={s}/task={task}/logits_last"])
    if task == 0:
        everywhere = network.encode(_batch(golden, task), masks, positions="all")
        _close(network.head("0")(everywhere).view(4, 12, 50), golden[f"out/s={s}/task=0/logits_all"])


@pytest.mark.parametrize("s", [3.0, 50.0])
def test_plain_masks(golden, s):
    masks = TaskMasks(layers=4, channels=16).double()
    masks.add_task(torch.Generator())
    _fill(masks.embeddings[0], np.concatenate([golden[f"param/residual_blocks.{b}.ec.0.weight"] for b in range(BLOCKS)]))
    _close(masks([s])[0], golden[f"out/s={s}/task=0/plain_masks"])


@pytest.mark.parametrize("s", [3.0, 50.0])
def test_sampling_rates(golden, s):
    masks = build(golden, "param", TASKS).mask_table([s] * TASKS)
    _close(sampling_rates(masks[2], masks[:2], constant=6.0), golden[f"out/s={s}/rho_last_vs_past"])


def test_losses_and_every_gradient(golden):
    network, teacher = build(golden, "param", TASKS), build(golden, "teacher", TASKS - 1)
    rates = golden["input/rho"]
    masks, teacher_masks = network.mask_table([3.0] * TASKS), teacher.mask_table([3.0] * (TASKS - 1))
    hidden = network.encode(_batch(golden, 2), masks, positions="last")
    loss_class = cross_entropy_sum(network.head("2"), hidden, torch.as_tensor(golden["input/labels"])) / 4
    retention = torch.zeros((), dtype=torch.float64)
    for past in range(TASKS - 1):
        with torch.no_grad():
            wanted = teacher.head(str(past))(teacher.encode(_batch(golden, past), teacher_masks, positions="last"))
        _close(wanted, golden[f"out/teacher/task={past}/logits_last"])
        student = network.encode(_batch(golden, past), masks, positions="last")
        mean = squared_error_sum(network.head(str(past)), student, wanted, None) / wanted.numel()
        retention = retention + rates[past] / rates.sum() * mean
    loss = loss_class + float(golden["input/alpha"]) * retention
    _close(loss_class, golden["out/loss_class"])
    _close(retention, golden["out/loss_retention"])
    _close(loss, golden["out/loss"])
    loss.backward()
    _check_gradients(network, golden)


def _check_gradients(network, golden):
    backbone, masks = network.backbone, network.masks
    _close(backbone.item_embedding.weight.grad, golden["grad/embeding.weight"])
    checked = 1
    for stage, (b, p) in enumerate([(b, p) for b in range(BLOCKS) for p in (1, 2)]):
        block = f"grad/residual_blocks.{b}."
        _close(backbone.conv_weight.grad[stage], golden[f"{block}conv{p}.weight"][:, :, 0])
        _close(backbone.conv_bias.grad[stage], golden[f"{block}conv{p}.bias"])
        _close(backbone.norm_weight.grad[stage], golden[f"{block}ln{p}.weight"])
        _close(backbone.norm_bias.grad[stage], golden[f"{block}ln{p}.bias"])
        checked += 4
        for task in range(TASKS):
            _close(masks.embeddings[task].grad[stage], golden[f"{block}ec.{task}.weight"][p - 1])
            _close(masks.weights[task].grad[stage], golden[f"{block}mlp{p}.{task}.weight"][0])
            _close(masks.biases[task].grad[stage], golden[f"{block}mlp{p}.{task}.bias"][0])
            checked += 2 + (p == 1)
    for task in range(TASKS):
        _close(network.head(str(task)).weight.grad, golden[f"grad/task_classifier.{task}.weight"])
        _close(network.head(str(task)).bias.grad, golden[f"grad/task_classifier.{task}.bias"])
        checked += 2
    assert checked == sum(key.startswith("grad/") for key in golden)
