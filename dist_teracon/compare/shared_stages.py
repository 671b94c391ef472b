"""Which cells of a comparison have their first stages in common, so that these are trained once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_teracon.compare.plan import Cell
from dist_teracon.config.run import RunConfig


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


def donors_of(cells: Sequence[Cell], out: Path) -> dict[str, tuple[Donor, ...]]:
    """Return by a cell's name the runs that it may begin with, whatever has come of them.

    Args:
        cells: All cells, whose data sets are there.
        out: The comparison's folder.
    """
    from dist_teracon.continual.registry import method_class
    from dist_teracon.data.open import open_dataset
    from dist_teracon.train.begin_with import common_stages
    from dist_teracon.train.run_setup import resolve

    configs: dict[str, RunConfig] = {cell.name: resolve(cell.config, where=cell.name)[0] for cell in cells}
    groups: dict[tuple[str, int, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        method = str(configs[cell.name].method["name"])
        plain = method_class(method).plain_first_network("") is not None
        groups[cell.config.dataset, cell.seed, "plain first stages" if plain else method].append(cell)
    found: dict[str, tuple[Donor, ...]] = {}
    for (uri, _, _), group in groups.items():
        if len(group) == 1:
            continue
        every = tuple(task.name for task in open_dataset(uri).info.tasks)
        tasks = {cell.name: configs[cell.name].tasks or every for cell in group}
        for cell in group:
            donors = []
            for other in group:
                common = common_stages(
                    configs[other.name], configs[cell.name],
                    other_tasks=tasks[other.name], own_tasks=tasks[cell.name], method=method_class(configs[cell.name].method["name"]),
                )  # fmt: skip
                if other is not cell and common.count:
                    donors.append(Donor(other.folder(out).absolute(), tasks[other.name], common.count))
            found[cell.name] = tuple(donors)
    return found
