"""Errors that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TeraconError(Exception):
    """A mistake in what the user handed in: says what is wrong, where, what is allowed and how to mend it.

    The command line prints its text alone, without a traceback, and exits with code 2.
    """


class ConfigError(TeraconError):
    """A configuration or a recipe is wrong; the text names the dotted field."""


class DataError(TeraconError):
    """Raw data or a data set on disk is wrong; the text names the file and, where there is one, the line."""


class RunError(TeraconError):
    """A run folder does not fit what was asked of it."""


class TrainingError(TeraconError):
    """Training cannot go on, as after a loss that is not a number."""


class PeerError(TeraconError):
    """Another process of the run has given up, or has gone; that one's own error is the reason."""


# Longer ones are no misspelt names, and comparing them takes long.
_LONGEST_NAME = 200


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint `; did you mean 'x'?` for a misspelt `name`, or an empty string."""
    if len(name) > _LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def shortened(value: Any, *, length: int = 200) -> str:
    """Return a value as an error shows it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= length else f"{text[:length]}…"
