"""Import archport before any test module imports mlx, so that the tests run on the BLAS that users get."""

import archport  # noqa: F401
