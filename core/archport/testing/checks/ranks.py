"""Ranks tier: a model split over two processes of this machine, against the same model in one.

Runs where it is asked for (`--tier ranks`), because its processes take seconds to start. One pair of them runs all of a
plugin's examples.
"""

from __future__ import annotations

import importlib.util
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np

from archport.contract import SpecError
from archport.testing.check import check, fail, skip
from archport.testing.finding import find
from archport.testing.ranks import Answered, Asked, answered, on_ranks
from archport.testing.subject import GuestTiny, Subject, Tiny

# Largest difference of float32 hidden states, relative to the largest of them; greedy tokens are equal.
LIMIT, TOKENS = 1e-5, 24

_runs: WeakKeyDictionary[Subject, dict[str, list[Answered]]] = WeakKeyDictionary()


@check("ranks")
def two_ranks_answer_as_one(t: Tiny) -> str:
    """Split over two processes a model answers as one process does, both ranks the same, each within its plan's peak.

    Compose the module of `archport.layers`, and read a table or an output head by calling it and by `head_rows`: each
    rank holds a part of its weight.
    """
    if not mx.distributed.is_available("ring"):
        skip("this build of MLX has no ring backend")
    if isinstance(t, GuestTiny) or not _importable(t):
        skip("other processes can't import the plugin by its name")
    if t.subject not in _runs:
        try:
            examples = {tiny.example.name: _asked(tiny) for tiny in t.subject.tinies if not tiny.broken}
            _runs[t.subject] = dict(zip(examples, on_ranks(list(examples.values())), strict=True))
        except RuntimeError as error:
            fail(f"a model that is split over two processes fails: {error}")
    ranks, alone = _runs[t.subject][t.example.name], answered(_asked(t))
    if ranks[0].refused:
        skip(ranks[0].refused)
    gaps: list[str] = []
    for name, whole in alone.arrays.items():
        if name == "drawn":
            # Without a seed each process alone draws otherwise.
            continue
        gap = max(_gap(each.arrays[name], whole) for each in ranks)
        if gap > (0 if name == "greedy" else LIMIT):
            fail(f"{name} differ by {gap:.2g} from those of one process (limit {LIMIT:.0e}, equal tokens)")
        gaps.append(f"{name} {gap:.1e}")
    unlike = [name for name, array in ranks[0].arrays.items() if not np.array_equal(array, ranks[1].arrays[name])]
    if unlike:
        fail(f"the two ranks differ in {', '.join(unlike)}; both have to compute the same outside of what is split")
    over = [(rank, *each) for rank, found in enumerate(ranks) for each in found.peaks if each[0] > each[1]]
    if over:
        fail("rank {} took {:,} bytes, and its plan says {:,}".format(*over[0]))
    return f"{', '.join(gaps)}; {ranks[0].bytes / alone.bytes:.0%} of the weights"


def _importable(t: Tiny) -> bool:
    name = t.subject.module.__name__
    try:
        return importlib.util.find_spec(name) is not None and find(_name(t)).module is t.subject.module
    except (ValueError, ImportError, SpecError):
        return False


def _name(t: Tiny) -> str:
    plugin = t.subject.plugin
    return plugin.name if plugin.distribution != "not installed" else t.subject.module.__name__


def _asked(t: Tiny) -> Asked:
    rows = [t.tokens(t.length(24)).tolist(), t.tokens(t.length(11)).tolist()]
    return Asked(
        str(t.folder),
        _name(t),
        rows,
        texts=("one two", "three"),
        pairs=("one", ("two", "three four")),
        new_tokens=TOKENS if "generate" in t.spec.tasks else 0,
        options={"dtype": "float32"},
    )


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one.astype(np.float64) - other).max() / max(float(np.abs(other).max()), 1e-30))
