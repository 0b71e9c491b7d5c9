"""Qwen3 against recorded references of transformers, in every published layout, and against itself in other batches."""

import json
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.checkpoint import normalise_config
from archport.contract import hookimpl
from archport.contract.plugins import claim, discover

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
EMBED = GOLDENS / "qwen3-embed"


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


def rows(name):
    golden = np.load(GOLDENS / name / "golden.npz")
    return [(golden[f"ids_{i}"], golden[f"hidden_{i}"]) for i in range(sum(k.startswith("ids_") for k in golden))]


@pytest.fixture(scope="module")
def model():
    return engine.load(EMBED)


@pytest.fixture(scope="module")
def texts():
    stored = json.loads((EMBED / "texts.json").read_text())
    return [row["text"] for row in stored if row["text"] is not None]


@pytest.mark.parametrize(
    "name",
    ["qwen3-embed", "qwen3-4bit", "qwen3-6bit", "qwen3-mxfp4", "qwen3-nvfp4", "qwen3-moe-4bit", "qwen2-windowed"],
)
def test_hidden_states_equal_transformers_in_every_layout(name):
    loaded = engine.load(GOLDENS / name, dtype="float32")
    errors = [relative(loaded.forward(ids[None])[0], hidden) for ids, hidden in rows(name)]
    assert max(errors) <= 1e-5


@pytest.mark.parametrize("name", ["qwen3-4bit", "qwen3-6bit", "qwen3-mxfp4", "qwen3-nvfp4"])
def test_packed_matrices_kept_as_stored_give_the_same_vectors_up_to_their_precision(name):
    packed, unpacked = engine.load(GOLDENS / name, dtype="checkpoint"), engine.load(GOLDENS / name, dtype="float32")
    ids = rows(name)[3][0][None]
    a, b = (np.array(each.forward(ids).astype(mx.float32)) for each in (packed, unpacked))
    assert (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) >= 0.99


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_rows_of_single_runs_and_zeros_at_padding(model, side):
    recorded = rows("qwen3-embed")
    L = max(len(ids) for ids, _ in recorded)
    ids, mask = np.full((len(recorded), L), 7), np.zeros((len(recorded), L), int)
    where = [slice(L - len(row), L) if side == "left" else slice(0, len(row)) for row, _ in recorded]
    for index, (row, _) in enumerate(recorded):
        ids[index, where[index]], mask[index, where[index]] = row, 1
    hidden = np.array(model.forward(ids, mask))
    for index, (_, want) in enumerate(recorded):
        assert relative(hidden[index, where[index]], want) <= 1e-5
    assert not hidden[mask == 0].any()


def test_a_later_token_never_moves_an_earlier_output(model):
    ids = rows("qwen3-embed")[4][0].copy()
    before = np.array(model.forward(ids[None]))
    ids[-1] += 1
    after = np.array(model.forward(ids[None]))
    assert (after[0, :-1] == before[0, :-1]).all()
    assert np.abs(after[0, -1] - before[0, -1]).max() > 1e-3


def test_vectors_equal_sentence_transformers(model, texts):
    assert relative(model.embed(texts), np.load(EMBED / "golden.npz")["vectors"]) <= 1e-5


def test_queries_take_the_published_instruct_prompt_without_a_space(model):
    queries = json.loads((EMBED / "golden.json").read_text())["queries"]
    want = np.load(EMBED / "golden.npz")["query_vectors"]
    assert relative(model.encode_query(queries), want) <= 1e-5
    assert model.inputs.prompts["query"].endswith("\nQuery:")


def test_documents_are_bare(model, texts):
    assert (model.encode_document(texts) == model.embed(texts)).all()


def test_similarity_equals_sentence_transformers(model, texts):
    golden = np.load(EMBED / "golden.npz")
    got = model.similarity(golden["query_vectors"], golden["vectors"])
    assert np.abs(got - golden["similarity"]).max() <= 1e-5


