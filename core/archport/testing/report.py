"""What checks found, as text for a terminal, JSON and a Markdown table. Decides nothing.

A failure tells four things: what the rule is, why it does not hold (figure, limit, sizes), where the rule is decided in
the plugin, and what to do.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from archport.testing.check import BAD, Outcome

_MARKS = {
    "ok": "ok",
    "warning": "WARN",
    "fail": "FAIL",
    "not applicable": "n/a",
    "known failure": "known",
    "unexpected pass": "XPASS",
    "blocked": "blocked",
}
WIDTH = 110


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """One outcome as JSON-ready values."""
    return {
        "plugin": outcome.plugin,
        "check": outcome.check.name,
        "tier": outcome.check.tier,
        "status": outcome.status,
        "rule": outcome.check.rule,
        "message": outcome.message,
        "where": outcome.where,
        "do": outcome.check.advice if outcome.status in (*BAD, "warning") else "",
        "seconds": round(outcome.seconds, 3),
        "examples": [
            {"example": part.example, "status": part.status, "message": part.message} for part in outcome.parts
        ],
    }


def as_text(outcomes: Sequence[Outcome], *, verbose: bool = False) -> str:
    """One plugin's outcomes: what failed in full, the rest counted, or listed when asked for.

    Args:
        verbose: list every check with its figure.
    """
    lines: list[str] = []
    for outcome in outcomes:
        if outcome.status in BAD or outcome.status == "warning":
            lines += _failure(outcome)
        elif verbose or outcome.status == "known failure":
            lines.append(f"{_MARKS[outcome.status]:<8}{outcome.check.name:<36} {_shorten(outcome.message)}")
    if not verbose:
        lines += _not_applicable(outcomes)
    blocked = [outcome for outcome in outcomes if outcome.status == "blocked"]
    if blocked and not verbose:
        lines.append(f"{len(blocked)} checks wait for that: {_shorten(blocked[0].message)}")
    return "\n".join([*lines, summary(outcomes)])


def _not_applicable(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each reason why checks do not apply, with their names."""
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.status == "not applicable":
            reasons.setdefault(outcome.parts[0].message.partition(":")[0], []).append(outcome.check.name)
    lines: list[str] = []
    for reason, names in reasons.items():
        lines += textwrap.wrap(f"n/a     {reason}: {', '.join(names)}", WIDTH, subsequent_indent=" " * 8)
    return lines


def _failure(outcome: Outcome) -> list[str]:
    told = [("what", outcome.check.rule), ("why", outcome.message), ("where", outcome.where)]
    told.append(
        (
            "do",
            outcome.check.advice if outcome.status in ("fail", "warning") else "remove its entry from known_failures",
        )
    )
    lines = [f"{_MARKS[outcome.status]}  {outcome.check.name}"]
    for word, text in told:
        if text:
            # A stranger's error may fill screens; its beginning says what it is.
            lines += textwrap.wrap(
                textwrap.shorten(text, 600, placeholder=" ..."),
                WIDTH,
                initial_indent=f"  {word:<7}",
                subsequent_indent=" " * 9,
                break_long_words=False,
            )
    return [*lines, ""]


def _shorten(text: str) -> str:
    return textwrap.shorten(text, WIDTH, placeholder=" ...")


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many ended how, and the time it took."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    words = {
        "ok": "passed",
        "warning": "with a warning",
        "fail": "failed",
        "known failure": "known to fail",
        "unexpected pass": "passed unexpectedly",
    }
    parts = [f"{counts[status]} {words.get(status, status)}" for status in _MARKS if status in counts]
    seconds = sum(outcome.seconds for outcome in outcomes)
    return f"{outcomes[0].plugin if outcomes else 'no plugin'}: {', '.join(parts)} in {seconds:.1f} s"


def as_markdown(runs: Mapping[str, Sequence[Outcome]]) -> str:
    """A table, check by plugin, with the figure where the rule holds and the reason where it does not apply."""
    names = list(runs)
    lines = ["| check | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    by_check = [{outcome.check.name: outcome for outcome in outcomes} for outcomes in runs.values()]
    for check in dict.fromkeys(name for found in by_check for name in found):
        cells = [_cell(found[check]) if check in found else "" for found in by_check]
        lines.append(f"| `{check}` | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {summary(outcomes)}" for outcomes in runs.values())]
    return "\n".join(lines) + "\n"


def _cell(outcome: Outcome) -> str:
    told = list(dict.fromkeys(part.message for part in outcome.parts if part.status == outcome.status))
    text = "; ".join(told) if outcome.status == "ok" else f"{_MARKS[outcome.status]}: {outcome.message}"
    if outcome.status == "not applicable":
        # The reason is the declared spec; the part before the colon says it.
        text = "n/a: " + told[0].partition(":")[0]
    return textwrap.shorten(text.replace("|", "\\|"), 240, placeholder=" ...")
