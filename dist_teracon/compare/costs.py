"""What each task of a finished run cost: seconds of its stage, and the parameters and bytes of weights that it added."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from dist_teracon import io
from dist_teracon.data.schema import folder_of
from dist_teracon.train.stage_folder import TAKEN_OVER


@dataclass(frozen=True)
class TaskCost:
    """A task's part of a run.

    Attributes:
        seconds: Training, pseudo-labels and evaluation of its stage.
        parameters: Floating-point numbers among the weights that its stage added.
        bytes: All that its stage added to the weights' file, masks and owners of weights included.
        stage_time: All that the stage measured, as JSON; a stage that another run took over has the same.
        taken_over: Whether the run took the stage over from another one.
    """

    seconds: float
    parameters: int
    bytes: int
    stage_time: str = ""
    taken_over: bool = False


def read_costs(run: Path) -> dict[str, TaskCost]:
    """Return the cost of each task of a run by name; a stage without its time or its weights has none."""
    costs: dict[str, TaskCost] = {}
    before = (0, 0)
    for number, task in enumerate(io.read_json(str(run / "results.json"))["tasks"], start=1):
        stage = run / "stages" / f"{number:02d}-{folder_of(task)}"
        if not ((stage / "timing.json").exists() and (stage / "model.safetensors").exists()):
            break  # what later stages added cannot be told from it
        now = weights_size(stage / "model.safetensors")
        timing = io.read_json(str(stage / "timing.json"))
        taken = bool(timing.pop(TAKEN_OVER, False))
        costs[task] = TaskCost(float(timing["seconds"]), now[0] - before[0], now[1] - before[1], json.dumps(timing), taken)
        before = now
    return costs


def weights_size(path: Path) -> tuple[int, int]:
    """Return the number of floating-point values and the bytes of all tensors in a safetensors file, from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    numbers = sum(math.prod(entry["shape"]) for entry in tensors if "F" in entry["dtype"])
    return numbers, sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in tensors)
