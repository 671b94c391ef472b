"""Rows padded in groups of like length: what they hold, and SASRec's outputs and gradients, which are those of one group."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.config.model import ModelConfig
from dist_teracon.config_io import validate
from dist_teracon.data.batches import PackedBatch
from dist_teracon.models import padded_rows
from dist_teracon.models.backbone import Backbone, make_backbone
from dist_teracon.models.padded_rows import PaddedRows, like_lengths

C, TASKS = 8, 3
DRAW = torch.Generator().manual_seed(3)
LENGTHS = [0, 97, 3, 96, 0, *torch.randint(1, 98, (40,), generator=DRAW).tolist(), 0]


def batch() -> PackedBatch:
    generator = torch.Generator().manual_seed(4)
    items = [torch.randint(2, 50, (length,), generator=generator).numpy() for length in LENGTHS]
    times = [torch.randint(0, 1 << 30, (length,), generator=generator).sort().values.numpy() for length in LENGTHS]
    return PackedBatch.from_sequences(items, times=times, mask_index=[row % TASKS for row in range(len(LENGTHS))])


def sasrec(bias: str) -> Backbone:
    backbone = {"name": "sasrec", "layers": 2, "heads": 2, "time_bias": bias}
    config = validate(ModelConfig, {"channels": C, "dropout": 0.0, "backbone": backbone, "pooling": "last"}, where="test")
    net = make_backbone(config, num_items=50, generator=torch.Generator().manual_seed(0)).double()
    if net.time_bias is not None:
        with torch.no_grad():
            net.time_bias.weight.normal_(generator=torch.Generator().manual_seed(1))
    return net


def one_group(lengths: torch.Tensor) -> list[torch.Tensor]:
    return [torch.arange(len(lengths))]


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("bias", ["none", "learned"])
@pytest.mark.parametrize("masked", [False, True])
def test_groups_change_no_output_and_no_gradient(monkeypatch: pytest.MonkeyPatch, positions: str, bias: str, masked: bool) -> None:
    net, sequences = sasrec(bias), batch().sequences
    masks = torch.rand(TASKS, 4, C, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_() if masked else None
    trained = [*net.parameters(), *([] if masks is None else [masks])]

    def computed() -> list[torch.Tensor]:
        hidden = net.encode(sequences, masks, positions=positions)
        weight = torch.randn(hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
        return [hidden, *torch.autograd.grad((hidden * weight).sum(), trained, allow_unused=True, materialize_grads=True)]

    assert len(PaddedRows.of(sequences, None).groups) == 4
    grouped = computed()
    monkeypatch.setattr(padded_rows, "like_lengths", one_group)
    assert len(PaddedRows.of(sequences, None).groups) == 1
    for found, wanted in zip(grouped, computed(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_padding_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = batch().sequences
    rows = PaddedRows.of(sequences, None)
    values = torch.arange(1.0, 1 + sum(LENGTHS))[:, None]
    padded = rows.padded(values)
    assert torch.equal(rows.packed(padded), values)
    assert [part.shape[1] for part in padded] == [int(part.count_nonzero(1).max()) for part in padded]
    firsts = rows.in_order([part[:, 0] for part in padded])
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)[:-1][torch.tensor(LENGTHS) > 0]
    assert torch.equal(firsts, values[offsets])
    cost = sum(part.shape[0] * part.shape[1] ** 2 for part in padded)
    monkeypatch.setattr(padded_rows, "like_lengths", one_group)
    (whole,) = PaddedRows.of(sequences, None).padded(values)
    assert cost < 0.7 * whole.shape[0] * whole.shape[1] ** 2


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([], 1),
        ([200], 1),
        ([63] * 20 + [1] * 40, 1),  # short
        ([200] * 40, 1),
        ([200] * 30 + [1] * 2, 1),  # the last group is no shorter, but for two rows
        ([200] * 8 + [100] * 7, 1),  # too few
        ([200] * 8 + [100] * 8, 2),
        ([100, 200] * 50, 2),
        (list(range(1, 201)), 4),
    ],
)
def test_how_many_groups_there_are(lengths: list[int], groups: int) -> None:
    found = like_lengths(torch.tensor(lengths, dtype=torch.int64))
    assert len(found) == groups
    assert sorted(torch.cat(found).tolist()) == list(range(len(lengths)))
    longest = [max((lengths[row] for row in part), default=0) for part in map(torch.Tensor.tolist, found)]
    assert longest == sorted(longest, reverse=True)
