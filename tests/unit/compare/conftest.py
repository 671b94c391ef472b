"""Small data sets and toy parts for tests of comparisons."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
