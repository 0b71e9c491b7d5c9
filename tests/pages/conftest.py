"""What tests of pages share is the folder's own modules: `pages.browser`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
