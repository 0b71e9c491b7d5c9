"""Which modules of a plugin's trunk are split over the ranks of a group, and what one rank keeps of each tensor.

Blocks of `archport.layers` split themselves; so do tables and linear layers as long as the vocabulary. Whatever else a
trunk has, every rank has whole: norms, routers, modules of the plugin's own, vision towers. Nothing of an architecture
is known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from archport.checkpoint.cutting import cut_of, kept_size
from archport.contract import ArchSpec, InputError, LayerSpec, RecurrentLayer, Trunk
from archport.contract.split import (
    Cut,
    Rank,
    TensorSplit,
    attention_of,
    delta_splits,
    recurrent_of,
    words_of,
)
from archport.device.ranks import Ranks
from archport.layers.attention import Attention
from archport.layers.embedding import Embedding
from archport.layers.experts import SparseMLP
from archport.layers.gated_delta_net import GatedDeltaNet
from archport.layers.mlp import MLP, GatedMLP
from archport.layers.parallel import GatheredLinear, SplitEmbedding

# Methods that a subclass may have of its own and still be split.
_FREE = frozenset({"__init__", "route"})
_TABLES = (nn.Embedding, Embedding, nn.QuantizedEmbedding)
_LINEAR = (nn.Linear, nn.QuantizedLinear)


@runtime_checkable
class Splitting(Protocol):
    """A block that can run a share of itself on each rank."""

    def cuts(self, rank: Rank) -> Mapping[str, Cut]:
        """What one rank keeps, by the path of a module or parameter in the block."""
        ...

    def split(self, ranks: Ranks) -> None:
        """Run this rank's share, once its weights are cut."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSplit:
    """What one rank holds and runs of a model.

    Args:
        spec: with the layers and widths of this rank; the vocabulary is that of the model, since logits are gathered.
        about: what a plan says about it.
        blocks, tables: paths of the modules that are split, and of those with a row for each word.
        cuts: what is kept, by the path of a module or parameter.
        share: of the trunk's numbers that this rank holds.
    """

    spec: ArchSpec
    about: TensorSplit
    blocks: tuple[str, ...]
    tables: tuple[str, ...]
    cuts: Mapping[str, Cut]
    share: float


def split_of(trunk: Trunk, spec: ArchSpec, rank: Rank) -> ModelSplit:
    """How a trunk that is built, and not filled, is split.

    Raises:
        InputError: heads or widths do not divide, or nothing of the trunk can be split.
    """
    module = cast(nn.Module, trunk)
    blocks = dict(_blocks(module, spec, rank))
    if not blocks:
        raise InputError(
            f"tensor_parallel: no layer of {spec.arch} can be split, because its modules are the plugin's own "
            f"({', '.join(sorted({type(each).__name__ for each in module.modules()})[:4])}); run one process a device "
            "on data of its own (archport batch --devices), or compose the plugin of archport.layers"
        )
    cuts = {f"{path}.{name}": cut for path, block in blocks.items() for name, cut in block.cuts(rank).items()}
    tables = tuple(_vocabulary(module, spec, blocks))
    start, stop = rank.rows(spec.vocab_size)
    cuts |= dict.fromkeys(tables, Cut("out", ((start, stop),), spec.vocab_size))
    parameters: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    sizes = {name: (array.size, kept_size(name, array.shape, cut_of(name, cuts))) for name, array in parameters.items()}
    own = _spec_of(module, spec, rank, blocks, parameters, cuts)
    words = words_of(spec.layers, own.layers)
    if own.intermediate_size != spec.intermediate_size:
        words.append(f"MLP {spec.intermediate_size:,} to {own.intermediate_size:,}")
    if own.experts is not None and spec.experts is not None and own.experts != spec.experts:
        whole, part = spec.experts.intermediate_size, own.experts.intermediate_size
        words.append(f"each of {spec.experts.count} experts {whole:,} to {part:,}")
    if tables:
        words.append(f"vocabulary {spec.vocab_size:,} to {stop - start:,} ({', '.join(tables)})")
    about = TensorSplit(rank, tuple(words), _replicated(module, cuts, spec), stop - start if tables else 0)
    share = sum(kept for _, kept in sizes.values()) / sum(whole for whole, _ in sizes.values())
    return ModelSplit(own, about, tuple(blocks), tables, cuts, share)


def split_modules(trunk: Trunk, split: ModelSplit, ranks: Ranks) -> None:
    """Have the modules of a trunk, whose tensors are cut already, run this rank's share."""
    named = dict(cast(nn.Module, trunk).named_modules())
    for path in split.tables:
        table = named[path]
        kind = SplitEmbedding if isinstance(table, nn.Embedding | nn.QuantizedEmbedding) else GatheredLinear
        parent, _, name = path.rpartition(".")
        cast(Any, named[parent])[name] = kind(table, split.spec.vocab_size, ranks)
    for path in split.blocks:
        cast(Splitting, named[path]).split(ranks)


