"""`dist-teracon bench gpu-step`: a training step on a GPU as a run takes it, how much of it the GPU works, and what waits for the GPU."""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import circumstances, markdown_table
from dist_teracon.errors import RunError

_WARM, _TIMED, _PROFILED = 10, 30, 6
_SHOWN = 12
_ORDERS = ("self_cuda_time_total", "cpu_time_total")


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its tables.

    Raises:
        RunError: no GPU is visible.
    """
    parser = argparse.ArgumentParser(prog="dist-teracon bench gpu-step", description=__doc__)
    parser.add_argument("dataset", help="a prepared data set, as of `prepare synthetic OUT --like ttl --users 60000`")
    parser.add_argument("--stages", type=as_count, nargs="+", default=[1, 2], help="which stages, counted from 1 (default: 1 2)")
    parser.add_argument("--batch", type=as_count, default=1024, help="rows or examples a step (default: 1024)")
    parser.add_argument("--channels", type=as_count, default=256, help="width (default: 256)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="bf16 runs in ZeRO 1 (default: bf16)")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep torch's table of operations there, a file a stage")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        raise RunError("bench gpu-step: no NVIDIA GPU is visible; `dist-teracon bench step` measures a CPU")
    from dist_teracon.bench.our_stage import check_stages
    from dist_teracon.runtime import process_group

    print(circumstances("dist-teracon", "torch", "triton", "deepspeed"))
    print(torch.cuda.get_device_name())
    rows, operations = [], []
    with process_group() as runtime, tempfile.TemporaryDirectory() as folder:
        check_stages(options.dataset, options.stages)
        for stage in options.stages:
            row, table = _stage(options, stage, runtime, Path(folder) / str(stage))
            rows.append(row)
            operations.append(table)
    print(markdown_table(["stage", "a step, ms", "p20", "p80", "the GPU works, ms", "memory, GB", "waits for the GPU a step"], rows))
    print("\n\n".join(operations))


def _stage(options: argparse.Namespace, stage: int, runtime: Any, folder: Path) -> tuple[list[str], str]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from dist_teracon.bench.our_stage import Size, our_stage

    size = Size(options.dataset, channels=options.channels, batch=options.batch, replayed=64, first_batch=options.batch)
    ours = our_stage(size, options.channels, stage, options.precision, runtime, folder)
    batches = _batches(ours)

    def steps(count: int) -> None:
        for batch in itertools.islice(batches, count):
            ours.step(batch)

    steps(_WARM)
    times = []
    for _ in range(_TIMED):
        torch.cuda.synchronize()
        began = time.perf_counter()
        steps(1)
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    low, middle, high = statistics.quantiles(times, n=5)[0], statistics.median(times), statistics.quantiles(times, n=5)[3]
    waits = _waits(steps)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as trace:
        steps(_PROFILED)
        torch.cuda.synchronize()
    averages = trace.key_averages()
    # ranges that the code marks cover kernels that are listed themselves
    kernels = [entry for entry in averages if entry.device_type.name == "CUDA" and not entry.is_user_annotation]
    busy = sum(entry.self_device_time_total for entry in kernels) / _PROFILED / 1e3
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        tables = [averages.table(sort_by=by, row_limit=60, max_name_column_width=80) for by in _ORDERS]
        (options.save / f"stage-{stage}-{options.precision}.txt").write_text("\n".join(tables), encoding="utf-8")
    listed = sorted(kernels, key=lambda entry: -entry.self_device_time_total)[:_SHOWN]
    table = markdown_table(
        [f"stage {stage}, on the GPU", "ms a step", "calls a step"],
        [[entry.key[:90].replace("|", "/"), f"{entry.self_device_time_total / _PROFILED / 1e3:.2f}", f"{entry.count / _PROFILED:.0f}"]
         for entry in listed],
    )  # fmt: skip
    memory = torch.cuda.max_memory_allocated() / 1e9
    told = ", ".join(f"{count:g} at {place}" for place, count in waits) or "none"
    return [str(stage), f"{middle:.1f}", f"{low:.1f}", f"{high:.1f}", f"{busy:.1f}", f"{memory:.1f}", told], table


def _batches(ours: Any) -> Iterator[Any]:
    for epoch in itertools.count(1):
        ours.method.begin_epoch(epoch)
        yield from ours.loader.epoch(epoch)


def _waits(steps: Any) -> list[tuple[str, float]]:
    """Return where the host waits for the GPU, and how often a step: the innermost frames of our own and of DeepSpeed's code."""
    import torch

    found: Counter[str] = Counter()

    def note(*_arguments: Any, **_named: Any) -> None:
        frames = [frame for frame in traceback.extract_stack() if "dist_teracon" in frame.filename or "deepspeed" in frame.filename]
        own = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if Path(frame.filename).name != Path(__file__).name]
        found[own[-1] if own else "elsewhere"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            steps(2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [(place, count / 2) for place, count in found.most_common()]
