"""What is compared: variants of one configuration, given by name or by axes, each on several seeds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from dist_teracon.compare.axes import NAMED, ORDER, Point, axis_of, counterpart, expand
from dist_teracon.config.base import ConfigModel, Whole
from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import apply_overrides, deep_merge, make_config, read_yaml, validate
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.metrics import check_metrics, parse_metric

Experiment = Literal["reversed", "orders", "noisy", "sampling", "adaptation", "similarity", "many"]

# Experiments that compare task orders, so that a plan of theirs has an axis of them and its baseline on it.
_OF_ORDERS = ("reversed", "orders", "noisy")


class Plan(ConfigModel):
    """A comparison, as `configs/compare/*.yaml` has it. `{seed}` in a text value stands for the cell's seed.

    Attributes:
        config: The run configuration that every cell starts from.
        set: Dotted fields laid over it in every cell. A group in part, as `train.second: {epochs: 3}`, keeps its other fields, here and in
            variants, whose fields win.
        seeds: One run a variant and seed.
        axes: Axes whose product are variants (`compare/axes.py`), as methods × backbones × orders.
        variants: Name to dotted fields of its own; those of the axes are added to them.
        baseline: The variant that the others are held against; or a label of an axis: each variant is held against the one that has this
            label and is like it on all other axes.
        single_task: The variant (of method `sinmo`), or the label, that gives forward transfer its denominator.
        cross_fitting: The seeds are folds over the users: each user is tested in one of them, and scores are pooled over all.
        metrics: By which metrics the tables are: each task takes the first that it has, else the first of its own that is a mean.
        references: Variants or labels that stand in the tables for reference, and are no "best other" (`compare/differences.py`).
        experiment: What the plan asks, which gives the report a section of its own (`compare/experiments.py`).
        notes: What a reader of the tables should know.
    """

    config: str
    set: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[tuple[Whole, ...], Field(min_length=1)]
    axes: dict[str, Any] = Field(default_factory=dict)
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    baseline: str
    single_task: str | None = None
    cross_fitting: bool = False
    metrics: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    experiment: Experiment | None = None
    notes: str = ""

    @model_validator(mode="before")
    @classmethod
    def _variants_of_axes(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("axes"), dict):
            return value
        # labels are texts, also those made of numbers
        for field in ("baseline", "single_task"):
            if isinstance(value.get(field), int | float):
                value = {**value, field: str(value[field])}
        given = value.get("variants") or {}
        made = {name: point.fields for name, point in expand(value["axes"]).items()}
        if not isinstance(given, dict):
            return value
        if twice := [name for name in given if name in made]:
            raise ValueError(f"variants: '{twice[0]}' comes from the axes already; expected another name")
        return {**value, "variants": {**made, **given}}

    @model_validator(mode="after")
    def _known_names(self) -> Plan:
        labels = {label: None for point in self.points.values() for label in point.labels.values()}
        named = [("baseline", self.baseline), ("single_task", self.single_task), *(("references", name) for name in self.references)]
        for field, name in named:
            if name is not None and name not in self.variants and name not in labels:
                kind = "a variant or a label of an axis" if labels else "a variant"
                raise ValueError(f"{field}: expected {kind} ({', '.join({**labels, **self.variants})}), got {name!r}")
        for name in labels:
            if name in self.variants and (name not in self.points or name not in self.points[name].labels.values()):
                raise ValueError(
                    f"variants: '{name}' is also a label of the axis '{axis_of(self.points, name)}', so that it could mean either; "
                    "expected another name"
                )
        for where, fields in (("set", self.set), *((f"variants: '{name}'", fields) for name, fields in self.variants.items())):
            if "seed" in fields:
                raise ValueError(f"{where}: gives every cell the seed {fields['seed']!r}; expected `seeds`, one run each")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected each once, got {list(self.seeds)}")
        bad = [name for name in self.variants if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", name)]
        if bad:
            raise ValueError(f"a variant's name becomes a folder: expected letters, digits and . _ = + -, got {bad[0]!r}")
        if self.experiment in _OF_ORDERS and axis_of(self.points, self.baseline) != ORDER:
            raise ValueError(
                f"experiment: '{self.experiment}' holds task orders against one another; expected an axis '{ORDER}', and a label of it as "
                f"the baseline, got baseline {self.baseline!r}"
            )
        return self

    @property
    def points(self) -> dict[str, Point]:
        """The variants that come from axes, by name."""
        return expand(self.axes)

    def baseline_of(self, variant: str) -> str | None:
        """Return the variant that this one is held against; None for one of no axes where the baseline is a label."""
        return self._reference(self.baseline, variant)

    def single_task_of(self, variant: str) -> str | None:
        """Return the variant that learns each task alone, against which this one's forward transfer is; None where there is none."""
        return None if self.single_task is None else self._reference(self.single_task, variant)

    def _reference(self, name: str, variant: str) -> str | None:
        return name if name in self.variants else counterpart(self.points, variant, name)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a variant on a seed, with its whole configuration."""

    variant: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """The cell in messages."""
        return f"{self.variant}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Return the cell's run folder."""
        return out / "cells" / self.variant / f"seed-{self.seed}"


