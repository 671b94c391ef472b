"""`dist-teracon bench scaling`: what a step of the first stage takes and holds on many GPUs: a model on paper (docs/distributed.md).

Nothing is trained. Times follow from bytes and stated link speeds, and from a step that was measured on one GPU (docs/performance.md).
`--measure` checks the model of an all-reduce on two processes of this machine.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_teracon.arguments import as_count, as_positive
from dist_teracon.bench.measure import circumstances, markdown_table

# A convolution stack of 16 layers of kernel size 3, with bias and LayerNorm: 16 · (3 · C² + 3 · C) numbers.
_CONVOLUTIONS, _KERNEL_SIZE = 16, 3
_NEGATIVES = 1024


@dataclass(frozen=True)
class Size:
    """What is trained.

    Attributes:
        name: What the table calls it.
        users, items, length: Of the data; the length is the mean one.
        channels: C; a representation has as many numbers (`pooling: mean`).
    """

    name: str
    users: int
    items: int
    length: int = 60
    channels: int = 256

    @property
    def backbone(self) -> int:
        """Numbers of the backbone."""
        return _CONVOLUTIONS * (_KERNEL_SIZE * self.channels**2 + 3 * self.channels)

    @property
    def tables(self) -> int:
        """Numbers of the item table and of the first task's head."""
        return self.items * (2 * self.channels + 1)


@dataclass(frozen=True)
class Machine:
    """A GPU and its links.

    Attributes:
        memory: Bytes.
        node: GPUs of a node.
        inside, between: Bytes a second and direction that a GPU sends within a node, and to other nodes.
        latency_inside, latency_between: Seconds of a message.
        row_s: Seconds of one sequence forward and backward, the sampled loss included.
        number_s: Seconds of AdamW and of copies between bf16 and masters, a number.
        host_s: Seconds of a step below which the host's launches decide.
    """

    memory: float = 80e9
    node: int = 8
    inside: float = 450e9
    between: float = 50e9
    latency_inside: float = 5e-6
    latency_between: float = 10e-6
    row_s: float = 11e-3 / 1024
    number_s: float = 9e-3 / 331e6
    host_s: float = 25e-3


@dataclass(frozen=True)
class Step:
    """What a step takes on a GPU: bytes of memory, bytes exchanged, seconds of computing and of exchanging."""

    memory: float
    exchanged: float
    compute_s: float
    exchange_s: float

    @property
    def seconds(self) -> float:
        """Return the step's time where exchange does not overlap with computing."""
        return self.compute_s + self.exchange_s


LAYOUTS = {
    "rows": "fp32, ZeRO 0, rows that were read are exchanged",
    "dense": "bf16, ZeRO 1, whole tables are exchanged",
    "sharded": "bf16, tables sharded by rows (a design, not built)",
}


def collective_s(size: float, ranks: int, machine: Machine, *, share: float = 2.0) -> float:
    """Return the seconds of a ring over `size` bytes: `share · (N − 1)/N · size / bandwidth + share · log₂(N) · latency`.

    Args:
        size: Bytes of the whole.
        ranks: N.
        machine: Its links; between nodes the slower one decides.
        share: 2 for an all-reduce; 1 for a reduce-scatter, an all-gather or an all-to-all.
    """
    if ranks == 1:
        return 0.0
    wide = ranks > machine.node
    speed, latency = (machine.between, machine.latency_between) if wide else (machine.inside, machine.latency_inside)
    return share * ((ranks - 1) / ranks * size / speed + math.log2(ranks) * latency)


def step_of(layout: str, size: Size, ranks: int, rows: int, machine: Machine) -> Step:
    """Return what a step of `rows` sequences a GPU takes.

    Args:
        layout: One of `LAYOUTS`.
        size: What is trained.
        ranks: Number of GPUs.
        rows: Sequences a GPU and step.
        machine: The GPU.
    """
    channels, positions = size.channels, rows * size.length
    read = min(size.items, positions) + min(size.items, positions + _NEGATIVES)  # rows of both tables that a GPU's batch reads
    vector, numbers = 4 * channels + 8, size.backbone + size.tables
    activations = 32 * 2 * channels * positions
    exchanged: float
    memory: float
    adam: float
    computed = rows * machine.row_s
    if layout == "rows":
        exchanged = 2 * 4 * size.backbone + read * ranks * vector
        seconds = collective_s(4 * size.backbone, ranks, machine) + collective_s(read * ranks * vector, ranks, machine, share=1)
        # weights, two moments and the teacher; gradients of the backbone, and of all ranks' rows
        memory = 16 * numbers + 4 * size.backbone + read * ranks * vector
        adam = (size.backbone + min(2 * size.items, read * ranks) * channels) * machine.number_s
    elif layout == "dense":
        exchanged = 4 * numbers + 2 * numbers
        seconds = collective_s(4 * numbers, ranks, machine, share=1) + collective_s(2 * numbers, ranks, machine, share=1)
        memory = (2 + 2 + 4) * numbers + 12 * numbers / ranks  # weights, gradients, the teacher in fp32; masters and moments
        adam = numbers / ranks * machine.number_s
    else:
        # rows of both tables come from their owners in bf16, their gradients go back in fp32; negatives are the same on all ranks
        travels, shared = 2 * (2 + 4) * positions * channels, 4 * (size.backbone + _NEGATIVES * channels)
        exchanged = travels + 2 * shared
        seconds = collective_s(travels, ranks, machine, share=1) + collective_s(shared, ranks, machine)
        memory = 20 * size.backbone + (2 + 2 + 12 + 4) * size.tables / ranks
        adam = (size.backbone + min(size.tables / ranks, read * channels)) * machine.number_s  # an owner steps as many rows as it sends
    return Step(memory + activations, exchanged if ranks > 1 else 0.0, max(machine.host_s, computed + adam), seconds)


