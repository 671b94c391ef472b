"""`python -m dist_teracon.cli`: the command line."""

import sys

from dist_teracon.cli import main

if __name__ == "__main__":
    sys.exit(main())
