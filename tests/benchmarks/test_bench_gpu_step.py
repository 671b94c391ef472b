"""The benchmark of a GPU's step, as far as it goes without a GPU."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.cli import main


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "gpu-step", "nowhere"]) == 2
    assert "no NVIDIA GPU is visible" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_nothing_in_a_step_waits_for_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu-step", "synthetic:six-tasks-v1?users=2000", "--batch", "64", "--channels", "64"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| 1 |", "| 2 |"))]
    assert len(rows) == 2
    # ρ is fetched every ten steps
    assert all("none" in row or "teracon.py" in row for row in rows), rows
