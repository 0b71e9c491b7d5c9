"""Blocks compiled around their attention, as CUDA decodes: the same tokens, and nothing that outlives the model."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.generating import decode
from archport.layers import Attention, GatedMLP, PreNormBlock, added, compiled

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
    model = engine.load(GOLDENS / name, dtype="float32", prefix_cache=0)
    one, several = model.generate([PROMPTS[0]], max_tokens=steps), model.generate(PROMPTS, max_tokens=steps)
    # The first token comes from the prompt, and the last one is not fed.
    compiled_steps = steps - 1 - decode.PATIENCE
    assert calls == attention_layers(model) * compiled_steps * [1] + attention_layers(model) * compiled_steps * [3]
    monkeypatch.setattr(decode, "compiles", lambda kind: False)
    plain = engine.load(GOLDENS / name, dtype="float32", prefix_cache=0)
    assert [each.tokens for each in one] == [each.tokens for each in plain.generate([PROMPTS[0]], max_tokens=steps)]
    assert [each.tokens for each in several] == [each.tokens for each in plain.generate(PROMPTS, max_tokens=steps)]


def test_rows_that_leave_start_over_uncompiled(calls):
    # In 16 bits compiled blocks round elsewhere, and random weights have near-ties.
    model = engine.load(GOLDENS / "qwen3-tied", dtype="float32", prefix_cache=0)
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
    # What a GPU's last graph holds comes back when it has ended.
    mx.synchronize()
    held = mx.get_active_memory()
    gc.disable()
    try:
        del model
        mx.synchronize()
        assert mx.get_active_memory() - before <= (held - before) / 100
    finally:
        gc.enable()


def tokens_of(model, rows: int = 1) -> list[tuple[int, ...]]:
    return [each.tokens for each in model.generate([PROMPTS[0]] * rows, max_tokens=decode.PATIENCE + 9)]


def swap(model, factor: float) -> None:
    """Replace a weight of the first block by another array."""
    down = model._runtime.encoder.trunk.model.layers[0].mlp.down_proj
    down.weight = down.weight * factor
    mx.eval(down.weight)


def test_models_that_follow_each_other_in_two_threads_keep_nothing_of_one_another(calls, monkeypatch):
    with monkeypatch.context() as plainly:
        plainly.setattr(decode, "compiles", lambda kind: False)
        want = []
        for turn in range(5):
            model = engine.load(GOLDENS / "qwen3-tied", prefix_cache=0)
            swap(model, 1 + 3 * turn)
            want.append(tokens_of(model))
    assert len({each[0] for each in want}) > 1
    gc.collect()
    before, size = mx.get_active_memory(), model.plan([1]).batches[0].peak
    del model
    with ThreadPoolExecutor(1) as other:
        for turn in range(5):
            model = engine.load(GOLDENS / "qwen3-tied", prefix_cache=0)
            swap(model, 1 + 3 * turn)
            assert tokens_of(model) == want[turn]
            assert other.submit(tokens_of, model).result() == want[turn]
            del model
    gc.collect()
    assert mx.get_active_memory() <= before + size // 10
    assert calls


def test_a_weight_that_is_replaced_counts_from_then_on(calls, monkeypatch):
    model = engine.load(GOLDENS / "qwen3-tied", prefix_cache=0)
    first = tokens_of(model)
    swap(model, 5.0)
    found = tokens_of(model)
    monkeypatch.setattr(decode, "compiles", lambda kind: False)
    assert found == tokens_of(model) != first


class Louder(Attention):
    def __call__(self, x, ctx):
        return 3 * super().__call__(x, ctx)


class Softer(GatedMLP):
    def __call__(self, x):
        return super().__call__(x) / 3


@pytest.mark.parametrize(("part", "kind"), [("self_attn", Louder), ("mlp", Softer)])
def test_a_subclass_with_a_call_of_its_own_is_called(part, kind, calls, monkeypatch):
    model = engine.load(GOLDENS / "qwen3-tied", prefix_cache=0)
    usual = tokens_of(model)
    calls.clear()
    for block in model._runtime.encoder.trunk.model.layers:
        block[part].__class__ = kind
    found = tokens_of(model)
    assert not calls
    monkeypatch.setattr(decode, "compiles", lambda kind: False)
    assert found == tokens_of(model) != usual


def test_an_output_is_added_by_the_class_that_says_so_and_no_other(calls):
    mx.random.seed(0)
    mlp, x = Softer(8, 16, mx.tanh), mx.random.normal((1, 2, 8))
    assert mx.allclose(added(mlp, x, x), x + mlp(x), atol=1e-6)


def test_many_numbers_of_rows_keep_few_traces_and_a_copy_none(calls, monkeypatch):
    made = []
    compile_block = compiled.CompiledBlock.__init__
    monkeypatch.setattr(compiled, "MOST_SHAPES", 2)
    monkeypatch.setattr(
        compiled.CompiledBlock, "__init__", lambda self, *parts: made.append(1) or compile_block(self, *parts)
    )
    model = engine.load(GOLDENS / "qwen3-tied", prefix_cache=0)
    layers = model._runtime.encoder.trunk.model.layers
    want = tokens_of(model)[0]
    for rows in (2, 3, 4, 5, 6):
        assert set(tokens_of(model, rows)) == {want}
    # One row and two, three and four, five and six.
    assert len(made) == 3 * len(layers)
    again = copy.deepcopy(layers[0])
    assert isinstance(again, PreNormBlock)
    assert again._compiled is not layers[0]._compiled
