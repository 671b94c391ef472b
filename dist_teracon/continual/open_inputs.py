"""Which side features a run reads, and which of them are closed to which task."""

from __future__ import annotations

from collections.abc import Sequence

from dist_teracon.config.model import ModelConfig
from dist_teracon.continual.method import Method
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
