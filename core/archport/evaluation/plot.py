"""Results as a picture: a group of bars for each task, a bar for each model with its interval, in one SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from archport.evaluation.results import Result

# Told apart by people who see no red or no green, and in grey.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_BAR, _GAP, _LEFT, _TOP, _HEIGHT = 28, 36, 48, 24, 240


def svg(results: Mapping[str, Sequence[Result]]) -> str:
    """The picture of every model's results, by its name; all models have the same tasks in the same order."""
    names = list(results)
    tasks = [result.task for result in next(iter(results.values()))]
    group = _BAR * len(names) + _GAP
    width = max(_LEFT + group * len(tasks) + _GAP, 320)
    bottom = _TOP + _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 40 + 20 * len(names)}" '
        'font-family="sans-serif" font-size="12" role="img">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for tenth in range(0, 11, 2):
        y = bottom - _HEIGHT * tenth / 10
        parts.append(f'<line x1="{_LEFT}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    for place, task in enumerate(tasks):
        left = _LEFT + _GAP / 2 + place * group
        parts.append(
            f'<text x="{left + _BAR * len(names) / 2:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(task)}</text>'
        )
        for at, name in enumerate(names):
            parts += _bar(left + at * _BAR, bottom, results[name][place], name, COLOURS[at % len(COLOURS)])
    for at, name in enumerate(names):
        y = bottom + 36 + 20 * at
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="12" height="12" fill="{COLOURS[at % len(COLOURS)]}"/>')
        parts.append(f'<text x="{_LEFT + 20}" y="{y + 11}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _bar(x: float, bottom: int, result: Result, name: str, colour: str) -> list[str]:
    score, low, high = (bottom - _HEIGHT * max(0.0, value) for value in (result.score, result.low, result.high))
    middle = x + _BAR / 2 - 2
    told = f"{name}, {result.task}: {result.measure} {result.score:.3f} [{result.low:.3f}, {result.high:.3f}]"
    return [
        f'<rect x="{x:.1f}" y="{score:.1f}" width="{_BAR - 4}" height="{bottom - score:.1f}" fill="{colour}">'
        f"<title>{escape(told)}</title></rect>",
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{high:.1f}" y2="{low:.1f}" stroke="black"/>',
    ]
