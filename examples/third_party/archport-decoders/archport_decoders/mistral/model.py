"""The Mistral trunk: blocks of archport's alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.contract import ArchSpec

from archport_decoders.causal import Causal, plain

# Biases that a file of another family may ask for.
NONE = {"attention_bias": False, "mlp_bias": False}


class Mistral(Causal):
    """Parameters `model.embed_tokens`, `model.layers.N...`, `model.norm`, `lm_head`, as published."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__(spec, plain(spec, {**config, **NONE}))
