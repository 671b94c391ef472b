"""`dist-teracon replay FILE`: a step at which a run came to a value that is not finite, taken again and looked at.

The run goes on from its newest checkpoint in a copy, in this process alone, to the step before; batches do not depend on the number of
processes, and on a CPU the weights there are, at the same number of processes, the run's bit for bit. Then the kept batch is trained on.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dist_teracon import io
from dist_teracon.console import Console
from dist_teracon.data.batches import PackedBatch
from dist_teracon.errors import RunError
from dist_teracon.runtime import Runtime
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.examine import Findings, examine_step
from dist_teracon.train.failure import FOLDER, Failure, load_failure
from dist_teracon.train.run import train
from dist_teracon.train.run_folder import RunFolder

# What the copy of a run leaves out.
_LEFT_OUT = (f"{FOLDER}/", "single-task/", "tensorboard/", "report.")


class _DoneError(Exception):
    """The step has been looked at."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self.findings = findings


def replay(file: str, runtime: Runtime, *, run: str | None, console: Console) -> tuple[Failure, Findings]:
    """Take the step of a kept batch again.

    Args:
        file: The kept batch, a path in the run's folder or a URI in a run on a store.
        runtime: This process alone.
        run: Folder or URI of the run, where the file does not lie in it.
        console: Takes lines for a person.

    Raises:
        RunError: the file is no kept batch, its run is not to be found, does not come to that step, or cannot be taken up there.
        TeraconError: of the run.
    """
    if runtime.world_size > 1:
        raise RunError("replay: takes one process; start it without torchrun")
    run = run or _run_of(file)
    folder = _opened(run)
    if not folder.exists:
        raise RunError(f"{run}: there is no run; name the one that kept {file} by --run RUN")
    failure, batch = load_failure(_local(file, folder, run))
    added = _added(folder, failure)
    console.log(f"{failure.problem}: stage {failure.stage} '{failure.task}', phase '{failure.phase_name}', step {failure.step}")
    with tempfile.TemporaryDirectory(prefix="dist-teracon-replay-") as temporary:
        copy = Path(temporary) / "run"
        _copy(folder.path, copy)
        config = folder.config()
        config = config.model_copy(update={"train": config.train.model_copy(update={"report_to": ()})})
        try:
            train(
                config, runtime, copy, where=f"{run}/config.yaml", console=console, added=added,
                before_step=lambda trainer, state, _batch: _at_step(trainer, state, failure, batch, console),
            )  # fmt: skip
        except _DoneError as done:
            return failure, done.findings
    raise RunError(f"{run}: the run does not come to step {failure.step} of stage {failure.stage} any more; was it trained again since?")


def _added(folder: RunFolder, failure: Failure) -> AddedTask | None:
    """Return how the task was added to the run; None where the run was begun with it.

    Raises:
        RunError: it was added with item vectors, which the run does not hold.
    """
    entry = next((entry for entry in folder.additions() if entry["task"] == failure.task), None)
    if entry is None:
        return None
    if entry["new_items"] == "text":
        raise RunError(f"{folder}: '{failure.task}' was added with --item-vectors, which the run does not hold; no step of it is replayed")
    return AddedTask(failure.task, entry["new_items"])


def _run_of(file: str) -> str:
    """Return the run in which a kept batch lies.

    Raises:
        RunError: by its place it is in none.
    """
    head, middle, _ = file.rpartition(f"/{FOLDER}/")
    if middle:
        return head
    parent = Path(file).resolve().parent
    if parent.name == FOLDER and io.is_local(file):
        return str(parent.parent)
    raise RunError(f"{file}: lies in no run's folder '{FOLDER}'; name the run by --run RUN")


def _opened(run: str) -> RunFolder:
    """Return the run to read; on a store the run of a single task lies in that of all."""
    whole, inner, task = run.rstrip("/").partition("/single-task/")
    if io.is_local(run) or not inner:
        return RunFolder.open_for_reading(run, wanted=_wanted)
    below = f"single-task/{task}"
    return RunFolder.open_for_reading(whole, wanted=lambda path: path.startswith(f"{below}/")).below(below)


def _local(file: str, folder: RunFolder, run: str) -> Path:
    if io.is_local(file):
        return io.local_path(file)
    return folder.path / file.removeprefix(f"{run.rstrip('/')}/")


def _wanted(path: str) -> bool:
    return path.startswith(f"{FOLDER}/") or not path.startswith(_LEFT_OUT)


def _copy(run: Path, copy: Path) -> None:
    """Make a folder that looks like the run; large files are links to the run's, which are replaced and never changed."""
    for path in run.rglob("*"):
        name = path.relative_to(run)
        if path.is_dir() or str(name).startswith(_LEFT_OUT) or any(part.startswith(".") for part in name.parts):
            continue
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".json", ".jsonl", ".yaml"):
            shutil.copyfile(path, target)
        else:
            target.symlink_to(path.resolve())


def _at_step(trainer: Any, state: Any, failure: Failure, batch: PackedBatch, console: Console) -> None:
    stage = trainer.events.stage.get("stage", 0)
    if (stage, trainer.number, state.steps + 1) != (failure.stage, failure.phase, failure.step):
        return
    console.log(f"the kept batch: {batch.rows} rows of rank {failure.rank}, {batch.values.shape[0]} positions")
    accumulation = trainer.config.train.accumulation
    raise _DoneError(
        examine_step(
            trainer.engine, trainer.module, batch,
            device=trainer.runtime.device, accumulation=accumulation, scale=float(trainer.runtime.world_size * accumulation),
        )
    )  # fmt: skip


def finding_lines(failure: Failure, found: Findings) -> list[str]:
    """Return what a person is told, the first cause first."""
    lines = []
    if found.parameters:
        lines.append(f"before the step, not finite: {_listed(found.parameters)}: the step before has done it; try a lower learning rate")
    if found.module:
        inside = f"; the first operation: {found.operation}" if found.operation else ""
        lines.append(f"forward: the first module whose result is not finite: {found.module}{inside}")
    elif found.operation:
        lines.append(f"forward: no module's result, but the operation {found.operation}")
    for name, value in found.terms.items():
        lines.append(f"loss, {name}: {value:.6g}" + ("" if math.isfinite(value) else "   <- not finite"))
    if found.backward:
        lines.append(f"backward: the first gradient that is not finite is that of the result of {found.backward}")
    if found.gradients:
        lines.append(f"backward: gradients that are not finite: {_listed(found.gradients)}")
    if found.after:
        lines.append(f"after the optimiser's step, not finite: {_listed(found.after)}")
    if not found.found:
        others = (
            f"; the run had {failure.world_size} processes, and this is the share of rank {failure.rank}" if failure.world_size > 1 else ""
        )
        lines.append(f"every value is finite here{others}: the values of the run came from rounding, or from its device")
    return lines


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
