"""`dist-teracon bench companions`: a head's cross-entropy, retention's squared error and rank counting against torch's own ways.

Legend: E examples, C channels, Y labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import PeakMemory, alternate, circumstances, markdown_table, median_ratio
from dist_teracon.evaluate.candidates import count_candidates
from dist_teracon.models.heads import Head, cross_entropy_sum, rows_at_once, squared_error_sum

Candidates = dict[str, Callable[[], object]]


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        prog="dist-teracon bench companions", description="What goes with the stack, against torch's own ways."
    )
    parser.add_argument(
        "--shapes", nargs="+", default=["1300x64x500", "1300x64x5000", "1024x256x50000"], help="E x C x Y (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=as_count, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for shape in options.shapes:
        examples, channels, labels = map(int, shape.split("x"))
        for name, candidates in _problems(examples, channels, labels).items():
            timings = alternate(candidates, repeats=options.repeats)
            first = next(iter(candidates))  # torch's own
            for which, run in candidates.items():
                with PeakMemory() as peak:
                    run()
                ratio = median_ratio(timings[first], timings[which])
                measured = [f"{timings[which].median * 1e3:.1f}", f"{ratio:.2f}", f"{peak.most / 2**20:.0f}"]
                rows.append([name, f"{examples:,} × {channels} × {labels:,}", which, *measured])
    print(circumstances("dist-teracon", "torch"))
    print(markdown_table(["what", "E × C × Y", "way", "CPU ms", "times less", "peak MB"], rows))


def _problems(examples: int, channels: int, labels: int) -> dict[str, Candidates]:
    generator = torch.Generator().manual_seed(0)
    head, teacher = (Head(channels, labels, generator=generator) for _ in range(2))
    teacher.requires_grad_(False)
    hidden = torch.randn(examples, channels, generator=generator).requires_grad_()
    expected = torch.randn(examples, channels, generator=generator)
    target = torch.randint(0, labels, (examples,), generator=generator)

    def differentiated(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), (hidden, head.weight, head.bias))

    def ranked() -> Tensor:
        logits = head(hidden)
        return (logits.argsort(dim=1, descending=True) == target[:, None]).nonzero()

    def counted() -> list[object]:
        parts = torch.arange(examples).split(rows_at_once(labels))
        return [count_candidates(head(hidden[part]), target[part]) for part in parts]

    def best() -> Tensor:
        return head(hidden).topk(min(labels, 5), dim=1).indices

    with torch.no_grad():
        answers = teacher(expected)
    return {
        "cross-entropy, forward and backward": {
            "F.cross_entropy": differentiated(lambda: F.cross_entropy(head(hidden), target, reduction="sum")),
            "F.linear_cross_entropy": differentiated(
                lambda: F.linear_cross_entropy(hidden, head.weight, target, linear_bias=head.bias, reduction="sum")
            ),
            "ours": differentiated(lambda: cross_entropy_sum(head, hidden, target)),
        },
        "squared error to a teacher, forward and backward": {
            "F.mse_loss": differentiated(lambda: F.mse_loss(head(hidden), answers, reduction="sum")),
            "ours, logits stored": differentiated(lambda: squared_error_sum(head, hidden, answers, None)),
            "ours, representations stored": differentiated(lambda: squared_error_sum(head, hidden, expected, teacher)),
        },
        "rank of the target": {
            "argsort": torch.no_grad()(ranked),
            "topk (5), no rank beyond": torch.no_grad()(best),
            "ours": torch.no_grad()(counted),
        },
    }
