"""What a check is, how it ends, and what is reported of it. Knows no property that is checked.

A check is a function of a subject. It returns the figure it measured, calls `fail` with the figure and its limit, or
calls `skip` when the declared spec says that the property does not apply.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

Tier = Literal["contract", "tiny", "golden", "ranks"]
Status = Literal["ok", "warning", "fail", "not applicable", "known failure", "unexpected pass", "blocked"]
TIERS: tuple[Tier, ...] = ("contract", "tiny", "golden", "ranks")

# What ends a run with exit code 1.
BAD: frozenset[Status] = frozenset({"fail", "unexpected pass"})


class CheckFailed(Exception):
    """A property does not hold; the message carries the measured figure, its limit and the sizes."""


class Warned(Exception):
    """The property holds today, and the message says what to change before it does not."""


class NotApplicable(Exception):
    """The declared spec says that this property does not apply; the message says why."""


def fail(message: str) -> NoReturn:
    """End a check: the property does not hold."""
    raise CheckFailed(message)


def warn(message: str) -> NoReturn:
    """End a check: nothing is wrong yet, and the plugin's author should know."""
    raise Warned(message)


def skip(reason: str) -> NoReturn:
    """End a check: the property does not apply, decided from the declared spec and from nothing else."""
    raise NotApplicable(reason)


@dataclass(frozen=True, slots=True)
class Check:
    """One property of a plugin.

    Args:
        name: how reports and `known_failures` name it.
        tier: `contract` (no model; given the plugin's Subject), `tiny` (given every example's Tiny in turn), `golden`
            (given a Golden: a model with real weights) or `ranks` (given every Tiny, run where it is asked for).
        run: the function; its docstring's first line states the property, the rest says what to do when it fails.
        hook: the hook that decides it, for the report's "where".
    """

    name: str
    tier: Tier
    run: Callable[[Any], str]
    hook: str

    @property
    def rule(self) -> str:
        """The rule, in one sentence."""
        return (inspect.getdoc(self.run) or self.name).split("\n", 1)[0]

    @property
    def advice(self) -> str:
        """What to do when it fails."""
        return " ".join((inspect.getdoc(self.run) or "").split("\n", 1)[-1].split())


CHECKS: list[Check] = []


def check(tier: Tier, hook: str = "archport_build") -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Put a function into CHECKS under its own name."""

    def add(run: Callable[[Any], str]) -> Callable[[Any], str]:
        name = run.__name__  # pyright: ignore[reportFunctionMemberAccess]
        CHECKS.append(Check(name, tier, run, hook))
        return run

    return add


@dataclass(frozen=True, slots=True)
class Part:
    """How a check ended for one example: its status and the figure, or the reason."""

    example: str
    status: Status
    message: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check ended for a plugin.

    Args:
        plugin: its name.
        check: the check.
        status: the worst of its parts; `known failure` and `unexpected pass` where one was declared.
        parts: one per example, or a single one.
        seconds: how long it took.
        reason: why a failure is known, "" when none is.
    """

    plugin: str
    check: Check
    status: Status
    parts: tuple[Part, ...]
    seconds: float
    reason: str = ""

    @property
    def message(self) -> str:
        """The figures or reasons of the parts that decided, with the example where there are several."""
        wanted: Status = "fail" if self.status in ("fail", "known failure") else self.status
        told = [part for part in self.parts if part.status == wanted] or list(self.parts)
        lines = [f"[{part.example}] {part.message}" if part.example else part.message for part in told]
        if self.status == "unexpected pass":
            return f"passes, but is declared a known failure ({self.reason}); remove the entry. " + "; ".join(lines)
        if self.status == "known failure":
            return f"known: {self.reason}. " + "; ".join(lines)
        return "; ".join(lines)

    @property
    def where(self) -> str:
        return next((part.where for part in self.parts if part.status in ("fail", "warning")), "")
