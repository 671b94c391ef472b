"""Kinds of arguments that several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dist_teracon.inference.commands import AddCommand

__all__ = ["AddCommand", "Choices", "add_quiet", "as_count", "as_path", "as_place", "as_share"]


def as_count(text: str) -> int:
    """Return an option's whole number of 1 or more."""
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got '{text[:40]}'")
    return int(text)


def as_share(text: str) -> float:
    """Return an option's share, 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got '{text[:40]}'")
    return value


def as_path(text: str) -> Path:
    """Return an option's path, `~` being the home folder."""
    from dist_teracon.io import local_path

    return local_path(text)


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
