"""The fuzzers are a package of their own, which the runner and these tests import by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
