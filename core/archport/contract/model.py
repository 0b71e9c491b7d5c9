"""What passes between a plugin's module and the engine: the layer context and the trunk.

Protocols alone. How attention runs and how tokens are batched is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from archport.contract.recurrence import Documents, RecurrentStep

if TYPE_CHECKING:
    import mlx.core as mx

    from archport.contract.attention import DistanceBias


class VisualRows(Protocol):
    """The pictures of one step, as a trunk sees them."""

    def replace(self, x: mx.array) -> mx.array:
        """Token embeddings (B, L, D) with those of pictures in their places."""
        ...

    def add(self, x: mx.array, tap: int) -> mx.array:
        """Hidden states (B, L, D) with the tower's tap number `tap` (0, 1, ...) added where pictures stand."""
        ...


class LayerContext(Protocol):
    """All that a layer may know of the request it runs in. It holds every mask, cache and position there is."""

    @property
    def positions(self) -> mx.array:
        """Position of each token inside its own document, (B, L) int32."""
        ...

    @property
    def decoding(self) -> mx.array | None:
        """Position of each row's only token, (B,) int32, in a step that tells blocks to compile what surrounds
        their attention; None in all others. A block that does not care works, and keeps a GPU waiting."""
        ...

    @property
    def visual(self) -> VisualRows | None:
        """The pictures among this step's tokens; None where there are none."""
        ...

    def attend(
        self,
        layer: int,
        q: mx.array,
        k: mx.array | None,
        v: mx.array | None,
        *,
        scale: float,
        sinks: mx.array | None = None,
        softcap: float | None = None,
        bias: DistanceBias | None = None,
    ) -> mx.array:
        """Attention of layer number `layer` as its spec declares it.

        Shapes: q (B, H, L, Dh), k (B, K, L, Dh), v (B, K, L, Dv), all without repeated heads; returns (B, H, L, Dv).
        A layer that reads another's keys and values hands over None for both; one with a latent cache k (B, K, L, Dh)
        alone, of which the first Dv numbers are the values.

        Args:
            scale: factor of the scores.
            sinks: (H,), one more logit per head, where the spec says so.
            softcap: the spec's, which also holds when it is left out.
            bias: what distances add to the scaled and capped scores, where the spec says that there is one: a rule of
                numbers, or of vectors where it says "content".

        Raises:
            InputError: what is handed over is not what the spec declares.
        """
        ...

    def rotate(
        self, q: mx.array, k: mx.array, rope: Callable[[mx.array, int | mx.array], mx.array]
    ) -> tuple[mx.array, mx.array]:
        """Apply `rope(x, offset)` to q and k at this request's positions; `offset` is an int or one per row (B,).

        Where tokens stand on several axes, `rope.at(positions, known)` is asked instead, once per step, with positions
        (axes, B, L), and what it returns is applied to q and k. A rope that has `along(offset, tokens, known)` is asked
        for the same where they follow each other.
        """
        ...

    def state(self, layer: int, *inputs: mx.array) -> RecurrentStep:
        """How recurrent layer number `layer` runs in this step, and its state.

        Args:
            inputs: what the layer computed so far, evaluated here where the plan wants the layers before it finished.
        """
        ...

    @property
    def documents(self) -> Documents:
        """Where documents begin and padding starts, for layers that pass something on from token to token."""
        ...

    def pause(self, x: mx.array) -> None:
        """Say that `x` is all that is needed from here on, as between a block's attention and its MLP and after that.

        The plan may evaluate the graph here, and hold less. A block that says so less than twice works, and holds more.
        """
        ...


class Trunk(Protocol):
    """The module a plugin builds: token ids in, hidden states out. `archport_build` returns one."""

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        """Hidden states (B, L, D) after the final norm, for token ids (B, L)."""
        ...

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The checkpoint's tensors under this module's parameter names; drops what the module does not use."""
        ...


class CausalLM(Trunk, Protocol):
    """A trunk with an output head: what `archport_build` returns when the spec's tasks include generate or rerank."""

    def logits(self, hidden: mx.array) -> mx.array:
        """Next-token logits (B, n, V) of hidden states (B, n, D)."""
        ...

    def head_rows(self, ids: Sequence[int]) -> mx.array:
        """Rows (n, D) of the output head for these vocabulary ids; of a packed head only they are unpacked."""
        ...
