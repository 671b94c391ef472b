"""Operations of a step, held against PyTorch's own count; and the peaks of devices by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dist_teracon.config.model import ModelConfig
from dist_teracon.config.train import StageTraining
from dist_teracon.continual.method import MethodContext
from dist_teracon.continual.teracon import Teracon
from dist_teracon.continual.teracon_settings import TeraconSettings
from dist_teracon.data.batches import Examples, PackedBatch, Positions, Retention
from dist_teracon.data.schema import Task
from dist_teracon.models.backbone import make_backbone
from dist_teracon.models.heads import gram_of
from dist_teracon.train.step_flops import peak_flops, step_flops


@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_backbones_operations_are_those_of_its_convolutions(
    pack: Callable[..., PackedBatch], positions: Positions
) -> None:  # fmt: skip
    model = ModelConfig.model_validate({"channels": 8, "backbone": {"name": "nextitnet", "dilations": [1, 2]}, "item_init": "uniform"})
    backbone = make_backbone(model, num_items=50, generator=torch.Generator().manual_seed(0))
    sequences = pack([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [4, 5], [9]], positions=positions).sequences
    x_NC = torch.randn(15, 8)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        backbone.transform_patched(x_NC, sequences, lambda _k, _here, made: made, positions=positions)
    assert backbone.flops(sequences, positions=positions) == counted.get_total_flops() > 0


def test_a_replayed_row_of_a_frozen_wide_head_costs_a_gram_matrix(pack: Callable[..., PackedBatch]) -> None:
    model = ModelConfig.model_validate({"channels": 8, "pooling": "last", "item_init": "uniform"})
    tasks = (Task("next", "next", 500, 5, (5, 5, 5)), Task("kind", "profile", 3, 5, (5, 5, 5)))
    method = Teracon(MethodContext(model, 0, 502, tasks, (StageTraining(), StageTraining())), TeraconSettings())
    for task in tasks:
        method.begin_task(task)
    batch = replace(pack([[2, 3, 4], [5, 6]]), examples=(Examples("kind", torch.tensor([0]), torch.tensor([1]), 1),))
    replayed = replace(batch, retention=(Retention("next", torch.tensor([1]), torch.zeros(1, 8), 1),))

    def more() -> float:
        return step_flops(method, replayed) - step_flops(method, batch)

    assert more() == 3 * 2 * 8 * 500
    method.grams = {"next": gram_of(method.head("next"))}
    assert more() == 3 * 2 * 8 * 8


def test_peaks_are_found_by_a_part_of_the_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_flops("NVIDIA L40S", "fp32") == 91.6e12
    assert peak_flops("Some GPU", "bf16") is None
