"""The pytest front of the kit: one test per check. pytest is imported when it is used, and by nobody else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from archport.testing.check import BAD, Check, Tier
from archport.testing.finding import find, subject_of
from archport.testing.runner import check_known_failures, choose_checks, excused, goldens, run_check, run_checks


@dataclass(frozen=True, slots=True)
class BoundCheck:
    """A check of one plugin, to be called by a test.

    Args:
        plugin: a name or module; looked up when called, so that a broken one fails its tests and not the collection.
        check: the check.
        reason: why it is known to fail, "" when it is not.
        golden: what `archport record` wrote of the plugin's examples, for the golden tier.
    """

    plugin: str | ModuleType
    check: Check
    reason: str
    golden: Path | None = None

    def __call__(self) -> str:
        """Run it; returns the measured figure.

        Raises:
            AssertionError: the property does not hold, or a known failure passes.
        """
        import pytest

        found = find(self.plugin)
        if found.module is None:
            (outcome,) = run_checks(found)
            if self.check.name != outcome.check.name:
                pytest.skip(f"blocked: {outcome.message}")
        else:
            subject = subject_of(found)
            cases = goldens(subject, None, self.golden) if self.check.tier == "golden" else None
            outcome = excused(run_check(subject, self.check, cases), self.reason)
        if outcome.status in BAD:
            raise AssertionError(
                f"{outcome.check.rule}\n  why    {outcome.message}\n  where  {outcome.where}\n"
                f"  do     {outcome.check.advice}"
            )
        if outcome.status == "warning":
            warnings.warn(outcome.message, DeprecationWarning, stacklevel=2)
        if outcome.status == "known failure":
            pytest.xfail(outcome.message)
        if outcome.status in ("not applicable", "blocked"):
            pytest.skip(f"{outcome.status}: {outcome.message}")
        return outcome.message


def parametrize_conformance(
    plugin: str | ModuleType,
    *,
    known_failures: Mapping[str, str] | None = None,
    tier: Tier | None = None,
    golden: str | Path | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that runs a test once per check; the test takes `check` and calls it.

    Args:
        plugin: an entry-point name, or a module that is not packaged yet.
        known_failures: check name -> reason. Strict: a listed check that passes is a failure.
        tier: `contract`, `tiny`, or `golden` where a file is named; all of them when left out.
        golden: what `archport record` wrote of the plugin's examples.

    Raises:
        InputError: when collected, for an unknown check name or a reason that is missing.
    """
    import pytest

    known = check_known_failures(known_failures)
    file = None if golden is None else Path(golden)
    chosen = choose_checks(tier, None, golden=file is not None)
    bound = [BoundCheck(plugin, each, known.get(each.name, ""), file) for each in chosen]
    return pytest.mark.parametrize("check", bound, ids=[each.check.name for each in bound])
