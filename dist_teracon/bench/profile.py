"""Where a training step's time goes: the ranges that the product's own code marks, as torch's profiler records them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile, record_function

# range -> part of the table. A range is a `record_function` of that name in train/step.py, data/loader.py, models/ or continual/; torch
# marks every optimiser's step itself.
PARTS = {
    "data": "waiting for data",
    "replay": "replayed rows",
    "forward": "engine around forward",
    "masks": "masks",
    "encode": "embedding and pooling",
    "layout": "layout",
    "blocks": "blocks",
    "heads": "heads and losses",
    "backward": "backward",
    "step": "engine around the optimiser",
    "optimiser": "optimiser",
    "project": "clamp",
    "epoch": "loop",
}
_ARITHMETIC = ("masks", "encode", "blocks", "heads", "backward", "optimiser")
_OPTIMISER = "Optimizer.step#"


class Span(NamedTuple):
    """A range as recorded: name, start and end in seconds."""

    name: str
    start: float
    end: float


def profile_epochs(epoch: Callable[[], object], *, repeats: int) -> dict[str, float]:
    """Run epochs under the profiler; returns seconds of wall time by range, without those of the ranges within."""
    seconds: dict[str, float] = defaultdict(float)
    for _ in range(repeats):
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as trace, record_function("epoch"):
            epoch()
        for name, own in own_seconds(_spans(trace)).items():
            seconds[name] += own
    return dict(seconds)


def _spans(trace: profile) -> list[Span]:
    """Return the product's ranges of the thread that trains."""
    events = [event for event in trace.events() or () if event.device_type.name == "CPU"]
    thread = next(event.thread for event in events if event.name == "epoch")
    named = (("optimiser" if event.name.startswith(_OPTIMISER) else event.name, event) for event in events if event.thread == thread)
    return [Span(name, event.time_range.start / 1e6, event.time_range.end / 1e6) for name, event in named if name in PARTS]


def own_seconds(spans: Iterable[Span]) -> dict[str, float]:
    """Return each name's time without that of the spans within; spans lie side by side or one within the other."""
    seconds: dict[str, float] = defaultdict(float)
    within: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        while within and within[-1].end <= span.start:
            within.pop()
        seconds[span.name] += span.end - span.start
        if within:
            seconds[within[-1].name] -= span.end - span.start
        within.append(span)
    return dict(seconds)


def table(seconds: Mapping[str, float], *, steps: int) -> list[list[str]]:
    """Return rows: part, milliseconds a step, share."""
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [[PARTS[name], f"{own / steps * 1e3:.2f}", f"{own / total:.1%}"] for name, own in ordered]


def overhead(seconds: Mapping[str, float]) -> float:
    """Return the share of what is not arithmetic: data, engine, Python between the parts."""
    return sum(own for name, own in seconds.items() if name not in _ARITHMETIC) / sum(seconds.values())
