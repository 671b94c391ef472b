"""A finished run gets one more task, maybe from a later version of its data set: what it was begun with is renewed.

`additions.json` in the run's folder lists what was added; a stage's `items` says how many rows its item tables have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dist_teracon import io
from dist_teracon.config.run import RunConfig
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.item_vectors_file import checksum_of, read_item_vectors
from dist_teracon.data.prepare.versions import ancestors
from dist_teracon.data.schema import DatasetInfo, info_from_json
from dist_teracon.errors import ConfigError, RunError, TeraconError
from dist_teracon.train.config_changes import compare_configs
from dist_teracon.train.item_growth import NewItems, linear_map
from dist_teracon.train.run_folder import RunFolder


@dataclass(frozen=True)
class AddedTask:
    """A task to add to a finished run.

    Attributes:
        name: The task's name.
        new_items: What rows of new items start as: copies of the unseen item's, so that nothing changes before training; or the mean of
            the known items beside them in the training users' sequences; or (`text`) follow from given vectors.
        vectors: For `text`, a file of item vectors (`read_item_vectors`).
    """

    name: str
    new_items: NewItems = "unseen"
    vectors: str | None = None

    def __post_init__(self) -> None:
        """Check that vectors are given where they are needed, and only there."""
        if (self.new_items == "text") != (self.vectors is not None):
            raise ConfigError("--new-items text and --item-vectors FILE go together: a Parquet file with the columns item and vector")


def with_added_task(config: RunConfig, added: AddedTask, folder: RunFolder) -> RunConfig:
    """Return the configuration of the run with the task at its end.

    Raises:
        RunError: there is no run to add to, or it has learned the task already.
    """
    if not folder.exists:
        raise RunError(f"{folder}: is no run yet, so no task can be added to it; train it first without --add-task")
    before = folder.config()
    tasks = before.tasks or tuple(task["name"] for task in folder.dataset_json()["tasks"])
    if added.name in tasks and not any(entry["task"] == added.name for entry in folder.additions()):
        raise RunError(f"{folder}: has learned '{added.name}' already ({', '.join(tasks)})")
    if added.name in tasks and tasks[-1] != added.name:
        raise RunError(f"{folder}: '{added.name}' was added before {tasks[-1]}; only the last addition can be gone on with")
    return config.model_copy(update={"tasks": tasks if added.name in tasks else (*tasks, added.name)})


def takes_addition(folder: RunFolder, added: AddedTask) -> bool:
    """Return whether there is a run that a task is added to, or was: none that was begun with it."""
    if not folder.exists:
        return False
    begun_with = folder.config().tasks or ()
    return added.name not in begun_with or any(entry["task"] == added.name for entry in folder.additions())


def with_earlier_additions(config: RunConfig, folder: RunFolder) -> RunConfig:
    """Return the configuration with the tasks that were added to the run since it was begun, and the data set that they came from.

    Raises:
        RunError: an added task is not finished; or the run was begun with other tasks.
    """
    if not folder.exists or not (additions := folder.additions()):
        return config
    before = folder.config()
    tasks, added = before.tasks or (), [entry["task"] for entry in additions]
    unfinished = [name for name in added if name not in tasks] or list(tasks[folder.finished_stages(tasks) :])
    if unfinished:
        raise RunError(f"{folder}: '{added[-1]}' was added to this run and is not finished; go on with --add-task {added[-1]}")
    own = tuple(task for task in tasks if task not in added)
    if config.tasks is not None and config.tasks not in (own, tasks):
        raise RunError(f"{folder}: was started with another configuration: tasks was {list(own)} and is now {list(config.tasks)}")
    return config.model_copy(update={"tasks": tasks, "dataset": before.dataset})


def claim_addition(folder: RunFolder, config: RunConfig, dataset: Dataset, added: AddedTask) -> str:
    """Turn a finished run's folder into one with the task at its end; returns what is wrong, or nothing. Does nothing twice."""
    assert config.tasks is not None
    info = dataset.info
    begun, listed = folder.config().model_copy(update={"tasks": config.tasks}), folder.additions()
    # as of a run that goes on: where it trains, and what else no result depends on, may change
    if problem := compare_configs(begun, config, tasks=config.tasks, finished=folder.finished_stages(config.tasks)).problem:
        return (
            f"{folder}: was run with other settings ({problem}); a task is added with the run's own: train {folder}/config.yaml with the "
            "same --run and --add-task has them"
        )
    if listed and listed[-1]["task"] == added.name:
        if problem := _begun_otherwise(folder, listed[-1], config, info, added):
            return problem
    else:
        before = folder.dataset_json()
        unfinished = [task for number, task in enumerate(config.tasks[:-1]) if not folder.stage(number, task).finished]
        if unfinished:
            return f"{folder}: stage '{unfinished[0]}' is not finished; finish the run without --add-task first"
        if problem := _not_a_descendant(folder, before, info):
            return problem
        entry = {"task": added.name, "new_items": added.new_items, "items": [before["items"], info.items], "dataset": info.fingerprint}
        if added.vectors is not None:
            if problem := _unfit_vectors(added.vectors, dataset, known=before["items"], channels=config.model.channels):
                return problem
            entry["vectors"] = checksum_of(added.vectors)
        begun_tasks = folder.config().tasks or ()
        # first of all, so that a run killed here goes on with the same command; one that was killed here for another task was not begun
        folder.write_json("additions.json", [*(known for known in listed if known["task"] in begun_tasks), entry])
    folder.write_json("dataset.json", info.to_json())
    folder.write_config(config)
    return ""


def _begun_otherwise(folder: RunFolder, entry: dict[str, Any], config: RunConfig, info: DatasetInfo, added: AddedTask) -> str:
    if entry["new_items"] != added.new_items:
        return f"{folder}: '{added.name}' was added with --new-items {entry['new_items']}; use that again"
    if added.vectors is not None and not io.exists(added.vectors):
        return f"{added.vectors}: no such file; '{added.name}' was added with the vectors that it held"
    if added.vectors is not None and entry["vectors"] != checksum_of(added.vectors):
        return f"{folder}: '{added.name}' was added with other vectors than {added.vectors} holds; use that file again"
    if entry["dataset"] != info.fingerprint:
        return f"{folder}: '{added.name}' was added from another data set than {config.dataset}; use that one again"
    return ""


def _unfit_vectors(uri: str, dataset: Dataset, *, known: int, channels: int) -> str:
    try:
        linear_map(read_item_vectors(uri, dataset), known, channels=channels, uri=uri)
    except TeraconError as error:
        return str(error)
    return ""


def _not_a_descendant(folder: RunFolder, before: dict[str, Any], info: DatasetInfo) -> str:
    known = info_from_json(before).fingerprint
    if known == info.fingerprint or known in ancestors(info):
        return ""
    return (
        f"{folder}: the data set is neither the one of this run nor a version of it; make one with "
        "`dist-teracon prepare … --append` on the run's own data set"
    )
