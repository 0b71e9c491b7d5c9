"""How a model is split over the processes of a group: which heads, columns and rows are whose. Integers, no arrays.

The one place that says how a layer is split. Blocks name their matrices by it, the loader cuts tensors by it, and the
planner gets the layers that one rank runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from archport.contract.delta import DeltaHeads
from archport.contract.errors import InputError
from archport.contract.spec import AttentionLayer, LayerSpec, RecurrentLayer

Side = Literal["out", "in", "channels"]


@dataclass(frozen=True, slots=True)
class Rank:
    """One process of a group.

    Args:
        number: from 0 on.
        count: processes in the group.
    """

    number: int
    count: int

    def divides(self, total: int) -> bool:
        return total % self.count == 0

    def share(self, total: int, what: str) -> tuple[int, int]:
        """(start, stop) of this rank's equal share of `total`; raises InputError where there is none."""
        if not self.divides(total):
            fits = [count for count in range(2, total + 1) if total % count == 0][:4]
            words = f"use {' or '.join(map(str, fits))}" if fits else "load it on one device"
            raise InputError(f"tensor_parallel: {total:,} {what} can't be split over {self.count} processes; {words}")
        each = total // self.count
        return self.number * each, (self.number + 1) * each

    def rows(self, total: int) -> tuple[int, int]:
        """(start, stop) of this rank's share of a vocabulary, of which the last ranks may have less."""
        each = -(-total // self.count)
        return min(self.number * each, total), min((self.number + 1) * each, total)


@dataclass(frozen=True, slots=True)
class Cut:
    """What one rank keeps of a matrix.

    Args:
        side: `out` for rows of a matrix (out, in), of which each makes one output; `in` for its columns; `channels` for
            the first axis of anything else.
        spans: (start, stop) of what is kept, in units.
        of: units along the whole side.
    """

    side: Side
    spans: tuple[tuple[int, int], ...]
    of: int

    def axis(self, leaf: str, ndim: int) -> int | None:
        """The axis of a parameter that is cut; None for one that is kept whole.

        Args:
            leaf: its name in its module: `weight`, `scales`, `biases`, `bias`, or that of a vector.
        """
        if self.side == "channels":
            return 0
        if leaf in ("weight", "scales", "biases"):
            return ndim - (2 if self.side == "out" else 1)
        return ndim - 1 if self.side == "out" else None

    def bounds(self, length: int, name: str) -> tuple[tuple[int, int], ...]:
        """The spans along an axis of `length` entries: numbers, packed words, or groups of a quantised matrix.

        Raises:
            InputError: a span ends within a group of a quantised matrix, or within one of its words.
        """
        found: list[tuple[int, int]] = []
        for start, stop in self.spans:
            if start * length % self.of or stop * length % self.of:
                raise InputError(
                    f"tensor_parallel: {name} has {length:,} entries along the side that is split, and {start:,} to "
                    f"{stop:,} of {self.of:,} ends inside one: a split falls on groups of a quantised matrix. Use "
                    'fewer processes, smaller groups, or dtype="bfloat16"'
                )
            found.append((start * length // self.of, stop * length // self.of))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class TensorSplit:
    """What a plan says about the group that its model is split over.

    Args:
        rank: the process that the plan is for.
        split, replicated: what every rank has a part of, and what every rank has whole, in words.
        vocabulary: rows of the vocabulary that this rank holds; 0 where every rank holds all.
    """

    rank: Rank
    split: tuple[str, ...]
    replicated: tuple[str, ...]
    vocabulary: int = 0


def out(rank: Rank, total: int, what: str) -> Cut:
    """This rank's share of a matrix's outputs."""
    return Cut("out", (rank.share(total, what),), total)


def columns(rank: Rank, total: int, what: str) -> Cut:
    """This rank's share of a matrix's inputs; the products of all ranks are summed."""
    return Cut("in", (rank.share(total, what),), total)


def kv_heads(layer: AttentionLayer, rank: Rank) -> Cut:
    """The kv heads that a rank's query heads read: its share, or one that several ranks have."""
    count = layer.n_kv_heads
    if rank.divides(count):
        return out(rank, count, "kv heads")
    if rank.count % count:
        raise InputError(
            f"tensor_parallel: {count} kv heads can neither be split over {rank.count} processes nor be repeated "
            "evenly; use a number of processes that divides it or is a multiple of it"
        )
    own = rank.number * count // rank.count
    return Cut("out", ((own, own + 1),), count)


def attention_of(layer: AttentionLayer, rank: Rank) -> AttentionLayer:
    """What one rank runs of a layer; raises InputError where its heads can't be split."""
    start, stop = rank.share(layer.n_heads, "attention heads")
    ((first, last),) = kv_heads(layer, rank).spans
    return replace(layer, n_heads=stop - start, n_kv_heads=last - first)


def delta_of(heads: DeltaHeads, rank: Rank) -> DeltaHeads:
    """What one rank runs of the heads of a gated delta net, which `delta_splits` says it has."""
    return replace(heads, n_key_heads=heads.n_key_heads // rank.count, n_value_heads=heads.n_value_heads // rank.count)


def delta_splits(heads: DeltaHeads, rank: Rank) -> bool:
    """Whether every rank can have as many key heads, and the value heads that they serve."""
    return rank.divides(heads.n_key_heads)


def delta_channels(heads: DeltaHeads, rank: Rank) -> Cut:
    """A rank's channels of q, k and v, which lie after one another."""
    (k0, k1), (v0, v1) = rank.share(heads.keys, "channels of keys"), rank.share(heads.values, "channels of values")
    spans = ((k0, k1), (heads.keys + k0, heads.keys + k1), (2 * heads.keys + v0, 2 * heads.keys + v1))
    return Cut("out", spans, heads.channels)


def recurrent_of(layer: RecurrentLayer, rank: Rank) -> RecurrentLayer:
    """What one rank runs of a gated delta net."""
    assert layer.heads is not None, "other recurrences are replicated"
    return replace(RecurrentLayer.gated_delta(delta_of(layer.heads, rank), layer.conv_taps), footprint=layer.footprint)


def words_of(before: Sequence[LayerSpec], after: Sequence[LayerSpec]) -> list[str]:
    """What was split of some layers, in words for a plan."""
    found: dict[str, None] = {}
    for old, new in zip(before, after, strict=True):
        if old == new:
            continue
        if isinstance(old, AttentionLayer) and isinstance(new, AttentionLayer):
            kv = f"{old.n_kv_heads} to {new.n_kv_heads}"
            shared = ", some on several devices" if old.n_kv_heads < old.n_heads // new.n_heads else ""
            found[f"attention heads {old.n_heads} to {new.n_heads}, kv heads {kv}{shared}"] = None
        elif isinstance(old, RecurrentLayer) and isinstance(new, RecurrentLayer) and old.heads and new.heads:
            found[f"recurrent value heads {old.heads.n_value_heads} to {new.heads.n_value_heads}"] = None
    return list(found)
