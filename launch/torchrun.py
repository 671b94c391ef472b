"""One node or several: `torchrun --nproc-per-node 8 -m dist_teracon.launch.torchrun -- CONFIG --run RUN`, the same options as `train`.

The `--` keeps torchrun from reading `--run`, which it takes for an abbreviation of its own `--run-path`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dist_teracon.cli import main as command_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the process that torchrun's variables describe; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return command_line(["train", *(given[1:] if given[:1] == ["--"] else given)])


if __name__ == "__main__":
    sys.exit(main())
