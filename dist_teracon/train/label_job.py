"""A stage's pseudo-labels as a job of their own: `dist-teracon pseudo-label RUN --stage 3` (docs/distributed.md).

It does what the stage itself does before it trains, with the run's own configuration, and writes the same files: the stage then finds
them and needs no pass. So the teacher and the trainer need not share devices.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import apply_overrides, validate
from dist_teracon.console import Console
from dist_teracon.errors import ConfigError, RunError
from dist_teracon.runtime import Runtime
from dist_teracon.train.run import check_same_state, create_or_verify, take_up_finished
from dist_teracon.train.run_checks import check_kernels, checked_tasks
from dist_teracon.train.run_folder import EventLog, RunFolder
from dist_teracon.train.run_setup import (
    Run,
    method_context,
    open_on_all_ranks,
    resolve,
    run_lock,
)
from dist_teracon.train.run_store import open_run
from dist_teracon.train.stage import Stage
from dist_teracon.train.stopping import stop_signals


def config_of_run(run: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a run that exists, with fields overridden that no result depends on.

    Args:
        run: The run's folder or URI.
        overrides: As `launch.workers=8`.

    Raises:
        RunError: there is no run.
        ConfigError: a field or value that is not known.
    """
    folder = RunFolder.open_for_reading(run, wanted=lambda path: path == "config.yaml")
    if not folder.exists:
        raise RunError(f"{run}: is no run yet (config.yaml is missing); pseudo-labels are made for a stage of a run that was begun")
    return validate(RunConfig, apply_overrides(folder.config().model_dump(mode="json"), overrides), where=str(run))


def make_pseudo_labels(config: RunConfig, runtime: Runtime, folder: Path | str, *, stage: int, where: str, console: Console) -> None:
    """Make a stage's pseudo-labels; the same call again goes on where a killed one stopped, or finds them made.

    Args:
        config: The run's configuration (`config_of_run`).
        runtime: This process's place in the world; the default process group exists.
        folder: The run's folder, or its URI on a store.
        stage: Which stage, counted from 1; the one before it is finished.
        where: Where the configuration came from, for error messages.
        console: What a person sees.

    Raises:
        RunError: another process writes the run, the stage is not ready, or the data set or the configuration is another one.
        ConfigError: the run has no such stage, or its method makes no pseudo-labels.
    """
    check_kernels(runtime)
    with stop_signals(says=console.active) as stop, open_run(folder, runtime, console) as own:
        # what this job is launched with is not what the run trains with
        config, kind, settings = resolve(config.model_copy(update={"launch": own.config().launch}), where=where)
        dataset = open_on_all_ranks(config, runtime, console)
        tasks = checked_tasks(config, kind, dataset, where=where, begins=False)
        run = Run(config, dataset, tasks, runtime, own, console, stop=stop)
        with run_lock(run):
            create_or_verify(run, None)
            _check_stage(run, stage)
            _check_addition(run, stage)
            if not _is_needed(run, stage):
                return
            method: Any = kind(method_context(run), settings)
            check_same_state(run, stage - 1)
            take_up_finished(run, method, stage - 1)
            if not method.makes_pseudo_labels:
                raise ConfigError(
                    f"{where}: method '{method.name}' makes no pseudo-labels with these settings (TERACON does, with "
                    "method.retention.teacher=store and alpha above 0)"
                )
            _make(run, method, stage)
            if runtime.is_main:
                own.commit(wait=True)
            runtime.barrier()


def _check_stage(run: Run, stage: int) -> None:
    """Check that there is such a stage, with past tasks.

    Raises:
        ConfigError: there is not.
    """
    if stage > len(run.tasks):
        raise ConfigError(f"--stage {stage}: the run has {len(run.tasks)} stages ({', '.join(task.name for task in run.tasks)})")
    if stage == 1:
        raise ConfigError(f"--stage 1: '{run.tasks[0].name}' is the first task, there are no past ones whose answers it would need")


def _check_addition(run: Run, stage: int) -> None:
    """Check that the teacher can be made from the run alone.

    Raises:
        ConfigError: new items of the stage start from vectors that were given to `train`.
    """
    task, listed = run.tasks[stage - 1].name, run.runtime.gather(run.folder.additions())[0]
    if any(entry["task"] == task and entry["new_items"] == "text" for entry in listed):
        raise ConfigError(
            f"--stage {stage}: '{task}' was added with --item-vectors, so `train --add-task {task}` makes its pseudo-labels itself"
        )


def _is_needed(run: Run, stage: int) -> bool:
    """Return whether the stage is still to come.

    Raises:
        RunError: the stage before it is not finished.
    """
    done = run.runtime.gather(run.finished_stages())[0]
    task = run.tasks[stage - 1].name
    if done >= stage:
        run.console.log(f"stage {stage} ({task}) is finished and needs no pseudo-labels any more; nothing to do")
        return False
    if done < stage - 1:
        raise RunError(
            f"{run.folder}: the teacher of stage {stage} ({task}) is what stage {stage - 1} ({run.tasks[stage - 2].name}) ends with, and "
            f"{done} stage(s) are finished; train it first, as with `train … --until-stage {stage - 1}`"
        )
    return True


def _make(run: Run, method: Any, stage: int) -> None:
    folder, label = run.stage_folder(stage - 1), f"stage {stage}/{len(run.tasks)} {run.tasks[stage - 1].name}"
    before, began, rows = _stamps(folder.path), time.monotonic(), {}

    def take(_event: str, **fields: Any) -> None:
        rows[fields["past"]] = fields["rows"]

    events = EventLog(run.folder.path / "events.jsonl", writes=False, position=0)  # the stage logs its passes itself
    Stage(run, method, run.tasks[stage - 1], folder=folder, events=events, label=label).prepare(event=take)
    after = _stamps(folder.path)
    made = sum(run.runtime.gather(len(after.items() - before.items())))
    total, tasks = sum(rows.values()), ", ".join(f"{past} {count}" for past, count in rows.items())
    if not made:
        run.console.log(f"{label} · {total} pseudo-labels are there already ({tasks}), made by this teacher; nothing to do")
        return
    run.console.log(
        f"{label} · {total} pseudo-labels ({tasks}) in {time.monotonic() - began:.1f} s by {run.runtime.world_size} process(es), "
        f"{made} shard(s) of them made now; training of the stage finds them"
    )


def _stamps(stage: Path) -> dict[str, tuple[int, int]]:
    """Return the files of pseudo-labels that are there, with what changes when one is written anew."""
    found = {}
    for path in stage.glob("pseudo_labels/*/*.arrow"):
        status = path.stat()
        found[str(path)] = (status.st_ino, status.st_mtime_ns)
    return found
