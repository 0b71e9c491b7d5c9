"""The GLM-4 MoE trunk: archport's blocks, the first ones with a dense MLP and the others with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from archport.contract import ArchSpec
from archport.layers import Attention, GatedMLP, PreNormBlock, Rotary, SigmoidRouter, SparseMLP, activation

from archport_decoders.causal import Causal, Decoder
from archport_decoders.glm4_moe.published import renamed


class Glm4Moe(Causal):
    """Parameters as published, but `mlp.switch_mlp` for all experts of a layer."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        D, eps, bias = spec.hidden_size, config["rms_norm_eps"], bool(config["attention_bias"])
        blocks: list[nn.Module] = []
        for index, layer in enumerate(spec.attention_layers):
            dims = int(layer.head_dim * config["partial_rotary_factor"])
            mixer = Attention(
                index,
                layer,
                D,
                bias=bias,
                output_bias=False,
                qk_norm_eps=eps if spec.qk_norm else None,
                rotary=Rotary(dims, config["rope_theta"], config.get("rope_scaling")),
            )
            blocks.append(PreNormBlock(mixer, _mlp(spec, config, index), D, eps))
        super().__init__(spec, Decoder(spec, blocks, nn.RMSNorm(D, eps=eps)))

    def renamed(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return renamed(weights, self._spec)

    def in_float32(self, name: str) -> bool:
        # The router's matrix and bias.
        return ".mlp.gate." in name


def _mlp(spec: ArchSpec, config: Mapping[str, Any], index: int) -> nn.Module:
    D, act, experts = spec.hidden_size, config["hidden_act"], spec.experts
    if experts is None or index not in experts.layers:
        return GatedMLP(D, spec.intermediate_size, activation(act))
    router = SigmoidRouter(
        D,
        experts,
        groups=config["n_group"],
        kept_groups=config["topk_group"],
        renormalise=bool(config["norm_topk_prob"]),
        factor=config["routed_scaling_factor"],
    )
    return SparseMLP(D, experts, act=act, router=router, shared_gate=False)
