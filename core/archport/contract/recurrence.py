"""The words in which recurrent layers are planned: the form that runs, what it costs, and what a layer is handed.

Pure data and a protocol. Knows nothing of arrays beyond their names, or of how a form is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from archport.contract.attention import Price

if TYPE_CHECKING:
    import mlx.core as mx

# `sequential` and `chunked` are plain operations, `cuda` and `metal` one kernel over all tokens; `own` is a recurrence
# that the plugin computes and that plans know nothing of.
RecurrentForm = Literal["sequential", "chunked", "cuda", "metal", "own"]


@dataclass(frozen=True, slots=True)
class RecurrentPath:
    """How one recurrent layer runs in one step, and what that costs. Planned once, then enforced.

    Args:
        form: how the rule is computed.
        chunk: tokens per chunk of the chunked form; 0 otherwise.
        price: bytes above the rule's inputs and output, arithmetic and time.
        against: form -> why it was not taken, for `explain()`.
    """

    form: RecurrentForm
    chunk: int
    price: Price
    against: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Documents:
    """Which tokens may matter to which, where a row is more than one unpadded document.

    Args:
        age: (B, L) int32, tokens of the same document before each token, earlier steps included; None: each row is one
            document, so nothing separates its tokens.
        real: (B, L) bool, false at padding on the right of a row; None: no token is padding.
    """

    age: mx.array | None = None
    real: mx.array | None = None


class RecurrentStep(Protocol):
    """One recurrent layer in one step: how it runs, and what it carries in and out."""

    @property
    def path(self) -> RecurrentPath:
        """The planned form."""
        ...

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """What `store` was handed in the step before, () at the start; zeros in rows that start now."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether a later step reads what is stored now."""
        ...

    def store(self, arrays: Sequence[mx.array]) -> None:
        """Keep arrays of B rows each, of the bytes that the layer's spec declares, for the next step."""
        ...
