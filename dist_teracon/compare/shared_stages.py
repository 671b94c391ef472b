"""Which cells of a comparison have first stages in common with one another, or with runs of other comparisons: these are trained once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dist_teracon.compare.plan import Cell
from dist_teracon.config.run import RunConfig
from dist_teracon.errors import ConfigError

if TYPE_CHECKING:
    from dist_teracon.data.schema import DatasetInfo


# The runs of a comparison in its folder.
_RUNS = "cells/*/seed-*/config.yaml"


@dataclass(frozen=True)
class Donor:
    """A run that another cell may begin with.

    Attributes:
        run: Its folder.
        tasks: Names of its tasks, in their order.
        stages: Its first stages that are the other cell's too.
    """

    run: Path
    tasks: tuple[str, ...]
    stages: int

    def ready(self) -> int:
        """Return how many of these stages are finished by now."""
        from dist_teracon.train.run_folder import RunFolder

        return min(self.stages, RunFolder(self.run).finished_stages(self.tasks))


@dataclass(frozen=True)
class _Run:
    """A run, of a cell or of another comparison: folder, configuration, tasks in their order, and its data set's fingerprint."""

    folder: Path
    config: RunConfig
    tasks: tuple[str, ...]
    dataset: str

    @property
    def family(self) -> tuple[str, int, str]:
        """Equal for runs that may have stages in common."""
        from dist_teracon.continual.registry import method_class

        method = str(self.config.method["name"])
        plain = method_class(method).plain_first_network is not None
        return self.dataset, self.config.seed, "plain first stages" if plain else method


def check_others(folders: Sequence[Path]) -> None:
    """Refuse folders that are no comparison's.

    Raises:
        ConfigError: a folder has no runs.
    """
    for folder in folders:
        if not any(folder.glob(_RUNS)):
            raise ConfigError(f"--begin-with {folder}: expected the folder of a comparison, with runs in cells/")


def donors_of(cells: Sequence[Cell], out: Path, others: Sequence[Path] = ()) -> dict[str, tuple[Donor, ...]]:
    """Return by a cell's name the runs that it may begin with, whatever has come of them.

    Args:
        cells: All cells, whose data sets are there.
        out: The comparison's folder.
        others: Folders of other comparisons.
    """
    from dist_teracon.continual.registry import method_class
    from dist_teracon.train.begin_with import common_stages

    own = dict(zip((cell.name for cell in cells), _runs_of_cells(cells, out), strict=True))
    families: dict[tuple[str, int, str], list[_Run]] = defaultdict(list)
    for run in [*own.values(), *(run for folder in others for run in _runs_of_folder(folder))]:
        families[run.family].append(run)
    found: dict[str, tuple[Donor, ...]] = {}
    for name, run in own.items():
        donors = []
        for other in families[run.family]:
            if other.folder == run.folder:
                continue
            common = common_stages(
                other.config, run.config, other_tasks=other.tasks, own_tasks=run.tasks, method=method_class(run.config.method["name"])
            )
            if common.count:
                donors.append(Donor(other.folder, other.tasks, common.count))
        found[name] = tuple(donors)
    return found


def _runs_of_cells(cells: Sequence[Cell], out: Path) -> Iterator[_Run]:
    from dist_teracon.data.open import open_dataset
    from dist_teracon.train.run_setup import resolve

    infos: dict[str, DatasetInfo] = {}
    for cell in cells:
        config, uri = resolve(cell.config, where=cell.name)[0], cell.config.dataset
        if uri not in infos:
            infos[uri] = open_dataset(uri).info
        info = infos[uri]
        tasks = tuple(config.tasks or (task.name for task in info.tasks))
        yield _Run(cell.folder(out).absolute(), config, tasks, info.fingerprint)


def _runs_of_folder(folder: Path) -> Iterator[_Run]:
    from dist_teracon.data.schema import info_from_json
    from dist_teracon.train.run_folder import RunFolder

    for path in sorted(folder.glob(_RUNS)):
        run = RunFolder(path.parent.absolute())
        config, info = run.config(), info_from_json(run.dataset_json())
        tasks = tuple(config.tasks or (task.name for task in info.tasks))
        if not run.additions() and run.finished_stages(tasks):
            yield _Run(run.path, config, tasks, info.fingerprint)
