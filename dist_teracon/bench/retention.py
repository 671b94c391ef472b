"""`dist-teracon bench retention`: what retention costs in the sixth stage, by replayed rows and by the labels of the first task.

Three tables: a step with past heads that learn on and with frozen ones, over one without retention; bytes of the store; the teacher's
pass over plain inference. The pass writes two files a shard, whatever is in them: with fewer than some thousand users these decide. The
data are random; only cost is measured. What frozen heads keep is a matter of whole runs
(`dist-teracon compare configs/compare/frozen-heads.yaml`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_teracon.arguments import as_count, as_share
from dist_teracon.bench.measure import Timing, alternate, circumstances, markdown_table, median_ratio, peak_memory, use_one_thread

if TYPE_CHECKING:
    from dist_teracon.bench.our_stage import OurStage
    from dist_teracon.continual.teracon import Teracon

_TASKS = 6
# So large a c makes every ρ the floor, so that the rows of a step are those that are asked for.
_FLOOR_ALONE = 1000.0


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its tables."""
    options = _parser().parse_args(arguments)
    use_one_thread()
    from dist_teracon.runtime import process_group

    print(circumstances("dist-teracon", "torch", "deepspeed"))
    steps: list[list[str]] = []
    passes: list[list[str]] = []
    with process_group() as runtime, tempfile.TemporaryDirectory() as folder:
        for labels in options.labels:
            _measure(options, labels, runtime, Path(folder) / str(labels), steps, passes)
    print(markdown_table(["labels of T1", "rho", "rows a step", "past heads", "CPU-ms a step", "times no retention"], steps))
    print()
    header = ["labels of T1", "store", "users", "bytes a user and past task", "pass, users a CPU-s", "plain inference", "pass / plain"]
    print(markdown_table(header, passes))
    print(f"\npeak memory of this process: {peak_memory() / 2**20:.0f} MiB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dist-teracon bench retention", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--labels", type=as_count, nargs="+", default=[2000, 646_000], help="items, T1's labels (default: 2000 646000)")
    parser.add_argument("--rho", type=as_share, nargs="+", default=[0.01, 0.08], help="sampling rates (default: 0.01 0.08)")
    parser.add_argument("--users", type=as_count, default=2000, help="users, all with labels of every task (default: 2000)")
    parser.add_argument("--length", type=as_count, default=60, help="items of a sequence (default: 60)")
    parser.add_argument("--channels", type=as_count, default=256, help="width (default: 256)")
    parser.add_argument("--batch", type=as_count, default=256, help="examples a step (default: 256)")
    parser.add_argument("--steps", type=as_count, default=3, help="steps timed at a time (default: 3)")
    parser.add_argument("--repeats", type=as_count, default=3, help="rounds that count (default: 3)")
    return parser


def _measure(
    options: argparse.Namespace, labels: int, runtime: Any, folder: Path, steps: list[list[str]], passes: list[list[str]]
) -> None:  # fmt: skip
    from dist_teracon.bench.replay import random_dataset

    dataset = random_dataset(folder / "set", _TASKS, users=options.users, items=labels, length=options.length)
    for rho in options.rho:
        stages = _stages(options, dataset, max(1, round(rho * options.batch)), runtime, folder / f"{rho}")
        steps += [[str(labels), f"{rho:g}", *row] for row in _step_rows(stages, options)]
        if rho == options.rho[-1]:
            passes += [
                [str(labels), *_pass_row(number, stages[kind], folder / f"{rho}" / kind, options.repeats)]
                for kind, number in (("trained", "fp32"), ("frozen", "fp16"))
            ]
        for stage in stages.values():
            stage.engine.release()
        del stages  # gigabytes, which the next rate's would stand beside


_KINDS: Mapping[str, Mapping[str, Any]] = {
    "no retention": {"alpha": 0.0},
    "frozen": {"heads": "frozen", "store": "fp16"},
    "trained": {"heads": "trained"},
}


def _stages(options: argparse.Namespace, dataset: str, rows: int, runtime: Any, folder: Path) -> dict[str, OurStage]:
    folder.mkdir()
    return {
        kind: _stage(options, dataset, rows, {**retention, "constant": _FLOOR_ALONE}, runtime, folder / kind)
        for kind, retention in _KINDS.items()
    }


def _step_rows(stages: Mapping[str, OurStage], options: argparse.Namespace) -> list[list[str]]:
    timings = alternate({kind: _some_steps(stage, options.steps) for kind, stage in stages.items()}, repeats=options.repeats)
    return [
        [
            str(sum(stages[kind].method.logs().get("rows", {}).values())), kind, f"{1000 * timing.median / options.steps:.1f}",
            f"{median_ratio(timing, timings['no retention']):.2f}",
        ]
        for kind, timing in timings.items()
    ]  # fmt: skip


def _stage(options: argparse.Namespace, dataset: str, rows: int, retention: Mapping[str, Any], runtime: Any, folder: Path) -> OurStage:
    from dist_teracon.bench.our_stage import Size, our_stage

    # as configs/ttl.yaml: `concat` would double a head of so many labels
    size = Size(dataset, options.channels, options.batch, replayed=rows, retention=retention, pooling="mean")
    return our_stage(size, options.channels, _TASKS, "fp32", runtime, folder)


def _some_steps(stage: OurStage, count: int) -> Callable[[], None]:
    """Return what takes the next `count` steps, epoch after epoch."""

    def batches() -> Any:
        while True:
            stage.epochs += 1
            stage.method.begin_epoch(stage.epochs)
            yield from stage.loader.epoch(stage.epochs)

    ready = batches()

    def run() -> None:
        for _ in range(count):
            stage.step(next(ready))

    return run


def _pass_row(number: str, stage: OurStage, folder: Path, repeats: int) -> list[str]:
    """Return the row of a store: its size, and the pass that makes it over inference of the same users."""
    from dist_teracon.continual.replayed_users import PastPool
    from dist_teracon.continual.teracon import Teracon

    method, dataset = stage.method, stage.loader.dataset
    assert isinstance(method, Teracon)
    past = method.learned[0]
    everyone = [dataset.labels(method.learned[-1], shard).users for shard in range(dataset.info.shards)]
    pool = PastPool(past, method.mask_index(past), everyone)
    users = sum(len(rows) for rows in everyone)
    candidates = {"pass": _teacher_pass(method, dataset, pool, folder / "again", number), "plain": _inference(method, dataset, pool)}
    timings = alternate(candidates, repeats=repeats)
    stored = sum(path.stat().st_size for path in (folder / "again").rglob("*.arrow"))
    rate = {name: _rate(users, timing) for name, timing in timings.items()}
    share = median_ratio(timings["plain"], timings["pass"])
    return [number, str(users), f"{stored / users:.0f}", rate["pass"], rate["plain"], f"{share:.2f}"]


def _rate(users: int, timing: Timing) -> str:
    return f"{users / timing.median:,.0f}"


def _teacher_pass(method: Teracon, dataset: Any, pool: Any, folder: Path, number: str) -> Callable[[], None]:
    import shutil

    from dist_teracon.continual.pseudo_labels import write_pseudo_labels

    def run() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shards = range(dataset.info.shards)
        for _ in write_pseudo_labels(method.answer, dataset, [pool], folder=folder, shards=shards, half=number == "fp16"):
            pass

    return run


def _inference(method: Teracon, dataset: Any, pool: Any) -> Callable[[], None]:
    """Return what encodes the same users, 1,024 at a time, and keeps nothing."""
    import torch

    from dist_teracon.continual.pseudo_labels import plain_batch
    from dist_teracon.data.batches import take_rows

    @torch.inference_mode()
    def run() -> None:
        assert method.teacher is not None and method.teacher_masks is not None
        for shard, rows in enumerate(pool.rows):
            data = dataset.shard(shard)
            for first in range(0, len(rows), 1024):
                batch = plain_batch(take_rows(data.values, data.offsets, rows[first : first + 1024]), pool.mask_index)
                method.teacher.encode(batch, method.teacher_masks, positions="last")

    return run
