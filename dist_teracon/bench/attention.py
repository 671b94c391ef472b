"""`dist-teracon bench attention`: SASRec over histories of different lengths, padded in groups of like length and to the longest.

Lengths are drawn as those of a film site are spread: log-normal, at least 5, cut at the history's limit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from unittest.mock import patch

import numpy as np
import torch

from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import alternate, circumstances, markdown_table, median_ratio
from dist_teracon.config.model import ModelConfig
from dist_teracon.config_io import validate
from dist_teracon.data.batches import PackedBatch, PackedSequences
from dist_teracon.models import padded_rows
from dist_teracon.models.backbone import Backbone, make_backbone

_ITEMS = 3_700
_LEAST, _MEAN_LOG, _DEVIATION_LOG = 5, 4.55, 0.95


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        prog="dist-teracon bench attention", description="SASRec over histories of different lengths, with less and with more padding."
    )
    parser.add_argument("--rows", type=as_count, default=128)
    parser.add_argument("--limits", nargs="+", type=as_count, default=[50, 100, 200], help="the longest histories (default: 50 100 200)")
    parser.add_argument("--channels", type=as_count, default=128)
    parser.add_argument("--repeats", type=as_count, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for limit in options.limits:
        sequences = _drawn(options.rows, limit)
        for bias in ("none", "learned"):
            ways = _ways(_sasrec(options.channels, limit, bias), sequences)
            timings = alternate(ways, repeats=options.repeats)
            for name in ways:
                ratio = median_ratio(timings["to the longest"], timings[name])
                measured = [f"{timings[name].median * 1e3:.0f}", f"{ratio:.2f}"]
                rows.append([f"{limit}", bias, name, *measured])
    print(circumstances("dist-teracon", "torch"))
    print(f"{options.rows} rows of width {options.channels}, two layers, forward and backward, one thread")
    print(markdown_table(["longest", "time bias", "padded", "CPU ms", "times less"], rows))


def _drawn(rows: int, limit: int) -> PackedSequences:
    generator = np.random.default_rng(0)
    lengths = np.exp(generator.normal(_MEAN_LOG, _DEVIATION_LOG, rows)).astype(np.int64).clip(_LEAST, limit)
    items = [generator.integers(2, _ITEMS, length) for length in lengths]
    times = [1_600_000_000 + generator.integers(0, 100_000, length).cumsum() for length in lengths]
    return PackedBatch.from_sequences(items, times=times).sequences


def _sasrec(channels: int, limit: int, bias: str) -> Backbone:
    backbone = {"name": "sasrec", "layers": 2, "heads": 2, "max_positions": limit, "time_bias": bias}
    config = validate(ModelConfig, {"channels": channels, "dropout": 0.0, "backbone": backbone, "pooling": "last"}, where="bench attention")
    return make_backbone(config, num_items=_ITEMS, generator=torch.Generator().manual_seed(0))


def _ways(net: Backbone, sequences: PackedSequences) -> dict[str, Callable[[], object]]:
    def step() -> object:
        return torch.autograd.grad(net.encode(sequences, None, positions="all").square().sum(), list(net.parameters()))

    def to_the_longest() -> object:
        with patch.object(padded_rows, "like_lengths", lambda lengths: [torch.arange(len(lengths))]):
            return step()

    return {"to the longest": to_the_longest, "in groups": step}
