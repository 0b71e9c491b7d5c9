"""The trunk and head of Gemma and of Gemma 3; which tokens see each other is no concern of theirs."""

import mlx.core as mx
import mlx.nn as nn

from archport.layers import (
    Attention,
    Embedding,
    GatedMLP,
    Rotary,
    ZeroCentredRMSNorm,
    activation,
    head_rows,
)


def attention(spec, config, index, layer):
    local = layer.reach[0] is not None
    return Attention(
        index,
        layer,
        spec.hidden_size,
        bias=False,
        output_bias=False,
        qk_norm_eps=config["rms_norm_eps"] if spec.qk_norm else None,
        qk_norm=ZeroCentredRMSNorm,
        rotary=Rotary(layer.head_dim, config["rope_local_base_freq" if local else "rope_theta"]),
        scale=config.get("query_pre_attn_scalar", layer.head_dim) ** -0.5,
    )


class Block(nn.Module):
    """One layer; Gemma 3 also normalises what attention and the MLP give back."""

    def __init__(self, spec, config, index, layer):
        super().__init__()
        D, eps = spec.hidden_size, config["rms_norm_eps"]
        self.self_attn = attention(spec, config, index, layer)
        self.mlp = GatedMLP(D, spec.intermediate_size, activation(config["hidden_activation"]))
        self.input_layernorm = ZeroCentredRMSNorm(D, eps)
        self.post_attention_layernorm = ZeroCentredRMSNorm(D, eps)
        self._both_sides = spec.arch == "gemma3"
        if self._both_sides:
            self.pre_feedforward_layernorm = ZeroCentredRMSNorm(D, eps)
            self.post_feedforward_layernorm = ZeroCentredRMSNorm(D, eps)

    def __call__(self, x, ctx):
        attended = self.self_attn(self.input_layernorm(x), ctx)
        x = x + (self.post_attention_layernorm(attended) if self._both_sides else attended)
        ctx.pause(x)
        if self._both_sides:
            x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        else:
            x = x + self.mlp(self.post_attention_layernorm(x))
        ctx.pause(x)
        return x


class Decoder(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [Block(spec, config, index, layer) for index, layer in enumerate(spec.layers)]
        self.norm = ZeroCentredRMSNorm(spec.hidden_size, config["rms_norm_eps"])


class Gemma(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        self._root = spec.hidden_size**0.5
        self.model = Decoder(spec, config)

    def __call__(self, ids, ctx):
        x = self.model.embed_tokens(ids)
        x = x * mx.array(self._root, x.dtype)
        for layer in self.model.layers:
            x = layer(x, ctx)
        return self.model.norm(x)

    def logits(self, hidden):
        return self.model.embed_tokens.as_linear(hidden)

    def head_rows(self, ids):
        return head_rows(self.model.embed_tokens, ids)

    def sanitize(self, weights):
        return {name: value for name, value in weights.items() if name != "lm_head.weight"}
