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
from archport_bidirectional.encoder import Embeddings, Headed

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


class RotaryBert(Headed):
    """Parameters `embeddings` and `layers.N`, the shared encoder block, and those of the heads.

    Args:
        spec: of the checkpoint.
        layouts: how its files may name tensors, each applied in turn.
        heads: by name.
        rotary: of all layers.
        mlp: the MLP of the layer with that number.
        eps: of every norm.
        token_types: kinds of tokens; 0 where they are not told apart.
        bias: whether attention's matrices have biases.
    """

    def __init__(
        self,
        spec: ArchSpec,
        layouts: Sequence[Names],
        heads: Mapping[str, nn.Module],
        *,
        rotary: Rotary,
        mlp: Callable[[int], nn.Module],
        eps: float,
        token_types: int,
        bias: bool,
    ) -> None:
        D = spec.hidden_size
        super().__init__(spec, Embeddings(spec.vocab_size, D, 0, token_types, eps), heads)
        self._layouts = tuple(layouts)
        self.layers = [
            PostNormBlock(
                Attention(index, layer, D, bias=bias, output_bias=bias, rotary=rotary),
                mlp(index),
                D,
                eps,
            )
            for index, layer in enumerate(spec.attention_layers)
        ]

    def __call__(self, input_ids: mx.array, ctx: LayerContext, token_types: mx.array | None = None) -> mx.array:
        x = self.embeddings(input_ids, None, token_types)
        for block in self.layers:
            x = block(x, ctx)
        return x

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = {name.replace(_ORIGINAL, ".weight"): value for name, value in weights.items() if _STACKS not in name}
        for layout in self._layouts:
            weights = layout.own(weights)
        return self.settled({name: value for name, value in weights.items() if not name.endswith(_UNUSED)})
