"""Arguments that several commands take: paths, places of runs, choices; numbers are those of `dist_teracon/arguments.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dist_teracon.arguments import as_count, as_share
from dist_teracon.inference.commands import AddCommand

__all__ = ["AddCommand", "Choices", "add_quiet", "as_count", "as_path", "as_place", "as_share"]


def as_path(text: str) -> Path:
    """Return an option's path on this machine, `~` being the home folder."""
    from dist_teracon import io

    if not io.is_local(text):
        raise argparse.ArgumentTypeError(f"expected a path on this machine, not on a store, got '{text}'")
    return io.local_path(text)


def as_place(text: str) -> Path | str:
    """Return the place of a run: a folder, or a URI as it is written."""
    from dist_teracon import io

    return io.local_path(text) if io.is_local(text) else text.rstrip("/")


class Choices:
    """Choices of an argument, looked up when it is parsed or its help is printed."""

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())


def add_quiet(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--quiet", action="store_true", help="print warnings, errors and the last line alone")
