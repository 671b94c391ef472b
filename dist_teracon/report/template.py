"""Pages from templates: the macros that they share, and how widths and settings are written."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from dist_teracon.errors import TeraconError

_MACROS = "macros.html"

# Widths in em below which a table of so many columns of numbers has to scroll, as the style sheet has rules for them.
_NEEDS = (24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 80, 96, 120)


def need(columns: int, *, first: float = 7.5, each: float = 5.4) -> int:
    """Return the class of tables that scroll in a box narrower than so many em: what their columns need, rounded up."""
    needed = first + each * columns
    return next((width for width in _NEEDS if width >= needed), _NEEDS[-1])


def render_template(package: str, name: str, /, **values: Any) -> str:
    """Return a page; the same values give the same text.

    Args:
        package: Where the template lies; it may import `macros.html` of this package.
        name: Of its file.
        values: What it shows, beside the style sheet (`css`).

    Raises:
        TeraconError: jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise TeraconError("the report's page needs jinja2; install it with: pip install 'dist-teracon[report]'") from None
    here = files("dist_teracon.report")

    def load(asked: str) -> str:
        return (here if asked == _MACROS else files(package)).joinpath(asked).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup  # drawings come from `plot`, which escapes the names in them
    environment.globals["need"] = need
    css = Markup(here.joinpath("report.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(css=css, **values)


def flat(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested mappings as (dotted name, text)."""
    if isinstance(value, dict) and value:
        return [pair for key, entry in value.items() for pair in flat(entry, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list | tuple) and value:
        if not any(isinstance(entry, dict | list | tuple) for entry in value):
            return [(prefix, ", ".join(map(_plain, value)))]
        return [pair for k, entry in enumerate(value) for pair in flat(entry, f"{prefix}[{k}]")]
    return [(prefix, _plain(value))] if prefix else []


def _plain(value: object) -> str:
    """Write a value as YAML would, nothing as `none`."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None or value in ({}, [], ()) else str(value)
