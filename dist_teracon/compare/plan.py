"""What is compared: variants of one configuration, each on several seeds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from dist_teracon.config import ConfigModel, RunConfig
from dist_teracon.config_io import apply_overrides, make_config, read_yaml, validate
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.metrics import check_metrics, parse_metric


class Plan(ConfigModel):
    """A comparison, as `configs/compare/*.yaml` has it. `{seed}` in a text value stands for the cell's seed.

    Attributes:
        config: The run configuration that every cell starts from.
        set: Dotted fields laid over it in every cell.
        seeds: One run a variant and seed.
        variants: Name to dotted fields of its own.
        baseline: The variant that the others are held against.
        single_task: The variant (of method `sinmo`) that gives forward transfer its denominator.
        cross_fitting: The seeds are folds over the users: each user is tested in one of them, and scores are pooled over all.
        metrics: By which metrics the tables are: each task takes the first that it has, else the first of its own that is a mean.
        notes: What a reader of the tables should know.
    """

    config: str
    set: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    baseline: str
    single_task: str | None = None
    cross_fitting: bool = False
    metrics: tuple[str, ...] = ()
    notes: str = ""

    @model_validator(mode="after")
    def _known_names(self) -> Plan:
        for field in ("baseline", "single_task"):
            name = getattr(self, field)
            if name is not None and name not in self.variants:
                raise ValueError(f"{field}: expected a variant ({', '.join(self.variants)}), got {name!r}")
        bad = [name for name in self.variants if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", name)]
        if bad:
            raise ValueError(f"a variant's name becomes a folder: expected letters, digits and . _ = + -, got {bad[0]!r}")
        return self


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a variant on a seed, with its whole configuration."""

    variant: str
    seed: int
    config: RunConfig

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
    for name in plan.metrics:
        _check_metric(name, cells, uri)
    return plan, cells


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
            settings = [_setting(field, value, seed) for field, value in {**plan.set, **fields}.items()]
            where = f"{uri}: variant '{variant}'"
            config = make_config(apply_overrides({**base, "seed": seed}, settings), where=where)
            resolve_method(config, where=where)
            check_metrics(config.evaluate.metrics, where=where)
            yield Cell(variant, seed, config)


def _setting(field: str, value: Any, seed: int) -> str:
    if isinstance(value, str):
        value = value.replace("{seed}", str(seed))
    return f"{field}={yaml.safe_dump(value, default_flow_style=True, width=1 << 20).removesuffix('...' + chr(10)).strip()}"
