"""What may change in a configuration while its run goes on, and what may not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import deep_merge
from dist_teracon.continual.registry import method_class
from dist_teracon.models.backbone import resolve_backbone

# Fields that may change, and what follows. The data set is compared by its fingerprint, given item vectors by their checksum, and both
# may have moved.
_NOTHING, _ROUNDING = "no result depends on it", "last digits may differ"
_FREE = {
    "dataset": _NOTHING,
    "model.item_init.file": _NOTHING,
    "train.log_every": _NOTHING,
    "train.report_to": _NOTHING,
    "train.checkpoint_every.minutes": _NOTHING,
    "train.checkpoint_every.steps": _NOTHING,
    "evaluate.batch": _ROUNDING,
    "train.balance": _ROUNDING,
}
# How many processes train, and where: sums are added in another order.
_LAUNCH = "launch."
# Compared stage by stage, by what each resolves to.
_STAGES = ("train.first.", "train.second.", "train.later.", "train.by_task.")


@dataclass(frozen=True)
class ConfigChange:
    """How a run's configuration differs from the one that it was begun with.

    Attributes:
        problem: The first field that must not change, for a person; empty where there is none.
        notes: What changes and may, for a person.
    """

    problem: str
    notes: list[str]


def compare_configs(before: RunConfig, now: RunConfig, *, tasks: Sequence[str], finished: int) -> ConfigChange:
    """Compare the configuration of a run that goes on with the one that it was begun with.

    Args:
        before, now: Resolved.
        tasks: Names of the tasks in their order.
        finished: Stages that are finished; the settings of later ones may be extended by more epochs.
    """
    notes: list[str] = []
    before, now = _with_new_fields(before), _with_new_fields(now)
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    for name in sorted({*old, *new}):
        if old.get(name) == new.get(name) or f"{name}.".startswith(_STAGES):
            continue
        if name.startswith(_LAUNCH):
            notes.append(f"{name} is now {new.get(name)!r} (was {old.get(name)!r}): {_ROUNDING}")
            continue
        if name not in _FREE:
            return ConfigChange(f"{name} was {old.get(name)!r} and is now {new.get(name)!r}", [])
        if name != "dataset":
            notes.append(f"{name} is now {new.get(name)!r} (was {old.get(name)!r}): {_FREE[name]}")
    for position, task in enumerate(tasks):
        was, is_now = (config.train.stage(position, task).model_dump() for config in (before, now))
        for field in was:
            if was[field] == is_now[field]:
                continue
            name = f"train.{('first', 'second', 'later')[min(position, 2)]}.{field}"
            # a rate that falls to 0 over all epochs has begun to, in a stage that may be under way
            falls = was["schedule"] in ("linear", "cosine") and position == finished
            if field != "epochs" or position < finished or is_now[field] < was[field] or falls:
                problem = f"{name} was {was[field]!r} and is now {is_now[field]!r} (stage {position + 1}, task '{task}')"
                if field == "epochs" and is_now[field] > was[field] and falls:
                    problem += f", over which its {was['schedule']} schedule lowers the learning rate"
                elif field == "epochs" and is_now[field] > was[field]:
                    problem += ", which is finished; more epochs for a stage to come: train.by_task.<its task>.epochs"
                return ConfigChange(problem, [])
            notes.append(f"stage {position + 1} ({task}) trains at most {is_now[field]} epochs instead of {was[field]}")
    return ConfigChange("", notes)


def first_difference(before: RunConfig, now: RunConfig, *, later: Collection[str]) -> tuple[str, str]:
    """Return the first field beside tasks and settings of stages in which two runs' results may differ, and how; empty where there is none.

    Args:
        before, now: Resolved.
        later: The method's settings, or groups of them, of which the first stage reads nothing; they come last.
    """
    before, now = _with_new_fields(before), _with_new_fields(now)
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    for name in sorted({*old, *new}, key=lambda name: (is_later(name, later), name != "method.name", name)):
        of_stages = name == "tasks" or f"{name}.".startswith((_LAUNCH, *_STAGES))
        # given item vectors that have moved may be others
        free = of_stages or (_FREE.get(name) == _NOTHING and name != "model.item_init.file")
        if not free and old.get(name) != new.get(name):
            return name, f"{name} is {old.get(name)!r} there and {new.get(name)!r} here"
    return "", ""


def is_later(field: str, later: Collection[str]) -> bool:
    """Return whether a field is one of the method's settings, or in a group of them, of which the first stage reads nothing."""
    return any(field == f"method.{name}" or field.startswith(f"method.{name}.") for name in later)


def _with_new_fields(config: RunConfig) -> RunConfig:
    """Return a configuration with the fields that its method and backbone got since it was written, at their defaults."""
    method = deep_merge(method_class(config.method["name"]).Settings().model_dump(mode="json"), config.method)
    kind, _ = resolve_backbone(config.model, where="config.yaml")
    backbone = deep_merge(kind.Settings().model_dump(mode="json"), config.model.backbone)
    return config.model_copy(update={"method": method, "model": config.model.model_copy(update={"backbone": backbone})})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted name."""
    if isinstance(value, dict) and value:
        return {name: leaf for key, entry in value.items() for name, leaf in _flat(entry, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
