"""`dist-teracon bench step`: epochs of training against the plain eager way, on the same data, and where a step's time goes."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import Timing, alternate, circumstances, markdown_table, median_ratio, peak_memory, use_one_thread


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its tables."""
    options = _parser().parse_args(arguments)
    use_one_thread()
    from dist_teracon.runtime import process_group

    with process_group() as runtime, tempfile.TemporaryDirectory() as folder:
        from dist_teracon.bench.our_stage import Size

        size = Size(options.dataset, channels=0, batch=options.batch, replayed=options.replayed)
        print(circumstances("dist-teracon", "torch", "deepspeed"))
        if options.profile:
            _profile(options, size, runtime, Path(folder))
        else:
            _compare(options, size, runtime, Path(folder))
    print(f"\npeak memory of this process: {peak_memory() / 2**20:.0f} MiB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dist-teracon bench step", description=__doc__)
    parser.add_argument("--dataset", default="synthetic:six-tasks-v1?users=4000", help="a prepared data set (default: %(default)s)")
    parser.add_argument("--channels", type=as_count, nargs="+", default=[64, 256], help="widths (default: 64 256)")
    parser.add_argument("--stages", type=as_count, nargs="+", default=[2, 6], help="which stages, counted from 1 (default: 2 6)")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"], help="ours; the plain one is fp32")
    parser.add_argument("--batch", type=as_count, default=256, help="examples a step (default: 256)")
    parser.add_argument("--replayed", type=as_count, default=64, help="replayed rows a past task and step, in both (default: 64)")
    parser.add_argument("--repeats", type=as_count, default=3, help="epochs of each that count (default: 3)")
    parser.add_argument("--profile", action="store_true", help="instead, print where a step's time goes")
    return parser


def _compare(options: argparse.Namespace, size: object, runtime: object, folder: Path) -> None:
    from dist_teracon.bench.our_stage import Size, check_stages, eager_stage, our_stage, plain_stacks
    from dist_teracon.runtime import Runtime

    assert isinstance(size, Size)
    assert isinstance(runtime, Runtime)
    check_stages(size.dataset, options.stages)
    rows = []
    for channels in options.channels:
        stacks = alternate(plain_stacks(size, channels), repeats=options.repeats)
        ratio = median_ratio(stacks["ours plain"], stacks["bare Conv2d"])
        print(f"width {channels}: the plain stack with masks takes {ratio:.2f} times a bare Conv2d stack (fair if at most 1.2)")
        for stage in options.stages:
            candidates = {"eager": eager_stage(size, channels, stage).epoch}
            for precision in options.precision:
                candidates[precision] = our_stage(
                    size, channels, stage, precision, runtime, folder / f"{channels}-{stage}-{precision}"
                ).epoch
            timings = alternate(candidates, repeats=options.repeats)
            rows.append([str(stage), str(channels), *_cells(timings, options.precision)])
    header = ["stage", "width", "eager fp32, CPU-s an epoch", *(f"ours {p}, CPU-s | times less" for p in options.precision)]
    print(markdown_table([part for name in header for part in name.split(" | ")], rows))


def _cells(timings: dict[str, Timing], precisions: Sequence[str]) -> Iterator[str]:
    yield f"{timings['eager'].median:.2f}"
    for precision in precisions:
        yield f"{timings[precision].median:.2f}"
        yield f"{median_ratio(timings['eager'], timings[precision]):.1f}"


def _profile(options: argparse.Namespace, size: object, runtime: object, folder: Path) -> None:
    from dist_teracon.bench.our_stage import Size, our_stage
    from dist_teracon.bench.profile import overhead, profile_epochs, table
    from dist_teracon.runtime import Runtime

    assert isinstance(size, Size)
    assert isinstance(runtime, Runtime)
    for channels in options.channels:
        for stage in options.stages:
            trained = our_stage(size, channels, stage, "fp32", runtime, folder / f"{channels}-{stage}")
            trained.epoch()
            before = trained.steps
            seconds = profile_epochs(trained.epoch, repeats=options.repeats)
            steps = trained.steps - before
            print(f"\nstage {stage}, width {channels}, {steps} steps: milliseconds of wall time a step, under the profiler")
            print(markdown_table(["part", "ms", "share"], table(seconds, steps=steps)))
            print(f"engine and Python together: {overhead(seconds):.1%}")
