"""`dist-teracon bench step`: a training step against a plain eager one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench step", description=__doc__)
    parser.parse_args(arguments)
