"""How much of the kit ran on a plugin, and a record of it: a run that checks less than the last one is a failure.

Knows no property; a check that does not apply any more is as little a pass as one that was left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import archport
from archport.contract import InputError
from archport.testing.check import Outcome

RAN = ("ok", "warning", "fail", "known failure", "unexpected pass")


def ran(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Check -> examples that it ran on; only checks that ran on one."""
    found = {outcome.check.name: sum(part.status in RAN for part in outcome.parts) for outcome in outcomes}
    return {name: count for name, count in found.items() if count}


def compare(outcomes: Sequence[Outcome], file: Path) -> list[str]:
    """What ran on fewer examples than the record says, in words; nothing where there is no record yet.

    Raises:
        InputError: for a file that is no record.
    """
    if not file.exists():
        return []
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))["ran"]
        before = {str(name): int(count) for name, count in recorded.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no record of a run ({type(error).__name__}); delete it to start anew") from error
    now = ran(outcomes)
    reasons = {outcome.check.name: outcome.message for outcome in outcomes}
    return [
        f"{name} ran on {now.get(name, 0)} examples, on {count} in the recorded run"
        + (f": {reasons[name]}" if name in reasons and name not in now else "")
        for name, count in before.items()
        if now.get(name, 0) < count
    ]


def record(outcomes: Sequence[Outcome], file: Path) -> None:
    """Write what ran, for the next run to be compared with."""
    content = {"archport": archport.__version__, "ran": ran(outcomes)}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
