"""Build the tiny Qwen3 checkpoints in the published layouts and record what transformers computes from them.

Knows the classic Hub dialect, the transformers-5 dialect and the embedding repositories' pipeline files. Knows no mlx:
quantise.py makes the quantised checkpoints, golden_quantised.py records them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import HERE, LENGTHS, SHORT_LENGTHS, randomise, read_corpus, relative_error, text_of_length, write_golden
from recording import write_json as write
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
BPE_SIZE = 500
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
QUERIES = ["Who invented the kluge?", "what does the syllable bletch mean", ""]
# head_dim 32 is not hidden 64 / 4 heads; 2 KV heads for 4 heads; sharp q/k norms make attention far from uniform.
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "max_window_layers": 3,
}
GREEDY = 64
GAINS = {"q_norm": 1.7, "k_norm": 1.7}


def train_tokenizer(append_endoftext: bool) -> Tokenizer:
    """Return a byte-level BPE tokenizer of the Qwen family, trained on the corpus; ids of specials come last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=BPE_SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(read_corpus(), trainer)
    specials = [AddedToken(token, special=True, normalized=False) for token in (ENDOFTEXT, IM_START, IM_END)]
    tokenizer.add_special_tokens(specials)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    finish = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    if append_endoftext:  # the rule the embedding repositories publish
        eos = (ENDOFTEXT, tokenizer.token_to_id(ENDOFTEXT))
        template = processors.TemplateProcessing(
            single=f"$A {ENDOFTEXT}", pair=f"$A {ENDOFTEXT} $B:1 {ENDOFTEXT}:1", special_tokens=[eos]
        )
        finish = processors.Sequence([finish, template])
    tokenizer.post_processor = finish
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the keys of tokenizer_config.json that the published files carry."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    # The file that transformers reads added tokens from, so all of them are in it.
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    decoder = {
        str(index): {name: getattr(token, name) for name in names}
        for index, token in tokenizer.get_added_tokens_decoder().items()
    }
    write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
            "additional_special_tokens": [IM_START, IM_END],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": IM_END,
            "errors": "replace",
            "model_max_length": 512,
            "pad_token": ENDOFTEXT,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )


def hub_config(vocabulary: int, eos: int, dtype: str) -> dict[str, Any]:
    """Return config.json in the classic Hub dialect: rope_theta, torch_dtype, no layer_types."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        **SHAPE,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "initializer_range": 0.02,
        "model_type": "qwen3",
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "transformers_version": "4.51.3",
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def rows_for(tokenizer: Tokenizer, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return one row per length as {length, text, ids}, then one with the pad id inside its content (text None)."""
    corpus = read_corpus()
    rows = []
    for seed, length in enumerate(lengths):
        text = text_of_length(lambda text: tokenizer.encode(text).ids, corpus, length, seed)
        rows.append({"length": length, "text": text, "ids": tokenizer.encode(text).ids})
    pad = tokenizer.token_to_id(ENDOFTEXT)
    ids = tokenizer.encode(corpus[3]).ids[:40]
    ids = [*ids[:7], pad, pad, *ids[7:30], pad, *ids[30:]] + ([pad] if ids[-1] != pad else [])
    rows.append({"length": len(ids), "text": None, "why": "the pad id stands inside the content", "ids": ids})
    return rows


