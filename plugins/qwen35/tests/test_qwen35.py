"""Qwen3.5 against recorded references of transformers, in every published layout, and against itself."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
# Dense text, the text half of a vision checkpoint, experts, and the family before.
NAMES = ("qwen35-text", "qwen35-wrapper", "qwen35-moe", "qwen35-moe-wrapper", "qwen3-next")
LIMIT = 3e-5


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


def rows(name):
    golden = np.load(GOLDENS / name / "golden.npz")
    return [(golden[f"ids_{i}"], golden[f"hidden_{i}"]) for i in range(sum(k.startswith("ids_") for k in golden))]


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDENS / "qwen35-text", dtype="float32")


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_equal_transformers(name):
    loaded = engine.load(GOLDENS / name, dtype="float32")
    assert max(relative(loaded.forward(ids[None])[0], hidden) for ids, hidden in rows(name)) <= LIMIT


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_rows_of_single_runs_and_zeros_at_padding(model, side):
    recorded = rows("qwen35-text")
    L = max(len(ids) for ids, _ in recorded)
    ids, mask = np.full((len(recorded), L), 7), np.zeros((len(recorded), L), int)
    where = [slice(L - len(row), L) if side == "left" else slice(0, len(row)) for row, _ in recorded]
    for index, (row, _) in enumerate(recorded):
        ids[index, where[index]], mask[index, where[index]] = row, 1
    hidden = np.array(model.forward(ids, mask))
    for index, (_, want) in enumerate(recorded):
        assert relative(hidden[index, where[index]], want) <= LIMIT
    assert not hidden[mask == 0].any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_equals_single_rows(name, side):
    loaded = engine.load(GOLDENS / name, dtype="float32")
    recorded = [ids for ids, _ in rows(name)]
    # Nearby lengths, so that rows do share a batch and its padding.
    texts = [recorded[-1][:length] for length in (130, 127, 101)] + [recorded[-2][:length] for length in (100, 97, 3)]
    plan = loaded.plan([len(text) for text in texts])
    assert any(len(set(batch.lengths)) > 1 for batch in plan.batches)
    ids, mask = np.full((len(texts), 133), 7), np.zeros((len(texts), 133), int)
    for row, text in enumerate(texts):
        where = slice(133 - len(text), 133) if side == "left" else slice(0, len(text))
        ids[row, where], mask[row, where] = text, 1
    together = np.array(loaded.forward(ids, mask))
    for row, text in enumerate(texts):
        assert relative(together[row][mask[row] == 1], np.array(loaded.forward(text[None])[0])) <= 1e-5


def copied(tmp_path, name, config=lambda c: c, weights=lambda w: w):
    """The checkpoint of that name in a new folder, its config and tensors changed."""
    folder = tmp_path / name
    shutil.copytree(GOLDENS / name, folder)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config(stored)))
    tensors = weights(mx.load(str(folder / "model.safetensors")))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tensors), metadata={"format": "pt"})
    return folder


def converted(weights, prefix="language_model.", tower=True):
    """As mlx-community stores it: other prefixes, taps and channels inside, norms that hold their scale."""
    found = {}
    for name, value in weights.items():
        if name.startswith("model.visual."):
            if tower:
                value = value.transpose(0, 2, 3, 4, 1) if value.ndim == 5 else value
                found[name.replace("model.visual.", "vision_tower.")] = value
            continue
        name = prefix + name.replace("model.language_model.", "model.")
        value = value.astype(mx.float32)
        if name.endswith("conv1d.weight"):
            value = value.swapaxes(1, 2)
        elif (name.endswith("norm.weight") and "linear_attn" not in name) or name.endswith("layernorm.weight"):
            value = value + 1.0
        found[name] = value
    return found


def classic(config):
    """As hub files spell it: an interval, torch_dtype, a vision half."""
    text = {key: value for key, value in config.items() if key not in ("architectures", "dtype")}
    return {
        "architectures": [f"Qwen3_5{'Moe' if 'num_experts' in text else ''}ForConditionalGeneration"],
        "model_type": "qwen3_5_moe" if "num_experts" in text else "qwen3_5",
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "torch_dtype": "bfloat16",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_output_head_equals_transformers(name):
    loaded, golden = engine.load(GOLDENS / name, dtype="float32"), np.load(GOLDENS / name / "golden.npz")
    trunk = loaded._runtime.encoder.trunk
    for index in (3, 6):
        hidden = loaded.forward(golden[f"ids_{index}"][None])[:, -1:]
        assert relative(trunk.logits(hidden)[0, 0], golden[f"logits_{index}"]) <= LIMIT
        rows_of = trunk.head_rows([5, 17])
        assert relative((hidden[0] @ rows_of.T)[0], golden[f"logits_{index}"][[5, 17]]) <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_converted_checkpoints_give_the_same_numbers(tmp_path, name):
    folder = copied(tmp_path, name, weights=converted)
    loaded = engine.load(folder, dtype="float32")
    assert max(relative(loaded.forward(ids[None])[0], hidden) for ids, hidden in rows(name)) <= LIMIT


def test_experts_stored_as_one_stack_give_the_same_numbers(tmp_path):
    def fused(weights):
        found, stacks = {}, {}
        for name, value in weights.items():
            stem, _, rest = name.partition(".experts.")
            if rest:
                index, part, _ = rest.split(".")
                stacks.setdefault(stem, {}).setdefault(part, {})[int(index)] = value
            else:
                found[name] = value
        for stem, parts in stacks.items():
            gate, up, down = (
                mx.stack([parts[part][i] for i in range(6)]) for part in ("gate_proj", "up_proj", "down_proj")
            )
            found[f"{stem}.experts.gate_up_proj"] = mx.concatenate([gate, up], axis=1)
            found[f"{stem}.experts.down_proj"] = down
        return found

    loaded = engine.load(copied(tmp_path, "qwen35-moe", weights=fused), dtype="float32")
    assert max(relative(loaded.forward(ids[None])[0], hidden) for ids, hidden in rows("qwen35-moe")) <= LIMIT


@pytest.mark.parametrize("name", ["qwen35-text", "qwen35-moe"])
def test_the_drafting_head_is_dropped_and_a_classic_config_read(tmp_path, name):
    def add_draft(weights):
        extra = {"mtp.fc.weight": mx.zeros((4, 4)), "mtp.layers.0.input_layernorm.weight": mx.zeros((4,))}
        return {name.replace("model.", "model.language_model."): value for name, value in weights.items()} | extra

    folder = copied(tmp_path, name, classic, add_draft)
    ids = rows(name)[5][0][None]
    classical, usual = (engine.load(each, dtype="float32").forward(ids) for each in (folder, GOLDENS / name))
    assert (np.array(classical) == np.array(usual)).all()


def test_without_layer_types_every_fourth_layer_is_full(tmp_path):
    def bare(config):
        del config["text_config"]["layer_types"]
        return config

    folder = copied(tmp_path, "qwen35-wrapper", bare)
    ids, want = rows("qwen35-wrapper")[4]
    assert relative(engine.load(folder, dtype="float32").forward(ids[None])[0], want) <= LIMIT


def test_packed_matrices_give_the_numbers_of_their_unpacked_selves(tmp_path):
    def quantised(weights):
        found = {}
        for name, value in converted(weights).items():
            if value.ndim == 2 and value.shape[-1] % 32 == 0:
                parts = mx.quantize(value.astype(mx.bfloat16), group_size=32, bits=8 if "embed" in name else 4)
                stem = name.removesuffix(".weight")
                found |= dict(zip((name, f"{stem}.scales", f"{stem}.biases"), parts, strict=True))
            else:
                found[name] = value.astype(mx.bfloat16)
        return found

    def stated(config):
        return {**config, "quantization": {"group_size": 32, "bits": 4}}

    folder = copied(tmp_path, "qwen35-text", stated, quantised)
    packed, unpacked = engine.load(folder, dtype="checkpoint"), engine.load(folder)
    assert packed.dtype.dtype == "checkpoint"
    ids = rows("qwen35-text")[6][0][None]
    a, b = (np.array(each.forward(ids).astype(mx.float32)) for each in (packed, unpacked))
    assert (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) >= 0.997


def test_a_checkpoint_of_sixteen_bits_computes_in_them():
    # Its norms are summed in float32 while they are read; left so, they would turn every product to float32.
    loaded = engine.load(GOLDENS / "qwen35-text", dtype="checkpoint")
    assert loaded.plan([3]).dtype == "bfloat16"
    assert loaded.forward(rows("qwen35-text")[5][0][None]).dtype == mx.bfloat16


def test_decay_rates_stay_in_float32_whatever_the_type():
    loaded = engine.load(GOLDENS / "qwen35-text", dtype="bfloat16")
    block = loaded._runtime.encoder.trunk.model.layers[0].linear_attn
    assert block.A_log.dtype == mx.float32
    assert block.dt_bias.dtype == mx.bfloat16


def test_a_later_token_never_moves_an_earlier_output(model):
    ids = rows("qwen35-text")[5][0].copy()
    before = np.array(model.forward(ids[None]))
    ids[-1] += 1
    after = np.array(model.forward(ids[None]))
    assert (after[0, :-1] == before[0, :-1]).all()
    assert np.abs(after[0, -1] - before[0, -1]).max() > 1e-3
