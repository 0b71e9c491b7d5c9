"""What the families build alike: the trunk under `model`, and an output head, which may be the embedding matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from archport.contract import ArchSpec, LayerContext
from archport.layers import Attention, Embedding, GatedMLP, PreNormBlock, Rotary, activation, head_rows, settle_head

HEAD = ("lm_head.weight", "lm_head.scales", "lm_head.biases")


class Decoder(nn.Module):
    """Embedding, blocks and final norm: parameters `embed_tokens`, `layers`, `norm`.

    Args:
        scale: what embeddings are multiplied by.
    """

    def __init__(self, spec: ArchSpec, layers: list[nn.Module], norm: nn.Module, scale: float | None = None) -> None:
        super().__init__()
        self._scale = scale
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers, self.norm = layers, norm

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embed_tokens(input_ids)
        if self._scale is not None:
            # Rounded to the model's type, as it was trained.
            x = x * mx.array(self._scale, x.dtype)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.norm(x)


def plain(spec: ArchSpec, config: Mapping[str, Any], attention: Callable[..., Attention] = Attention) -> Decoder:
    """Llama's trunk: a norm before each half, every head rotated whole, biases where the config asks for them.

    Args:
        attention: the class of the blocks' attention, with the arguments of archport's.
    """
    D, eps, act = spec.hidden_size, config["rms_norm_eps"], activation(config["hidden_act"])
    bias, mlp_bias = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    blocks: list[nn.Module] = []
    for index, layer in enumerate(spec.attention_layers):
        rotary = Rotary(layer.head_dim, config["rope_theta"], config.get("rope_scaling"))
        mixer = attention(index, layer, D, bias=bias, output_bias=bias, rotary=rotary)
        blocks.append(PreNormBlock(mixer, GatedMLP(D, spec.intermediate_size, act, bias=mlp_bias), D, eps))
    return Decoder(spec, blocks, nn.RMSNorm(D, eps=eps))


class Causal(nn.Module):
    """A family's trunk; parameters as published, `model...` and `lm_head` where the head is a matrix of its own."""

    def __init__(self, spec: ArchSpec, trunk: Decoder) -> None:
        super().__init__()
        self._spec = spec
        self.model = trunk
        # What only embeds reads no head, where its repository has one.
        self._generates = "generate" in spec.tasks
        if self._generates and not spec.tied_head:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.model(input_ids, ctx)

    def logits(self, hidden: mx.array) -> mx.array:
        return self.lm_head(hidden) if "lm_head" in self else self.model.embed_tokens.as_linear(hidden)

    def head_rows(self, ids: Sequence[int]) -> mx.array:
        return head_rows(self.lm_head if "lm_head" in self else self.model.embed_tokens, ids)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # A trunk saved alone has no prefix; old files store the frequencies of positions.
        bare = not any(name.startswith("model.") for name in weights)
        weights = {
            f"model.{name}" if bare and name not in HEAD else name: value
            for name, value in weights.items()
            if not name.endswith("rotary_emb.inv_freq")
        }
        weights = self.renamed(weights)
        if not self._generates:
            return {name: value for name, value in weights.items() if name not in HEAD}
        weights, own = settle_head(weights, "lm_head", "model.embed_tokens", tied=self._spec.tied_head)
        if own and "lm_head" not in self:
            self.lm_head = nn.Linear(self._spec.hidden_size, self._spec.vocab_size, bias=False)
        return weights

    def renamed(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The tensors, all under `model`, by the names that this family's blocks have."""
        return weights
