"""Errors that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint `; did you mean 'x'?` for a misspelt `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