def read_plan(uri: str, metrics: Sequence[str] = ()) -> tuple[Plan, list[Cell]]:
    """Read a comparison and every cell's configuration, all validated before any is run.

    Args:
        uri: The comparison (YAML).
        metrics: Names that take the place of the comparison's own.

    Raises:
        ConfigError: names file, variant and field.
    """
    plan = validate(Plan, read_yaml(uri, folder="compare"), where=uri)
    if metrics:
        plan = plan.model_copy(update={"metrics": tuple(metrics)})
    cells = list(_cells(plan, read_yaml(plan.config), uri))
    _check_single_task(plan, cells, uri)
    for name in plan.metrics:
        _check_metric(name, cells, uri)
    return plan, cells


def _check_single_task(plan: Plan, cells: Sequence[Cell], uri: str) -> None:
    """Check that forward transfer is against tasks that are learned alone."""
    from dist_teracon.continual.registry import SINGLE_TASK

    alone = {plan.single_task_of(variant) for variant in plan.variants}
    for cell in cells:
        if cell.variant in alone and cell.config.method["name"] != SINGLE_TASK:
            raise ConfigError(
                f"{uri}: single_task: forward transfer is against tasks that are learned alone, which method {SINGLE_TASK} does; variant "
                f"'{cell.variant}' is of method {cell.config.method['name']}"
            )


def _check_metric(name: str, cells: Sequence[Cell], uri: str) -> None:
    """Check that tables can be made by a metric: it is a mean, and every cell computes it."""
    try:
        metric = parse_metric(name)
    except ValueError as error:
        raise ConfigError(f"{uri}: metrics: {error}") from None
    if not metric.is_mean:
        raise ConfigError(f"{uri}: metrics: expected a mean over examples or users, of which intervals are drawn, got '{name}'")
    for cell in cells:
        if name not in cell.config.evaluate.metrics:
            has = ", ".join(cell.config.evaluate.metrics)
            raise ConfigError(f"{uri}: metrics: variant '{cell.variant}' does not compute '{name}' (its evaluate.metrics: {has})")


def _cells(plan: Plan, base: dict[str, Any], uri: str) -> Iterator[Cell]:
    from dist_teracon.continual.registry import resolve_method

    for seed in plan.seeds:
        for variant, fields in plan.variants.items():
            where = cell_place(uri, variant)
            config = make_config(_laid(_laid({**base, "seed": seed}, plan.set, seed), fields, seed), where=where)
            resolve_method(config, where=where)
            check_metrics(config.evaluate.metrics, where=where)
            yield Cell(variant, seed, config)


def cell_place(uri: str, variant: str) -> str:
    """Return where a cell's configuration comes from, for messages."""
    return f"{uri}: variant '{variant}'"


def _laid(base: dict[str, Any], fields: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return a configuration with dotted fields laid over it, groups before single fields of them.

    A group adds to what is there; `{}`, and a method or backbone that is given as a whole, take its place.
    """
    for field, given in sorted(fields.items(), key=lambda entry: entry[0].count(".")):
        value, before = _of_seed(given, seed), _at(base, field)
        if isinstance(value, dict) and value and isinstance(before, dict) and field not in NAMED:
            value = deep_merge(before, value)
        base = apply_overrides(base, [_setting(field, value)])
    return base


def _at(value: Any, field: str) -> Any:
    """Return what stands at a dotted path; None where nothing does."""
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _of_seed(value: Any, seed: int) -> Any:
    """Return a value with the seed for `{seed}` in its texts, at every depth."""
    if isinstance(value, dict):
        return {key: _of_seed(entry, seed) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_of_seed(entry, seed) for entry in value]
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else value


def _setting(field: str, value: Any) -> str:
    return f"{field}={yaml.safe_dump(value, default_flow_style=True, width=1 << 20).removesuffix('...' + chr(10)).strip()}"
