"""The trunk and head of Gemma 2."""

import mlx.core as mx
import mlx.nn as nn

from archport.layers import Attention, Embedding, GatedMLP, Rotary, ZeroCentredRMSNorm, activation, head_rows


class Block(nn.Module):
    def __init__(self, spec, config, index, layer):
        super().__init__()
        D, eps = spec.hidden_size, config["rms_norm_eps"]
        self.self_attn = Attention(
            index,
            layer,
            D,
            bias=False,
            output_bias=False,
            rotary=Rotary(layer.head_dim, config["rope_theta"]),
            scale=config["query_pre_attn_scalar"] ** -0.5,
        )
        self.mlp = GatedMLP(D, spec.intermediate_size, activation(config["hidden_activation"]))
        self.input_layernorm = ZeroCentredRMSNorm(D, eps)
        self.post_attention_layernorm = ZeroCentredRMSNorm(D, eps)
        self.pre_feedforward_layernorm = ZeroCentredRMSNorm(D, eps)
        self.post_feedforward_layernorm = ZeroCentredRMSNorm(D, eps)

    def __call__(self, x, ctx):
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), ctx))
        ctx.pause(x)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        ctx.pause(x)
        return x


class Decoder(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [Block(spec, config, index, layer) for index, layer in enumerate(spec.layers)]
        self.norm = ZeroCentredRMSNorm(spec.hidden_size, config["rms_norm_eps"])


class Gemma2(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        self._root, self._cap = spec.hidden_size**0.5, config["final_logit_softcapping"]
        self.model = Decoder(spec, config)

    def __call__(self, ids, ctx):
        x = self.model.embed_tokens(ids)
        x = x * mx.array(self._root, x.dtype)
        for layer in self.model.layers:
            x = layer(x, ctx)
        return self.model.norm(x)

    def logits(self, hidden):
        return mx.tanh(self.model.embed_tokens.as_linear(hidden) / self._cap) * self._cap

    def head_rows(self, ids):
        return head_rows(self.model.embed_tokens, ids)

    def sanitize(self, weights):
        return {name: value for name, value in weights.items() if name != "lm_head.weight"}
