"""Decoders that generate and embed, one folder per family. Imports no mlx.

A family is a module with `ARCHITECTURES`, `claim(config)`, `build(spec, config)` and `examples()`; to add one, write
its folder and name it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from archport.contract import ArchSpec, Example, Trunk, hookimpl

from archport_decoders import gemma1, gemma2, gemma3, glm4_moe, gpt_oss, lfm2, llama, ministral3, mistral

# The contract that this is written for; an archport that does not understand it says so.
ARCHPORT_CONTRACT = "0.2"
FAMILIES = (llama, mistral, ministral3, gemma1, gemma2, gemma3, gpt_oss, glm4_moe, lfm2)


def family_of(config: Mapping[str, Any]) -> ModuleType | None:
    """The family of a config, None where its architecture is nobody's or its mask isn't causal."""
    names = config.get("architectures") or []
    if not config.get("causal", True):
        return None
    return next((family for family in FAMILIES if any(name in family.ARCHITECTURES for name in names)), None)


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    family = family_of(config)
    return None if family is None else family.claim(config)


@hookimpl
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    family = family_of(config)
    assert family is not None, "asked of what was claimed"
    return family.build(spec, config)


@hookimpl
def archport_examples() -> Sequence[Example]:
    return [example for family in FAMILIES for example in family.examples()]
