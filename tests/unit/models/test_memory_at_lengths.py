"""What a step holds at 50, 100 and 200 positions: bytes grow with the positions, where no bias of attention by time is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dist_teracon.config.model import ModelConfig
from dist_teracon.config_io import validate
from dist_teracon.data.batches import PackedBatch
from dist_teracon.models.backbone import make_backbone

C, ROWS, LENGTHS = 16, 8, (50, 100, 200)
BACKBONES = {
    "nextitnet": {"name": "nextitnet", "dilations": [1, 4, 1, 4]},
    "sasrec": {"name": "sasrec", "layers": 2, "heads": 2},
    "biased": {"name": "sasrec", "layers": 2, "heads": 2, "time_bias": "learned"},
}


def saved_and_peak(step: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """Return the bytes that a forward pass saves for its backward pass, each storage once, and the most that both hold at a time."""
    storages: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    saved = sum(size for _, size in storages.values())
    storages.clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step().backward()
    changes = [
        (event.start_ns(), event.nbytes()) for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]  # fmt: skip
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return saved, peak


def bytes_at(name: str, length: int) -> tuple[int, int]:
    values = {"channels": C, "dropout": 0.0, "pooling": "concat", "backbone": BACKBONES[name]}
    net = make_backbone(validate(ModelConfig, values, where="test"), num_items=50, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    items = torch.randint(2, 50, (ROWS, length), generator=generator)
    times = torch.randint(0, 1 << 20, (ROWS, length), generator=generator).sort(dim=1).values
    batch = PackedBatch.from_sequences(list(items.numpy()), times=list(times.numpy()), positions="all")
    return saved_and_peak(lambda: net.encode(batch.sequences, None, positions="all").square().sum())


@pytest.mark.parametrize("name", ["nextitnet", "sasrec"])
def test_four_times_the_positions_take_four_times_the_bytes(name: str) -> None:
    saved, peak = zip(*(bytes_at(name, length) for length in LENGTHS), strict=True)
    for found in (saved, peak):
        assert 0 < found[0] < found[1] < found[2]
        # twice as many positions more cost twice as many bytes more; with a matrix a row of positions by positions it would be four times
        assert (found[2] - found[1]) == pytest.approx(2 * (found[1] - found[0]), rel=0.05)


def test_a_bias_by_time_holds_a_matrix_of_positions_a_row_and_head() -> None:
    saved = [bytes_at("biased", length)[0] for length in LENGTHS]
    plain = [bytes_at("sasrec", length)[0] for length in LENGTHS]
    more = [one - other for one, other in zip(saved, plain, strict=True)]
    assert all(extra >= 2 * ROWS * 2 * length**2 * 4 for extra, length in zip(more, LENGTHS, strict=True))
    assert more[2] == pytest.approx(4 * more[1], rel=0.1)
