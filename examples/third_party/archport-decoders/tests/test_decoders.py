"""Each family against what transformers computed from the same tiny checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from archport import engine

GOLDEN = Path(__file__).with_name("golden")
FAMILIES = ("llama", "mistral", "ministral3", "gemma1", "gemma2", "gemma3", "gpt_oss", "lfm2", "glm4_moe")
PROMPT = 60
MODES = {"lasttoken": "lasttoken", "mean": "mean_tokens"}


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


@pytest.fixture(scope="module")
def models():
    return {name: engine.load(GOLDEN / name) for name in FAMILIES}


@pytest.fixture(scope="module")
def recorded():
    return {name: dict(np.load(GOLDEN / name / "golden.npz")) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_equal_transformers(name, models, recorded):
    golden = recorded[name]
    for row in range(5):
        hidden = models[name].forward(golden[f"ids_{row}"][None])[0]
        assert relative(hidden, golden[f"hidden_{row}"]) <= 1e-5, row


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_a_ragged_batch_equal_transformers(name, models, recorded):
    golden = recorded[name]
    rows = [golden[f"ids_{row}"] for row in (4, 1, 3, 2)]
    ids, mask = np.zeros((4, 200), np.int32), np.zeros((4, 200), np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    hidden = models[name].forward(ids, mask)
    for at, row in enumerate((4, 1, 3, 2)):
        assert relative(hidden[at, : len(rows[at])], golden[f"hidden_{row}"]) <= 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_equal_transformers_alone_and_beside_others(name, models, recorded):
    golden = recorded[name]
    prompt, new = golden["greedy"][:PROMPT].tolist(), golden["greedy"][PROMPT:].tolist()
    others = [golden["ids_3"].tolist(), golden["ids_2"].tolist()]
    together = models[name].generate([prompt, *others], max_tokens=len(new))
    alone = models[name].generate([prompt], max_tokens=len(new))
    assert list(together[0].tokens) == new
    assert list(alone[0].tokens) == new


@pytest.mark.parametrize("name", FAMILIES)
def test_the_likeliest_token_has_the_logprob_of_transformers(name, models, recorded):
    golden = recorded[name]
    (answer,) = models[name].generate([golden["ids_4"].tolist()], max_tokens=1, logprobs=0)
    logits = golden["logits_4"].astype(np.float64)
    want = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert list(answer.tokens) == [int(want.argmax())]
    assert abs(answer.logprobs[0].logprob - want.max()) <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_without_pipeline_files_a_vector_is_the_last_token_s_hidden_state(name, models, recorded):
    golden = recorded[name]
    vector = models[name].embed(" ".join(f"w{each}" for each in golden["ids_3"]), normalize=False)[0]
    assert relative(vector, golden["hidden_3"][-1]) <= 1e-5


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_pools_as_its_files_say(name, pooling, recorded, tmp_path):
    # As e5-mistral and its like publish it: pooled, then scaled to unit length, a prompt for queries alone.
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(kinds)
    ]
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 48, f"pooling_mode_{MODES[pooling]}": True},
        "config_sentence_transformers.json": {"prompts": {"query": "w5 w9 "}},
    }
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(content))
    golden, model = recorded[name], engine.load(folder)
    texts = [" ".join(f"w{word}" for word in golden[f"ids_{row}"]) for row in (3, 1, 2)]
    hidden = [golden[f"hidden_{row}"] for row in (3, 1, 2)]
    pooled = np.stack([rows[-1] if pooling == "lasttoken" else rows.mean(axis=0) for rows in hidden])
    assert relative(model.embed(texts), pooled / np.linalg.norm(pooled, axis=1, keepdims=True)) <= 1e-5
    assert relative(model.encode_query(texts[1]), model.embed(f"w5 w9 {texts[1]}")) <= 1e-6


def test_an_installed_plugin_is_the_one_that_loaded_them(models):
    assert {model.plugin.label for model in models.values()} == {"decoders (archport-decoders 0.1.0)"}


@pytest.mark.parametrize("name", ["LlamaModel", "MistralModel", "Gemma3TextModel"])
def test_a_bidirectional_one_is_left_to_others(name):
    import archport_decoders

    assert archport_decoders.archport_claim({"architectures": [name], "causal": False}) is None
