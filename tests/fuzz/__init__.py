"""Fuzzers: random files, media, texts, arguments and command lines, each of which has to work or be refused on purpose.

`kinds/` holds one module for each kind of case; `make fuzz` runs thousands in worker processes (run.py, worker.py), and
test_fuzz.py a sample in this one.
"""

# Before mlx, whose BLAS it replaces.
import archport  # noqa: F401
