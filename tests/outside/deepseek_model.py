"""The trunk and head of DeepSeek-V3."""

import math
import re

import mlx.core as mx
import mlx.nn as nn

from archport.layers import (
    Embedding,
    GatedMLP,
    PreNormBlock,
    Rotary,
    SigmoidRouter,
    SparseMLP,
    activation,
    head_rows,
    stack_experts,
)


class LatentAttention(nn.Module):
    """Multi-head latent attention on what is cached: keys and values are never unfolded.

    A head's score q . (U k) is (q U) . k, and its answer is V applied to the weighted sum of what is compressed.
    """

    def __init__(self, index, layer, config):
        super().__init__()
        D, H, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
        self._index, self._H, self._rank = index, H, rank
        self._nope, self._rope, self._v = (config[f"{key}_head_dim"] for key in ("qk_nope", "qk_rope", "v"))
        scaling = config.get("rope_scaling")
        interleaved = config.get("rope_interleave", True)
        self._rotary = Rotary(self._rope, config["rope_theta"], scaling, interleaved=interleaved)
        self._scale = (self._nope + self._rope) ** -0.5 * stretch(scaling) ** 2
        if config["q_lora_rank"] is None:
            self.q_proj = nn.Linear(D, H * (self._nope + self._rope), bias=False)
        else:
            self.q_a_proj = nn.Linear(D, config["q_lora_rank"], bias=False)
            self.q_a_layernorm = nn.RMSNorm(config["q_lora_rank"], eps=1e-6)
            self.q_b_proj = nn.Linear(config["q_lora_rank"], H * (self._nope + self._rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(D, rank + self._rope, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(rank, eps=1e-6)
        self.kv_b_proj = nn.Linear(rank, H * (self._nope + self._v), bias=False)
        self.o_proj = nn.Linear(H * self._v, D, bias=False)

    def queries(self, x):
        return self.q_proj(x) if "q_proj" in self else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def __call__(self, x, ctx):
        B, L, _ = x.shape
        q = self.queries(x).reshape(B, L, self._H, -1).transpose(0, 2, 1, 3)
        plain, turned = mx.split(q, [self._nope], axis=-1)
        latent, key = mx.split(self.kv_a_proj_with_mqa(x)[:, None], [self._rank], axis=-1)
        turned, key = ctx.rotate(turned, key, self._rotary)
        # (H, nope + v, rank), unpacked where it is quantised.
        rows = head_rows(self.kv_b_proj, range(self._H * (self._nope + self._v)))
        unfold = rows.reshape(self._H, self._nope + self._v, self._rank)
        q = mx.concatenate([plain @ unfold[:, : self._nope], turned], axis=-1)
        k = mx.concatenate([self.kv_a_layernorm(latent), key], axis=-1)
        out = ctx.attend(self._index, q, k, None, scale=self._scale)
        out = out @ unfold[:, self._nope :].swapaxes(-1, -2)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))


def stretch(scaling):
    """What yarn multiplies scores by, per side, beside what the rotation already does."""
    weight = (scaling or {}).get("mscale_all_dim")
    return 0.1 * weight * math.log(scaling["factor"]) + 1 if weight and scaling["factor"] > 1 else 1.0


def grouped_experts(D, experts, config):
    router = SigmoidRouter(
        D,
        experts,
        groups=config["n_group"],
        kept_groups=config["topk_group"],
        renormalise=bool(config["norm_topk_prob"]),
        factor=config["routed_scaling_factor"],
    )
    return SparseMLP(D, experts, act=config["hidden_act"], router=router, shared_gate=False)


class Trunk(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        D, eps, act = spec.hidden_size, config["rms_norm_eps"], activation(config["hidden_act"])
        self.embed_tokens = Embedding(spec.vocab_size, D)
        self.layers = []
        for index, layer in enumerate(spec.layers):
            sparse = spec.experts is not None and index in spec.experts.layers
            mlp = grouped_experts(D, spec.experts, config) if sparse else GatedMLP(D, spec.intermediate_size, act)
            self.layers.append(PreNormBlock(LatentAttention(index, layer, config), mlp, D, eps))
        self.norm = nn.RMSNorm(D, eps=eps)


class DeepSeek(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        self._spec = spec
        self.model = Trunk(spec, config)
        if "generate" in spec.tasks:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def __call__(self, ids, ctx):
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, ctx)
        return self.model.norm(x)

    def logits(self, hidden):
        return self.lm_head(hidden)

    def head_rows(self, ids):
        return head_rows(self.lm_head, ids)

    def sanitize(self, weights):
        layers, experts = len(self._spec.layers), self._spec.experts
        found = {}
        for name, value in weights.items():
            at = re.match(r"model\.layers\.(\d+)\.", name)
            # Layers beyond the last draft tokens, and take no part.
            if (at and int(at[1]) >= layers) or ("lm_head" not in self and name.startswith("lm_head.")):
                continue
            if name.endswith(".experts.gate_up_proj"):
                path = name.removesuffix("experts.gate_up_proj") + "switch_mlp."
                found[f"{path}gate_proj.weight"], found[f"{path}up_proj.weight"] = mx.split(value, 2, axis=1)
            elif name.endswith(".experts.down_proj"):
                found[name.removesuffix("experts.down_proj") + "switch_mlp.down_proj.weight"] = value
            else:
                found[name] = value
        for index in experts.layers if experts else ():
            found = stack_experts(found, f"model.layers.{index}.mlp", experts.count)
        return found


def published(weights):
    """The tensors as the hub has them: every expert's matrices apart."""
    found = {}
    for name, value in weights.items():
        block, _, leaf = name.partition("switch_mlp.")
        if leaf:
            found |= {f"{block}experts.{index}.{leaf}": value[index] for index in range(value.shape[0])}
        else:
            found[name] = value
    return found
