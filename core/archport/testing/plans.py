"""Plans by keyword, for checks and tests: what a planner fixes and what a call asks in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from archport.contract import ArchSpec, DeviceFacts, PathChooser
from archport.planning import Plan, Planner, Request

ASKED = {field.name for field in fields(Request)}
# What `Planner.of` fills in where it is left out; other fields of a planner are replaced.
DEFAULTED = ("budget", "dtype", "weight_bytes", "pins", "plugin")


def planned(planner: Planner, lengths: Sequence[int], *, cached: int | Sequence[int] = 0, **options: Any) -> Plan:
    """The plan of rows of these lengths.

    Args:
        cached: tokens already cached, for all rows or one number per row.
        options: fields of a `Request`, and of the planner, which are replaced for this plan.
    """
    start = [cached] * len(lengths) if isinstance(cached, int) else cached
    asked = {name: options.pop(name) for name in ASKED & options.keys()}
    one = replace(planner, **options) if options else planner
    return one(Request(lengths=lengths, cached=start, **asked))


def plan_of(
    spec: ArchSpec, lengths: Sequence[int], *, device: DeviceFacts, choose: PathChooser, **options: Any
) -> Plan:
    """The plan of a model that is not loaded; options as in `planned`, and those of `Planner.of`."""
    own = {name: options.pop(name) for name in DEFAULTED if name in options}
    return planned(Planner.of(spec, device, choose, **own), lengths, **options)
