"""What is computed of hidden states behind the last layer, when the layers' temporaries are gone. Pure numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Arrays of a vocabulary's logits while the likeliest token is taken: those of this step and of the next, which is
# started before this one is looked at, each with what it is cut out of, and whether they are finite.
GREEDY_LOGITS = 6


@dataclass(frozen=True, slots=True)
class Readout:
    """Some equal arrays that exist at once while a head reads a batch's hidden states.

    Args:
        name: of the array, for refusals.
        component: the part of a plan's bytes that they belong to.
        arrays: how many exist at once.
        token: bytes of one array per token of the batch, padding included.
        fixed: bytes of one array whatever the batch holds.
    """

    name: str
    component: Literal["outputs", "logits"]
    arrays: int
    token: int = 0
    fixed: int = 0

    def each(self, tokens: int) -> int:
        """Bytes of one array, for a step of so many tokens."""
        return self.fixed + tokens * self.token

    def total(self, tokens: int) -> int:
        """Bytes of all of them."""
        return self.arrays * self.each(tokens)
