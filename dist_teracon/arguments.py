"""Numbers on the command line, of commands and benchmarks; a value that is none is an error that names the option."""

from __future__ import annotations

import argparse
import math

__all__ = ["as_count", "as_positive", "as_share", "as_whole"]

# Of what was given, so much is shown in an error.
_SHOWN = 40


def as_count(text: str) -> int:
    """Return an option's whole number of 1 or more."""
    return _whole(text, least=1)


def as_whole(text: str) -> int:
    """Return an option's whole number of 0 or more."""
    return _whole(text, least=0)


def _whole(text: str, *, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= least):
        raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got '{text[:_SHOWN]}'")
    return int(text)


def as_share(text: str) -> float:
    """Return an option's share, 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got '{text[:_SHOWN]}'")
    return value


def as_positive(text: str) -> float:
    """Return an option's number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text[:_SHOWN]}'")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
