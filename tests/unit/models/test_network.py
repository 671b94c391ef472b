"""A user's representation is the user's own: whatever stands beside it, before it or behind it in the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_teracon.config.model import ModelConfig
from dist_teracon.models.backbone import make_backbone
from dist_teracon.models.masks import TaskMasks
from dist_teracon.models.network import Network

ITEMS, TASKS, SCALES = 12, 3, [50.0, 50.0, 3.0]

rows_of_items = st.lists(st.integers(0, ITEMS - 1), max_size=25)
batches = st.lists(st.tuples(rows_of_items, st.integers(0, TASKS - 1)), min_size=1, max_size=6)


NEXTITNET = {"name": "nextitnet", "dilations": (1, 4, 2)}
KINDS = {
    **{f"nextitnet, {pooling}": {"backbone": NEXTITNET, "pooling": pooling} for pooling in ("last", "mean", "concat")},
    "sasrec": {"backbone": {"name": "sasrec", "layers": 3, "heads": 3, "max_positions": 20}, "pooling": "last"},
    "sasrec without positions": {"backbone": {"name": "sasrec", "positions": "none"}, "pooling": "concat"},
}


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    generator = torch.Generator().manual_seed(0)
    backbone = make_backbone(ModelConfig(channels=6, **KINDS[request.param]), num_items=ITEMS, generator=generator)
    network = Network(backbone, TaskMasks(layers=backbone.num_masked_layers, channels=6))
    for task in range(TASKS):
        network.add_task(str(task), 4, generator=generator)
    network.double()
    with torch.no_grad():
        for parameter in (backbone.norm_bias, backbone.item_embedding.weight):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def encode(network, pack):
    @torch.no_grad()
    def run(rows, tasks, positions="last"):
        batch = pack(rows, tasks=tasks, positions=positions)
        return network.encode(batch, network.mask_table(SCALES))

    return run


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(batch=batches, order=st.randoms(use_true_random=False))
def test_batch_mates_and_their_order_do_not_matter(encode, batch, order):
    rows, tasks = zip(*batch, strict=True)
    together = encode(rows, tasks)
    for number, (row, task) in enumerate(batch):
        _close(together[number], encode([row], [task])[0])
    places = list(range(len(batch)))
    order.shuffle(places)
    _close(encode([rows[place] for place in places], [tasks[place] for place in places]), together[places])


@settings(max_examples=30)
@given(row=st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=40), longest=st.integers(1, 80))
def test_neither_the_longest_row_nor_the_positions_asked_for_matter(encode, row, longest):
    alone = encode([row], [1])
    _close(encode([[3] * longest, row], [1, 1])[1], alone[0])
    _close(encode([row], [1], positions="all")[-1], alone[0])


@settings(max_examples=30)
@given(row=st.lists(st.integers(0, ITEMS - 1), min_size=2, max_size=30), data=st.data())
def test_a_position_does_not_see_its_future(encode, row, data):
    cut = data.draw(st.integers(1, len(row) - 1))
    _close(encode([row], [0], positions="all")[:cut], encode([row[:cut]], [0], positions="all"))


def test_the_past_within_reach_is_seen_and_what_lies_beyond_is_not(encode, network):
    # dilations 1, 2, 4, 8, 2, 4 of kernel 3 reach 2·21 = 42 positions back; attention and a mean take in all
    reach = 42 if network.backbone.pooling == "last" and network.backbone.name == "nextitnet" else 59
    row = [1 + number % 7 for number in range(60)]
    changed = encode([[*row[:place], 11, *row[place + 1 :]] for place in range(60)], [0] * 60)
    moved = (changed - encode([row], [0])).abs().amax(dim=1) > 1e-12
    assert moved.tolist() == [59 - place <= reach for place in range(60)]


def test_each_row_has_its_own_tasks_mask(encode):
    row = [1, 2, 3, 4]
    out = encode([row] * 3, [0, 1, 2])
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out[1], out[2])


@pytest.mark.parametrize("positions", ["all", "last"])
def test_every_parameter_takes_part_in_a_batch_without_rows(network, pack, positions):
    batch = pack([], positions=positions)
    hidden = network.encode(batch, network.mask_table(SCALES))
    network.zero_grad()
    sum(network.head(name)(hidden).sum() for name in network.tasks).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert not any(gradient.any() for gradient in gradients.values())
