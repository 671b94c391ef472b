"""A method as a finished stage left it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dist_teracon.continual.method import Method, MethodContext
from dist_teracon.continual.open_inputs import names_read
from dist_teracon.continual.registry import resolve_method
from dist_teracon.data.schema import DatasetInfo, Task, info_from_json
from dist_teracon.errors import RunError
from dist_teracon.models.input_embedding import InputSizes
from dist_teracon.train.item_growth import with_new_labels
from dist_teracon.train.run_folder import RunFolder


def restore_method(run: Path | str, stage: int | None = None) -> Method:
    """Restore the method of a run, on the CPU, from the run alone: the data set need not be at hand.

    Args:
        run: The run's folder, or its URI on a store.
        stage: Which stage's weights, counted from 1; None for the last finished one.

    Returns:
        The method, for `encode`, `head` and `mask_index` of the tasks that it has learned.

    Raises:
        RunError: there is no run, no such stage, or another version of this program has written it.
    """
    folder = RunFolder.open_for_reading(run, wanted=lambda path: path.count("/") < 3 and not path.startswith("single-task/"))
    if not folder.exists:
        raise RunError(f"{folder}: is no run (config.yaml is missing)")
    config, info = folder.config(), info_from_json(folder.dataset_json())
    tasks = info.tasks if config.tasks is None else tuple(info.task(name) for name in config.tasks)
    finished = [number for number, task in enumerate(tasks) if folder.stage(number, task.name).finished]
    chosen = (finished[-1] if finished else -1) if stage is None else stage - 1
    if chosen not in finished:
        stages = f"1 to {len(finished)}" if finished else "none yet"
        raise RunError(f"{folder}: stage {chosen + 1 if stage is not None else 1} is not finished (finished: {stages})")
    source = folder.stage(chosen, tasks[chosen].name)
    state: dict[str, Any] = source.state()
    kind, settings = resolve_method(config, where=str(folder))
    training = tuple(config.train.stage(position, task.name) for position, task in enumerate(tasks))
    context = MethodContext(
        model=config.model, seed=config.seed, num_items=state["items"], tasks=tasks, training=training, for_use=True,
        num_types=state.get("types", 0), inputs=_input_sizes(names_read(config.model, info), info, state),
    )  # fmt: skip
    with _NoDraws():
        method = kind(context, settings)
        take_up(method, tasks[: chosen + 1], None)
    method.load_state_dict(with_new_labels(source.tensors(), method))
    return method


def _input_sizes(names: Sequence[str], info: DatasetInfo, state: dict[str, Any]) -> InputSizes:
    """Return the side features as the stage knew them; a later version of the data set may have more values."""
    read, values = info.inputs.of(names), state.get("input_values", {})
    user, item = (tuple(values[feature.name] for feature in part) for part in (read.user, read.item))
    return InputSizes(user, item)


class _NoDraws(TorchFunctionMode):
    """Leaves out the drawing of initial values, which takes seconds for large tables and is overwritten by what is loaded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))


def take_up(method: Method, learned: Sequence[Task], tensors: dict[str, Tensor] | None) -> None:
    """Bring a fresh method to where tasks have been learned, its weights to `tensors` where there are any."""
    for task in learned:
        method.begin_task(task)
        method.end_task()
    if tensors is not None:
        method.load_state_dict(with_new_labels(tensors, method))
