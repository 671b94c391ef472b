"""The axes of a comparison, as methods × backbones × task orders, expanded to variants.

An axis is a field of the configuration, or a name of one's own:

    axes:
      method: {teracon: , sinmo: {train.second.weight_decay: 1.0}, hat: }   # a field; a label is its value, with further fields
      model.backbone: [nextitnet, sasrec]                                   # the same, without further fields
      order: {as-given: , reversed: [next, b, a]}                           # task orders; nothing: the configuration's own
      sampling: {least: {method.retention.sampling: minimum}, formula: }    # a name of one's own: labels with dotted fields
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import deep_merge
from dist_teracon.errors import shortened

ORDER = "order"
# Fields that a comparison fills in itself.
_TAKEN = {"seed": "seeds", "tasks": ORDER}

# Groups whose values are names with settings.
NAMED = ("method", "model.backbone")


@dataclass(frozen=True)
class Point:
    """A variant that comes from axes: its label on each of them, and the dotted fields that follow."""

    labels: dict[str, str]
    fields: dict[str, Any]


def expand(axes: Mapping[str, Any]) -> dict[str, Point]:
    """Return the product of axes by the variants' names: the labels on axes with more than one, joined by `+`.

    Raises:
        ValueError: an axis has no labels or values of another form, or one label stands on two axes.
    """
    if not axes:
        return {}
    choices = {axis: _by_label(axis, _choices(axis, values)) for axis, values in axes.items()}
    seen: dict[str, str] = {}
    for axis, known in choices.items():
        for label in known:
            if label in seen:
                raise ValueError(f"label '{label}' stands on the axes '{seen[label]}' and '{axis}'; expected each on one")
            seen[label] = axis
    naming = [axis for axis, known in choices.items() if len(known) > 1] or list(choices)[:1]
    points = {}
    for combination in product(*choices.values()):
        labels = dict(zip(choices, combination, strict=True))
        name = "+".join(labels[axis] for axis in naming)
        if name in points:
            others = " and ".join(f"'{label}'" for label in labels.values())
            raise ValueError(f"the labels {others} give the variant '{name}', as other ones do; expected labels without '+' in them")
        points[name] = Point(labels, _fields_of(labels, choices))
    return points


def _by_label(axis: str, found: Iterator[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}
    for label, fields in found:
        if label in known:
            raise ValueError(f"axis '{axis}': two of its labels read '{label}'; expected each once")
        known[label] = fields
    return known


def _fields_of(labels: Mapping[str, str], choices: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the fields of a label on each axis; groups that several axes give in part are one.

    Raises:
        ValueError: two axes give one field, so that the later would win.
    """
    fields: dict[str, Any] = {}
    given: dict[str, str] = {}
    for axis, label in labels.items():
        own = choices[axis][label]
        for leaf in _leaves(own):
            meets = (known for known in given if f"{known}.".startswith(f"{leaf}.") or f"{leaf}.".startswith(f"{known}."))
            if (other := next(meets, None)) is not None:
                raise ValueError(
                    f"the axes '{given[other]}' ('{labels[given[other]]}') and '{axis}' ('{label}') both give {max(leaf, other, key=len)}; "
                    "expected each field on one axis"
                )
        given |= dict.fromkeys(_leaves(own), axis)
        for field, value in own.items():
            before = fields.get(field)
            fields[field] = deep_merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    # a whole group, as `method`, is laid before single fields of it, whichever axis comes first
    return dict(sorted(fields.items(), key=lambda field: field[0].count(".")))


def _leaves(fields: Mapping[str, Any], below: str = "") -> list[str]:
    """Return the dotted paths of the values that fields give, also within groups."""
    return [
        leaf
        for field, value in fields.items()
        for leaf in (_leaves(value, f"{below}{field}.") if isinstance(value, dict) and value else [f"{below}{field}"])
    ]


def _choices(axis: str, values: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield an axis's labels with the dotted fields of each."""
    if axis in _TAKEN:
        raise ValueError(f"axis '{axis}': is no axis; expected `{_TAKEN[axis]}` in its place")
    if not isinstance(values, list | dict) or not values:
        raise ValueError(f"axis '{axis}': expected a list of values, or a mapping of labels, got {shortened(values)}")
    is_field = "." in axis or axis in RunConfig.model_fields
    if isinstance(values, list):
        if not is_field:
            raise ValueError(f"axis '{axis}': a list of values is for a field of the configuration; expected a mapping of labels")
        repeated = [value for place, value in enumerate(values) if value in values[:place]]
        if repeated or any(isinstance(value, list | dict) for value in values):
            raise ValueError(f"axis '{axis}': expected plain values, each once, got {shortened(values)}; a mapping gives others labels")
        values = dict.fromkeys(values)
    for label, value in values.items():
        yield str(label), _fields(axis, label, value, is_field=is_field)


def _fields(axis: str, label: Any, value: Any, *, is_field: bool) -> dict[str, Any]:
    if axis == ORDER:
        if value is not None and not isinstance(value, list):
            raise ValueError(
                f"axis '{axis}', '{label}': expected a list of tasks, or nothing for the configuration's, got {shortened(value)}"
            )
        return {} if value is None else {"tasks": value}
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"axis '{axis}', '{label}': expected dotted fields as a mapping, or nothing, got {shortened(value)}")
    given: dict[str, Any] = dict(value or {})
    if not is_field or axis in given:
        return given
    # by name alone, so that the configuration's settings of another method are refused and not dropped
    return {f"{axis}.name" if axis in NAMED else axis: label, **given}


def counterpart(points: Mapping[str, Point], variant: str, label: str) -> str | None:
    """Return the variant that has `label` on its axis and is like `variant` on all others; None for a variant of no axes."""
    if variant not in points:
        return None
    axis = axis_of(points, label)
    labels = {**points[variant].labels, **({} if axis is None else {axis: label})}
    return next((name for name, point in points.items() if axis is not None and point.labels == labels), None)


def axis_of(points: Mapping[str, Point], label: str) -> str | None:
    """Return the axis that a label stands on."""
    return next((axis for point in points.values() for axis, own in point.labels.items() if own == label), None)
