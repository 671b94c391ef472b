"""`dist-teracon bench heads`: a training step with hundreds of thousands of labels, scores over them, and Adam on such tables."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

from dist_teracon.arguments import as_count, as_whole
from dist_teracon.bench.measure import PeakMemory, alternate, circumstances, markdown_table
from dist_teracon.data.batches import PackedBatch
from dist_teracon.engine.sparse_adamw import SparseAdamW
from dist_teracon.evaluate.candidates import score_rows
from dist_teracon.evaluate.metrics import reciprocal_rank
from dist_teracon.models.heads import Head, cross_entropy_sum
from dist_teracon.models.network import Network
from dist_teracon.models.nextitnet import NextItNet, NextItNetSettings
from dist_teracon.models.sampled_softmax import Negatives


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench heads", description=__doc__)
    parser.add_argument("--sizes", type=as_count, nargs="+", default=[161_493, 322_987, 645_974], help="numbers of labels")
    parser.add_argument("--channels", type=as_count, default=256)
    parser.add_argument("--users", type=as_count, default=32, help="sequences a batch")
    parser.add_argument("--length", type=as_count, default=100)
    parser.add_argument("--scored", type=as_count, default=10_000, help="users to score")
    parser.add_argument("--repeats", type=as_count, default=3)
    parser.add_argument("--warm-up", type=as_whole, default=1, help="rounds before those that count")
    parser.add_argument("--draws", type=as_count, default=200, help="draws of negatives from which a bias is taken")
    parser.add_argument("--skip", nargs="*", default=[], choices=sorted(_PARTS), help="leave parts out")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        part, items = options.inside.split(":")
        print(json.dumps(_PARTS[part](options, int(items))))
        return
    for part in _PARTS:
        if part in options.skip:
            continue
        sizes = options.sizes if part != "bias" else [min(max(options.sizes), 20_000)]
        rows: list[list[str]] = []
        for items in sizes:
            # a process each, so that a peak is that part's own
            command = [sys.executable, "-m", "dist_teracon.cli", "bench", "heads", *arguments, "--inside", f"{part}:{items}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows += [[f"{items:,}", *row] for row in json.loads(done.stdout)]
        print(f"\n{_TITLES[part]}\n\n{markdown_table(['labels', *_HEADERS[part]], rows)}", flush=True)
    print(f"\n{options.users} × {options.length} positions, {options.channels} channels, one thread; {circumstances('torch', 'numpy')}")


def _steps(options: argparse.Namespace, items: int) -> list[list[str]]:
    """A whole step of T1: backbone, head, Adam on both tables, on all rows or (lazy) on those read."""
    torch.set_num_threads(1)
    rows = []
    for kind in ("full", "full, lazy", "sampled", "sampled, lazy"):
        with PeakMemory() as peak:
            step, model = _step(options, items, kind)
            timing = alternate({kind: step}, repeats=options.repeats, warm_up=options.warm_up)[kind]
        rows.append([kind, f"{timing.median:.2f}", f"{peak.most / 1e9:.2f}"])
        del step, model
    return rows


def _step(options: argparse.Namespace, items: int, kind: str) -> tuple[Callable[[], None], Network]:
    generator = torch.Generator().manual_seed(0)
    backbone = NextItNet(NextItNetSettings(), num_items=items, channels=options.channels, generator=generator, pooling="mean")
    model = Network(backbone)
    model.add_task("next", items, generator=generator)
    exact, lazy = kind.startswith("full"), kind.endswith("lazy")
    # an exact loss gives every label a gradient, so there the item table alone can be lazy
    backbone.item_embedding.sparse, model.head("next").sparse = lazy, lazy and not exact
    optimiser = SparseAdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    counts = (1e6 / torch.arange(1, items + 1)).long().clamp_min(1)
    negatives = Negatives(1024, "log_uniform", counts, 0)
    positions = options.users * options.length
    number = 0

    def step() -> None:
        nonlocal number
        values = torch.randint(items, (positions,), dtype=torch.int32, generator=generator)
        labels = torch.randint(items, (positions,), generator=generator)
        batch = PackedBatch.from_sequences(list(values.view(options.users, options.length).numpy()), positions="all")
        hidden = model.encode(batch, None)
        head = model.head("next")
        loss = cross_entropy_sum(head, hidden, labels) if exact else negatives.loss(head, hidden, labels, epoch=1, step=number)
        (loss / positions).backward()
        optimiser.step()
        optimiser.zero_grad()
        number += 1

    return step, model


def _scores(options: argparse.Namespace, items: int) -> list[list[str]]:
    """Ranks of one label a user among all."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    head = Head(options.channels, items, generator=generator).requires_grad_(False)
    hidden = torch.randn(options.scored, options.channels, generator=generator)
    labels = torch.randint(items, (options.scored,), generator=generator)
    began, wall = time.process_time(), time.perf_counter()
    with PeakMemory() as peak:
        for first in range(0, options.scored, 512):
            part = slice(first, first + 512)
            index = torch.arange(hidden[part].shape[0])
            found = reciprocal_rank(score_rows(head, hidden[part], index, labels[part]), k=5)
    assert found.shape == labels[part].shape
    return [[f"{options.scored:,}", f"{time.process_time() - began:.1f}", f"{time.perf_counter() - wall:.1f}", f"{peak.most / 1e9:.2f}"]]


