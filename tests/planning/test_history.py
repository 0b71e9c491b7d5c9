"""A plan is that of its request, whatever was planned before: a resumed job has the batches of one that ran through."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from archport import engine
from archport.attention import Chooser, builtin_backends
from archport.contract import ArchSpec, AttentionLayer
from archport.device.profiles import profile
from archport.planning import NoPins, Planner
from archport.testing.plans import planned

GOLDENS = Path(__file__).parents[1] / "goldens"
LAYERS = {
    "bidirectional": AttentionLayer("bidirectional", 4, 4, 8),
    "windowed": AttentionLayer("bidirectional", 4, 4, 8, reach=(8, 8)),
    "causal": AttentionLayer("causal", 4, 2, 8),
}


def planner(layer: AttentionLayer, device: str) -> Planner:
    spec = ArchSpec(
        arch="trunk", tasks=("embed",), layers=(layer,) * 2, vocab_size=300, hidden_size=32, intermediate_size=64,
        max_positions=512, dtype="float32",
    )  # fmt: skip
    return Planner.of(spec, profile(device), Chooser(builtin_backends()), weight_bytes=10**5, pins=NoPins())


def told(made: Planner, lengths: list[int]) -> list[object]:
    plan = planned(made, lengths, pack=True)
    return [
        (batch.rows, batch.shape, batch.packed, [path.backend.name for step in batch.steps for path in step.paths])
        for batch in plan.batches
    ]


def texts(draw: random.Random) -> list[int]:
    """About a hundred texts of one to thirty of a few words, as a part of a job has."""
    return [2 + draw.choice((6, 8)) * draw.randint(1, 30) for _ in range(100)]


@pytest.mark.only_on("cpu", reason="these lengths are about as fast padded as packed there, by MKL")
def test_lengths_that_are_about_as_fast_padded_as_packed_have_the_batches_of_before():
    draw = random.Random(1)
    parts = [[2 + draw.choice((4, 5, 7)) * draw.randint(1, 30) for _ in range(100)] for _ in range(300)]
    own = engine.load(GOLDENS / "bert-plain")._runtime.encoder.plan
    used, resumed = replace(own), replace(own)
    through = [told(used, part) for part in parts]
    assert {each[2] for part in through for each in part} == {True, False}
    for part, before in reversed(list(zip(parts, through, strict=True))):
        assert told(resumed, part) == before


@pytest.mark.parametrize("device", ["cpu", "h200", "m2-pro-16gb"])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_was_planned_before_changes_no_batch(layer: str, device: str):
    draw = random.Random(5)
    parts = [texts(draw) for _ in range(12)]
    used = planner(LAYERS[layer], device)
    through = [told(used, part) for part in parts]
    for start in (3, 8):
        resumed = planner(LAYERS[layer], device)
        assert [told(resumed, part) for part in parts[start:]] == through[start:]
