"""One node or several: `torchrun --nproc-per-node 8 -m dist_teracon.launch.torchrun -- CONFIG --run RUN`, the same options as `train`.

`-- pseudo-label RUN --stage 3` makes a stage's pseudo-labels the same way.

The `--` keeps torchrun from reading `--run`, which it takes for an abbreviation of its own `--run-path`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dist_teracon.cli import main as command_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the process that torchrun's variables describe; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    given = given[1:] if given[:1] == ["--"] else given
    return command_line(given if given[:1] == ["pseudo-label"] else ["train", *given])


if __name__ == "__main__":
    sys.exit(main())