def test_a_text_has_the_same_vector_alone_and_in_any_batch(model, texts):
    alone = np.concatenate([model.embed([text]) for text in texts])
    assert np.abs(model.embed(texts) - alone).max() <= 1e-6
    assert np.abs(model.embed(texts[::-1])[::-1] - alone).max() <= 1e-6


def test_every_sequence_ends_with_the_published_final_token_also_when_cut(model):
    from archport.reading.texts import TextTokeniser

    tokeniser: TextTokeniser = model._runtime.tokeniser
    # The tokenizer's own post-processor puts it there.
    assert model.inputs.final_token is None
    final = tokeniser.tokenizer.token_to_id("<|endoftext|>")
    for options in ({}, {"max_tokens": 5, "overflow": "truncate"}):
        for ids in tokeniser(["a rather long text about nothing at all", ""], **options).ids:
            assert ids[-1] == final
            assert (ids[:-1] != final).all()


def test_the_final_token_is_appended_where_a_conversion_lost_the_post_processor(tmp_path, model):
    import shutil

    folder = tmp_path / "Qwen3-Embedding-converted"
    shutil.copytree(EMBED, folder, ignore=shutil.ignore_patterns("modules.json", "1_Pooling"))
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    converted = engine.load(folder)
    texts = ["a text", "", "another, longer text"]
    assert (converted.embed(texts) == model.embed(texts)).all()
    cut = dict(max_tokens=4, overflow="truncate")
    long = ["a rather long text about nothing at all"]
    assert (converted.embed(long, **cut) == model.embed(long, **cut)).all()


def test_no_final_token_is_appended_where_a_pipeline_says_all(tmp_path):
    import shutil

    folder = tmp_path / "Qwen3-Embedding-converted"
    shutil.copytree(EMBED, folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    tokeniser = engine.load(folder)._runtime.tokeniser
    (ids,) = tokeniser(["a text"]).ids
    assert ids[-1] != tokeniser.tokenizer.token_to_id("<|endoftext|>")


def test_a_conversion_without_pipeline_files_still_embeds_as_the_model_card_says(tmp_path, model, texts):
    import shutil

    folder = tmp_path / "Qwen3-Embedding-0.6B-4bit"
    shutil.copytree(EMBED, folder, ignore=shutil.ignore_patterns("modules.json", "1_Pooling", "config_sentence*"))
    converted = engine.load(folder)
    assert (converted.embed(texts[:3]) == model.embed(texts[:3])).all()
    assert (converted.encode_query(texts[:3]) == model.encode_query(texts[:3])).all()


def test_dimensions_are_rescaled_to_unit_length(model, texts):
    whole, cut = model.embed(texts), model.embed(texts, dimensions=16)
    want = whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True)
    assert np.abs(cut - want).max() <= 1e-6


@pytest.mark.parametrize(
    "flags",
    [
        {"is_causal": False},
        {"use_bidirectional_attention": True},
        {"architectures": ["Qwen3ForTokenClassification"]},
    ],
)
def test_bidirectional_and_foreign_checkpoints_are_left_to_others(flags):
    config = normalise_config({**json.loads((EMBED / "config.json").read_text()), **flags})
    qwen3 = next(plugin for plugin in discover() if plugin.name == "qwen3")
    assert qwen3.hooks().claim(config) is None


def test_head_dim_is_the_config_s_and_not_width_over_heads():
    config = normalise_config(json.loads((EMBED / "config.json").read_text()))
    _, spec = claim(config, discover())
    assert spec.head_dims == (32,)
    assert spec.hidden_size // spec.attention_layers[0].n_heads == 16


def test_vectors_of_tokens_are_the_same_from_a_prefill_in_chunks():
    @hookimpl
    def archport_prefill_chunk():
        return 32

    chunks = ModuleType("chunks")
    vars(chunks)["archport_prefill_chunk"] = archport_prefill_chunk
    whole, pieces = engine.load(EMBED), engine.load(EMBED, overrides=[chunks])
    text = "a long text, " * 30
    ((expected,), (found,)) = (each.embed(text, output="tokens") for each in (whole, pieces))
    assert len(pieces.plan([len(expected)]).batches[0].steps) > 2
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
