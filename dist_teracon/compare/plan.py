"""What is compared: variants of one configuration, each on several seeds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from dist_teracon.config import ConfigModel, RunConfig
from dist_teracon.config_io import apply_overrides, make_config, read_yaml, validate
from dist_teracon.evaluate.metrics import check_metrics


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
        notes: What a reader of the tables should know.
    """

    config: str
    set: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    baseline: str
    single_task: str | None = None
    cross_fitting: bool = False
    notes: str = ""

    @model_validator(mode="after")
    def _known_names(self) -> Plan:
        for field in ("baseline", "single_task"):
            name = getattr(self, field)
            if name is not None and name not in self.variants:
                raise ValueError(f"{field} names no variant: {name!r} (there are: {', '.join(self.variants)})")
        bad = [name for name in self.variants if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", name)]
        if bad:
            raise ValueError(f"a variant's name becomes a folder: letters, digits and . _ = + - only, not {bad[0]!r}")
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


def read_plan(uri: str) -> tuple[Plan, list[Cell]]:
    """Read a comparison and every cell's configuration, all validated before any is run.

    Raises:
        ConfigError: names file, variant and field.
    """
    plan = validate(Plan, read_yaml(uri), where=uri)
    base = read_yaml(plan.config)
    return plan, list(_cells(plan, base, uri))


def _cells(plan: Plan, base: dict[str, Any], uri: str) -> Iterator[Cell]:
    from dist_teracon.continual.method import resolve_method

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
