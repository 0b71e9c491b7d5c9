"""Record what transformers computes for the architectures that tests/outside claims: tiny, random, float32.

The configs are those of the plugins' own examples. Knows no mlx: the modules that hold them import none of it.
"""

import sys
from typing import Any

import numpy as np
import torch
from recording import HERE, randomise
from safetensors.torch import save_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MPNetConfig,
    MPNetModel,
    NomicBertConfig,
    NomicBertModel,
)
from transformers.masking_utils import create_causal_mask
from transformers.models.gemma3.modeling_gemma3 import (
    create_masks_for_vision_model,
    get_block_sequence_ids_for_mask,
)

LENGTHS = (1, 5, 33, 100, 200)
NEW = 24
# Those whose masks are made from token types.
SPANNED = ("gemma3", "prefix")


def configs() -> dict[str, dict[str, Any]]:
    """The examples' configs by folder, read without archport: their modules are text with dictionaries in it."""
    import ast

    found: dict[str, dict[str, Any]] = {}
    wanted = {
        "gemma2": "CONFIG",
        "encoders": "MPNET",
        "decoders": "LLAMA4",
        "deepseek": ("DEEPSEEK", "DEEPSEEK_V3"),
        "nomic": "NOMIC",
        "spans": ("IMAGE", "BREAK", "GEMMA3", "PREFIX"),
    }
    for module, names in wanted.items():
        tree = ast.parse((HERE.parent / "outside" / f"{module}.py").read_text())
        space: dict[str, Any] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple | ast.Name):
                exec(compile(ast.Module([node], []), module, "exec"), space)
        for name in (names,) if isinstance(names, str) else names:
            found["gemma2" if name == "CONFIG" else name.lower()] = space[name]
    return found


def token_types(name: str, config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Types (B, L) as the processors of Gemma 3 and PaliGemma make them: 1 at pictures, 0 in the prefix."""
    if name == "gemma3":
        return (ids == config["image_token_id"]).long()
    ends = (ids == config["prefix_end_id"]).long()
    return torch.where(ends.any(dim=1, keepdim=True), (ends.cumsum(dim=1) - ends).clamp(max=1), 1)


def masks(name: str, model: torch.nn.Module, ids: torch.Tensor, types: torch.Tensor) -> Any:
    """What transformers' own functions make of token types: the masks of every kind of layer."""
    embeds = model.get_input_embeddings()(ids)
    about = {
        "config": model.config,
        "inputs_embeds": embeds,
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": torch.arange(ids.shape[1])[None],
    }
    if name == "gemma3":
        blocks = get_block_sequence_ids_for_mask(types)
        return create_masks_for_vision_model(**about, block_sequence_ids=blocks)
    return create_causal_mask(**about, block_sequence_ids=torch.where(types == 0, 0, -1))


def put_spans(name: str, config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """The ids with two pictures, one longer than the window, or with a prefix of a third."""
    length = ids.shape[1]
    if name == "gemma3":
        # Of 200 tokens two before the 60th, of which the first is longer than the window.
        ids[:, length // 20 : length // 20 + length // 8] = config["image_token_id"]
        ids[:, length // 4 : length // 4 + length // 25] = config["image_token_id"]
    elif name == "prefix":
        ids[ids == config["prefix_end_id"]] += 1
        ids[:, length // 5] = config["prefix_end_id"]
    return ids


@torch.no_grad()
def record(name: str, model: torch.nn.Module, config: dict[str, Any], seed: int) -> None:
    """Write the weights, hidden states of rows of every length and, of a decoder, what follows the longest."""
    folder = HERE / "outside" / name
    folder.mkdir(parents=True, exist_ok=True)
    model = model.eval()
    gains = {"q_proj": 2.0, "k_proj": 2.0, "attn.q.": 2.0, "attn.k.": 2.0}
    if name in SPANNED:
        # Or each token of a head tied to small tables is followed by itself.
        gains |= {"embed": 0.1, "post_attention_layernorm": 2.0, "post_feedforward_layernorm": 2.0, "down_proj": 3.0}
    randomise(model, seed, gains)
    dice = torch.Generator().manual_seed(seed)
    for key, buffer in model.named_buffers():
        if "e_score" in key:
            # Loaded like a weight, and no parameter.
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=dice))
    trunk = getattr(model, "model", model)
    arrays: dict[str, np.ndarray] = {}
    for length in LENGTHS:
        ids = put_spans(name, config, torch.randint(3, config["vocab_size"], (1, length), generator=dice))
        more = {}
        if name in SPANNED:
            more["attention_mask"] = masks(name, trunk, ids, token_types(name, config, ids))
        arrays[f"ids_{length}"] = ids[0].numpy().astype(np.int32)
        arrays[f"hidden_{length}"] = trunk(ids, **more).last_hidden_state[0].numpy()
    if trunk is not model:
        ids = torch.from_numpy(arrays[f"ids_{LENGTHS[-1]}"][:60]).long()[None]
        if name in SPANNED:
            # A prompt with whole spans, behind which something else stands.
            ids = torch.cat([ids[:, :-1], torch.full((1, 1), config["vocab_size"] // 2)], dim=1)
            types = token_types(name, config, ids)
        for _ in range(NEW):
            more = {"attention_mask": masks(name, trunk, ids, types)} if name in SPANNED else {}
            ids = torch.cat([ids, model(ids, **more).logits[:, -1:].argmax(-1)], dim=1)
            if more:
                # What is generated is no picture, and no prefix.
                types = torch.nn.functional.pad(types, (0, 1), value=0 if name == "gemma3" else 1)
        arrays["tokens"] = ids[0].numpy().astype(np.int32)
    np.savez_compressed(folder / "golden.npz", **arrays)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors")


KINDS = {
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, 1),
    "mpnet": (MPNetConfig, MPNetModel, 2),
    "llama4": (Llama4TextConfig, Llama4ForCausalLM, 3),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, 5),
    "prefix": (GemmaConfig, GemmaForCausalLM, 6),
    "deepseek": (DeepseekV3Config, DeepseekV3ForCausalLM, 4),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM, 5),
    "nomic": (NomicBertConfig, NomicBertModel, 6),
}


def main(*names: str) -> None:
    """Record these, or all."""
    made = configs()
    for name in names or KINDS:
        config, model, seed = KINDS[name]
        record(name, model(config(**made[name], attn_implementation="eager")), made[name], seed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
