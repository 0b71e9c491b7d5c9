"""Build a tiny random model of each family with torch and record what transformers computes in float32 on a CPU.

    python tests/record_golden.py [FAMILY ...]    # needs torch, transformers, tokenizers; writes tests/golden/<family>/

Checkpoints are written by `save_pretrained`. Norms, biases and sinks are moved off their trivial values, attention is
far from uniform, and rows are longer than windows and trained lengths, so that a forgotten part shows.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

FOLDER = Path(__file__).with_name("golden")
LENGTHS = (1, 2, 31, 100, 200)
PROMPT, NEW = 60, 24
SHAPE = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # No token ends an answer, so that all are drawn.
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
TWO = {"num_hidden_layers": 2, "head_dim": 16}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "truncate": False}
KINDS = ["sliding_attention", "full_attention"]
FAMILIES = {
    "mistral": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        {"sliding_window": 20, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        transformers.Gemma3ForCausalLM,
        {
            "head_dim": 16,
            "sliding_window": 20,
            "query_pre_attn_scalar": 24,
            "layer_types": [KINDS[0], KINDS[1], KINDS[0]],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gpt_oss": (
        transformers.GptOssConfig,
        transformers.GptOssForCausalLM,
        {
            "head_dim": 16,
            "intermediate_size": 48,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "swiglu_limit": 1.5,
            "sliding_window": 20,
            "rope_parameters": {"rope_theta": 150000.0, "beta_fast": 32.0, "beta_slow": 1.0, **YARN},
        },
    ),
    "lfm2": (
        transformers.Lfm2Config,
        transformers.Lfm2ForCausalLM,
        {
            "layer_types": ["conv", KINDS[1], "conv"],
            "block_multiple_of": 16,
            "conv_bias": True,
            "conv_L_cache": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "llama": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {
            **TWO,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "ministral3": (
        transformers.Ministral3Config,
        transformers.Ministral3ForCausalLM,
        {
            **TWO,
            "rope_parameters": {
                **YARN,
                "rope_theta": 1000000.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "llama_4_scaling_beta": 0.4,
            },
        },
    ),
    "gemma1": (
        transformers.GemmaConfig,
        transformers.GemmaForCausalLM,
        {**TWO, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "gemma2": (
        transformers.Gemma2Config,
        transformers.Gemma2ForCausalLM,
        {
            **TWO,
            "sliding_window": 20,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 30.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "glm4_moe": (
        transformers.Glm4MoeConfig,
        transformers.Glm4MoeForCausalLM,
        {
            **TWO,
            "intermediate_size": 40,
            "attention_bias": True,
            "use_qk_norm": True,
            "moe_intermediate_size": 12,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "routed_scaling_factor": 2.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5},
        },
    ),
}
# Gemma's and LFM2's norms of q and k undo what a sharper projection would do, so the norms are sharper.
SHARPER = ("q_proj.weight", "k_proj.weight", "q_norm", "k_norm", "q_layernorm", "k_layernorm")


@torch.no_grad()
def perturbed(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fill every parameter: matrices N / sqrt(fan_in), vectors their default + 0.3 N, queries and keys sharper."""
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=dice)
        gain = 1.7 if name.endswith(SHARPER) or any(f"{part}." in name for part in SHARPER) else 1.0
        centre = 0.0 if "bias" in name or "sinks" in name or "Gemma" in type(model).__name__ else gain
        if parameter.ndim == 1 or name.endswith("_bias"):
            parameter.copy_(centre + 0.3 * noise)
        elif "embed" in name:
            parameter.copy_(noise)
        else:
            # gpt-oss stores its experts turned round.
            turned = "experts" in name and "GptOss" in type(model).__name__
            inputs = parameter.shape[-2] if turned else parameter.shape[-1]
            parameter.copy_(gain * noise / inputs**0.5)
    for name, stored in sorted(model.named_buffers()):
        # What steers a router is stored, and no parameter.
        if name.endswith("e_score_correction_bias"):
            stored.copy_(0.3 * torch.randn(stored.shape, generator=dice))
    return model.eval()


@torch.no_grad()
def record(name: str, seed: int) -> None:
    make_config, make_model, more = FAMILIES[name]
    folder = FOLDER / name
    model = perturbed(make_model(make_config(**{**SHAPE, **more}, attn_implementation="eager")), seed)
    model.save_pretrained(folder)
    dice = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for index, length in enumerate(LENGTHS):
        row = dice.integers(0, SHAPE["vocab_size"], length)
        arrays[f"ids_{index}"] = row.astype(np.int32)
        ids = torch.tensor(row)[None]
        arrays[f"hidden_{index}"] = model.model(ids).last_hidden_state[0].numpy()
        arrays[f"logits_{index}"] = model(ids).logits[0, -1].numpy()
    ids = torch.tensor(arrays[f"ids_{len(LENGTHS) - 1}"][:PROMPT].astype(np.int64))[None]
    margins = []
    for _ in range(NEW):
        logits = model(ids).logits[0, -1]
        best = logits.topk(2).values
        margins.append(float(best[0] - best[1]) / float(logits.abs().max()))
        ids = torch.cat([ids, logits.argmax().reshape(1, 1)], dim=1)
    # What is nearly tied is no reference: the tokens would be those of rounding.
    assert min(margins) > 1e-4, f"{name}: two tokens are within {min(margins):.1e}; take another seed"
    arrays["greedy"] = ids[0].numpy().astype(np.int32)
    np.savez_compressed(folder / "golden.npz", **arrays)
    words = {f"w{index}": index for index in range(SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    # Without it the tokenizer would be made anew as published models of this type have it.
    stated = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "tokenizer_config.json").write_text(stated + "\n", encoding="utf-8")
    print(f"{name}: {len(LENGTHS)} rows, {NEW} tokens, transformers {transformers.__version__}")


if __name__ == "__main__":
    for at, family in enumerate(FAMILIES):
        if family in (sys.argv[1:] or FAMILIES):
            record(family, seed=11 + at)
