"""Imports run one way: between the rooms of the package, between the layers of `data`, and in no circle between modules."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Folders that are installed below dist_teracon.
PACKAGES = {"dist_teracon": ROOT / "dist_teracon"} | {f"dist_teracon.{name}": ROOT / name for name in ("kernels", "launch")}

# From the top down: a room imports from its own row and from the rows below, never from one above.
ROWS = (
    {"launch", "__main__", "cli"},
    {"train", "compare", "report", "bench", "inference"},
    {"continual", "engine", "evaluate"},
    {"models"},
    {"kernels", "data"},
    {"arguments", "atomic", "config", "config_io", "console", "errors", "extensions", "hashing", "io", "locks", "memory"}
    | {"runtime", "store", "text"},
)
# The entry point of `python -m dist_teracon.kernels.compile_table`, which looks up what it compiles.
ENTRY_POINTS = {("dist_teracon.kernels.compile_table", "dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.variants")}
DATA_LAYERS = ("raw", "streaming", "sources", "prepare", "synthetic")


def _modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(module: str) -> set[str]:
    """Return the modules that a module imports, in functions and for type checkers too."""
    path, found = MODULES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return {name for name in found if name in MODULES} - {module, "dist_teracon"}


IMPORTS = {module: _imports(module) for module in MODULES}


def _room(module: str) -> str:
    return module.split(".")[1]


def _arrows(modules: Iterable[str]) -> list[tuple[str, str]]:
    return [(module, imported) for module in sorted(modules) for imported in sorted(IMPORTS[module])]


def test_every_room_has_its_row():
    assert {_room(module) for module in MODULES if "." in module} <= set().union(*ROWS)


def test_rooms_import_from_below_alone():
    row = {room: number for number, rooms in enumerate(ROWS) for room in rooms}
    upward = [(module, imported) for module, imported in _arrows(MODULES) if "." in module and row[_room(imported)] < row[_room(module)]]
    assert upward == []


def test_kernels_import_nothing_of_the_trainer_but_its_errors():
    outside = [
        (module, imported) for module, imported in _arrows(MODULES) if _room(f"{module}.") == "kernels" and _room(imported) != "kernels"
    ]
    assert [arrow for arrow in outside if arrow[1] != "dist_teracon.errors"] == []


def test_data_imports_no_kernels():
    assert [arrow for arrow in _arrows(MODULES) if _room(f"{arrow[0]}.") == "data" and _room(arrow[1]) == "kernels"] == []


@pytest.mark.parametrize("layer", DATA_LAYERS)
def test_the_layers_of_data_run_one_way(layer):
    above = {f"dist_teracon.data.{name}" for name in DATA_LAYERS[DATA_LAYERS.index(layer) + 1 :]}
    own = [module for module in MODULES if module.startswith(f"dist_teracon.data.{layer}.")]
    assert [arrow for arrow in _arrows(own) if ".".join(arrow[1].split(".")[:3]) in above] == []


def test_no_modules_import_one_another_in_a_circle():
    try:
        TopologicalSorter({module: {to for to in IMPORTS[module] if (module, to) not in ENTRY_POINTS} for module in IMPORTS}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
