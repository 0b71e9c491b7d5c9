"""Build tiny Qwen3 checkpoints that rerank, route to experts, stretch their positions or see a window, and record them.

What transformers computes: hidden states, last logits, 64 greedy tokens, and scores of pairs by the published recipe.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_qwen3 import GAINS, SHAPE, greedy, hidden_rows, hub_config, rows_for, save_tokenizer, train_tokenizer
from recording import HERE, randomise, read_corpus, relative_error, write_golden, write_json
from tokenizers import AddedToken, Tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

LENGTHS = (1, 31, 100, 128)
# Literal, and not imported from the plugin: this is what holds the plugin's bytes.
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TASK = "Given a web search query, retrieve relevant passages that answer the query"
LIMIT = 448


def shape(**more: Any) -> dict[str, Any]:
    return {**SHAPE, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, **more}


def save(
    model: torch.nn.Module, tokenizer: Tokenizer, name: str, seed: int, gains: dict[str, float] = GAINS
) -> tuple[Path, Any]:
    """Write a checkpoint in bfloat16, and return its folder and the model read back in float32."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    randomise(model, seed, gains)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder, type(model).from_pretrained(folder, dtype=torch.float32).eval()


def record_causal(name: str, model: torch.nn.Module, tokenizer: Tokenizer, seed: int, wrong: Any) -> None:
    """Save a model and record hidden states, last logits and greedy tokens of a few rows.

    Args:
        wrong: what an engine might get wrong, by name: functions that return another model's hidden states of a row.
    """
    # As wide as it is by default, a tied embedding answers every token with itself, whatever the layers do.
    tied = {"embed": model.config.hidden_size**-0.5} if model.config.tie_word_embeddings else {}
    folder, model = save(model, tokenizer, name, seed, GAINS | tied)
    rows = rows_for(tokenizer, LENGTHS)
    hidden = hidden_rows(model.model, rows)
    arrays = {f"hidden_{i}": array for i, array in enumerate(hidden)}
    gaps = {}
    for index, row in enumerate(rows):
        with torch.no_grad():
            arrays[f"logits_{index}"] = model(input_ids=torch.tensor([row["ids"]])).logits[0, -1].numpy()
        tokens, gaps[index] = greedy(model, row["ids"])
        arrays[f"greedy_{index}"] = np.asarray(tokens, np.int32)
    assert len({int(token) for index in range(len(rows)) for token in arrays[f"greedy_{index}"]}) > 50
    if hasattr(config := model.config, "num_experts"):
        config._experts_implementation = "eager"  # the grouped product knows no float64
    exact = hidden_rows(model.model.double(), rows)
    model.float()
    at = LENGTHS.index(128)
    moved = {what: relative_error(other(model, rows[at]), hidden[at]) for what, other in wrong.items()}
    assert min(moved.values(), default=1.0) > 1e-3, moved
    notes = {
        "attention_implementation": model.config._attn_implementation,
        "dtype": "float32",
        "stored_dtype": "bfloat16, widened to float32 before the run",
        "float32_vs_float64": max(relative_error(a, b) for a, b in zip(hidden, exact, strict=True)),
        "narrowest_greedy_gap": gaps,
        "wrong_engines": moved,
    }
    write_golden(folder, rows, arrays, notes)
    print(f"{name}: {len(rows)} rows, {notes['float32_vs_float64']:.1e}, gaps {min(gaps.values()):.1e}, {moved}")


def rebuilt(**changes: Any) -> Any:
    """A function that runs a row through the same weights under a changed config."""

    def run(model: Any, row: dict[str, Any]) -> np.ndarray:
        config = type(model.config)(**{**model.config.to_dict(), **changes})
        other = type(model)(config).eval()
        other.load_state_dict(model.state_dict())
        return hidden_rows(other.model, [row])[0]

    return run


def record_tied() -> None:
    """Write qwen3-tied: what most published sizes are, a plain dense model with a tied head and a classic config."""
    tokenizer = train_tokenizer(append_endoftext=False)
    raw = hub_config(tokenizer.get_vocab_size(), tokenizer.token_to_id("<|im_end|>"), "bfloat16")
    raw |= {"num_hidden_layers": 2}
    wrong = {"another theta": rebuilt(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})}
    record_causal("qwen3-tied", Qwen3ForCausalLM(Qwen3Config(**raw)).eval(), tokenizer, 38, wrong)
    write_json(HERE / "qwen3-tied" / "config.json", raw)


