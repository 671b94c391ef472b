"""The formats of raw data by name: a new one is one file in this folder and one line below."""

from __future__ import annotations

from importlib import import_module

from dist_teracon.data.sources.base import SourceFormat
from dist_teracon.errors import ConfigError, nearest

# Where in this folder each format's `SourceFormat` stands; a format's file is imported when it is used.
SOURCES = {
    "recbole": "recbole:FORMAT",
    "movielens": "movielens:FORMAT",
    "events": "events:FORMAT",
    "sequence-csv": "sequence_csv:FORMAT",
    "ttl": "sequence_csv:TTL",
    "tenrec": "tenrec:FORMAT",
}


def source_format(name: str) -> SourceFormat:
    """Return the reader of a format.

    Raises:
        ConfigError: no such format; names the nearest one.
    """
    if name not in SOURCES:
        raise ConfigError(f"format: no format '{name}'{nearest(name, SOURCES)} (there are: {', '.join(SOURCES)})")
    module, _, attribute = SOURCES[name].partition(":")
    found: SourceFormat = getattr(import_module(f"dist_teracon.data.sources.{module}"), attribute)
    return found
