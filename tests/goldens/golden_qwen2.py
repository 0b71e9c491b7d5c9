"""Build tiny Qwen2 and Qwen3 checkpoints with windows, labels, and the answers of mxbai-rerank-v2, and record them.

The guide for plugin authors ends with a Qwen2; the first of these is what its hidden states are held against.
"""

import shutil
from typing import Any

import numpy as np
import torch
from golden_qwen3 import ENDOFTEXT, hidden_rows, save_tokenizer, train_tokenizer
from recording import HERE, SHORT_LENGTHS, randomise, relative_error, write_golden, write_json
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

# One layer that sees everything, two that see 24 tokens; biases on q, k and v; classic Hub spelling.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2Model"],
    "model_type": "qwen2",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "use_sliding_window": True,
    "sliding_window": 24,
    "max_window_layers": 1,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def record() -> None:
    """Write qwen2-windowed: no prefix, tied, float32, windows on the last two layers, rows of random ids."""
    folder = HERE / "qwen2-windowed"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = train_tokenizer(append_endoftext=False)
    save_tokenizer(tokenizer, folder)
    config = CONFIG | {"vocab_size": tokenizer.get_vocab_size()}
    write_json(folder / "config.json", config)
    model = Qwen2Model(Qwen2Config(**config)).eval()
    randomise(model, 21, {"q_proj": 1.7, "k_proj": 1.7})
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")

    dice = torch.Generator().manual_seed(22)
    rows = [
        {"length": n, "ids": torch.randint(0, config["vocab_size"], (n,), generator=dice).tolist()}
        for n in SHORT_LENGTHS
    ]
    hidden = hidden_rows(model, rows)
    wide = Qwen2Model(Qwen2Config(**config | {"use_sliding_window": False})).eval()
    wide.load_state_dict(model.state_dict())
    wrong = {"no window": relative_error(hidden_rows(wide, rows)[-1], hidden[-1])}
    for name, parameter in model.named_parameters():
        if name.endswith("layers.0.self_attn.k_proj.bias"):
            kept = parameter.detach().clone()
            parameter.data.zero_()
            wrong["no bias on k"] = relative_error(hidden_rows(model, rows)[-1], hidden[-1])
            parameter.data.copy_(kept)
    assert min(wrong.values()) > 1e-3, wrong
    notes = {"attention_implementation": model.config._attn_implementation, "dtype": "float32", "wrong_engines": wrong}
    write_golden(folder, rows, {f"hidden_{i}": array for i, array in enumerate(hidden)}, notes)
    print(f"qwen2-windowed: {len(rows)} rows, {wrong}")
    record_labels("qwen2-labels", Qwen2Config, Qwen2ForSequenceClassification, 1, 23)
    record_labels("qwen3-labels", Qwen3Config, Qwen3ForSequenceClassification, 3, 24)
    record_mxbai()


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": True,
}
# Texts that end in padding, hold it, and are nothing else: the last token that is another is the one that counts.
LABELLED = (
    "a kluge",
    f"a kluge{ENDOFTEXT}",
    f"a kluge{ENDOFTEXT}{ENDOFTEXT}",
    f"a{ENDOFTEXT}kluge",
    f"{ENDOFTEXT}{ENDOFTEXT}",
    "one of the longer texts, whose words are many " * 6,
)
PAIRS = [("what is a kluge", "a clumsy thing"), ("who", "nobody at all"), ("what?", f"this{ENDOFTEXT}")]


def _saved(name: str, model: Any, seed: int) -> Any:
    """Write a checkpoint in bfloat16 with a tokenizer; returns it read back in float32."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    randomise(model, seed, {"q_proj": 1.7, "k_proj": 1.7, "embed": 32**-0.5})
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(train_tokenizer(append_endoftext=False), folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def record_labels(name: str, config: Any, kind: Any, labels: int, seed: int) -> None:
    """Write a classifier, its raw scores of texts and, by sentence-transformers, of pairs."""
    tokenizer = train_tokenizer(append_endoftext=False)
    pad = tokenizer.token_to_id(ENDOFTEXT)
    sizes = {**SMALL, "vocab_size": tokenizer.get_vocab_size(), "pad_token_id": pad, "num_labels": labels}
    if config is Qwen3Config:
        sizes["head_dim"] = 16
    model = _saved(name, kind(config(**sizes)), seed)
    rows = [tokenizer.encode(text).ids for text in LABELLED]
    scores = np.concatenate([model(input_ids=torch.tensor([ids])).logits.numpy() for ids in rows])
    hidden = [model.model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in rows]
    last = np.stack([(model.score.weight @ row[-1]).numpy() for row in hidden])
    assert relative_error(last[1], scores[1]) > 1e-2, "the last token of all would do as well"
    assert relative_error(scores[1], scores[0]) < 1e-5
    encoder = CrossEncoder(str(HERE / name), device="cpu", model_kwargs={"dtype": torch.float32})
    pairs = encoder.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=1)
    np.savez_compressed(HERE / name / "golden.npz", texts=scores, pairs=np.asarray(pairs).reshape(len(PAIRS), labels))
    write_json(HERE / name / "texts.json", {"texts": LABELLED, "pairs": PAIRS})
    print(f"{name}: {len(rows)} texts, {len(PAIRS)} pairs")


# Of mixedbread-ai's code for mxbai-rerank-v2, literal, and not imported from the plugin.
CHAT = ("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")  # fmt: skip
JUDGE = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 "
    "for not relevant, 1 for relevant).\nRelevance:"
)
ASKED = (("what is it?", None), ("what is it", "Find hackers' words!"), ("a query that ends in spaces  ", None))
DOCUMENTS = ["a clumsy thing", "\nbegins with a line", "", "{query} in braces"]


@torch.no_grad()
def record_mxbai() -> None:
    """Write a Qwen2 that answers 1 or 0: ids as the published code joins its pieces, and differences of two logits."""
    tokenizer = train_tokenizer(append_endoftext=False)
    sizes = {**SMALL, "vocab_size": tokenizer.get_vocab_size(), "pad_token_id": tokenizer.token_to_id(ENDOFTEXT)}
    model = _saved("mxbai-rerank-v2", Qwen2ForCausalLM(Qwen2Config(**sizes)), 25)

    def ids_of(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    (one,), (zero,), line = ids_of("1"), ids_of("0"), ids_of("\n")
    arrays: dict[str, np.ndarray] = {}
    for call, (query, instruction) in enumerate(ASKED):
        asked = f"query: {query}" if instruction is None else f"instruction: {instruction}\nquery: {query}"
        scores = []
        for index, document in enumerate(DOCUMENTS):
            pieces = (ids_of(CHAT[0]), ids_of(asked), line, ids_of(f"document: {document}"), line, ids_of(JUDGE))
            ids = [*(each for piece in pieces for each in piece), *ids_of(CHAT[1])]
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            scores.append(float(logits[one] - logits[zero]))
            arrays[f"ids_{call}_{index}"] = np.array(ids, np.int32)
        arrays[f"raw_{call}"] = np.array(scores, np.float32)
    np.savez_compressed(HERE / "mxbai-rerank-v2" / "golden.npz", **arrays)
    write_json(HERE / "mxbai-rerank-v2" / "pairs.json", {"calls": ASKED, "documents": DOCUMENTS})
    print(f"mxbai-rerank-v2: {len(ASKED)} calls")
