"""One node: `torchrun --nproc-per-node 8 -m dist_teracon.launch.torchrun -- CONFIG --run RUN`, the same options as `train`.

The `--` keeps torchrun from reading `--run`, which it takes for an abbreviation of its own `--run-path`.
"""

from __future__ import annotations

import sys

from dist_teracon.cli import main

if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(["train", *(given[1:] if given[:1] == ["--"] else given)]))