def main(arguments: Sequence[str]) -> None:
    """Print the model's tables, and what was measured."""
    options = _parser().parse_args(arguments)
    machine = Machine(memory=options.memory * 1e9, node=options.node, inside=options.inside * 1e9, between=options.between * 1e9)
    sizes = (Size("TTL", 1_470_000, 645_974), Size("large", 100_000_000, 10_000_000))
    print(
        f"a model: {options.memory:g} GB, {options.node} GPUs a node, {options.inside:g} GB/s within and {options.between:g} GB/s between "
        f"nodes a GPU and direction, {options.rows} sequences a GPU and step"
    )
    print(markdown_table(
        ["size", "layout", "GPUs", "memory, GB", "exchanged, MB", "computing, ms", "exchange, ms", "efficiency", "steps an epoch"],
        [row for size in sizes for layout in LAYOUTS for row in _rows(layout, size, options.gpus, options.rows, machine)],
    ))  # fmt: skip
    print(f"\nitems that fit into {options.memory:g} GB: " + "; ".join(f"{LAYOUTS[name]}: {most}" for name, most in _most_items(machine)))
    if options.measure:
        print(f"\n{circumstances('torch')}")
        print(_measured())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dist-teracon bench scaling", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpus", type=as_count, nargs="+", default=[1, 8, 64, 512], help="numbers of GPUs (default: 1 8 64 512)")
    parser.add_argument("--rows", type=as_count, default=1024, help="sequences a GPU and step (default: 1024)")
    parser.add_argument("--memory", type=as_positive, default=80, help="GB of a GPU (default: 80)")
    parser.add_argument("--node", type=as_count, default=8, help="GPUs of a node (default: 8)")
    parser.add_argument("--inside", type=as_positive, default=450, help="GB/s a GPU and direction within a node (default: 450)")
    parser.add_argument("--between", type=as_positive, default=50, help="GB/s a GPU and direction between nodes (default: 50)")
    parser.add_argument("--measure", action="store_true", help="also check the model of an all-reduce on two processes here")
    return parser


def _rows(layout: str, size: Size, gpus: Sequence[int], rows: int, machine: Machine) -> list[list[str]]:
    alone = step_of("rows", size, 1, rows, machine).seconds  # as if one GPU held it all
    table = []
    for ranks in gpus:
        step = step_of(layout, size, ranks, rows, machine)
        fits = "" if step.memory <= machine.memory else " (too much)"
        table.append([
            size.name, LAYOUTS[layout], str(ranks), f"{step.memory / 1e9:.1f}{fits}", f"{step.exchanged / 1e6:,.0f}",
            f"{1e3 * step.compute_s:.1f}", f"{1e3 * step.exchange_s:.1f}", f"{alone / step.seconds:.0%}",
            f"{max(1, math.ceil(0.8 * size.users / (ranks * rows))):,}",
        ])  # fmt: skip
    return table


def _most_items(machine: Machine) -> list[tuple[str, str]]:
    """Return how many items fit into a GPU's memory, by layout, on 1 and on 64 GPUs."""
    found = []
    for layout in LAYOUTS:
        counts = []
        for ranks in (1, 64):
            low, high = 1, 1 << 40
            while high - low > 1:
                middle = (low + high) // 2
                fits = step_of(layout, Size("", 1, middle), ranks, 1, machine).memory <= machine.memory
                low, high = (middle, high) if fits else (low, middle)
            counts.append(f"{low / 1e6:,.1f}M on {ranks}")
        found.append((layout, ", ".join(counts)))
    return found


# -- the check

_SIZES_MB = (1, 4, 16, 64)


def _measured() -> str:
    """Return a table: an all-reduce of two processes, and what the line through its smallest and largest size says of the others."""
    from torch import multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context: Any = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [context.Process(target=_all_reduce, args=(rank, port, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        return "the check failed: a process of it ended with an error"
    times = results.get()
    fixed, speed = fitted(_SIZES_MB[0], times[0], _SIZES_MB[-1], times[-1])
    rows = [
        [f"{size}", f"{1e3 * measured:.2f}", f"{1e3 * (fixed + size * 1e6 / speed):.2f}"]
        for size, measured in zip(_SIZES_MB, times, strict=True)
    ]
    table = markdown_table(["all-reduce of 2 processes (gloo), MB", "measured, ms", "model, ms"], rows)
    return f"{table}\nlatency {1e3 * fixed:.2f} ms, {speed / 1e9:.2f} GB/s a direction (2 · (N − 1)/N = 1 at N = 2)"


def fitted(small: float, small_s: float, large: float, large_s: float) -> tuple[float, float]:
    """Return latency in seconds and bytes a second of the line through two measurements, sizes in MB."""
    slope = max((large_s - small_s) / ((large - small) * 1e6), 1e-15)
    return max(0.0, small_s - small * 1e6 * slope), 1 / slope


def _all_reduce(rank: int, port: int, results: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo")
    times = []
    for size in _SIZES_MB:
        values = torch.ones(size * 250_000)
        taken = []
        for _ in range(7):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            taken.append(time.perf_counter() - began)
        times.append(sorted(taken)[len(taken) // 2])
    if not rank:
        results.put(times)
    dist.destroy_process_group()
