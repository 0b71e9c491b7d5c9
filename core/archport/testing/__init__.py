"""The conformance kit: one list of checks behind `parametrize_conformance` (pytest) and `archport check`.

    from archport.testing import parametrize_conformance

    @parametrize_conformance("acme", known_failures={"chunked_prefill_equals_whole": "acme#12: cache offset"})
    def test_conformance(check):
        check()

A plugin is named by its entry point, or handed over as a module before it is packaged. Needs no pytest to import.
"""

# First, because it says what to install where MLX can't run, and whatever follows imports MLX.
import archport.device.backend  # noqa: F401  # isort: skip

from archport.testing import checks as _checks
from archport.testing.check import BAD, CHECKS, Check, Outcome, Part, fail, skip
from archport.testing.collect import parametrize_conformance
from archport.testing.runner import run_checks
from archport.testing.subject import Golden, Subject, Tiny

# Importing them puts them into CHECKS, in order.
del _checks

__all__ = [
    "BAD",
    "CHECKS",
    "Check",
    "Golden",
    "Outcome",
    "Part",
    "Subject",
    "Tiny",
    "fail",
    "parametrize_conformance",
    "run_checks",
    "skip",
]
