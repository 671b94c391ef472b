"""The documents against the code: the tree is the real one, what the code refers to is there, and links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from dist_teracon.data.recipe import EventFilter, ItemTask, ProfileTask, Recipe, parse_recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]


def headings(page: Path) -> list[str]:
    """Return a page's headings, those within blocks of code left out."""
    plain = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.+)$", plain, re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the anchor that a heading is reached by."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sources() -> list[Path]:
    """Return the tracked files of code."""
    listed = subprocess.run(["git", "ls-files", "*.py", "*.yaml", "Makefile"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_every_room_stands_in_the_tree_of_the_architecture() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    tree = page.partition("## The tree")[2].partition("\n## ")[0]
    package = ROOT / "dist_teracon"
    modules = [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    rooms = [f"{path.parent.name}/" for path in package.rglob("__init__.py") if path.parent != package]
    assert [name for name in [*modules, *rooms] if not re.search(rf"(^| ){re.escape(name)}( |$)", tree, re.MULTILINE)] == []


def test_sections_that_the_code_refers_to_are_there() -> None:
    missing = []
    for path in sources():
        for page, section in re.findall(r"docs/([\w/.-]+\.md)(?:,\s+([A-Z][\w ]*))?", path.read_text(encoding="utf-8")):
            known = headings(DOCS / page) if (DOCS / page).exists() else None
            # a reference to two sections, as `Choices and Published figures`
            if known is None or (section and not all(any(part.startswith(name) for name in known) for part in section.split(" and "))):
                missing.append(f"{path.relative_to(ROOT)}: {page}, {section}")
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings_that_are_there(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, section = target.partition("#")
        there = page if not path else page.parent / path
        if not there.exists() or (section and section not in map(anchor, headings(there))):
            broken.append(target)
    assert broken == []


def recipe_fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the dotted names of a recipe's fields, `NAME` standing for a task's."""
    for name, field in model.model_fields.items():
        inside = [
            part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        if inside and inside[0] is not EventFilter:
            yield from recipe_fields(inside[0], f"{path}{name}.NAME." if get_origin(field.annotation) is dict else f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_the_page_on_own_data_has_every_field_of_a_recipe() -> None:
    page = (DOCS / "own-data.md").read_text(encoding="utf-8")
    fields = [*recipe_fields(Recipe), *(f"tasks.NAME.{name}" for kind in (ItemTask, ProfileTask) for name in kind.model_fields)]
    assert len(fields) > 25
    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert [name for name in fields if f"`{name}`" not in rows] == []
    filters = page.partition("**Filters**")[2].partition("##")[0]
    assert [name for name, field in EventFilter.model_fields.items() if f"`{field.alias or name}`" not in filters] == []


def test_the_page_on_own_data_has_a_whole_recipe_that_is_read() -> None:
    page = (DOCS / "own-data.md").read_text(encoding="utf-8")
    of_logs, whole = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert list(parse_recipe(yaml.safe_load(of_logs)).logs) == ["view", "order", "video"]
    recipe = parse_recipe(yaml.safe_load(whole))
    assert list(recipe.tasks) == ["later-queries", "purchases", "category", "age", "sex"]
