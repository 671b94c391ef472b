"""The running average of epochs' weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dist_teracon.train.weight_average import swapped_parameters, update_average


def test_the_average_is_the_plain_mean_until_it_keeps_its_share() -> None:
    average: dict[str, torch.Tensor] = {}
    expected = [1.0, 1.5, 1.5 + (4 - 1.5) * 0.4]
    for epoch, (value, wanted) in enumerate(zip((1.0, 2.0, 4.0), expected, strict=True), start=1):
        average = update_average(average, {"parameter/w": torch.tensor([value])}, keep=0.6, epoch=epoch)
        assert average["parameter/w"].item() == pytest.approx(wanted)


def test_the_average_shares_no_memory_with_the_weights_it_took() -> None:
    now = {"parameter/w": torch.ones(2)}
    average = update_average({}, now, keep=0.5, epoch=1)
    now["parameter/w"].zero_()
    assert average["parameter/w"].tolist() == [1.0, 1.0]


def test_a_module_wears_other_weights_inside_and_has_its_own_bits_after() -> None:
    module = nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with pytest.raises(RuntimeError, match="scored"), swapped_parameters(module, {"parameter/weight": torch.zeros(2, 3)}):
        assert not module.weight.any()
        assert torch.equal(module.bias, before["bias"])
        raise RuntimeError("scored")
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
