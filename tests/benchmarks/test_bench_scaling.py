"""`dist-teracon bench scaling`: the model's terms by hand, what does not fit, and the check on two processes."""

from __future__ import annotations

import pytest

from dist_teracon.bench import scaling
from dist_teracon.bench.scaling import LAYOUTS, Machine, Size, collective_s, fitted, step_of

LARGE = Size("large", 100_000_000, 10_000_000)


def test_the_terms_of_a_collective() -> None:
    machine = Machine(inside=100e9, between=10e9, latency_inside=0, latency_between=1e-6)
    assert collective_s(8e9, 1, machine) == 0
    assert collective_s(8e9, 8, machine) == pytest.approx(2 * 7 / 8 * 8e9 / 100e9)
    assert collective_s(8e9, 16, machine, share=1) == pytest.approx(15 / 16 * 8e9 / 10e9 + 4e-6)


def test_numbers_of_the_network_are_those_of_the_program() -> None:
    import torch

    from dist_teracon.config.model import ModelConfig
    from dist_teracon.models.backbone import make_backbone
    from dist_teracon.models.heads import Head

    size = Size("small", 10, 50, channels=8)
    model = ModelConfig(channels=8, pooling="mean", item_init="uniform")
    backbone = make_backbone(model, num_items=52, generator=torch.Generator())
    head = Head(8, 50, generator=torch.Generator())
    count = sum(p.numel() for part in (backbone, head) for p in part.parameters())
    assert count == size.backbone + size.tables + 2 * 8  # the two reserved items


def test_memory_of_tables_falls_with_the_number_of_gpus_only_where_they_are_sharded() -> None:
    machine = Machine()
    memory = {name: [step_of(name, LARGE, ranks, 64, machine).memory for ranks in (8, 64)] for name in LAYOUTS}
    assert memory["rows"][1] > memory["rows"][0] > machine.memory
    assert memory["dense"][0] > memory["dense"][1] > 8 * LARGE.tables
    assert memory["sharded"][1] < memory["sharded"][0] / 4


def test_the_line_through_two_measurements() -> None:
    fixed, speed = fitted(1, 0.002, 11, 0.012)
    assert (fixed, speed) == (pytest.approx(0.001), pytest.approx(1e9))


def test_the_command_prints_the_model_and_measures(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--gpus", "1", "8", "--measure"])
    said = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith(("| TTL", "| large"))]
    assert len(rows) == 2 * len(LAYOUTS) * 2
    alone = [row for row in rows if row[2] == "1"]
    assert {(row[4], row[6]) for row in alone} == {("0", "0.0")}
    assert {row[7] for row in alone if row[1] == LAYOUTS["rows"]} == {"100%"}
    assert any("too much" in row[3] for row in rows if row[0] == "large")
    assert "GB/s a direction" in said
