"""Dropout follows from row, place and channel alone."""

from __future__ import annotations

import torch

from dist_teracon.data.batches import PackedBatch
from dist_teracon.models.dropout import row_dropout
from dist_teracon.models.nextitnet import NextItNet, NextItNetSettings

ROWS, PLACES, C = 40, 30, 64


def noisy(rate=0.3, *, keys=None, order=None, layer=0):
    keys = torch.arange(1, ROWS + 1) * 0x1234567890ABCD if keys is None else keys
    row, place = torch.repeat_interleave(torch.arange(ROWS), PLACES), torch.arange(PLACES).repeat(ROWS)
    if order is not None:
        row, place = row[order], place[order]
    return row_dropout(torch.ones(row.shape[0], C), rate, key_B=keys, row=row, place=place, layer=layer)


def test_the_share_that_is_dropped_is_the_rate_by_row_by_place_and_by_channel() -> None:
    kept = (noisy() != 0).double().view(ROWS, PLACES, C)
    assert abs(float(kept.mean()) - 0.7) < 0.006  # 76,800 entries: a deviation of .0017
    for axes in ((1, 2), (0, 2), (0, 1)):
        assert float((kept.mean(dim=axes) - 0.7).abs().max()) < 0.06


def test_neighbours_are_dropped_independently() -> None:
    kept = (noisy(0.5) != 0).double().view(ROWS, PLACES, C) * 2 - 1
    pairs = [
        kept[1:] * kept[:-1],
        kept[:, 1:] * kept[:, :-1],
        kept[..., 1:] * kept[..., :-1],
        kept * (noisy(0.5, layer=1).view_as(kept) - 1),
    ]
    assert all(abs(float(pair.mean())) < 0.015 for pair in pairs)


def test_what_is_kept_is_scaled_up_and_rows_without_a_key_stay() -> None:
    keys = torch.arange(ROWS)
    x = noisy(keys=keys).view(ROWS, PLACES, C)
    assert torch.equal(x[0], torch.ones(PLACES, C))
    torch.testing.assert_close(x[1:].unique(), torch.tensor([0, 1 / 0.7]))


def test_the_order_of_entries_does_not_matter() -> None:
    order = torch.randperm(ROWS * PLACES, generator=torch.Generator().manual_seed(1))
    assert torch.equal(noisy(order=order), noisy()[order])


def test_another_key_drops_others() -> None:
    assert not torch.equal(noisy(), noisy(keys=torch.arange(2, ROWS + 2) * 0x1234567890ABCD))


def network(dropout):
    generator = torch.Generator().manual_seed(0)
    return NextItNet(NextItNetSettings(dilations=(1, 2)), num_items=20, channels=8, generator=generator, pooling="mean", dropout=dropout)


def encode(net, keys, positions="last", rows=((3, 4, 5), (6, 7), (8, 9, 10, 11))):
    return net.encode(PackedBatch.from_sequences(rows).sequences, None, positions=positions, dropout_key=keys)


def test_a_network_drops_only_where_a_row_has_a_key() -> None:
    plain, dropped = encode(network(0.0), None), encode(network(0.5), torch.tensor([0, 77, 0]))
    assert torch.equal(dropped[[0, 2]], plain[[0, 2]])
    assert not torch.allclose(dropped[1], plain[1])
    assert torch.equal(encode(network(0.5), None), plain)


def test_a_rows_dropout_does_not_depend_on_its_batch_or_on_the_mode() -> None:
    net, keys = network(0.5), torch.tensor([5, 77, 99])
    together, alone = encode(net, keys), encode(net, keys[1:2], rows=((6, 7),))
    torch.testing.assert_close(together[1:2], alone)
    every = encode(net, keys, positions="all")
    torch.testing.assert_close(every[[2, 4, 8]], together)
