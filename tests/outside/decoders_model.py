"""The trunk of two decoders that differ in their attention."""

import mlx.core as mx
import mlx.nn as nn

from archport.layers import Attention, Embedding, GatedMLP, PreNormBlock, Rotary, activation, head_rows


class Llama4Attention(Attention):
    """Rotated in pairs and then normalised without weights; layers without positions stretch their queries."""

    def __init__(self, index, layer, config):
        rotary = Rotary(layer.head_dim, config["rope_theta"], interleaved=True)
        super().__init__(index, layer, config["hidden_size"], bias=False, output_bias=False, rotary=None)
        self._turns = rotary if config["no_rope_layers"][index] else None
        self._config = config

    def __call__(self, x, ctx):
        q, k, v, _ = self.heads(x, ctx.rotate)
        if self._turns is not None:
            q, k = (self.unit(each) for each in ctx.rotate(q, k, self._turns))
        elif self._config["attn_temperature_tuning"]:
            steps = mx.floor((ctx.positions.astype(mx.float32) + 1) / self._config["floor_scale"])
            stretch = mx.log1p(steps) * self._config["attn_scale"] + 1
            q = (q * stretch[:, None, :, None]).astype(q.dtype)
        return self.joined(self.attended(ctx, q, k, v), None)

    def unit(self, x):
        if not self._config["use_qk_norm"]:
            return x
        return mx.fast.rms_norm(x, None, self._config["rms_norm_eps"])


class ReadingAttention(nn.Module):
    """Queries on the keys and values of an earlier layer."""

    def __init__(self, index, layer, config):
        super().__init__()
        D, width = config["hidden_size"], layer.n_heads * layer.head_dim
        self._index, self._layer = index, layer
        self._rotary = Rotary(layer.head_dim, config["rope_theta"])
        self.q_proj, self.o_proj = nn.Linear(D, width, bias=False), nn.Linear(width, D, bias=False)

    def __call__(self, x, ctx):
        B, L, _ = x.shape
        q = self.q_proj(x).reshape(B, L, self._layer.n_heads, -1).transpose(0, 2, 1, 3)
        q, _ = ctx.rotate(q, q, self._rotary)
        out = ctx.attend(self._index, q, None, None, scale=self._layer.head_dim**-0.5)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))


def attention(index, layer, config):
    if config["model_type"] == "llama4_text":
        return Llama4Attention(index, layer, config)
    if layer.kv == "shared":
        return ReadingAttention(index, layer, config)
    rotary = Rotary(layer.head_dim, config["rope_theta"])
    return Attention(index, layer, config["hidden_size"], bias=False, output_bias=False, rotary=rotary)


class Trunk(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        D, eps, act = spec.hidden_size, config["rms_norm_eps"], activation(config["hidden_act"])
        self.embed_tokens = Embedding(spec.vocab_size, D)
        self.layers = [
            PreNormBlock(attention(index, layer, config), GatedMLP(D, spec.intermediate_size, act), D, eps)
            for index, layer in enumerate(spec.layers)
        ]
        self.norm = nn.RMSNorm(D, eps=eps)


class Decoder(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        self.model = Trunk(spec, config)
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
        return {name.replace("feed_forward.", "mlp."): value for name, value in weights.items()}