def _blocks(module: nn.Module, spec: ArchSpec, rank: Rank) -> Iterator[tuple[str, Splitting]]:
    """The blocks that split themselves, outermost first, by path."""
    taken: list[str] = []
    for path, block in sorted(module.named_modules(), key=lambda pair: pair[0].count(".")):
        if any(path.startswith(f"{outer}.") for outer in taken) or not _splits(block, spec, rank):
            continue
        taken.append(path)
        yield path, cast(Splitting, block)


def _splits(block: nn.Module, spec: ArchSpec, rank: Rank) -> bool:
    if not isinstance(block, Splitting):
        return False
    home = next(kind for kind in type(block).__mro__ if "cuts" in vars(kind))
    own = {name for kind in type(block).__mro__[: type(block).__mro__.index(home)] for name in vars(kind)}
    if any(callable(getattr(home, name, None)) for name in own - _FREE - {"__doc__", "__module__"}):
        # A subclass with a call of its own may do anything with its heads.
        return False
    if isinstance(block, GatedDeltaNet):
        return delta_splits(block.heads, rank)
    if isinstance(block, Attention):
        return block.layer.kv in ("own", "none") and block.layer.bias != "content" and not _of_tower(block, spec)
    return True


def _of_tower(block: Attention, spec: ArchSpec) -> bool:
    return block.layer not in spec.layers and spec.vision is not None and block.layer in spec.vision.layers


def _vocabulary(module: nn.Module, spec: ArchSpec, blocks: Mapping[str, Splitting]) -> Iterator[str]:
    """Paths of the tables and linear layers with a row for each word."""
    for path, each in module.named_modules():
        if type(each) not in (*_TABLES, *_LINEAR) or any(path.startswith(f"{outer}.") for outer in blocks):
            continue
        if cast(Any, each).weight.shape[0] == spec.vocab_size:
            yield path


def _spec_of(
    module: nn.Module,
    spec: ArchSpec,
    rank: Rank,
    blocks: Mapping[str, Splitting],
    parameters: Mapping[str, mx.array],
    cuts: Mapping[str, Cut],
) -> ArchSpec:
    """The spec of what one rank runs. What plans price, and not all layers split, stays as wide as it is."""
    kinds = {type(block) for block in blocks.values()}
    whole = {each.layer for each in module.modules() if isinstance(each, Attention)}
    whole -= {each.layer for each in blocks.values() if isinstance(each, Attention)}
    heads = any(issubclass(kind, GatedDeltaNet) for kind in kinds)
    attends = any(issubclass(kind, Attention) for kind in kinds)

    def layer_of(layer: LayerSpec) -> LayerSpec:
        if isinstance(layer, RecurrentLayer):
            return recurrent_of(layer, rank) if heads and layer.heads is not None else layer
        return attention_of(layer, rank) if attends and layer not in whole else layer

    uncut = [array.shape for name, array in parameters.items() if cut_of(name, cuts) is None]
    wide = any(spec.intermediate_size in shape for shape in uncut) or not any(
        issubclass(kind, MLP | GatedMLP) for kind in kinds
    )
    experts = spec.experts
    if experts is not None and any(issubclass(kind, SparseMLP) for kind in kinds):
        experts = replace(
            experts,
            intermediate_size=experts.intermediate_size // rank.count,
            shared_intermediate_size=experts.shared_intermediate_size // rank.count,
        )
    return replace(
        spec,
        layers=tuple(layer_of(layer) for layer in spec.layers),
        intermediate_size=spec.intermediate_size // (1 if wide else rank.count),
        experts=experts,
    )


def _replicated(module: nn.Module, cuts: Mapping[str, Cut], spec: ArchSpec) -> tuple[str, ...]:
    """Classes of the modules with matrices that every rank has whole, and what else it has so, in words."""
    found: dict[str, int] = {}
    for path, each in module.named_modules():
        own = sum(value.size for value in each.values() if isinstance(value, mx.array) and value.ndim > 1)
        if own and not any(path == name or path.startswith(f"{name}.") for name in cuts):
            found[_without_numbers(path)] = found.get(_without_numbers(path), 0) + own
    largest = sorted(found, key=lambda name: -found[name])[:6]
    tower = ["the vision tower"] if spec.vision is not None else []
    return ("norms", *tower, *(f"{name} ({found[name]:,} numbers)" for name in largest))


def _without_numbers(path: str) -> str:
    return ".".join("N" if part.isdecimal() else part for part in path.split("."))