def record_moe() -> None:
    """Write qwen3-moe: six experts, two per token, one dense layer between; 2 x 24 is not the hidden 64."""
    tokenizer = train_tokenizer(append_endoftext=False)
    config = Qwen3MoeConfig(
        **shape(tie_word_embeddings=False, mlp_only_layers=[1]),
        vocab_size=tokenizer.get_vocab_size(),
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )
    wrong = {"weights not renormalised": rebuilt(norm_topk_prob=False), "three experts": rebuilt(num_experts_per_tok=3)}
    record_causal("qwen3-moe", Qwen3MoeForCausalLM(config).eval(), tokenizer, 31, wrong)


def record_yarn() -> None:
    """Write qwen3-yarn: tied, positions stretched four times by yarn from a trained context of 64."""
    tokenizer = train_tokenizer(append_endoftext=False)
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = Qwen3Config(
        **shape(tie_word_embeddings=True, num_hidden_layers=2, rope_parameters=yarn, max_position_embeddings=256),
        vocab_size=tokenizer.get_vocab_size(),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )
    plain = rebuilt(rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
    record_causal("qwen3-yarn", Qwen3ForCausalLM(config).eval(), tokenizer, 32, {"no stretching": plain})


def record_windowed() -> None:
    """Write qwen3-windowed: tied, the second and third layer see 24 tokens."""
    tokenizer = train_tokenizer(append_endoftext=False)
    windows = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    config = Qwen3Config(
        **shape(tie_word_embeddings=True, **windows),
        vocab_size=tokenizer.get_vocab_size(),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )
    full = rebuilt(layer_types=["full_attention"] * 3, use_sliding_window=False, sliding_window=None)
    wider = rebuilt(sliding_window=25)
    wrong = {"no window": full, "a window of one more": wider}
    record_causal("qwen3-windowed", Qwen3ForCausalLM(config).eval(), tokenizer, 33, wrong)


@torch.no_grad()
def record_pairs(folder: Path, model: Any, tokenizer: Tokenizer) -> None:
    """Add `pairs.json` and `golden.npz` to a reranker's folder: ids and scores, each pair alone, from full logits."""
    corpus = read_corpus()
    query = "what does the syllable bletch mean"
    documents = [corpus[3], corpus[7][:40], "", "yes and no", corpus[11] + "\n\n" + corpus[12] + corpus[13]]
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")

    def ids_of(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    arrays, stored = {}, []
    for name, instruction in (("default", TASK), ("own", "Find the {query} that is a word")):
        rows = []
        for document in documents:
            body = ids_of("<Instruct>: " + instruction + "\n<Query>: " + query + "\n<Document>: " + document)
            head, tail = ids_of(PREFIX), ids_of(SUFFIX)
            rows.append(head + body[: LIMIT - len(head) - len(tail)] + tail)
        assert len(rows[4]) == LIMIT > max(map(len, rows[:4]))
        logits = [model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows]
        arrays[f"raw_{name}"] = np.array([float(each[yes] - each[no]) for each in logits], np.float32)
        arrays[f"scores_{name}"] = np.array(
            [float(torch.softmax(torch.stack([each[no], each[yes]]), 0)[1]) for each in logits], np.float32
        )
        arrays |= {f"ids_{name}_{i}": np.asarray(row, np.int32) for i, row in enumerate(rows)}
        stored.append({"name": name, "instruction": instruction, "query": query, "documents": documents})
    np.savez_compressed(folder / "golden.npz", **arrays)
    write_json(folder / "pairs.json", {"limit": LIMIT, "calls": stored})
    print(f"{folder.name}: {arrays['scores_default']}, {arrays['scores_own']}")


@torch.no_grad()
def record_reranker() -> None:
    """Write qwen3-reranker: Qwen3-Reranker's layout and recipe, scores of pairs from full logits, each pair alone."""
    tokenizer = train_tokenizer(append_endoftext=False)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("yes", "no")])
    end = tokenizer.token_to_id("<|im_end|>")
    raw = hub_config(tokenizer.get_vocab_size(), end, "bfloat16")
    config = Qwen3Config(**{**raw, "num_hidden_layers": 2, "max_position_embeddings": 1024})
    folder, model = save(Qwen3ForCausalLM(config).eval(), tokenizer, "qwen3-reranker", 34)
    write_json(folder / "config.json", {**raw, "num_hidden_layers": 2, "max_position_embeddings": 1024})
    record_pairs(folder, model, tokenizer)


def record() -> None:
    """Record all five."""
    record_reranker()
    record_tied()
    record_moe()
    record_yarn()
    record_windowed()
