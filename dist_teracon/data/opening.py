"""Opening a data set by name: a prepared folder or URI, or a synthetic one that is prepared on first use."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from dist_teracon.data.schema import SplitRule
from dist_teracon.data.shards import Dataset
from dist_teracon.errors import DataError

SYNTHETIC = "synthetic:"


def cache_folder() -> Path:
    """Where data sets prepared on first use lie: `$DIST_TERACON_CACHE`, else the user's cache folder."""
    if folder := os.environ.get("DIST_TERACON_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dist-teracon"


def open_dataset(uri: str, *, say: Callable[[str], None] = lambda _: None) -> Dataset:
    """Open a data set; `synthetic:six-tasks-v1?users=2000` is prepared in the cache folder if it is not there yet.

    Raises:
        ConfigError: there is no such synthetic data set.
        DataError: no data set there.
    """
    if not uri.startswith(SYNTHETIC):
        return Dataset(uri)
    folder = cache_folder() / re.sub(r"[^A-Za-z0-9.-]+", "-", uri)
    if not (folder / "dataset.json").exists():
        from dist_teracon.data.prepare import write_dataset
        from dist_teracon.data.synthetic import parse_synthetic

        tables = parse_synthetic(uri)
        say(f"preparing {uri} in {folder}")
        try:
            write_dataset(tables, str(folder), SplitRule())
        except (OSError, DataError):
            if not (folder / "dataset.json").exists():  # else another process was faster, with the same result
                raise
    return Dataset(str(folder))
