"""Effective weights and inserted modules, by the backbones' contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dist_teracon.config.model import ModelConfig
from dist_teracon.data.batches import PackedBatch, Positions
from dist_teracon.models.backbone import BACKBONES, Backbone, make_backbone
from dist_teracon.models.network import Network

SMALL = {"nextitnet": {"dilations": [1, 2]}, "sasrec": {"layers": 2, "max_positions": 16}}
ROWS = [[3, 4, 5, 6, 7, 8, 9], [], [2], [5, 5, 2]]


@pytest.fixture(params=BACKBONES)
def network(request: pytest.FixtureRequest) -> Network:
    model = ModelConfig(channels=8, backbone={"name": request.param, **SMALL[request.param]}, dropout=0.0)
    generator = torch.Generator().manual_seed(3)
    backbone = make_backbone(model, num_items=10, generator=generator).double()
    with torch.no_grad():
        for parameter in backbone.parameters():  # LayerNorms too, and biases that start at zero
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return Network(backbone)


def nothing(_k: int, _input: Tensor, output: Tensor) -> Tensor:
    return output


@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_patch_that_changes_nothing_gives_the_backbones_own_output(network: Network, positions: Positions) -> None:
    batch = PackedBatch.from_sequences(ROWS, positions=positions)
    plain, patched = network.encode(batch, None), network.encode(batch, None, patch=nothing)
    torch.testing.assert_close(patched, plain, rtol=1e-12, atol=1e-12)


def test_a_patch_sees_every_masked_layer_once_with_its_input_and_output(network: Network) -> None:
    seen: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def watch(k: int, given: Tensor, made: Tensor) -> Tensor:
        seen.append((k, tuple(given.shape), tuple(made.shape)))
        return made

    network.encode(PackedBatch.from_sequences(ROWS, positions="all"), None, patch=watch)
    assert seen == [(k, (11, 8), (11, 8)) for k in range(network.backbone.num_masked_layers)]


def test_last_positions_are_patched_as_all_are(network: Network) -> None:
    def patch(k: int, given: Tensor, made: Tensor) -> Tensor:
        return made + torch.tanh(given * (k + 1)) + 0.1 * made.square()

    batch = PackedBatch.from_sequences(ROWS, positions="all")
    every, last = (network.encode(batch, None, positions=positions, patch=patch) for positions in ("all", "last"))
    ends = [6, 7, 10]  # of the rows that are not empty
    torch.testing.assert_close(last[[0, 2, 3]], every[ends], rtol=1e-12, atol=1e-12)
    assert (every - network.encode(batch, None)).abs().max() > 0.01


def test_a_patched_position_reads_its_own_row_and_nothing_behind_itself(network: Network) -> None:
    def patch(_k: int, given: Tensor, made: Tensor) -> Tensor:
        return made + torch.tanh(given)

    def of(rows: list[list[int]]) -> Tensor:
        return network.encode(PackedBatch.from_sequences(rows, positions="all"), None, patch=patch)

    torch.testing.assert_close(of([[3, 4, 5], [9, 9]])[:2], of([[7], [3, 4, 8, 2]])[1:3], rtol=1e-12, atol=1e-12)


def _in_place(backbone: Backbone, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            backbone.get_parameter(name).copy_(value)


def test_effective_weights_stand_for_the_backbones_own_and_let_gradients_through(network: Network) -> None:
    batch = PackedBatch.from_sequences(ROWS)
    own = dict(network.backbone.named_parameters())
    names = sorted({name for layer in network.backbone.masked_layers() for name, _ in layer.matrices})
    factor = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    before = {name: own[name].detach().clone() for name in names}
    found = network.encode(batch, None, weights={name: before[name] * factor for name in names})
    (slope,) = torch.autograd.grad(found.sum(), factor)
    assert all(torch.equal(own[name], before[name]) for name in names)

    def at(value: float) -> Tensor:
        _in_place(network.backbone, {name: before[name] * value for name in names})
        return network.encode(batch, None).detach()

    assert torch.equal(found, at(0.5))
    expected = (at(0.5 + 1e-6).sum() - at(0.5 - 1e-6).sum()) / 2e-6
    assert float(slope) == pytest.approx(float(expected), rel=1e-5)


def test_layers_say_which_rows_are_masked_and_what_they_read(network: Network) -> None:
    """A mask that closes channel c of layer k makes row c of that layer's last matrix, and what reads only it, of no effect."""
    backbone, batch = network.backbone, PackedBatch.from_sequences(ROWS)
    layers = backbone.masked_layers()
    masks = torch.ones(1, len(layers), 8, dtype=torch.float64)

    def changes(edit: Callable[[Tensor], None], part: tuple[str, int | None]) -> bool:
        name, index = part
        whole = backbone.get_parameter(name).detach().clone()
        edit(whole if index is None else whole[index])
        before, after = network.encode(batch, masks), network.encode(batch, masks, weights={name: whole})
        return not torch.equal(before, after)

    for k, layer in enumerate(layers):
        masks.fill_(1.0)
        assert changes(lambda matrix: matrix[2].add_(1.0), layer.matrices[-1])
        masks[0, k, 2] = 0
        if backbone.name == "sasrec":  # NextItNet's LayerNorm stands between matrix and mask, and reads all rows
            assert not changes(lambda matrix: matrix[2].add_(1.0), layer.matrices[-1])
        for after in layers:
            if after.reads == k:
                assert not changes(lambda matrix: matrix[:, 2].add_(1.0), after.matrices[-1])
                masks[0, k, 2] = 1
                assert changes(lambda matrix: matrix[:, 2].add_(1.0), after.matrices[-1])


def test_norms_of_no_masked_layer_are_named_too(network: Network) -> None:
    named = network.backbone.norm_parameters()
    assert named == {name for name, _ in network.backbone.named_parameters() if "norm" in name}
