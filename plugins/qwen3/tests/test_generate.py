"""Generation of tiny Qwen3 checkpoints: the tokens of transformers, alone, in batches, in pieces and from a cache."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import ContextLengthExceeded, InputError, KVAllocation, MemoryBudgetExceeded, NonFiniteOutput
from archport.contract.hookspecs import hookimpl

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
NAMES = (
    *("qwen3-tied", "qwen3-causal-sharded", "qwen3-moe", "qwen3-yarn", "qwen3-windowed"),
    *("qwen3-4bit", "qwen3-moe-4bit"),
)


def endless(model):
    """The same model without final tokens, as the goldens were recorded."""
    import dataclasses

    model._runtime = dataclasses.replace(model._runtime, stops=frozenset())
    return model


@pytest.fixture(scope="module")
def golden():
    return {name: np.load(GOLDENS / name / "golden.npz") for name in NAMES}


@pytest.fixture(scope="module")
def models():
    return {name: endless(engine.load(GOLDENS / name, dtype="float32", prefix_cache=0)) for name in NAMES}


@pytest.fixture(scope="module")
def model(models):
    return models["qwen3-windowed"]


def prompts(golden, name):
    return [golden[name][key] for key in golden[name] if key.startswith("ids_")]


@pytest.mark.parametrize("name", NAMES)
def test_sixty_four_greedy_tokens_equal_transformers(models, golden, name):
    for index, ids in enumerate(prompts(golden, name)):
        assert list(models[name].generate(ids, max_tokens=64).tokens) == golden[name][f"greedy_{index}"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(models, golden, name):
    trunk = models[name]._runtime.encoder.trunk
    for index, ids in enumerate(prompts(golden, name)):
        want = golden[name][f"logits_{index}"]
        got = np.array(trunk.logits(models[name].forward(ids[None])[:, -1:]))[0, 0]
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_equal_transformers(models, golden, name):
    for index, ids in enumerate(prompts(golden, name)):
        want = golden[name][f"hidden_{index}"]
        assert np.abs(np.array(models[name].forward(ids[None]))[0] - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", NAMES)
def test_eight_ragged_prompts_in_one_batch_equal_eight_single_runs(models, golden, name):
    rows = [*prompts(golden, name), *(row[: len(row) // 2 + 1] for row in prompts(golden, name)[1:4])]
    together = models[name].generate(rows, max_tokens=40)
    assert [each.tokens for each in together] == [models[name].generate(row, max_tokens=40).tokens for row in rows]


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_a_prompt_read_in_chunks_goes_on_alike(golden, chunk):
    import types

    pins = types.ModuleType("pins")
    pins.archport_prefill_chunk = hookimpl(_constant("archport_prefill_chunk", chunk))
    name = "qwen3-windowed"
    chunked = endless(engine.load(GOLDENS / name, dtype="float32", prefix_cache=0, overrides=[pins]))
    rows = prompts(golden, name)
    assert list(chunked.generate(rows[3], max_tokens=64).tokens) == golden[name]["greedy_3"].tolist()
    batch = chunked.generate(rows, max_tokens=20)
    assert [list(each.tokens) for each in batch] == [golden[name][f"greedy_{i}"][:20].tolist() for i in range(5)]


def _constant(name, value):
    scope = {"value": value}
    exec(f"def {name}(spec):\n    return value", scope)
    return scope[name]


@pytest.mark.parametrize("storage", ["planned", "growing"])
def test_keys_are_held_as_the_allocation_hook_says(golden, storage):
    import types

    seen = []
    pins = types.ModuleType("pins")

    def archport_kv_allocation(spec, layer, shape, limits):
        kept = KVAllocation(storage, 64 if storage == "growing" else 512, 512)
        seen.append(kept)
        return kept

    pins.archport_kv_allocation = hookimpl(archport_kv_allocation)
    pinned = endless(engine.load(GOLDENS / "qwen3-moe", dtype="float32", prefix_cache=0, overrides=[pins]))
    ids = golden["qwen3-moe"]["ids_3"]
    assert list(pinned.generate(ids, max_tokens=64).tokens) == golden["qwen3-moe"]["greedy_3"].tolist()
    assert seen


def test_rows_leave_as_they_finish(model):
    ends = model.generate(["The", "the hack"], max_tokens=6)
    stop = ends[0].text[:3]
    one, two = model.generate(["The", "the hack"], max_tokens=6, stop=[stop])
    assert one.finish_reason == "stop"
    assert len(one.tokens) < 6
    alone = model.generate("the hack", max_tokens=6, stop=[stop])
    assert (two.text, two.tokens, two.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)


def test_generation_ends_at_a_final_token_which_is_no_text():
    stops = engine.load(GOLDENS / "qwen3-windowed")
    free = endless(engine.load(GOLDENS / "qwen3-windowed"))
    token = free.generate("the hack", max_tokens=5).tokens[3]
    import dataclasses

    stops._runtime = dataclasses.replace(stops._runtime, stops=frozenset({token}))
    made = stops.generate("the hack", max_tokens=5)
    first = made.tokens.index(token)
    assert made.finish_reason == "stop"
    assert first == len(made.tokens) - 1
    assert made.text == free._runtime.tokeniser.tokenizer.decode(list(made.tokens[:-1]))


def test_the_text_is_what_the_tokenizer_makes_of_the_tokens(model):
    for made in model.generate(["The", "the hack", "x = "], max_tokens=30):
        assert made.text == model._runtime.tokeniser.tokenizer.decode(list(made.tokens))


def test_a_stream_gives_the_same_text_in_pieces_and_its_usage_at_the_end(model):
    whole = model.generate("the hack", max_tokens=20)
    pieces = list(model.generate("the hack", max_tokens=20, stream=True))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert sum((piece.tokens for piece in pieces), ()) == whole.tokens
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * 19
    assert (pieces[-1].finish_reason, pieces[-1].usage) == ("length", whole.usage)
    assert whole.usage.completion_tokens == 20
    assert whole.usage.prompt_tokens == len(model._runtime.tokeniser.tokenizer.encode("the hack").ids)


def test_a_stop_string_is_never_given_even_across_tokens(model):
    text = model.generate("the hack", max_tokens=30).text
    for length in (1, 4, 9):
        stop = text[5 : 5 + length]
        pieces = list(model.generate("the hack", max_tokens=30, stop=stop, stream=True))
        assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]
        assert pieces[-1].finish_reason == "stop"


def test_a_seed_gives_the_same_text_whatever_else_draws(models):
    model = models["qwen3-moe"]
    options = {"max_tokens": 20, "temperature": 5, "top_p": 0.95, "top_k": 50, "min_p": 0.001}
    one = model.generate("the hack", seed=3, **options)
    mx.random.normal((3,))
    assert model.generate("the hack", seed=3, **options) == one
    assert model.generate("the hack", seed=4, **options).tokens != one.tokens


def test_filters_keep_only_what_they_name(model):
    greedy = model.generate("the hack", max_tokens=12)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert model.generate("the hack", max_tokens=12, temperature=2.0, **narrow).tokens == greedy.tokens


def test_a_repetition_penalty_looks_at_all_of_prompt_and_text(model, golden):
    ids = golden["qwen3-windowed"]["ids_2"]
    made = model.generate(ids, max_tokens=24, repetition_penalty=1e6)
    assert len(set(made.tokens)) == 24
    assert not set(made.tokens) & set(ids.tolist())
    two = model.generate([ids, ids[:9]], max_tokens=24, repetition_penalty=1e6)
    assert two[0].tokens == made.tokens


def test_logprobs_are_those_of_a_full_pass(model):
    made = model.generate("the hack", max_tokens=6, logprobs=3)
    ids = model._runtime.tokeniser.tokenizer.encode("the hack").ids
    hidden = model.forward(np.array([[*ids, *made.tokens]]))
    logits = np.array(model._runtime.encoder.trunk.logits(hidden))[0, len(ids) - 1 : -1].astype(np.float64)
    want = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for place, told in enumerate(made.logprobs):
        assert told.token == made.tokens[place]
        assert abs(told.logprob - want[place, told.token]) <= 1e-4
        assert [token for token, _ in told.top] == np.argsort(-want[place])[:3].tolist()
    assert model.generate("the hack", max_tokens=1).logprobs is None


def test_a_remembered_beginning_is_not_read_again_and_changes_nothing(golden):
    cached = endless(engine.load(GOLDENS / "qwen3-moe", dtype="float32", prefix_cache="64MB"))
    ids = golden["qwen3-moe"]["ids_3"]
    first = cached.generate(ids, max_tokens=20, logprobs=2)
    again = cached.generate(ids, max_tokens=20, logprobs=2)
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, len(ids) - 1)
    assert again.tokens == first.tokens
    assert np.abs(_top(again) - _top(first)).max() <= 1e-5 * np.abs(_top(first)).max()
    turn = np.concatenate([ids, first.tokens, ids[:5]]).astype(np.int32)
    assert cached.generate(turn, max_tokens=8).usage.cached_tokens == len(ids) + 19
    other = cached.generate(np.concatenate([ids[:50], ids[:9]]), max_tokens=4)
    assert other.usage.cached_tokens == 50


def _top(made):
    return np.array([[score for _, score in told.top] for told in made.logprobs])


def test_a_cache_of_a_windowed_model_goes_back_to_the_end_of_a_prompt(golden):
    cached = endless(engine.load(GOLDENS / "qwen3-windowed", dtype="float32", prefix_cache="64MB"))
    ids, want = golden["qwen3-windowed"]["ids_3"], golden["qwen3-windowed"]["greedy_3"].tolist()
    assert list(cached.generate(ids[:100], max_tokens=5).tokens)
    made = cached.generate(ids, max_tokens=64)
    assert made.usage.cached_tokens == 100
    assert list(made.tokens) == want


def test_the_cache_stays_within_its_bytes_and_forgets_what_was_used_longest_ago(golden):
    rows = prompts(golden, "qwen3-moe")
    probe = endless(engine.load(GOLDENS / "qwen3-moe", prefix_cache="64MB"))
    probe.generate(rows[3], max_tokens=2)
    size = probe._runtime.prefixes.bytes
    small = endless(engine.load(GOLDENS / "qwen3-moe", prefix_cache=size + 10))
    small.generate(rows[3], max_tokens=2)
    small.generate(rows[2], max_tokens=2)
    assert small._runtime.prefixes.bytes <= size + 10
    assert small.generate(rows[3], max_tokens=2).usage.cached_tokens < 10
    off = endless(engine.load(GOLDENS / "qwen3-moe", prefix_cache=0))
    off.generate(rows[3], max_tokens=2)
    assert off.generate(rows[3], max_tokens=2).usage.cached_tokens == len(off._runtime.prefixes) == 0


# A GPU reads a prompt and a single token with different kernels; that numbers stay within rounding is the test before.
@pytest.mark.only_on("cpu", reason="the BLAS that may round alike for every number of rows is a CPU's")
def test_with_the_plain_blas_a_remembered_beginning_changes_no_bit():
    script = (
        "import sys, archport, numpy as np\n"
        "from archport import engine\n"
        "model = engine.load(sys.argv[1])\n"
        "ids = np.load(sys.argv[1] + '/golden.npz')['ids_3']\n"
        "runs = [model.generate(ids, max_tokens=12, logprobs=5) for _ in range(2)]\n"
        "assert runs[1].usage.cached_tokens == len(ids) - 1\n"
        "print(runs[0].logprobs == runs[1].logprobs)\n"
    )
    environment = os.environ | {"ARCHPORT_BLAS": "off"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(GOLDENS / "qwen3-moe")], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "True", done.stderr[-500:]


def test_closing_a_stream_frees_its_memory(model):
    model.generate("the hack", max_tokens=2)
    gc.collect()
    before = mx.get_active_memory()
    stream = model.generate(["the hack"] * 16, max_tokens=300, stream=True)
    next(stream)
    assert mx.get_active_memory() > before + 1_000_000
    stream.close()
    del stream
    gc.collect()
    mx.synchronize()
    assert mx.get_active_memory() <= before + 10_000


def test_without_a_limit_a_text_goes_on_to_the_end_of_the_context(golden):
    short = endless(engine.load(GOLDENS / "qwen3-yarn", dtype="float32", max_context=140, prefix_cache=0))
    made = short.generate(golden["qwen3-yarn"]["ids_3"], max_tokens=None)
    assert len(made.tokens) == 140 - 128
    assert list(made.tokens) == golden["qwen3-yarn"]["greedy_3"][:12].tolist()


def test_progress_counts_tokens_that_are_made_and_forgets_those_of_rows_that_end_early(model, monkeypatch):
    from contextlib import nullcontext

    from archport.generating import generate

    stop, bars, counts = model.generate("the hack", max_tokens=9).text[2:4], [], []

    def counted(what, total, *, shown):
        bars.append((total, shown))
        return nullcontext(lambda done, dropped=0: counts.append((done, dropped)))

    monkeypatch.setattr(generate, "counted", counted)
    made = model.generate(["the hack", "The"], max_tokens=9, stop=stop, progress=True)
    tokens = sum(len(each.tokens) for each in made)
    assert tokens < 18
    assert bars == [(18, True)]
    assert sum(done for done, _ in counts) == tokens
    assert sum(dropped for _, dropped in counts) == 18 - tokens


@pytest.mark.parametrize(
    ("prompt", "options", "kind", "said"),
    [
        ("", {}, InputError, "prompt 0 is empty"),
        (["a", ""], {}, InputError, "prompt 1 is empty"),
        ([], {}, InputError, "empty list"),
        (3, {}, InputError, "prompt is a int"),
        ([[1, 503]], {}, InputError, "prompt 0 holds token id 503"),
        ([-1, 2], {}, InputError, "token id -1"),
        ([{"role": "user", "content": "a"}], {}, InputError, "no chat template"),
        ("a", {"max_tokens": -1}, InputError, "max_tokens=-1"),
        ("a", {"temperature": -1}, InputError, "temperature=-1"),
        ("a", {"top_p": 1.5}, InputError, "top_p=1.5"),
        ("a", {"stop": ""}, InputError, "stop="),
        ("a", {"stop": 3}, InputError, "stop=3; expected a str"),
        ("a", {"temprature": 2}, InputError, "temprature would change nothing; generate knows no such argument"),
        ([5, 6], {"tools": [{"name": "x"}]}, InputError, "tools would change nothing"),
        ("a", {"logprobs": True}, InputError, "logprobs=True"),
        ([7] * 512, {}, ContextLengthExceeded, "512 tokens and the context 512"),
        ([7] * 513, {"max_tokens": 0}, ContextLengthExceeded, "513 tokens and the context 512"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(model, prompt, options, kind, said):
    with pytest.raises(kind, match=said):
        model.generate(prompt, stream=True, **options)


def test_a_request_over_the_budget_is_refused_with_numbers():
    small = engine.load(GOLDENS / "qwen3-windowed", memory_budget=3_000_000)
    with pytest.raises(MemoryBudgetExceeded, match=r"to generate does not fit"):
        small.generate(["the hack"] * 64, max_tokens=400)


def test_logits_that_are_not_finite_are_an_error():
    broken = engine.load(GOLDENS / "qwen3-windowed")
    norm = broken._runtime.encoder.trunk.model.norm
    norm.weight = mx.full(norm.weight.shape, mx.nan)
    with pytest.raises(NonFiniteOutput, match="prompt 0"):
        broken.generate("a")


def test_an_embedding_model_says_that_it_generates_no_text():
    with pytest.raises(InputError, match="is for embed"):
        engine.load(GOLDENS / "qwen3-embed").generate("a")


def test_final_ids_come_from_every_file_that_names_one():
    stated = json.loads((GOLDENS / "qwen3-windowed" / "config.json").read_text())["eos_token_id"]
    assert engine.load(GOLDENS / "qwen3-windowed")._runtime.stops == {stated}


def test_a_beginning_that_was_used_again_outlives_one_that_was_not(golden):
    rows = prompts(golden, "qwen3-moe")[1:4]
    rows = [np.concatenate([[index], row[:24]]).astype(np.int32) for index, row in enumerate(rows)]
    probe = endless(engine.load(GOLDENS / "qwen3-moe", prefix_cache="64MB"))
    probe.generate(rows[0], max_tokens=2)
    two = endless(engine.load(GOLDENS / "qwen3-moe", prefix_cache=2 * probe._runtime.prefixes.bytes))
    for row in (rows[0], rows[1], rows[0], rows[2]):
        two.generate(row, max_tokens=2)
    assert len(two._runtime.prefixes) == 2
    assert two.generate(rows[0], max_tokens=2).usage.cached_tokens == len(rows[0]) - 1
    assert two.generate(rows[1], max_tokens=2).usage.cached_tokens == 0


def test_stops_may_be_any_collection(model):
    wanted = model.generate("a text", max_tokens=8, stop=["zz", "yy"]).tokens
    assert model.generate("a text", max_tokens=8, stop={"zz", "yy"}).tokens == wanted
    assert model.generate("a text", max_tokens=8, stop=(each for each in ("zz", "yy"))).tokens == wanted
