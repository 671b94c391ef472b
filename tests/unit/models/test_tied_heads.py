"""Heads tied to the items' embeddings: their logits, where gradients go, copies, and labels of later items."""

from __future__ import annotations

import copy

import pytest
import torch

from dist_teracon.config.model import ModelConfig
from dist_teracon.data.schema import FIRST_ITEM
from dist_teracon.models.backbone import make_backbone
from dist_teracon.models.gbce import BinaryNegatives
from dist_teracon.models.heads import Head, TiedHead, cross_entropy_sum
from dist_teracon.models.item_table import SparseTable
from dist_teracon.models.network import Network
from dist_teracon.models.sampled_softmax import sampled_cross_entropy_sum

C, Y, E = 8, 20, 6


def network() -> Network:
    """Return a network whose task `next` has a tied head, with biases that differ."""
    config = ModelConfig(channels=C, pooling="last", dropout=0.0, backbone={"name": "nextitnet", "dilations": [1]})
    made = Network(make_backbone(config, num_items=Y + FIRST_ITEM, generator=torch.Generator().manual_seed(0)).double())
    made.add_task("next", Y, generator=torch.Generator(), tied=True)
    made.add_task("age", 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made.head("next").bias.normal_(generator=torch.Generator().manual_seed(2))
    return made.double()


def problem():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(E, C, dtype=torch.float64, generator=generator), torch.randint(Y, (E,), generator=generator)


def test_a_tied_head_is_a_head_of_the_items_rows_and_stores_its_biases_alone():
    made = network()
    head, hidden = made.head("next"), problem()[0]
    table = made.backbone.item_embedding.weight
    torch.testing.assert_close(head(hidden), hidden @ table[FIRST_ITEM:].T + head.bias, rtol=0, atol=1e-12)
    assert isinstance(head, TiedHead) and isinstance(head, SparseTable) and (head.labels, head.num_rows) == (Y, Y)
    assert [name for name in made.state_dict() if name.startswith("heads.next")] == ["heads.next.bias"]
    assert sum(value is table for value in made.parameters()) == 1
    # the heads of other tasks are drawn as they would be beside an untied one
    untied = Network(made.backbone)
    untied.add_task("age", 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(untied.head("age").weight.double(), made.head("age").weight)


@pytest.mark.parametrize("kind", ["full", "sampled", "gbce"])
def test_losses_and_gradients_are_those_of_an_untied_head_with_these_rows(kind):
    made = network()
    hidden, labels = problem()
    table, head = made.backbone.item_embedding.weight, made.head("next")
    apart = Head(C, Y, generator=torch.Generator()).double()
    with torch.no_grad():
        apart.weight.copy_(head.weight)
        apart.bias.copy_(head.bias)

    def loss(own):
        if kind == "full":
            return cross_entropy_sum(own, hidden, labels, smoothing=0.1)
        if kind == "sampled":
            drawn = torch.tensor([3, 5, 5, int(labels[0])])
            return sampled_cross_entropy_sum(own, hidden, labels, drawn, torch.full((4,), -3.0, dtype=torch.float64))
        return BinaryNegatives(4, 0.5, Y, seed=0).loss(own, hidden, labels, epoch=1, step=0)

    value, wanted = loss(head), loss(apart)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    of_table, of_bias = torch.autograd.grad(value, [table, head.bias])
    of_weight, of_own_bias = torch.autograd.grad(wanted, [apart.weight, apart.bias])
    torch.testing.assert_close(of_table[FIRST_ITEM:], of_weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(of_bias, of_own_bias, rtol=0, atol=1e-12)
    assert not of_table[:FIRST_ITEM].any()


def test_a_sparse_table_and_drawn_labels_give_one_sparse_gradient():
    made = network()
    hidden, labels = problem()
    made.backbone.item_embedding.sparse = True
    assert made.head("next").sparse
    read = made.backbone.item_embedding(torch.tensor([4, 4, 9])).sum()
    (read + BinaryNegatives(2, 0.0, Y, seed=0).loss(made.head("next"), hidden, labels, epoch=1, step=0)).backward()
    gradient = made.backbone.item_embedding.weight.grad
    assert gradient.is_sparse
    assert {4, 9, *(labels + FIRST_ITEM).tolist()} <= set(gradient.coalesce().indices()[0].tolist())


def test_a_copy_of_the_network_is_tied_to_its_own_table():
    made = network()
    teacher = copy.deepcopy(made)
    with torch.no_grad():
        made.backbone.item_embedding.weight.add_(1)
    assert teacher.head("next").table is teacher.backbone.item_embedding
    torch.testing.assert_close(teacher.head("next").weight + 1, made.head("next").weight)


def test_labels_of_items_that_the_table_lacks_have_rows_of_zeros_and_items_without_labels_none():
    made = network()
    table = made.backbone.item_embedding
    later, earlier = TiedHead(table, Y + 3), TiedHead(table, Y - 2)
    assert torch.equal(later.weight[:Y], table.weight[FIRST_ITEM:]) and not later.weight[Y:].any()
    assert torch.equal(earlier.weight, table.weight[FIRST_ITEM:-2])
