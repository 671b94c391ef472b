"""A run that takes over the first stages of another one, where they would come out the same: they are copied and not trained again.

A stage follows from the data set, its task and those before it, the settings of their stages, and everything else in the configuration; not
from tasks that come later. So runs that differ in later tasks, or in settings of later stages, have their first stages in common. Runs of
different methods have the first one in common where both train a plain network in it (`Method.plain_first_network`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_teracon import io
from dist_teracon.atomic import atomic_path, atomic_write
from dist_teracon.config.model import GivenItemVectors
from dist_teracon.config.run import RunConfig
from dist_teracon.continual.method import Method
from dist_teracon.continual.registry import method_class
from dist_teracon.data.item_vectors_file import checksum_of
from dist_teracon.data.schema import info_from_json
from dist_teracon.errors import RunError, TeraconError
from dist_teracon.evaluate.metrics import metrics_of
from dist_teracon.models.heads import head_key
from dist_teracon.train.config_changes import first_difference, is_later
from dist_teracon.train.run_folder import RunFolder
from dist_teracon.train.run_setup import GIVEN, Run
from dist_teracon.train.stage_folder import TAKEN_OVER

_FILES = ("model.safetensors", "scores.parquet", "timing.json")


@dataclass(frozen=True)
class CommonStages:
    """Which first stages of two runs are the same.

    Attributes:
        count: How many.
        why: Why it is not one more, for a person.
    """

    count: int
    why: str


def common_stages(
    other: RunConfig, own: RunConfig, *, other_tasks: Sequence[str], own_tasks: Sequence[str], method: type[Method]
) -> CommonStages:  # fmt: skip
    """Compare two runs of one data set.

    Args:
        other, own: Their configurations, resolved.
        other_tasks, own_tasks: Names of their tasks, in their order.
        method: Of `own`.
    """
    limit, why = len(own_tasks), "all stages are the same"
    if other.method != own.method and _have_plain_first_stages(other, own):
        limit, why = 1, first_difference(other, own, later=())[1]
        other = other.model_copy(update={"method": own.method})
    field, difference = first_difference(other, own, later=method.later_settings)
    if field and not is_later(field, method.later_settings):
        return CommonStages(0, difference)
    if field:
        limit, why = min(limit, 1), difference
    if not method.stages_stand_alone and tuple(other_tasks) != tuple(own_tasks):
        limit, why = min(limit, 1), f"method '{method.name}' learns later tasks together, and they differ"
    for position, task in enumerate(own_tasks[:limit]):
        if position >= len(other_tasks):
            return CommonStages(position, f"it has {position} stages")
        if other_tasks[position] != task:
            return CommonStages(position, f"its stage {position + 1} is '{other_tasks[position]}', here it is '{task}'")
        was, now = (config.train.stage(position, task).model_dump() for config in (other, own))
        if was != now:
            name = next(name for name in was if was[name] != now[name])
            return CommonStages(position, f"{name} of stage {position + 1} is {was[name]!r} there and {now[name]!r} here")
    return CommonStages(limit, why)


def _have_plain_first_stages(*configs: RunConfig) -> bool:
    return all(method_class(config.method["name"]).plain_first_network is not None for config in configs)


def check_begin_with(run: Run, method: type[Method], donor: str) -> None:
    """Check, before a run's folder is made, that it can begin with another run's stages; on all ranks.

    Raises:
        RunError: there is no run, it is of another data set, or not even the first stage is the same.
    """
    _on_main(run, lambda: _what_is_common(run, method, donor))


def begin_with(run: Run, method: type[Method], donor: str) -> None:
    """Copy another run's first stages into this one, which has none yet; on all ranks. A run that is under way stays as it is.

    Args:
        run: The run, whose folder is made.
        method: Its method.
        donor: Folder or URI of the other run.

    Raises:
        RunError: as `check_begin_with`.
    """
    _on_main(run, lambda: _take_over(run, *_what_is_common(run, method, donor), name=donor))


def _on_main(run: Run, act: Callable[[], object]) -> None:
    """Do something on the main process, for a run that has nothing yet, and raise its error on all ranks."""
    problem = ""
    if run.runtime.is_main and not run.finished_stages() and not run.stage_folder(0).in_progress:
        try:
            act()
        except (TeraconError, OSError) as error:
            problem = f"--begin-with: {io.message_of(error)}"
    run.runtime.raise_on_all_ranks(problem)


def _what_is_common(run: Run, method: type[Method], donor: str) -> tuple[RunFolder, CommonStages, int]:
    """Return the other run, what is common, and how many stages it has finished."""
    other = RunFolder.open_for_reading(donor)
    if not other.exists:
        raise RunError(f"{donor}: is no run")
    if info_from_json(other.dataset_json()).fingerprint != run.dataset.info.fingerprint:
        raise RunError(f"{donor}: is of another data set than {run.config.dataset}, or of another version of it")
    if other.additions():
        raise RunError(f"{donor}: a task was added to it later; name a run that was trained as a whole")
    given = run.config.model.item_init
    noted = other.read_json(GIVEN) if (other.path / GIVEN).is_file() else None
    if isinstance(given, GivenItemVectors) and noted is not None and noted["sha256"] != checksum_of(given.file):
        raise RunError(f"{donor}: began with other item vectors than {given.file} holds")
    config = other.config()
    tasks = list(config.tasks or [task["name"] for task in other.dataset_json()["tasks"]])
    common = common_stages(config, run.config, other_tasks=tasks, own_tasks=[task.name for task in run.tasks], method=method)
    if not common.count:
        raise RunError(f"{donor}: no stage of it is one of this run: {common.why}")
    if not (finished := other.finished_stages(tasks)):
        raise RunError(f"{donor}: its first stage is not finished")
    return other, common, finished


def _take_over(run: Run, other: RunFolder, common: CommonStages, finished: int, *, name: str) -> None:
    own, count = [task.name for task in run.tasks], min(common.count, finished)
    _copy(other, run.folder, own[:count], run)
    why = common.why if count == common.count else f"it has finished {finished}"
    run.console.log(f"the first {count} of {len(own)} stages are those of {name}" + ("" if count == len(own) else f" ({why})"))
    run.folder.commit(wait=True)


def _copy(other: RunFolder, own: RunFolder, tasks: Sequence[str], run: Run) -> None:
    """Copy stages: their events first, and each stage's state last, so that a run killed here has whole stages, or none."""
    renamed = _names_of_weights(other.config(), run.config, tasks[0])
    if (other.path / GIVEN).is_file():
        noted = other.read_json(GIVEN)
        own.write_json(GIVEN, {**noted, "tasks": {name: facts for name, facts in noted["tasks"].items() if name in tasks}})
    states = [other.stage(position, task).state() for position, task in enumerate(tasks)]
    ends = _copy_events(other.path / "events.jsonl", own.path / "events.jsonl", [state["events_bytes"] for state in states], run)
    for position, (task, state, end) in enumerate(zip(tasks, states, ends, strict=True)):
        source, target = other.stage(position, task), own.stage(position, task)
        target.path.mkdir(parents=True, exist_ok=True)
        for file in _FILES:
            if (source.path / file).exists():
                with atomic_path(target.path / file) as temporary:
                    shutil.copyfile(source.path / file, temporary)
        if timing := target.timing():
            target.write_timing({**timing, TAKEN_OVER: True})
        target.adopt({**state, "events_bytes": end}, renamed=renamed)


