"""SASRec's bias of times: against attention written out, what it reads, and what it leaves as it was."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dist_teracon.config.model import ModelConfig
from dist_teracon.config_io import validate
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.event_columns import NO_TIME
from dist_teracon.models import time_bias
from dist_teracon.models.backbone import columns_read, make_backbone
from dist_teracon.models.event_embedding import GAP_BUCKETS, NO_GAP

C, HEADS = 8, 2
ITEMS = [[5, 9, 3], [], [4], [7, 7, 2, 6, 3]]
TIMES = [[100, 100, 103], [], [50], [10, 20, 15, 2**40, NO_TIME]]


def made(bias="learned", *, dtype=torch.float64, **settings):
    """Return a small SASRec, its bias drawn where it has one."""
    backbone = {"name": "sasrec", "layers": 2, "heads": HEADS, "max_positions": 4, "time_bias": bias, **settings}
    config = validate(ModelConfig, {"channels": C, "dropout": 0.0, "backbone": backbone, "pooling": "last"}, where="test")
    found = make_backbone(config, num_items=10, generator=torch.Generator().manual_seed(0)).to(dtype)
    if found.time_bias is not None:
        with torch.no_grad():
            found.time_bias.weight.normal_(generator=torch.Generator().manual_seed(1))
    return found


def packed(rows=range(4), times=TIMES):
    return PackedBatch.from_sequences([ITEMS[row] for row in rows], times=[times[row] for row in rows]).sequences


def written_out(net, items, times):
    """Return every position's output of one row, each number of attention computed by itself."""
    x = net.item_embedding.weight[torch.tensor(items)] + net.position_embedding[torch.arange(len(items)).clamp_max(3)]
    for layer in range(2):
        norm = [F.layer_norm(x, (C,), net.norm_weight[2 * layer], net.norm_bias[2 * layer], 1e-8)]
        query, key, value = (norm[0] @ net.in_weight[layer].T + net.in_bias[layer]).split(C, dim=1)
        rows = []
        for t in range(len(items)):
            parts = []
            for head in range(HEADS):
                at = slice(head * C // HEADS, (head + 1) * C // HEADS)
                logits = []
                for s in range(t + 1):
                    known = NO_TIME not in (times[t], times[s])
                    bucket = min(1 + max(0, times[t] - times[s]).bit_length(), GAP_BUCKETS - 1) if known else NO_GAP
                    logits.append(query[t, at] @ key[s, at] / math.sqrt(C // HEADS) + net.time_bias.weight[layer, bucket, head])
                parts.append(torch.softmax(torch.stack(logits), 0) @ value[: t + 1, at])
            rows.append(torch.cat(parts))
        x = x + torch.stack(rows) @ net.out_weight[layer].T + net.out_bias[layer]
        normed = F.layer_norm(x, (C,), net.norm_weight[2 * layer + 1], net.norm_bias[2 * layer + 1], 1e-8)
        inner = F.relu(normed @ net.inner_weight[layer].T + net.inner_bias[layer])
        x = x + inner @ net.outer_weight[layer].T + net.outer_bias[layer]
    return F.layer_norm(x, (C,), net.last_norm_weight, net.last_norm_bias, 1e-8)


@pytest.mark.parametrize("at_once", [1 << 24, 1], ids=["together", "row by row"])
def test_outputs_and_gradients_are_those_of_attention_written_out(monkeypatch, at_once):
    monkeypatch.setattr(time_bias, "_NUMBERS_AT_ONCE", at_once)
    net = made()
    whole = torch.cat([written_out(net, items, times) for items, times in zip(ITEMS, TIMES, strict=True) if items])
    everywhere = net.encode(packed(), None, positions="all")
    torch.testing.assert_close(everywhere, whole, rtol=0, atol=1e-10)
    weight = torch.randn(whole.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad((whole * weight).sum(), [net.time_bias.weight, net.in_weight])
    found = torch.autograd.grad((everywhere * weight).sum(), [net.time_bias.weight, net.in_weight])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    last = net.encode(packed(), None, positions="last")
    torch.testing.assert_close(last[[0, 2, 3]], whole[[2, 3, 8]], rtol=0, atol=1e-10)
    assert not last[1].any()


def test_it_starts_as_the_backbone_without():
    net, plain = made(), made("none")
    assert plain.time_bias is None
    with torch.no_grad():
        net.time_bias.weight.zero_()
        for positions in ("all", "last"):
            own, without = (model.encode(packed(), None, positions=positions) for model in (net, plain))
            torch.testing.assert_close(own, without, rtol=0, atol=1e-12)


@torch.no_grad()
def test_only_differences_to_the_past_are_read():
    net = made()
    found = net.encode(packed(), None, positions="all")
    later = [[time + 86_400 if time != NO_TIME else time for time in row] for row in TIMES]
    assert torch.equal(net.encode(packed(times=later), None, positions="all"), found)
    ahead = [[100, 100, 2_000], *TIMES[1:]]
    changed = net.encode(packed(times=ahead), None, positions="all")
    assert torch.equal(changed[:2], found[:2])
    assert not torch.equal(changed[2], found[2])


@torch.no_grad()
def test_padded_rows_and_rows_alone_are_the_same():
    net = made()
    last = net.encode(packed(), None, positions="last")
    x = torch.zeros(3, 5, C, dtype=torch.float64)
    times = torch.full((3, 5), NO_TIME)
    rows = [row for row in range(4) if ITEMS[row]]
    for place, row in enumerate(rows):
        x[place, : len(ITEMS[row])] = net.item_embedding.weight[torch.tensor(ITEMS[row])]
        times[place, : len(ITEMS[row])] = torch.tensor(TIMES[row])
        torch.testing.assert_close(net.encode(packed([row]), None, positions="last")[0], last[row], rtol=0, atol=1e-12)
    padded = net.transform_padded(x, torch.tensor([3, 1, 5]), None, times_BL=times)
    torch.testing.assert_close(padded, last[rows], rtol=0, atol=1e-12)


def test_bf16_runs_and_learns():
    net = made(dtype=torch.bfloat16)
    net.encode(packed(), None, positions="all").square().sum().backward()
    assert net.time_bias.weight.grad.dtype == torch.bfloat16
    assert net.time_bias.weight.grad.isfinite().all() and net.time_bias.weight.grad.any()


def test_times_are_asked_for_and_missed():
    assert columns_read(ModelConfig(backbone={"name": "sasrec", "time_bias": "learned"})) == {"times": "model.backbone.time_bias"}
    assert columns_read(ModelConfig(backbone="sasrec", event_features=("recency", "types", "gaps"))) == {
        "times": "model.event_features",
        "types": "model.event_features",
    }
    with pytest.raises(ValueError, match="time_bias: reads times of events"):
        made().encode(PackedBatch.from_sequences(ITEMS).sequences, None, positions="last")
