"""Where the time of training steps goes: the report's table, a row a stage."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from dist_teracon.report.axes import stage_title
from dist_teracon.report.events import Step
from dist_teracon.report.run_data import RunData
from dist_teracon.report.values import NO_BREAK, NONE, count_text, number_text, share_text

# Part of a step in the log -> what the table calls it.
PARTS = {"data": "data", "forward": "forward", "backward": "backward", "wait": "exchange and waiting", "optimiser": "optimiser"}


def step_times(run: RunData) -> dict[str, Any] | None:
    """Return the table's columns and rows, or None for a run whose log has no times of steps."""
    stages = {stage: [step for step in run.events.steps_of(stage) if step.seconds.get("step")] for stage in run.events.stages}
    timed = {stage: steps for stage, steps in stages.items() if steps}
    if not timed:
        return None
    has_mfu = any(step.mfu is not None for steps in timed.values() for step in steps)
    columns = ["users a second", "ms a step", *PARTS.values(), "largest memory", *(["MFU"] if has_mfu else [])]
    rows = [[stage_title(run, stage), *_cells(steps, has_mfu=has_mfu)] for stage, steps in timed.items()]
    return {"columns": columns, "rows": rows}


def _cells(steps: Sequence[Step], *, has_mfu: bool) -> list[str]:
    rates = [step.users_per_s for step in steps if step.users_per_s]
    whole = fmean(step.seconds["step"] for step in steps)
    parts = [share_text(fmean(step.seconds.get(part, 0.0) for step in steps) / whole) for part in PARTS]
    memory = max((step.memory_bytes for step in steps if step.memory_bytes), default=None)
    used = [step.mfu for step in steps if step.mfu is not None]
    return [
        count_text(round(median(rates)) if rates else None),
        number_text(1000 * whole, 1),
        *parts,
        NONE if memory is None else f"{memory / 2**30:.1f}{NO_BREAK}GiB",
        *([share_text(median(used) if used else None)] if has_mfu else []),
    ]
