"""A liar in a file of its own, because what it does wrong is being imported: it loads MLX."""

import mlx.core  # noqa: F401
from toy import archport_build, archport_claim, archport_examples  # noqa: F401
