"""Blocks compiled around their attention, as CUDA decodes: the same tokens, and nothing that outlives the model."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import gc
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.layers import compiled
from archport.running import decode

GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS = ["qwen3-causal-sharded", "qwen3-tied", "qwen3-yarn", "qwen3-windowed", "qwen3-moe", "qwen3-4bit", "qwen3-vl"]
MODELS += ["qwen35-text", "qwen35-moe", "qwen3-next"]
PROMPTS = [np.arange(3, 3 + count, dtype=np.int32) for count in (17, 4, 9)]


@pytest.fixture
def calls(monkeypatch):
    """Rows of each compiled block that ran, on whatever device."""
    rows: list[int] = []
    run = compiled.CompiledBlock.__call__

    def counted(self, x, ctx):
        rows.append(x.shape[0])
        assert x.shape[1] == 1
        return run(self, x, ctx)

    monkeypatch.setattr(compiled.CompiledBlock, "__call__", counted)
    monkeypatch.setattr(decode, "compiles", lambda kind: True)
    return rows


def attention_layers(model) -> int:
    return len(model.spec.attention_layers)


@pytest.mark.parametrize("name", MODELS)
def test_the_tokens_are_those_of_blocks_run_operation_by_operation(name, calls, monkeypatch):
    steps = decode.PATIENCE + 9
    model = engine.load(GOLDENS / name, prefix_cache=0)
    one, several = model.generate([PROMPTS[0]], max_tokens=steps), model.generate(PROMPTS, max_tokens=steps)
    # The first token comes from the prompt, and the last one is not fed.
    compiled_steps = steps - 1 - decode.PATIENCE
    assert calls == attention_layers(model) * compiled_steps * [1] + attention_layers(model) * compiled_steps * [3]
    monkeypatch.setattr(decode, "compiles", lambda kind: False)
    plain = engine.load(GOLDENS / name, prefix_cache=0)
    assert [each.tokens for each in one] == [each.tokens for each in plain.generate([PROMPTS[0]], max_tokens=steps)]
    assert [each.tokens for each in several] == [each.tokens for each in plain.generate(PROMPTS, max_tokens=steps)]


def test_rows_that_leave_start_over_uncompiled(calls):
    model = engine.load(GOLDENS / "qwen3-tied", prefix_cache=0)
    alone = [model.generate([prompt], max_tokens=40)[0].tokens for prompt in PROMPTS]
    calls.clear()
    # The first row ends with a token that it makes once it is compiled.
    stop = next(token for at, token in enumerate(alone[0]) if at >= 11 and token not in alone[0][:at])
    ends = [list(tokens).index(stop) + 1 if stop in tokens else 40 for tokens in alone]
    object.__setattr__(model._runtime, "stops", frozenset({stop}))
    assert len(set(ends)) > 1
    made = model.generate(PROMPTS, max_tokens=40)
    for each, tokens, end in zip(made, alone, ends, strict=True):
        assert each.tokens == tokens[:end]
    assert calls[0] == 3
    assert calls[-1] < 3


def test_a_cuda_device_compiles_and_others_do_not():
    assert [kind for kind in ("cpu", "metal", "cuda") if decode.compiles(kind)] == ["cuda"]


def test_a_model_that_is_let_go_takes_its_compiled_blocks_along(calls):
    gc.collect()
    before = mx.get_active_memory()
    model = engine.load(GOLDENS / "qwen3-tied", prefix_cache=0)
    model.generate([PROMPTS[0]], max_tokens=decode.PATIENCE + 3)
    assert calls
    held = mx.get_active_memory()
    gc.disable()
    try:
        del model
        assert mx.get_active_memory() - before <= (held - before) / 100
    finally:
        gc.enable()
