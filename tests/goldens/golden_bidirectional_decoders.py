"""Build tiny Llama and Qwen3 trunks without a causal mask, and record transformers' hidden states of them."""

from typing import Any

import numpy as np
import torch
from golden_encoders import (
    GEMMA_SPECIALS,
    LENGTHS,
    VOCABULARY,
    begin,
    check_it_bites,
    make_tokenizer,
    rows_for,
    save_tokenizer,
    store,
)
from recording import randomise, read_corpus, write_json
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def record_llama() -> None:
    """Write llama-bidirec: no prefix, llama3 rope scaling, grouped heads, pooling in the config."""
    folder = begin("llama-bidirec")
    tokenizer = make_tokenizer(GEMMA_SPECIALS, "<unk>", "<bos> $A", "<bos> $A $B")
    save_tokenizer(tokenizer, folder, 512, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"})
    raw = decoder_config() | {
        "architectures": ["LlamaBidirectionalModel"],
        "model_type": "llama_bidirec",
        "pooling": "avg",
        "temperature": 1.0,
        "rope_theta": 500000.0,
        "rope_scaling": {**ROPE, "original_max_position_embeddings": 64},
    }
    config = {key: value for key, value in raw.items() if key not in ("architectures", "model_type")}
    model = LlamaModel(LlamaConfig(**config, is_causal=False)).eval()
    randomise(model, 81, {"q_proj": 2.0, "k_proj": 2.0})
    rows = rows_for(LENGTHS, 82, VOCABULARY, padding=0)
    causal = lambda: LlamaModel(LlamaConfig(**config))  # noqa: E731
    unscaled = lambda: LlamaModel(LlamaConfig(**{**config, "rope_scaling": None}, is_causal=False))  # noqa: E731
    wrong = check_it_bites(model, rows[LENGTHS.index(300)], {"causal": causal, "rope not stretched": unscaled})
    store(folder, raw, dict(model.state_dict()), model, rows, wrong)


def decoder_config() -> dict[str, Any]:
    """Return what the two decoder families share: head_dim is not width / heads."""
    return {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "max_position_embeddings": 512,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def record_qwen3() -> None:
    """Write qwen3-bidirectional: a decoder's name and a flag, a matrix of every token, no final token."""
    folder = begin("qwen3-bidirectional")
    tokenizer = make_tokenizer(GEMMA_SPECIALS, "<unk>", "$A", "$A $B")
    save_tokenizer(tokenizer, folder, 512, {"eos_token": "<eos>", "pad_token": "<pad>"})
    raw = decoder_config() | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rope_theta": 1000000.0,
        "use_bidirectional_attention": True,
        "num_labels": 96,
    }
    config = {key: value for key, value in raw.items() if key not in ("architectures", "use_bidirectional_attention")}
    # The flag alone leaves transformers causal.
    model = Qwen3Model(Qwen3Config(**config, is_causal=False)).eval()
    randomise(model, 91, {"q_norm": 1.5, "k_norm": 1.5})
    linear = torch.nn.Linear(48, 96, bias=False)
    randomise(linear, 92)
    rows = rows_for(LENGTHS, 93, VOCABULARY, padding=0)
    causal = lambda: Qwen3Model(Qwen3Config(**config))  # noqa: E731
    wrong = check_it_bites(model, rows[LENGTHS.index(300)], {"causal": causal})
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    weights["linear.weight"] = linear.weight.detach()
    prompts = {
        "query": "Represent the query for retrieving supporting documents: ",
        "document": "Represent the document for retrieval: ",
    }
    corpus = read_corpus()
    texts = [corpus[3][:40], corpus[5][:200], corpus[8][:90]]
    vectors: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for role, prompt in {"plain": "", **prompts}.items():
            found = []
            for text in texts:
                hidden = model(input_ids=torch.tensor([tokenizer.encode(prompt + text).ids])).last_hidden_state[0]
                found.append(torch.nn.functional.normalize(linear(hidden).mean(dim=0), dim=0).numpy())
            vectors[f"vectors_{role}"] = np.stack(found)
    write_json(folder / "vectors.json", {"texts": texts, "prompts": prompts})
    store(folder, raw, weights, model, rows, wrong, vectors)


def record() -> None:
    """Write both."""
    record_llama()
    record_qwen3()
