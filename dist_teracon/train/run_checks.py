"""What is checked of a run before anything is written or trained: that its data set, method, backbone and machine go together."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from dist_teracon.config.model import GivenItemVectors, ModelConfig
from dist_teracon.config.run import RunConfig
from dist_teracon.continual.method import Method
from dist_teracon.continual.open_inputs import names_read
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.item_vectors_file import check_item_vectors
from dist_teracon.data.schema import DatasetInfo, Split, Task
from dist_teracon.data.user_svd import need_sklearn
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.evaluate.metrics import check_metrics
from dist_teracon.evaluate.periods import check_period
from dist_teracon.kernels.masked_dilated_conv_stack import backend_of
from dist_teracon.models.backbone import columns_asked, resolve_backbone
from dist_teracon.runtime import Runtime


def check_kernels(runtime: Runtime) -> None:
    """Check that the kernels' backend that the environment asks for runs here.

    Raises:
        ConfigError: it does not.
    """
    try:
        backend_of(runtime.device.type, os.environ.get("DIST_TERACON_KERNELS", ""))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_reads(config: RunConfig, info: DatasetInfo) -> tuple[str, ...]:
    """Check that a data set has what a model reads of events, users and items; returns the names of the side features.

    Raises:
        ConfigError: it has not.
    """
    for column, asking, entry in columns_asked(config.model):
        if column not in info.history.names:
            asker = f"'{entry}'" if entry else asking.rpartition(".")[2]
            raise ConfigError(
                f"{asking}: {f'{asker} ' if entry else ''}reads {column} of events, and data set '{info.name}' keeps none "
                f"(it keeps: {', '.join(('items', *info.history.names))}); prepare it with "
                f"history.keep: [{column.removesuffix('s')}] in the recipe, or leave {asker} out"
            )
    if "svd" in config.model.history_features:
        need_sklearn("model.history_features: 'svd'")
    try:
        return names_read(config.model, info)
    except DataError as error:
        raise ConfigError(f"model.input_features: {error}") from None


def checked_tasks(
    config: RunConfig, kind: type[Method], dataset: Dataset, *, where: str, adds: bool = False, begins: bool = True
) -> tuple[Task, ...]:
    """Check a resolved configuration against its data set, before anything is written or trained.

    Args:
        config: The configuration.
        kind: Its method.
        dataset: Its data set.
        where: Where the configuration came from, for error messages.
        adds: Whether a task is added to a run.
        begins: Whether the run begins, so that what only its start reads has to be there.

    Returns:
        The tasks in their order.

    Raises:
        ConfigError: names the field that does not go with the data set, or the tasks that the method cannot learn.
        DataError: no vectors of items where the configuration says.
    """
    check_reads(config, dataset.info)
    tasks = chosen_tasks(config, dataset, where=where)
    check_metrics(config.evaluate.metrics, where=where, tasks=tasks)
    check_period(config.evaluate, dataset.info, where=where)
    check_method(kind, config, tasks, where=where, adds=adds)
    if begins and isinstance(given := config.model.item_init, GivenItemVectors):
        check_item_vectors(given.file)
    return tasks


def chosen_tasks(config: RunConfig, dataset: Dataset, *, where: str) -> tuple[Task, ...]:
    """Return the tasks in their order.

    Raises:
        ConfigError: a field names a task that the data set does not have, or a step has more micro-batches than examples.
    """
    heads = config.model.heads
    fields = (("train.by_task", config.train.by_task), ("model.heads.by_task", heads.by_task), ("model.heads.tied", heads.tied))
    for name, values in fields:
        for override in values:
            _task(dataset, override, f"{where}: {name}")
    _check_tied_heads(config, dataset.info, where=where)
    tasks = dataset.info.tasks if config.tasks is None else tuple(_task(dataset, name, f"{where}: tasks") for name in config.tasks)
    for position, task in enumerate(tasks):
        stage = config.train.stage(position, task.name)
        if stage.schedule == "plateau" and not stage.patience:  # of the stage as it comes out: train.by_task may have one of the two
            group = ("first", "second", "later")[min(position, 2)]
            raise ConfigError(
                f"{where}: train.{group} or train.by_task.{task.name}: schedule plateau lowers the learning rate after `patience` epochs "
                "without a better score, and patience is 0; set it to 1 or more"
            )
        batch = stage.batch
        if config.train.accumulation > batch:
            raise ConfigError(
                f"{where}: train.accumulation: expected at most as many micro-batches as a step has examples ({batch} for task "
                f"'{task.name}'), got {config.train.accumulation}"
            )
    return tasks


def _check_tied_heads(config: RunConfig, info: DatasetInfo, *, where: str) -> None:
    """Check that heads which are tied to the items' embeddings can be: their labels are the items, and their inputs as wide."""
    for name in config.model.heads.tied:
        task = info.task(name)
        if not task.predicts_next:
            raise ConfigError(
                f"{where}: model.heads.tied: expected a task that predicts the next item, whose labels are the items by their numbers; "
                f"'{task.name}' is of kind {task.kind}"
            )
        wider = "model.pooling: concat" if config.model.pooling == "concat" else ""
        if users := [feature.name for feature in info.inputs.of(check_reads(config, info)).user]:
            wider = f"features of users ({', '.join(users)}, model.input_features)"
        if config.model.history_features:
            wider = f"features of histories ({', '.join(config.model.history_features)}, model.history_features)"
        if wider:
            raise ConfigError(
                f"{where}: model.heads.tied: the head of '{task.name}' takes the items' {config.model.channels} numbers (model.channels), "
                f"and a representation with {wider} has more; take pooling last or mean, without features of users or histories"
            )


