"""Peaks of 16-bit models on a CPU, where MLX's norms pass through float32, against their plans."""

from __future__ import annotations

import gc
from pathlib import Path

import mlx.core as mx
import pytest

from archport import engine

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="what a CPU holds")
@pytest.mark.parametrize("name", ["bert-plain", "xlm-roberta", "embeddinggemma", "modernbert", "qwen3-embed"])
def test_a_peak_in_16_bits_is_within_the_plan(name):
    model = engine.load(GOLDENS / name, dtype="bfloat16")
    texts = ["a " * 100] * 40
    model.embed(texts[:1])
    plan = model.plan(model._runtime.tokeniser(texts).lengths)
    measured = 0
    for _ in range(10):
        gc.collect()
        mx.clear_cache()
        mx.reset_peak_memory()
        others = mx.get_active_memory() - model._runtime.encoder.plan.weight_bytes
        model.embed(texts)
        measured = max(measured, mx.get_peak_memory() - others)
        if plan.peak <= 1.5 * measured:
            break
    assert measured <= plan.peak <= 1.5 * measured
