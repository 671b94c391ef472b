"""One node: `torchrun --nproc-per-node 8 -m dist_teracon.launch.torchrun CONFIG --run RUN`, the same options as `train`."""

from __future__ import annotations

import sys

from dist_teracon.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
