"""Dropout follows from row, place and channel alone."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.data.batches import PackedBatch
from dist_teracon.models import dropout, padded_rows
from dist_teracon.models.dropout import row_dropout
from dist_teracon.models.nextitnet import NextItNet, NextItNetSettings
from dist_teracon.models.sasrec import SasRec, SasRecSettings

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


def sasrec(inner, dropout=0.0):
    generator = torch.Generator().manual_seed(0)
    return SasRec(SasRecSettings(dropout=inner), num_items=20, channels=8, generator=generator, pooling="mean", dropout=dropout)


def test_sasrec_drops_of_its_sub_layers_outputs_where_a_row_has_a_key() -> None:
    plain, dropped = encode(sasrec(0.0), None), encode(sasrec(0.5), torch.tensor([0, 77, 0]))
    torch.testing.assert_close(dropped[[0, 2]], plain[[0, 2]])
    assert not torch.allclose(dropped[1], plain[1])
    assert torch.equal(encode(sasrec(0.5), None), plain)
    assert torch.equal(encode(sasrec(0.0), torch.tensor([5, 77, 99])), plain)


def test_all_of_sasrecs_sub_layers_are_dropped_of_and_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = dropout.row_dropout

    def noted(x, rate, **options):
        dropped = real(x, rate, **options)
        seen.append((rate, options["layer"], (dropped == 0) & (x != 0)))
        return dropped

    monkeypatch.setattr(dropout, "row_dropout", noted)
    encode(sasrec(0.5, dropout=0.25), torch.tensor([5, 77, 99]), positions="all")
    assert [(rate, layer) for rate, layer, _ in seen] == [(0.25, 0), (0.5, 2), (0.5, 3), (0.5, 4), (0.5, 5), (0.25, 1)]
    where = [mask for _, layer, mask in seen if layer > 1]
    assert all(mask.any() and not mask.all() for mask in where)
    assert all(not torch.equal(one, other) for place, one in enumerate(where) for other in where[:place])


def test_sasrecs_dropout_does_not_depend_on_the_batch_the_mode_or_the_groups_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    net, rows = sasrec(0.5), tuple(tuple(2 + (place * row) % 18 for place in range(row)) for row in (1, 70, 33, 90, 12, 80, 7))
    rows, keys = (*rows, (), *rows[:3]) * 2, torch.arange(1, 23) * 0x1234567890ABCD
    together = encode(net, keys, rows=rows)
    alone = torch.cat([encode(net, keys[at : at + 1], rows=rows[at : at + 1]) for at in range(len(rows))])
    torch.testing.assert_close(together, alone)
    every = encode(net, keys, positions="all", rows=rows)
    ends = torch.tensor([len(row) for row in rows]).cumsum(0)[torch.tensor([bool(row) for row in rows])] - 1
    torch.testing.assert_close(every[ends], together[torch.tensor([bool(row) for row in rows])])
    monkeypatch.setattr(padded_rows, "like_lengths", lambda lengths: [torch.arange(len(lengths))])
    torch.testing.assert_close(encode(net, keys, rows=rows), together)
