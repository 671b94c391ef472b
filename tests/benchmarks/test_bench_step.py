"""`dist-teracon bench step` runs and prints what it measured; its times are not asserted."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import run_command

from dist_teracon.bench.profile import PARTS, Span, own_seconds

SIZE = ["--dataset", "synthetic:six-tasks-v1?users=200", "--channels", "8", "--stages", "2", "3", "--repeats", "1", "--batch", "64"]


def _bench(folder: Path, *arguments: str) -> str:
    done = run_command(["bench", "step", *SIZE, "--replayed", "4", *arguments], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep prepared data out of the user's cache."""
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path))


def test_it_compares_both_stages_with_the_plain_way(tmp_path: Path) -> None:
    output = _bench(tmp_path)
    rows = [line for line in output.splitlines() if line.startswith(("| 2 |", "| 3 |"))]
    assert len(rows) == 2
    assert all(float(cell) > 0 for row in rows for cell in row.strip("| ").split(" | "))
    assert "times a bare Conv2d stack" in output
    assert "torch" in output.splitlines()[0]


@pytest.mark.slow
def test_its_profile_accounts_for_all_of_a_step(tmp_path: Path) -> None:
    output = _bench(tmp_path, "--profile")
    shares = [float(line.split("|")[-2].strip(" %")) for line in output.splitlines() if line.endswith("% |")]
    assert abs(sum(shares) - 200) < 3  # two stages
    for part in PARTS.values():
        assert output.count(f"| {part} |") == 2


def test_a_span_s_own_time_is_without_those_within() -> None:
    spans = [Span("a", 0, 10), Span("b", 1, 4), Span("c", 2, 3), Span("b", 5, 6), Span("a", 10, 12)]
    assert own_seconds(spans) == {"a": 8, "b": 3, "c": 1}
    assert own_seconds(reversed(spans)) == own_seconds(spans)
