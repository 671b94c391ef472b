"""`dist-teracon bench data`: preparation of raw files of TTL's shape, against a small loader written in the public way.

Both read the same files on one thread, each in a process of its own, in turn. What is compared is CPU-seconds and peak memory a row.
The public way: a line becomes Python lists, every token is looked up in a dictionary, every example is appended to a list; it stands
below as `public_way`, and is measured on a piece of the data, as the whole would not fit into memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import circumstances, markdown_table
from dist_teracon.errors import ConfigError

_PUBLIC_USERS = 50_000


@dataclass(frozen=True)
class Cost:
    """What one process took: CPU-seconds and peak memory above that of a process that has only imported; users, rows of all files."""

    cpu_s: float
    wall_s: float
    peak_bytes: int
    users: int
    rows: int

    @property
    def memory_a_row(self) -> float:
        """Return bytes a row."""
        return self.peak_bytes / self.rows

    @property
    def cpu_a_row(self) -> float:
        """Return seconds a row."""
        return self.cpu_s / self.rows


def public_way(folder: Path) -> list[Any]:
    """Load task files as lists of numbers: what the preparation is measured against."""
    from dist_teracon.data.sources.sequence_csv import TTL_FILES

    index: dict[str, int] = {"0": 0}
    loaded: list[Any] = []
    for place, name in enumerate(TTL_FILES):
        examples: list[Any] = []
        labels: list[int] = []
        label_index: dict[str, int] = {}
        with (folder / name).open(encoding="utf-8") as lines:
            for line in lines:
                history, _, targets = line.rstrip("\n").partition(",,")
                tokens = []
                for token in history.split(","):
                    if token not in index:
                        index[token] = len(index)
                    tokens.append(index[token])
                row = np.array(tokens)
                if not place:
                    examples.append(row)
                    continue
                for token in targets.split(","):
                    if token not in label_index:
                        label_index[token] = len(label_index)
                    examples.append(row)
                    labels.append(label_index[token])
        loaded += [np.stack(examples), np.array(labels, dtype=np.int64), label_index]
    return [*loaded, index]


def _work(way: str, raw: Path, out: Path) -> None:
    """Run one way in this process and print what it took."""
    import pyarrow.compute  # noqa: F401  (both ways start from the same memory)

    from dist_teracon.data.prepare.pipeline import prepare

    before, memory, began = resource.getrusage(resource.RUSAGE_SELF), _peak(), time.monotonic()
    if way == "prepare":
        prepare("ttl", str(raw), str(out))
    else:
        public_way(raw)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"cpu_s": cpu, "wall_s": time.monotonic() - began, "peak_bytes": _peak() - memory}))


def _peak() -> int:
    """Return this process's largest resident size in bytes; `ru_maxrss` would count what the process was before it began this program."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _measure(way: str, raw: Path, out: Path, *, users: int, rows: int) -> Cost:
    command = [sys.executable, "-m", "dist_teracon.bench.data", "--work", way, str(raw), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"bench data: the process '{way}' failed: {done.stderr.strip().splitlines()[-1:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]), users=users, rows=rows)


def _rows(raw: Path) -> int:
    """Return the lines of all files."""
    total = 0
    for path in raw.iterdir():
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total += block.count(b"\n")
    return total


def compare(sizes: Sequence[int], *, public_users: int, rounds: int, folder: Path) -> tuple[list[Cost], list[Cost]]:
    """Measure the preparation at each size, and in turn with the public way at `public_users`.

    Returns:
        The cost at each size; the rounds of the comparison, the public way before the preparation.
    """
    from dist_teracon.data.synthetic.ttl import raw_files

    def raw_of(users: int) -> tuple[Path, int]:
        raw = folder / f"raw-{users}"
        if not raw.exists():
            raw_files(str(raw), users=users)
        return raw, _rows(raw)

    pairs = []
    raw, rows = raw_of(public_users)
    for turn in range(rounds):
        pairs += [_measure(way, raw, folder / f"{way}-{turn}", users=public_users, rows=rows) for way in ("public", "prepare")]
    found = []
    for users in sizes:
        raw, rows = raw_of(users)
        found.append(_measure("prepare", raw, folder / f"out-{users}", users=users, rows=rows))
    return found, pairs


def report(sizes: Sequence[Cost], pairs: Sequence[Cost]) -> str:
    """Return the tables as Markdown."""
    public, own = pairs[::2], pairs[1::2]
    cpu = float(np.median([slow.cpu_a_row / fast.cpu_a_row for slow, fast in zip(public, own, strict=True)]))
    header = ("way", "users", "rows", "CPU s", "µs a row", "users a CPU-second", "peak MB", "bytes a row")

    def line(name: str, cost: Cost) -> list[str]:
        return [
            name, f"{cost.users:,}", f"{cost.rows:,}", f"{cost.cpu_s:.1f}", f"{1e6 * cost.cpu_a_row:.2f}",
            f"{cost.users / cost.cpu_s:,.0f}", f"{cost.peak_bytes / 1e6:.0f}", f"{cost.memory_a_row:.0f}",
        ]  # fmt: skip

    lines = [line("public way", cost) for cost in public] + [line("prepare", cost) for cost in [*own, *sizes]]
    largest = max([*own, *sizes], key=lambda cost: cost.rows)
    memory = float(np.median([cost.memory_a_row for cost in public])) / largest.memory_a_row
    summary = [
        f"CPU-seconds a row, {own[0].users:,} users each: {cpu:.1f} times fewer than the public way (median of {len(own)} rounds).",
        f"Memory a row: {memory:.1f} times less ({largest.users:,} users against {public[0].users:,}).",
    ]
    return "\n".join((markdown_table(header, lines), "", *summary))


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=as_count, nargs="+", default=[100_000, 400_000, 1_470_000], help="sizes at which to prepare")
    parser.add_argument("--public-users", type=as_count, default=_PUBLIC_USERS, help="size at which both ways run")
    parser.add_argument("--rounds", type=as_count, default=3, help="rounds in which both ways run in turn")
    parser.add_argument("--folder", type=Path, help="where raw files and data sets lie (default: a temporary folder)")
    options = parser.parse_args(arguments)
    print(circumstances("numpy", "pyarrow"))
    with tempfile.TemporaryDirectory(prefix="bench-data-", dir=options.folder) as name:
        sizes, pairs = compare(options.users, public_users=options.public_users, rounds=options.rounds, folder=Path(name))
    print(report(sizes, pairs))


if __name__ == "__main__" and sys.argv[1:2] == ["--work"]:
    _work(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
