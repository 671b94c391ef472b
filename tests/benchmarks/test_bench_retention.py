"""`dist-teracon bench retention` runs and prints what it measured; its times are not asserted, sizes and rows are."""

from __future__ import annotations

from pathlib import Path

from small_runs import run_command


def test_rows_follow_the_rate_and_a_store_in_fp16_has_two_bytes_a_channel(tmp_path: Path) -> None:
    size = ["--labels", "50", "--rho", "0.1", "--users", "300", "--length", "6", "--channels", "16", "--batch", "40", "--repeats", "1"]
    done = run_command(["bench", "retention", *size, "--steps", "1"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| 50 |")]
    steps, stores = cells[:3], cells[3:]
    assert [row[:4] for row in steps] == [
        ["50", "0.1", "0", "no retention"], ["50", "0.1", "20", "frozen"], ["50", "0.1", "20", "trained"],
    ]  # fmt: skip
    assert steps[0][5] == "1.00" and all(float(row[4]) > 0 for row in steps)
    assert [row[1] for row in stores] == ["fp32", "fp16"]
    assert {row[2] for row in stores} == {"300"}
    whole, half = (int(row[3]) for row in stores)
    # 16 numbers of 4 or 2 bytes and a row's number of 4; the rest is what a file of two shards begins and ends with
    assert whole - half == 16 * 2
    assert 36 <= half < 50