def _adam(options: argparse.Namespace, items: int) -> list[list[str]]:
    """Adam on an item table of which a batch touches few rows: all rows, or those touched alone."""
    torch.set_num_threads(1)
    rows = []
    for name, sparse in (("all rows", False), ("rows read", True)):
        with PeakMemory() as peak:
            generator = torch.Generator().manual_seed(0)
            table = torch.nn.Parameter(torch.randn(items, options.channels, generator=generator))
            optimiser = SparseAdamW([table], lr=1e-3)

            def step(table=table, optimiser=optimiser, generator=generator, sparse=sparse) -> None:  # type: ignore[no-untyped-def]
                values = torch.randint(items, (options.users * options.length,), generator=generator)
                torch.nn.functional.embedding(values, table, sparse=sparse).square().sum().backward()
                optimiser.step()
                optimiser.zero_grad()

            timing = alternate({name: step}, repeats=options.repeats, warm_up=options.warm_up)[name]
        rows.append([name, f"{timing.median * 1000:,.1f}", f"{peak.most / 1e9:.2f}"])
        del step, table, optimiser
    return rows


def _bias(options: argparse.Namespace, items: int) -> list[list[str]]:
    """Loss and gradient of the sampled softmax against the exact ones: the mean over draws, and one draw's error."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    head = Head(64, items, generator=generator)
    with torch.no_grad():
        head.weight.copy_(torch.randn(items, 64, generator=generator) * 0.2)
    counts = (1e6 / torch.arange(1, items + 1)).long().clamp_min(1)
    labels = torch.multinomial(counts.double(), 200, replacement=True, generator=generator)
    hidden = torch.randn(200, 64, generator=generator)

    def probe(loss: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, torch.Tensor]:
        head.zero_grad()
        given = hidden.clone().requires_grad_()
        value = loss(given)
        value.backward()
        assert given.grad is not None
        return float(value.detach()) / 200, given.grad.flatten()

    exact, exact_gradient = probe(lambda given: cross_entropy_sum(head, given, labels))
    rows = []
    for distribution in ("log_uniform", "in_batch"):
        for count in (64, 256, 1024) if distribution == "log_uniform" else (64, 200):
            of_draws = Negatives(count, distribution, counts, 0)
            found = [probe(lambda given, s=step, n=of_draws: n.loss(head, given, labels, epoch=1, step=s)) for step in range(options.draws)]  # type: ignore[misc]
            gradients = torch.stack([gradient for _, gradient in found])
            mean = sum(value for value, _ in found) / len(found)
            bias = float((gradients.mean(0) - exact_gradient).norm() / exact_gradient.norm())
            error = float((gradients - exact_gradient).norm(dim=1).mean() / exact_gradient.norm())
            rows.append([f"{distribution}, {count}", f"{mean:.4f}", f"{mean - exact:+.4f}", f"{bias:.3f}", f"{error:.3f}"])
    return [["exact", f"{exact:.4f}", "", "", ""], *rows]


_PARTS: dict[str, Callable[[argparse.Namespace, int], list[list[str]]]] = {
    "step": _steps,
    "scores": _scores,
    "adam": _adam,
    "bias": _bias,
}
_TITLES = {
    "step": "One training step of the next-item task, backbone, head and Adam included",
    "scores": "Scores by full ranking",
    "adam": "Adam on the item table, embedding's backward included",
    "bias": "Sampled against exact softmax: loss an example and its gradient with respect to the representations",
}
_HEADERS = {
    "step": ["loss", "CPU s a step", "peak beyond the start, GB"],
    "scores": ["users", "CPU s", "wall s", "peak beyond the head, GB"],
    "adam": ["advanced", "CPU ms a step", "peak beyond the start, GB"],
    "bias": ["negatives", "loss", "bias of the loss", "relative bias of the gradient", "relative error of one draw"],
}
