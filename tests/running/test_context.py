"""What layers see of a step is gone with the step."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from archport import engine
from archport.generating.decode import DecodeContext
from archport.running.context import StepContext

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.mark.parametrize("name", ["qwen3-causal-sharded", "qwen3-vl", "qwen35-text"])
def test_a_context_holds_nothing_until_the_garbage_collector_comes(name):
    model = engine.load(GOLDENS / name)
    gc.collect()
    gc.disable()
    try:
        model.generate("a few words", max_tokens=3)
        left = [each for each in gc.get_objects() if isinstance(each, StepContext | DecodeContext)]
    finally:
        gc.enable()
    assert not left
