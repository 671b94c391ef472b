"""Gaps and types of events beside the items: buckets, where they are added, and what a backbone without them is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dist_teracon.config.model import ModelConfig
from dist_teracon.config_io import validate
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.event_columns import NO_TIME
from dist_teracon.errors import ConfigError
from dist_teracon.models.backbone import make_backbone
from dist_teracon.models.event_embedding import GAP_BUCKETS, NO_GAP, gap_buckets, recency_buckets

BACKBONES = [{"name": "nextitnet", "dilations": [1, 2]}, {"name": "sasrec", "layers": 1, "max_positions": 8}]
ITEMS = [[5, 9, 3], [], [4], [7, 7, 2, 6]]
TIMES = [[100, 100, 103], [], [50], [10, 20, 15, 2**40]]
TYPES = [[1, 2, 0], [], [2], [1, 1, 1, 2]]


def made(backbone, *features, **model):
    values = {"channels": 8, "dropout": 0.0, "backbone": backbone, "event_features": list(features), **model}
    config = validate(ModelConfig, values, where="test")
    return make_backbone(config, num_items=10, generator=torch.Generator().manual_seed(0), num_types=3).double()


def drawn(backbone):
    """Return the backbone with embeddings of events that are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.event_embedding.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return backbone


def packed(rows=range(4), *, times=TIMES, types=TYPES):
    return PackedBatch.from_sequences(
        *[[column[row] for row in rows] for column in (ITEMS,)], times=[times[row] for row in rows], types=[types[row] for row in rows]
    ).sequences


def encoded(backbone, sequences, positions="last"):
    with torch.no_grad():
        return backbone.encode(sequences, None, positions=positions)


def test_a_gap_is_in_the_bucket_of_its_binary_digits():
    gaps = [0, 1, 2, 3, 4, 7, 8, 3599, 3600, 86_400, 2**30, 2**31, 2**50]
    times = torch.tensor([1_600_000_000, *(1_600_000_000 + np.cumsum(gaps))])
    found = gap_buckets(times, torch.tensor([0, len(times)])).tolist()
    assert found == [NO_GAP, *(min(1 + gap.bit_length(), GAP_BUCKETS - 1) for gap in gaps)]
    assert found[1:7] == [1, 2, 3, 3, 4, 4]


def test_rows_begin_without_a_gap_and_unknown_times_have_none():
    times = torch.tensor([100, NO_TIME, 200, 201, 90, 500])
    # two rows of three and of two events with an empty one between, and a last row of one
    assert gap_buckets(times, torch.tensor([0, 3, 3, 5, 6])).tolist() == [0, 0, 0, 0, 1, 0]
    assert gap_buckets(torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0])).shape == (0,)


def test_what_follows_an_event_is_the_next_one_or_the_moment_of_its_row():
    times = torch.tensor([100, NO_TIME, 200, 207, 90, 500, 400])
    # an empty row, a row of three, one of two, an empty one, one of one event, one of one event before whose moment nothing is known
    offsets = torch.tensor([0, 0, 3, 5, 5, 6, 7])
    moments = torch.tensor([999, 203, 1_000, 999, 300, NO_TIME])
    # what is behind an event and not after it is as of the same moment
    assert recency_buckets(times, offsets, moments).tolist() == [0, 0, 3, 1, 11, 1, 0]
    assert recency_buckets(times[:0], offsets[:2], moments[:1]).shape == (0,)


@pytest.mark.parametrize("backbone", BACKBONES, ids=["nextitnet", "sasrec"])
def test_a_position_is_predicted_as_a_history_that_ends_there_when_the_next_event_comes(backbone):
    """So what is trained at all positions is what is asked of a history in use."""
    own = drawn(made(backbone, "recency", "gaps"))
    items, times = [7, 7, 2, 6, 3], [10, 20, 15, 300, 4_000]
    together = PackedBatch.from_sequences([items[:-1]], times=[times[:-1]], moments=times[-1:]).sequences
    cut = [PackedBatch.from_sequences([items[:end]], times=[times[:end]], moments=[times[end]]).sequences for end in range(1, 5)]
    expected = torch.cat([encoded(own, row) for row in cut])
    torch.testing.assert_close(encoded(own, together, "all"), expected, rtol=0, atol=1e-12)
    later = PackedBatch.from_sequences([items[:-1]], times=[times[:-1]], moments=[40_000]).sequences
    assert torch.equal(encoded(own, later, "all")[:-1], encoded(own, together, "all")[:-1])
    assert not torch.equal(encoded(own, later), encoded(own, together))


