"""Whether named arrays fit a module's parameters: one error with all that is missing, left over or misshapen.

Knows names and shapes only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Protocol

from archport.checkpoint.files import shorten
from archport.contract.errors import CheckpointError

# Similarity is quadratic in the number of names; a wholly different model needs no more than a hint.
_COMPARED = 1000


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def check_fit(where: str, found: Mapping[str, Shaped], expected: Mapping[str, Shaped]) -> None:
    """Raise a CheckpointError that names every kind of difference, unless names and shapes are equal."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [name for name in expected if name in found and tuple(found[name].shape) != tuple(expected[name].shape)]
    if not (missing or unexpected or misshapen):
        return
    lines = [f"{where}: the weights do not fit the model ({len(expected)} parameters, {len(found)} tensors)."]
    if missing:
        lines.append(f"missing ({len(missing)}): " + shorten([_with_shape(name, expected) for name in missing]))
    if unexpected:
        lines.append(f"unexpected ({len(unexpected)}): " + shorten([_with_shape(name, found) for name in unexpected]))
    if misshapen:
        shapes = [
            f"{name} found {tuple(found[name].shape)} expected {tuple(expected[name].shape)}" for name in misshapen
        ]
        lines.append(f"wrong shape ({len(misshapen)}): " + shorten(shapes))
    if pairs := _closest(missing, unexpected):
        lines.append("closest: " + ", ".join(f"{name} ~ {other}" for name, other in pairs))
    lines.append(
        "The config and the weights belong to different models, or the plugin's `sanitize` does not know this layout."
    )
    raise CheckpointError("\n  ".join(lines))


def _with_shape(name: str, arrays: Mapping[str, Shaped]) -> str:
    return f"{name} {tuple(arrays[name].shape)}"


def _closest(missing: list[str], unexpected: list[str]) -> list[tuple[str, str]]:
    """For the first missing names, the left-over name most like each."""
    pairs: list[tuple[str, str]] = []
    for name in missing[:8]:
        # A prefix more or less is the usual difference, and the most telling.
        nested = [other for other in unexpected if other.endswith(f".{name}") or name.endswith(f".{other}")]
        close = nested or difflib.get_close_matches(name, unexpected[:_COMPARED], n=1, cutoff=0.6)
        if close:
            pairs.append((name, close[0]))
    return pairs
