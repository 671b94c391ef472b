"""Training from Python, as `dist-teracon train` does it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from dist_teracon.config.run import RunConfig
from dist_teracon.console import Console
from dist_teracon.runtime import process_group
from dist_teracon.train.run import train
from dist_teracon.train.run_folder import RunFolder


def train_tasks(config: RunConfig, folder: Path | str, *, with_single_task: bool = False) -> dict[str, Any]:
    """Learn the tasks of a configuration in their order and return the run's results; the same call resumes a killed run.

    Args:
        config: As `load_config` returns it.
        folder: The run's folder, or its URI on a store, as `s3://bucket/run`.
        with_single_task: Train every task alone too, for forward transfer.

    Returns:
        The content of the run's `results.json` (docs/training.md).

    Raises:
        TeraconError: a bad configuration, data set or run folder; a loss that is not a number.
    """
    with process_group() as runtime:
        console = Console(active=runtime.is_main)
        train(config, runtime, folder, where="config", console=console, with_single_task=with_single_task)
        runtime.barrier()
        with tempfile.TemporaryDirectory() as cache:
            run = RunFolder.open_for_reading(folder, Path(cache), wanted=lambda path: path == "results.json")
            results: dict[str, Any] = run.read_json("results.json")
    return results