@pytest.mark.parametrize("pooling", ["last", "concat"])
@pytest.mark.parametrize("backbone", BACKBONES, ids=["nextitnet", "sasrec"])
def test_embeddings_are_added_to_the_items_and_start_at_zero(backbone, pooling):
    plain, own = made(backbone, pooling=pooling), made(backbone, "gaps", "types", pooling=pooling)
    for positions in ("last", "all"):
        assert torch.equal(encoded(own, packed(), positions), encoded(plain, packed(), positions))
    drawn(own)
    # what is added to an item's embedding is what an item of another embedding has
    with torch.no_grad():
        gap, kind = own.event_embedding.gap_weight, own.event_embedding.type_weight
        plain.item_embedding.weight[4] += gap[NO_GAP] + kind[2]
        plain.item_embedding.weight[5] += gap[NO_GAP] + kind[1]
        plain.item_embedding.weight[9] += gap[1] + kind[2]
        plain.item_embedding.weight[3] += gap[3] + kind[0]
    torch.testing.assert_close(encoded(own, packed(range(3)), "all"), encoded(plain, packed(range(3)), "all"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", BACKBONES, ids=["nextitnet", "sasrec"])
def test_a_row_is_what_it_is_alone(backbone):
    own = drawn(made(backbone, "gaps", "types"))
    together = encoded(own, packed())
    for row in (0, 2, 3):
        torch.testing.assert_close(together[row], encoded(own, packed([row]))[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("feature", ["gaps", "types"])
def test_only_what_is_asked_for_is_read(feature):
    own = drawn(made(BACKBONES[0], feature))
    squares, none = [[7 * place**2 for place in range(len(row))] for row in ITEMS], [[0] * len(row) for row in ITEMS]
    other = {"times": squares} if feature == "types" else {"types": none}
    assert torch.equal(encoded(own, packed()), encoded(own, packed(**other)))
    assert [name for name, _ in own.event_embedding.named_parameters()] == [f"{feature[:-1]}_weight"]
    with pytest.raises(ValueError, match=f"'{feature}' reads"):
        encoded(own, PackedBatch.from_sequences(ITEMS).sequences)


def test_every_embedding_that_is_read_learns():
    own = made(BACKBONES[0], "gaps", "types")
    own.encode(packed(), None, positions="all").square().sum().backward()
    touched = own.event_embedding.gap_weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [0, 1, 3, 5, GAP_BUCKETS - 1]
    assert own.event_embedding.type_weight.grad.abs().sum(1).gt(0).all()


def test_recency_learns_and_needs_times_and_moments():
    own = made(BACKBONES[0], "recency")
    moments = [104, 7, 50, 2**40]
    batch = PackedBatch.from_sequences(ITEMS, times=TIMES, moments=moments)
    own.encode(batch.sequences, None, positions="all").square().sum().backward()
    weight = own.event_embedding.recency_weight
    assert weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1, 2, 3, 5, GAP_BUCKETS - 1]
    parts = batch.split(2)
    assert [part.moments.tolist() for part in parts] == [[104, 50], [7, 2**40]]
    for lacks in ({"times": TIMES}, {"moments": moments}):
        with pytest.raises(ValueError, match="'recency' reads times of events and of predictions"):
            encoded(own, PackedBatch.from_sequences(ITEMS, **lacks).sequences)


def test_features_are_known_ones_each_once():
    assert validate(ModelConfig, {"event_features": ["types"]}, where="t").event_features == ("types",)
    for wrong in (["gap"], ["gaps", "gaps"]):
        with pytest.raises(ConfigError, match="event_features"):
            validate(ModelConfig, {"event_features": wrong}, where="t")
