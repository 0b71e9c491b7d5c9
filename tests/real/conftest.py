"""The helpers are a package, which these tests import by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
