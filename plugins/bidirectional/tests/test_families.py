"""Every encoder family against recorded references of transformers, and against itself in other batches."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tolerances import tolerance

from archport import engine
from archport.contract import ContextLengthExceeded, InputError, MaskPolicy, PluginError, hookimpl

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
FAMILIES = ("xlm-roberta", "roberta", "modernbert", "embeddinggemma", "llama-bidirec", "qwen3-bidirectional")
# RoBERTa's code is XLM-RoBERTa's.
DISTINCT = tuple(name for name in FAMILIES if name != "roberta")
OVERFLOWING = ("modernbert", "embeddinggemma")


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


def recorded(name):
    """(ids, kept positions, hidden states there, mean over all positions) of each row."""
    golden = np.load(GOLDENS / name / "golden.npz")
    count = sum(key.startswith("ids_") for key in golden)
    return [tuple(golden[f"{part}_{i}"] for part in ("ids", "at", "hidden", "mean")) for i in range(count)]


@pytest.fixture(scope="module")
def models():
    loaded = {}

    def get(name, dtype=None):
        if (name, dtype) not in loaded:
            loaded[name, dtype] = engine.load(GOLDENS / name, dtype=dtype)
        return loaded[name, dtype]

    return get


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_equal_transformers_at_every_length_beyond_every_window(models, name):
    worst = 0.0
    for ids, at, hidden, mean in recorded(name):
        got = np.array(models(name).forward(ids[None])[0])
        worst = max(worst, relative(got[at], hidden), relative(got.astype(np.float64).mean(axis=0), mean))
    assert worst <= 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_padded_batch_gives_what_transformers_gives_each_row_alone(models, name, side):
    rows = [row for row in recorded(name) if len(row[0]) <= 300]
    L = max(len(ids) for ids, *_ in rows)
    ids, mask = np.full((len(rows), L), 7), np.zeros((len(rows), L), int)
    where = [slice(L - len(row), L) if side == "left" else slice(0, len(row)) for row, *_ in rows]
    for index, (row, *_) in enumerate(rows):
        ids[index, where[index]], mask[index, where[index]] = row, 1
    hidden = np.array(models(name).forward(ids, mask))
    for index, (_, at, want, _) in enumerate(rows):
        assert relative(hidden[index, where[index]][at], want) <= 1e-5
    assert not hidden[mask == 0].any()


LENGTHS = (1, 2, 31, 32, 100, 128, 255, 256, 300)


@pytest.fixture(scope="module")
def alone_and_together(models):
    """Pairs (hidden states of a row alone, the same in a batch of all lengths) of a family, padded on one side."""
    import mlx.core as mx

    rng, L = np.random.default_rng(0), max(LENGTHS)
    rows, known = [rng.integers(5, 200, length) for length in LENGTHS], {}

    def pairs(name, side, dtype=None):
        model = models(name, dtype)
        if (name, dtype) not in known:
            known[name, dtype] = [np.array(model.forward(row[None]).astype(mx.float32))[0] for row in rows]
        ids, mask = rng.integers(5, 200, (len(rows), L)), np.zeros((len(rows), L), int)
        where = [slice(L - n, L) if side == "left" else slice(0, n) for n in LENGTHS]
        for index, (row, place) in enumerate(zip(rows, where, strict=True)):
            ids[index, place], mask[index, place] = row, 1
        together = np.array(model.forward(ids, mask).astype(mx.float32))
        return [(alone, found[place]) for alone, found, place in zip(known[name, dtype], together, where, strict=True)]

    return pairs


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DISTINCT)
def test_a_row_is_the_same_alone_and_in_a_batch_in_float32(alone_and_together, name, side):
    for alone, together in alone_and_together(name, side):
        scale = np.linalg.norm(alone, axis=-1, keepdims=True)
        assert np.abs((together - alone) / scale).max() <= tolerance("rows")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", DISTINCT)
def test_a_row_is_the_same_alone_and_in_a_batch_in_16_bits_and_finite(alone_and_together, name, dtype):
    if dtype == "float16" and name in OVERFLOWING:
        pytest.skip("refused, by another test")
    for side in ("left", "right"):
        for alone, together in alone_and_together(name, side, dtype):
            assert np.isfinite(together).all()
            norms = np.linalg.norm(alone, axis=-1) * np.linalg.norm(together, axis=-1)
            assert ((alone * together).sum(axis=-1) / norms).min() >= 0.9999


@pytest.mark.parametrize("name", OVERFLOWING)
def test_float16_is_refused_with_the_reason_where_it_overflows(name):
    with pytest.raises(InputError, match=r"float16.*largest number"):
        engine.load(GOLDENS / name, dtype="float16")


@pytest.mark.parametrize("stated", ["float16", None])
@pytest.mark.parametrize("dtype", ["checkpoint", None])
@pytest.mark.parametrize("name", OVERFLOWING)
def test_a_float16_checkpoint_is_promoted_and_says_so(tmp_path, caplog, name, dtype, stated):
    import mlx.core as mx

    folder = shutil.copytree(GOLDENS / name, tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype")
    if stated:
        config["torch_dtype"] = stated
    (folder / "config.json").write_text(json.dumps(config))
    weights = mx.load(str(folder / "model.safetensors"))
    mx.save_safetensors(
        str(folder / "model.safetensors"), {name: value.astype(mx.float16) for name, value in weights.items()}
    )
    model = engine.load(folder, dtype=dtype)
    assert model.dtype.dtype == "float32"
    assert "promoted from float16" in model.dtype.why
    assert "promoted from float16" in caplog.text
    assert np.isfinite(model.embed(["a text", "another, which is longer"])).all()


@pytest.mark.parametrize("name", DISTINCT)
def test_a_text_longer_than_the_positions_is_refused_and_never_cut_in_silence(models, name):
    model = models(name)
    with pytest.raises(InputError, match=str(model.spec.max_positions)):
        model.forward(np.full((1, model.spec.max_positions + 1), 9))
    with pytest.raises(ContextLengthExceeded, match=str(model.max_tokens)):
        model.embed("a " * (model.max_tokens + 5))


def test_the_windows_are_those_of_the_published_models(models):
    def kinds(name):
        return [layer.reach for layer in models(name).spec.attention_layers]

    everything = (None, None)
    assert kinds("modernbert") == [everything, (64, 64), (64, 64), everything]
    assert kinds("embeddinggemma") == [(256, 256), (256, 256), everything]


def test_packed_positions_of_roberta_restart_and_skip_padding_per_document():
    import mlx.core as mx

    from archport_bidirectional.encoder import after_padding

    ids = mx.array([[5, 1, 6, 7, 5, 6, 1, 1, 8]])
    positions = mx.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    assert after_padding(ids, positions, 1).tolist() == [[2, 1, 3, 4, 2, 3, 1, 1, 4]]


@pytest.mark.parametrize("role", ["plain", "query", "document"])
def test_embeddinggemma_with_its_dense_layers_and_prompts_equals_sentence_transformers(models, role):
    texts = json.loads((GOLDENS / "embeddinggemma" / "vectors.json").read_text())["texts"]
    want = np.load(GOLDENS / "embeddinggemma" / "vectors.npz")[role]
    model = models("embeddinggemma")
    embed = {"plain": model.embed, "query": model.encode_query, "document": model.encode_document}[role]
    assert relative(embed(texts), want) <= 1e-5


@pytest.mark.parametrize("keeps_modules", [False, True])
def test_embeddinggemma_with_its_dense_layers_in_the_main_file_gives_the_same_vectors(tmp_path, keeps_modules):
    import mlx.core as mx

    folder = shutil.copytree(GOLDENS / "embeddinggemma", tmp_path / "embeddinggemma-300m-mlx")
    weights = dict(mx.load(str(folder / "model.safetensors")))
    for index, name in enumerate(("2_Dense", "3_Dense")):
        weights[f"dense.{index}.weight"] = mx.load(str(folder / name / "model.safetensors"))["linear.weight"]
        shutil.rmtree(folder / name)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    shutil.rmtree(folder / "1_Pooling")
    if not keeps_modules:
        (folder / "modules.json").unlink()
    texts = json.loads((folder / "vectors.json").read_text())["texts"]
    got = engine.load(folder).encode_query(texts)
    assert relative(got, np.load(folder / "vectors.npz")["query"]) <= 1e-5


@pytest.mark.parametrize("role", ["plain", "query", "document"])
def test_the_projection_of_every_token_is_part_of_a_bidirectional_qwen3s_vectors(models, role):
    folder = GOLDENS / "qwen3-bidirectional"
    stored = json.loads((folder / "vectors.json").read_text())
    prompt = {"plain": "", **stored["prompts"]}[role]
    want = np.load(folder / "golden.npz")[f"vectors_{role}"]
    model = models("qwen3-bidirectional")
    assert model.dimensions == 96
    assert relative(model.embed(stored["texts"], prompt=prompt), want) <= 1e-5


def test_a_voyage_checkpoint_has_prompts_for_both_sides_and_appends_no_final_token(tmp_path):
    folder = shutil.copytree(GOLDENS / "qwen3-bidirectional", tmp_path / "voyage-4-nano")
    model = engine.load(folder)
    prompts = json.loads((folder / "vectors.json").read_text())["prompts"]
    texts = json.loads((folder / "vectors.json").read_text())["texts"]
    golden = np.load(folder / "golden.npz")
    assert {role: model.inputs.prompts[role] for role in prompts} == prompts
    assert relative(model.encode_query(texts), golden["vectors_query"]) <= 1e-5
    assert relative(model.encode_document(texts), golden["vectors_document"]) <= 1e-5


def test_the_same_qwen3_weights_without_the_flag_run_causal(tmp_path):
    folder = shutil.copytree(GOLDENS / "qwen3-bidirectional", tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    del config["use_bidirectional_attention"]
    (folder / "config.json").write_text(json.dumps(config))
    import mlx.core as mx

    weights = dict(mx.load(str(folder / "model.safetensors")))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    del weights["linear.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    model = engine.load(folder)
    ids = np.arange(10, 30)[None]
    before = np.array(model.forward(ids))
    ids[0, -1] += 1
    after = np.array(model.forward(ids))
    assert model.spec.arch == "qwen3"
    assert np.abs(after[0, :-1] - before[0, :-1]).max() <= 1e-6


@pytest.mark.parametrize(
    ("stated", "mode"),
    [("avg", "mean"), ("cls", "cls"), ("cls_last", "cls"), ("last", "last"), ("weighted_avg", "sum")],
)
def test_llama_bidirec_pools_as_its_config_says(tmp_path, stated, mode):
    folder = shutil.copytree(GOLDENS / "llama-bidirec", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pooling": stated}))
    model = engine.load(folder)
    ids = model._runtime.tokeniser(["a cat sat"]).ids[0]
    hidden = np.array(model.forward(ids[None]))[0]
    pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "sum": hidden.sum(0)}[mode]
    assert model.head.pooling == (mode,)
    assert relative(model.embed("a cat sat", normalize=False)[0], pooled) <= 1e-5


def test_llama_bidirec_has_prefixes_for_queries_and_passages(models):
    model = models("llama-bidirec")
    assert relative(model.encode_query("a cat"), model.embed("query: a cat")) <= 1e-6
    assert relative(model.encode_document("a cat"), model.embed("passage: a cat")) <= 1e-6


@hookimpl
def archport_mask_policy(spec, layer, shape):
    return MaskPolicy("causal")


@pytest.mark.parametrize("name", DISTINCT)
def test_a_causal_mask_for_these_layers_is_refused(name):
    override = ModuleType("causal_pin")
    override.archport_mask_policy = archport_mask_policy
    model = engine.load(GOLDENS / name, overrides=[override])
    with pytest.raises(PluginError, match=r"'causal'.*bidirectional"):
        model.embed("a text")
