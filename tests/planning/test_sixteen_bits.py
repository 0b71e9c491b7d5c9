"""Peaks of 16-bit models on a CPU, where MLX's norms pass through float32, against their plans."""

from __future__ import annotations

import gc
from pathlib import Path

import mlx.core as mx
import pytest

from archport import engine
from archport.testing.measure import peaks

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="what a CPU holds")
@pytest.mark.parametrize("name", ["bert-plain", "xlm-roberta", "embeddinggemma", "modernbert", "qwen3-embed"])
def test_a_peak_in_16_bits_is_within_the_plan(name):
    model = engine.load(GOLDENS / name, dtype="bfloat16")
    texts = ["a " * 100] * 40
    model.embed(texts[:1])
    plan = model.plan(model._runtime.tokeniser(texts).lengths)
    gc.collect()
    measured = max(peaks(lambda: model.embed(texts), weights=plan.bytes["weights"], runs=3))
    assert measured <= plan.peak <= 1.5 * measured