@torch.no_grad()
def hidden_rows(model: torch.nn.Module, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    """Return the last hidden state (L, D) of each row, run alone and without padding."""
    return [model(input_ids=torch.tensor([row["ids"]])).last_hidden_state[0].numpy() for row in rows]


@torch.no_grad()
def greedy(model: Any, ids: list[int], count: int = GREEDY) -> tuple[list[int], float]:
    """Return `count` greedy tokens behind a prompt, whole passes each, and the smallest gap between the best two."""
    found, narrowest = list(ids), np.inf
    for _ in range(count):
        best = model(input_ids=torch.tensor([found])).logits[0, -1].topk(2)
        narrowest = min(narrowest, float(best.values[0] - best.values[1]))
        found.append(int(best.indices[0]))
    return found[len(ids) :], narrowest


@torch.no_grad()
def last_logits(model: Any, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    """Return the logits (V,) of each row's last position, run alone and without padding."""
    return [model(input_ids=torch.tensor([row["ids"]])).logits[0, -1].numpy() for row in rows]


def check_it_bites(model: Qwen3Model, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return how far the golden moves when an engine gets one thing wrong; raise if any of it would pass unnoticed."""
    row = next(row for row in rows if row["length"] == 100)
    reference = hidden_rows(model, [row])[0]
    edited = hidden_rows(model, [{"ids": [(row["ids"][0] + 1) % 256, *row["ids"][1:]]}])[0]
    late = hidden_rows(model, [{"ids": [*row["ids"][:-1], 7]}])[0]
    wrong: dict[str, float] = {"first token edited, last position": relative_error(edited[-1], reference[-1])}
    for part in ("q_norm", "k_norm", "input_layernorm", "post_attention_layernorm"):
        kept = {name: value.clone() for name, value in model.state_dict().items() if f".{part}." in name}
        model.load_state_dict({name: torch.ones_like(value) for name, value in kept.items()}, strict=False)
        wrong[f"{part} weights all one"] = relative_error(hidden_rows(model, [row])[0], reference)
        model.load_state_dict(kept, strict=False)
    frequencies = model.rotary_emb.inv_freq.clone()
    model.rotary_emb.inv_freq.zero_()
    wrong["no rotation"] = relative_error(hidden_rows(model, [row])[0], reference)
    model.rotary_emb.inv_freq.copy_(frequencies)
    if min(wrong.values()) < 1e-2 or relative_error(late[:-1], reference[:-1]) != 0.0:
        raise AssertionError(f"this golden would not notice: {wrong}")
    return wrong


def notes_for(model: Qwen3Model, rows: list[dict[str, Any]], hidden: list[np.ndarray]) -> dict[str, Any]:
    """Return what golden.json says about the run, including float32's own distance from float64."""
    exact = hidden_rows(model.double(), rows)
    model.float()
    return {
        "attention_implementation": model.config._attn_implementation,
        "dtype": "float32",
        "float32_vs_float64": max(relative_error(a, b) for a, b in zip(hidden, exact, strict=True)),
        "wrong_engines": check_it_bites(model, rows),
    }


def record_embedding() -> None:
    """Write qwen3-embed: no `model.` prefix, tied, one float32 file, pipeline files, sentence-transformers' vectors."""
    folder = HERE / "qwen3-embed"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = train_tokenizer(append_endoftext=True)
    save_tokenizer(tokenizer, folder)
    eos = tokenizer.token_to_id(ENDOFTEXT)
    raw = hub_config(tokenizer.get_vocab_size(), eos, "float32")
    write(folder / "config.json", raw)
    model = Qwen3Model(Qwen3Config(**raw)).eval()
    randomise(model, 11, GAINS)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    write_pipeline(folder)

    rows = rows_for(tokenizer, LENGTHS)
    hidden = hidden_rows(model, rows)
    pipeline = SentenceTransformer(str(folder), device="cpu")
    for row in rows:  # the reference reads the same ids as the tokenizer file says
        if row["text"] is not None:
            assert pipeline.tokenizer(row["text"])["input_ids"] == row["ids"], row["text"]
    texts = [row["text"] for row in rows if row["text"] is not None]
    arrays = {f"hidden_{i}": array for i, array in enumerate(hidden)}
    arrays["vectors"] = pipeline.encode(texts, batch_size=1)
    arrays["query_vectors"] = pipeline.encode(QUERIES, prompt_name="query", batch_size=1)
    arrays["similarity"] = pipeline.similarity(arrays["query_vectors"], arrays["vectors"]).numpy()
    last = np.stack([array[-1] for array, row in zip(hidden, rows, strict=True) if row["text"] is not None])
    assert relative_error(arrays["vectors"], last / np.linalg.norm(last, axis=1, keepdims=True)) < 1e-6
    notes = notes_for(model, rows, hidden)
    notes["queries"] = QUERIES
    write_golden(folder, rows, arrays, notes)
    print(f"qwen3-embed: {len(rows)} rows, float32 vs float64 {notes['float32_vs_float64']:.1e}")


def write_pipeline(folder: Path) -> None:
    """Write modules.json and friends as Qwen3-Embedding publishes them."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 64} | pooling | {"include_prompt": True})
    write(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": QUERY_PROMPT, "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def record_sharded() -> None:
    """Write qwen3-causal-sharded: `model.` prefix, untied head, bfloat16 in three shards, transformers-5 config."""
    folder = HERE / "qwen3-causal-sharded"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = train_tokenizer(append_endoftext=False)
    end = tokenizer.token_to_id(IM_END)
    config = Qwen3Config(
        **SHAPE,
        vocab_size=tokenizer.get_vocab_size(),
        tie_word_embeddings=False,
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
        bos_token_id=tokenizer.token_to_id(ENDOFTEXT),
        eos_token_id=end,
        pad_token_id=tokenizer.token_to_id(ENDOFTEXT),
    )
    model = Qwen3ForCausalLM(config).eval()
    randomise(model, 12, GAINS)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="150KB")
    save_tokenizer(tokenizer, folder)
    shards = sorted(set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()))
    assert len(shards) == 3, shards
    # Read back, not widened in place: casting the module to bfloat16 has also rounded its rotary frequencies.
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.model.rotary_emb.inv_freq.equal(Qwen3Model(config).rotary_emb.inv_freq)

    rows = rows_for(tokenizer, SHORT_LENGTHS)
    hidden = hidden_rows(model.model, rows)
    arrays = {f"hidden_{i}": array for i, array in enumerate(hidden)}
    arrays |= {f"logits_{i}": array for i, array in enumerate(last_logits(model, rows))}
    made = [greedy(model, row["ids"]) for row in rows]
    arrays |= {f"greedy_{i}": np.asarray(tokens, np.int32) for i, (tokens, _) in enumerate(made)}
    notes = notes_for(model.model, rows, hidden)
    notes["narrowest_greedy_gap"] = {i: gap for i, (_, gap) in enumerate(made)}
    notes["stored_dtype"] = "bfloat16, widened to float32 before the run"
    write_golden(folder, rows, arrays, notes)
    print(f"qwen3-causal-sharded: {len(rows)} rows, float32 vs float64 {notes['float32_vs_float64']:.1e}")
