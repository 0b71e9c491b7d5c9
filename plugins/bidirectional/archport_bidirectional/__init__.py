"""Bidirectional encoders: BERT and its relatives, ModernBERT, EmbeddingGemma, decoder blocks without a causal mask; and
tables of vectors, which see no other token at all.

Every layer is declared bidirectional, so no plan can give it a causal mask or a KV cache; CLIP's text tower alone is
causal, and keeps nothing. A family is a folder: its page has `ARCHS`, `ARCHITECTURES`, `MODELS`, `claim`, `build`,
`head`, `inputs` and `examples`, and imports no mlx; its `model.py` holds the trunk. This page only asks the families in
turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from archport.contract import ArchSpec, CheckpointView, Example, Head, SpecError, TextInputs, Trunk, hookimpl
from archport_bidirectional.configs import named

# One folder each, and one line each: a family is added by writing its folder and naming it here, in alphabetical order.
# No config is claimed by two of them, so the order means nothing.
_FOLDERS = (
    "albert",
    "bert",
    "clip",
    "deberta",
    "decoders",
    "distilbert",
    "electra",
    "eurobert",
    "gemma",
    "gte",
    "jina",
    "modernbert",
    "mpnet",
    "nemotron",
    "nomic",
    "roberta",
    "siglip",
    "static",
    "t5",
)
FAMILIES: tuple[ModuleType, ...] = tuple(import_module(f"{__name__}.{folder}") for folder in _FOLDERS)
# Those whose texts are causal.
_CAUSAL = tuple(family for family in FAMILIES if family.__name__.endswith(".clip"))


def claimed(family: ModuleType, config: Mapping[str, Any]) -> ArchSpec | None:
    """What a family says of a config; nothing where it names none of the family's architectures."""
    name = named(config, family.ARCHITECTURES)
    return None if name is None else family.claim(config, name)


def _family(spec: ArchSpec) -> ModuleType:
    return next(family for family in FAMILIES if spec.arch in family.ARCHS)


@hookimpl
def archport_models() -> Mapping[str, str]:
    return {name: target for family in FAMILIES for name, target in family.MODELS.items()}


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    if not config.get("causal", True):
        return _first_claim(FAMILIES, config)
    spec = _first_claim(_CAUSAL, config)
    if spec is None and config.get("is_decoder") is True:
        _refuse_decoder(config)
    return spec


def _first_claim(families: Sequence[ModuleType], config: Mapping[str, Any]) -> ArchSpec | None:
    return next((spec for family in families if (spec := claimed(family, config)) is not None), None)


def _refuse_decoder(config: Mapping[str, Any]) -> None:
    """Raise SpecError for an encoder's config whose `is_decoder` makes it a causal model; that is nobody's here."""
    spec = _first_claim(FAMILIES, {**config, "causal": False})
    if spec is not None:
        raise SpecError(
            f"{spec.arch}: is_decoder=True of config.json is not supported: it makes the layers causal, and archport "
            "runs them as an encoder's; expected false"
        )


@hookimpl
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    return _family(spec).build(spec, config)


@hookimpl
def archport_head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    return _family(spec).head(spec, checkpoint)


@hookimpl
def archport_inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    return _family(spec).inputs(spec, checkpoint)


@hookimpl
def archport_examples() -> Sequence[Example]:
    return [example for family in FAMILIES for example in family.examples()]
