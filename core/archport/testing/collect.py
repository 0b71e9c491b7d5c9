"""The pytest front of the kit: one test per check. pytest is imported when it is used, and by nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from archport.testing.check import BAD, Check, Tier
from archport.testing.finding import find, subject_of
from archport.testing.runner import check_known_failures, choose_checks, excused, run_check, run_checks


@dataclass(frozen=True, slots=True)
class BoundCheck:
    """A check of one plugin, to be called by a test.

    Args:
        plugin: a name or module; looked up when called, so that a broken one fails its tests and not the collection.
        check: the check.
        reason: why it is known to fail, "" when it is not.
    """

    plugin: str | ModuleType
    check: Check
    reason: str

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
            outcome = excused(run_check(subject_of(found), self.check), self.reason)
        if outcome.status in BAD:
            raise AssertionError(
                f"{outcome.check.rule}\n  why    {outcome.message}\n  where  {outcome.where}\n"
                f"  do     {outcome.check.advice}"
            )
        if outcome.status == "known failure":
            pytest.xfail(outcome.message)
        if outcome.status in ("not applicable", "blocked"):
            pytest.skip(f"{outcome.status}: {outcome.message}")
        return outcome.message


def parametrize_conformance(
    plugin: str | ModuleType, *, known_failures: Mapping[str, str] | None = None, tier: Tier | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that runs a test once per check; the test takes `check` and calls it.

    Args:
        plugin: an entry-point name, or a module that is not packaged yet.
        known_failures: check name -> reason. Strict: a listed check that passes is a failure.
        tier: `contract` or `tiny`; both when left out.

    Raises:
        InputError: when collected, for an unknown check name or a reason that is missing.
    """
    import pytest

    known = check_known_failures(known_failures)
    bound = [BoundCheck(plugin, each, known.get(each.name, "")) for each in choose_checks(tier, None, None)]
    return pytest.mark.parametrize("check", bound, ids=[each.check.name for each in bound])
