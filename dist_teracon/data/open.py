"""Opening a data set by name: a prepared folder or URI, or a synthetic one that is prepared on first use."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal, cast
from urllib.parse import parse_qsl, urlencode

from dist_teracon.console import Log, no_log
from dist_teracon.data.cache import cache_folder
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import SplitRule
from dist_teracon.errors import ConfigError, DataError

SYNTHETIC = "synthetic:"


def _split_of(uri: str) -> tuple[str, SplitRule]:
    """Split a synthetic data set's URI into its own part and the split's parameters."""
    name, _, query = uri.partition("?")
    parameters = parse_qsl(query, keep_blank_values=True)
    chosen = dict(parameters)
    by, seed = chosen.get("split", "users"), chosen.get("split_seed", "0")
    if by not in ("users", "rows", "last") or not (seed.isascii() and seed.isdecimal()):
        raise ConfigError(f"'{uri}': expected split=users, rows or last and a whole number as split_seed, got '{by}' and '{seed}'")
    rest = urlencode([(key, value) for key, value in parameters if key not in ("split", "split_seed", "train", "validation")])
    rule = SplitRule(by=cast("Literal['users', 'rows', 'last']", by), seed=int(seed))
    if {"train", "validation"} & set(chosen):
        train, validation = (_share(uri, chosen, name) for name in ("train", "validation"))
        test = round(1 - train - validation, 9)
        if test <= 0:
            raise ConfigError(f"'{uri}': train and validation leave nothing for the test; expected shares that add up to less than 1")
        rule = replace(rule, train=train, validation=validation, test=test)
    return f"{name}?{rest}" if rest else name, rule


def _share(uri: str, chosen: dict[str, str], name: str) -> float:
    try:
        share = float(chosen.get(name, getattr(SplitRule, name)))
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"'{uri}': expected a share between 0 and 1 as {name}, as {name}=0.25, got '{chosen[name]}'")
    return share


def open_dataset(uri: str, *, log: Log = no_log) -> Dataset:
    """Open a data set; `synthetic:six-tasks-v1?users=2000` is prepared in the cache folder if it is not there yet.

    A synthetic one takes `split=users|rows|last`, `split_seed=N` and the shares `train` and `validation`, whose rest is the test's, besides
    its own parameters, as in `…?users=4000&split_seed=1` or `…?users=20000&train=0.25&validation=0.05`.

    Raises:
        ConfigError: there is no such synthetic data set, or no such split.
        DataError: no data set there.
    """
    if not uri.startswith(SYNTHETIC):
        return Dataset(uri)
    folder = cache_folder() / re.sub(r"[^A-Za-z0-9.-]+", "-", uri)
    if not (folder / "dataset.json").exists():
        from dist_teracon.data.prepare.pipeline import write_dataset
        from dist_teracon.data.synthetic.six_tasks import parse_synthetic

        own, rule = _split_of(uri)
        tables = parse_synthetic(own)
        log(f"preparing {uri} in {folder}")
        try:
            write_dataset(tables, str(folder), rule)
        except (OSError, DataError):
            if not (folder / "dataset.json").exists():  # else another process was faster, with the same result
                raise
    return Dataset(str(folder))
