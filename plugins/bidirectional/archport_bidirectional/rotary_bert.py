"""BERT's blocks with rotated heads in place of learned positions: the trunk of NomicBert, GTE and jina-embeddings-v3.

The families say how their files name its tensors and what stands in each MLP's place. Reads no config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext
from archport.layers import Attention, PostNormBlock, Rotary
from archport_bidirectional.encoder import Embeddings
from archport_bidirectional.heads import Act, Dense, MaskedHead

_HEADS = ("pooler", "classifier", "lm_head")
# A matrix that has adapters next to it, and those, which the engine reads.
_ORIGINAL, _STACKS = ".parametrizations.weight.original", ".parametrizations.weight.0.lora_"
# Buffers that some versions stored.
_UNUSED = (".inv_freq", "embeddings.position_ids")


@dataclass(frozen=True, slots=True)
class Names:
    """How one layout of files names the tensors of `RotaryBert`.

    Args:
        prefixes: of a trunk with a head next to it.
        renames: (published, own), pieces of names.
        fused: piece of a matrix's name -> the pieces whose rows it holds, one below the other.
    """

    prefixes: tuple[str, ...]
    renames: Sequence[tuple[str, str]]
    fused: Mapping[str, tuple[str, ...]]

    def own(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The tensors under the module's names; what this layout does not name stays as it is."""
        found: dict[str, mx.array] = {}
        for name, value in weights.items():
            for prefix in self.prefixes:
                name = name.removeprefix(prefix)
            for published, own in self.renames:
                name = name.replace(published, own)
            whole = next((piece for piece in self.fused if piece in name), None)
            pieces = self.fused[whole] if whole is not None else ()
            for piece, rows in zip(pieces, mx.split(value, len(pieces), axis=0) if pieces else (), strict=True):
                found[name.replace(str(whole), piece)] = rows
            if whole is None:
                found[name] = value
        return found

    def published(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The inverse of `own`, without a prefix."""
        found: dict[str, mx.array] = {}
        for name, value in weights.items():
            whole = next((key for key, pieces in self.fused.items() if any(piece in name for piece in pieces)), None)
            if whole is not None:
                first, *_ = pieces = self.fused[whole]
                if first not in name:
                    continue
                value = mx.concatenate([weights[name.replace(first, piece)] for piece in pieces], axis=0)
                name = name.replace(first, whole)
            for published, own in self.renames:
                name = name.replace(own, published)
            found[name] = value
        return found


class RotaryBert(nn.Module):
    """Parameters `embeddings` and `layers.N`, the shared encoder block.

    For the task `fill_mask` also `lm_head`; for `classify` a `pooler` and a `classifier`, for `tag` a `classifier`.

    Args:
        spec: of the checkpoint.
        layouts: how its files may name tensors, each applied in turn.
        rotary: of all layers.
        mlp: the MLP of the layer with that number.
        eps: of every norm.
        token_types: kinds of tokens; 0 where they are not told apart.
        bias: whether attention's matrices have biases.
        labels: of a classifier.
        act: of the masked-LM head.
        classifier: of texts, where it is not BERT's pooler with a matrix after it.
    """

    def __init__(
        self,
        spec: ArchSpec,
        layouts: Sequence[Names],
        *,
        rotary: Rotary,
        mlp: Callable[[int], nn.Module],
        eps: float,
        token_types: int,
        bias: bool,
        labels: int,
        act: Act,
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        D = spec.hidden_size
        self._layouts, self._tied = tuple(layouts), spec.tied_head
        self.embeddings = Embeddings(spec.vocab_size, D, 0, token_types, eps)
        self.layers = [
            PostNormBlock(
                Attention(index, layer, D, bias=bias, output_bias=bias, rotary=rotary),
                mlp(index),
                D,
                eps,
            )
            for index, layer in enumerate(spec.attention_layers)
        ]
        if "fill_mask" in spec.tasks:
            self.lm_head = MaskedHead(D, spec.vocab_size, act, eps)
        if "classify" in spec.tasks and classifier is None:
            self.pooler = Dense(D, mx.tanh)
        if {"classify", "tag"} & set(spec.tasks):
            self.classifier = nn.Linear(D, labels) if classifier is None else classifier

    def __call__(self, input_ids: mx.array, ctx: LayerContext, token_types: mx.array | None = None) -> mx.array:
        x = self.embeddings(input_ids, None, token_types)
        for block in self.layers:
            x = block(x, ctx)
        return x

    def scores(self, pooled: mx.array) -> mx.array:
        """Scores (B, labels) of first tokens (B, D), or (B, L, labels) of every token."""
        return self.classifier(self.pooler(pooled) if "pooler" in self else pooled)

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits (n, V) of the words at hidden rows (n, D)."""
        return self.lm_head.logits(hidden, self.embeddings.word_embeddings)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = {name.replace(_ORIGINAL, ".weight"): value for name, value in weights.items() if _STACKS not in name}
        for layout in self._layouts:
            weights = layout.own(weights)
        # A head of another task is no part of what this module was asked for.
        unused = {head for head in _HEADS if head not in self}
        kept = {
            name: value
            for name, value in weights.items()
            if name.partition(".")[0] not in unused and not name.endswith(_UNUSED)
        }
        if "lm_head" not in self:
            return kept
        return self.lm_head.settle(kept, "lm_head", "embeddings.word_embeddings", tied=self._tied)
