"""Which side features a run reads, and which of them are closed to which task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dist_teracon.config.model import ModelConfig
from dist_teracon.continual.method import Method
from dist_teracon.data.input_features import InputFeatures
from dist_teracon.data.schema import DatasetInfo
from dist_teracon.errors import DataError, nearest


def names_read(model: ModelConfig, info: DatasetInfo) -> tuple[str, ...]:
    """Return the names of the features that a model reads.

    Raises:
        DataError: the data set does not have one.
    """
    known = info.inputs.names
    if model.input_features == "all":
        if not known:
            raise DataError(f"data set '{info.name}' has no features of users or items; declare them as `inputs` of its recipe")
        return known
    for name in model.input_features:
        if name not in known:
            raise DataError(
                f"data set '{info.name}' has no feature '{name}'{nearest(name, known)} (it has: {', '.join(known) or 'none'}); "
                "declare it as one of `inputs` of its recipe, or leave it out"
            )
    return tuple(name for name in known if name in model.input_features)


def closed_features(info: DatasetInfo, kind: type[Method], tasks: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return by task the features of users that its rows do not have: what is closed to it, or to a task that shares rows with it."""
    names = list(tasks)
    return {task: found for task in names if (found := info.inputs.closed_to(kind.trained_with(task, names)))}


def known_inputs(info: DatasetInfo, model: ModelConfig, method: Method) -> InputFeatures:
    """Return the features that a method's network reads, with the values that it knows, and by task which it does not read.

    Args:
        info: The data set's description; a later version may have more values.
        model: The run's.
        method: As a stage left it.
    """
    read, known = info.inputs.of(names_read(model, info)), method.context.inputs
    user, item = (
        tuple(replace(feature, values=values) for feature, values in zip(part, sizes, strict=True))
        for part, sizes in ((read.user, known.user), (read.item, known.item))
    )
    closed = closed_features(info, type(method), [task.name for task in method.context.tasks])
    return InputFeatures(user, item, {task: tuple(sorted(names)) for task, names in closed.items()})
