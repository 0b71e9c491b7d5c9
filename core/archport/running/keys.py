"""The keys and values that a layer attends to in one step: its own, another layer's, or both in one latent array.

Knows nothing of caches beyond what writes to one, and nothing of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import mlx.core as mx

from archport.contract import ArchportError, AttentionLayer, InputError, LayerSpec

KeysValues = tuple[mx.array, mx.array]


class StepKeys:
    """Whose keys and values later layers of the step read again, and those.

    Args:
        kinds: distinct specs of the model's layers.
    """

    def __init__(self, kinds: Iterable[LayerSpec]) -> None:
        self._read = {kind.kv_group for kind in kinds if isinstance(kind, AttentionLayer) and kind.kv == "shared"}
        # What the last layer of each group has handed over.
        self._kept: dict[str | None, KeysValues] = {}

    def of(
        self,
        index: int,
        layer: AttentionLayer,
        k: mx.array | None,
        v: mx.array | None,
        write: Callable[[mx.array, mx.array | None], tuple[mx.array, mx.array | None]] | None,
    ) -> KeysValues:
        """All that layer number `index` may attend to.

        Args:
            k, v: what the layer hands over: nothing where it reads another layer's, k alone where it holds the values.
            write: puts the new tokens behind what is cached and returns both; None where nothing is cached.

        Raises:
            InputError: the layer hands over what its spec does not say.
        """
        if layer.kv == "shared":
            if k is not None or v is not None:
                raise InputError(
                    f"layer {index} is declared to read the keys and values of an earlier layer (kv_group="
                    f"{layer.kv_group!r}), but hands over its own; hand over None for both"
                )
            if layer.kv_group not in self._kept:
                raise ArchportError(
                    f"layer {index} reads the keys of kv_group={layer.kv_group!r}, of which no layer has attended in "
                    "this step"
                )
            return self._kept[layer.kv_group]
        if k is None or (v is None) != (layer.kv == "latent"):
            raise InputError(
                f"layer {index} is declared kv={layer.kv!r} and hands over {'no' if k is None else 'its'} keys and "
                f"{'no' if v is None else 'its'} values; expected {'keys alone' if layer.kv == 'latent' else 'both'}"
            )
        cached = write is not None
        if write is not None:
            k, v = write(k, v)
        if v is None:
            v = k[..., : layer.v_head_dim]
        if layer.kv_group in self._read:
            if not cached:
                # A view would keep the projection that all heads lie in until the last layer that reads it. The layer's
                # own attention takes the copies too, so that they are made when it runs.
                k, v = mx.contiguous(k), mx.contiguous(v)
            self._kept[layer.kv_group] = k, v
        return k, v
