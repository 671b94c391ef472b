"""Training from Python, as `dist-teracon train` does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dist_teracon.config import RunConfig
from dist_teracon.console import Console
from dist_teracon.runtime import process_group
from dist_teracon.train.run import train


def train_tasks(config: RunConfig, folder: Path | str, *, with_single_task: bool = False) -> dict[str, Any]:
    """Learn the tasks of a configuration in their order and return the run's results; the same call resumes a killed run.

    Args:
        config: As `load_config` returns it.
        folder: The run's folder.
        with_single_task: Train every task alone too, for forward transfer.

    Returns:
        The content of the run's `results.json` (docs/training.md).

    Raises:
        TeraconError: a bad configuration, data set or run folder; a loss that is not a number.
    """
    folder = Path(folder)
    with process_group() as runtime:
        console = Console(active=runtime.is_main)
        train(config, runtime, folder, where="config", console=console, with_single_task=with_single_task)
        runtime.barrier()
        results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results