def _task(dataset: Dataset, name: str, field: str) -> Task:
    try:
        return dataset.info.task(name)
    except DataError as error:
        raise ConfigError(f"{field}: {error}") from None


def check_method(kind: type[Method], config: RunConfig, tasks: Sequence[Task], *, where: str, adds: bool) -> None:
    """Check that a method can learn these tasks on this backbone, and one more where `adds`.

    Raises:
        ConfigError: it cannot.
    """
    if adds and not kind.adds_tasks:
        why = "keeps a table of the items that it began with" if kind.stages_stand_alone else "learns its tasks together"
        raise ConfigError(f"{where}: method '{kind.name}' {why}, so no task can be added to a run; train a new one")
    try:
        kind.check(tasks, resolve_backbone(config.model, where=where)[0])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def check_until_stage(until_stage: int | None, tasks: Sequence[Task]) -> None:
    """Check that a run has the stage at which it is to stop.

    Raises:
        ConfigError: it has fewer.
    """
    if until_stage is not None and until_stage > len(tasks):
        raise ConfigError(f"--until-stage {until_stage}: the run has {len(tasks)} stages ({', '.join(task.name for task in tasks)})")


def untrained_places(dataset: Dataset, task: Task, model: ModelConfig, runtime: Runtime) -> str:
    """Return which places of rows a split by `last` validates and tests on and never trains, for a person; empty where there are none.

    The last two items of every user are kept from training, so the longest rows are longer in the test. All processes call it.

    Args:
        dataset: The data set.
        task: The first task of a run.
        model: The run's.
        runtime: This process's place; each counts in its own shards.
    """
    kind, settings = resolve_backbone(model, where="model")
    places, behind = kind.places(settings), dataset.behind(task.name, Split.TRAIN)
    if not places or not behind:
        return ""
    lengths = [np.diff(dataset.shard(shard).offsets) for shard in own_shards(dataset.info.shards, runtime.rank, runtime.world_size)]
    inputs = np.concatenate([np.zeros(0, dtype=np.int64), *lengths]) - 1
    trained = max(runtime.gather(int(inputs.max(initial=0)))) - behind
    if places <= trained:
        return ""
    users = sum(runtime.gather(int((inputs > trained).sum())))
    return (
        f"model.backbone.max_positions: the split by last trains at most {trained} places of a row, and {users:,} users' rows are longer "
        f"in the test: embeddings of the places behind stay as drawn; with max_positions: {trained} they share the last trained one"
    )
