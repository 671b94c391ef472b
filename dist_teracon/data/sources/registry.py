"""The formats of raw data by name: a new one is one file in this folder and one line below."""

from __future__ import annotations

from importlib import import_module

from dist_teracon.data.sources.base import SourceFormat
from dist_teracon.errors import ConfigError, nearest
from dist_teracon.extensions import declared_names, load

# Where in this folder each format's `SourceFormat` stands; a format's file is imported when it is used.
SOURCES = {
    "recbole": "recbole:FORMAT",
    "movielens": "movielens:FORMAT",
    "events": "events:FORMAT",
    "sequence-csv": "sequence_csv:FORMAT",
    "ttl": "sequence_csv:TTL",
    "tenrec": "tenrec:FORMAT",
}


def format_names() -> list[str]:
    """Return the names of all formats, those of other installed packages behind the others."""
    return list(dict.fromkeys([*SOURCES, *declared_names("sources")]))


def source_format(name: str) -> SourceFormat:
    """Return the reader of a format.

    Raises:
        ConfigError: no such format, and the nearest is named; or a package's cannot be imported.
    """
    if name not in SOURCES:
        if (declared := load("sources", name, SourceFormat)) is not None:
            return declared
        raise ConfigError(f"format: no format '{name}'{nearest(name, format_names())} (there are: {', '.join(format_names())})")
    module, _, attribute = SOURCES[name].partition(":")
    found: SourceFormat = getattr(import_module(f"dist_teracon.data.sources.{module}"), attribute)
    return found