def _names_of_weights(other: RunConfig, own: RunConfig, first: str) -> Callable[[str], str] | None:
    """Return how names of the other run's weights become those of this one; None where they are the same."""
    patterns = [method_class(config.method["name"]).plain_first_network for config in (other, own)]
    theirs, mine = (pattern and pattern.format(task=head_key(first)) for pattern in patterns)
    if theirs == mine or theirs is None or mine is None:
        return None
    return lambda name: mine + name.removeprefix(theirs)


def _copy_events(source: Path, target: Path, ends: Sequence[int], run: Run) -> list[int]:
    """Copy the events of some stages, the run's own tasks in them; returns where each stage's end now."""
    found, place, read, content = [], 0, 0, bytearray()
    lines = source.read_bytes().splitlines(keepends=True) if source.exists() else []
    for line in lines:
        if place == len(ends):
            break
        read += len(line)
        try:
            event = json.loads(line)
        except ValueError:
            event = {}
        own = line
        if event.get("event") == "run":
            mine = {"method": run.config.method["name"], "tasks": [task.name for task in run.tasks], **_metrics(run)}
            own = json.dumps({**event, **mine}, ensure_ascii=False).encode() + b"\n"
        content += own
        while place < len(ends) and read >= ends[place]:
            found.append(len(content))
            place += 1
    with atomic_write(target) as file:
        file.write(bytes(content))
    return [*found, *[len(content)] * (len(ends) - len(found))]


def _metrics(run: Run) -> dict[str, list[list[str]]]:
    return {"metrics": [[metric.name for metric in metrics_of(task, run.config.evaluate.metrics)] for task in run.tasks]}
