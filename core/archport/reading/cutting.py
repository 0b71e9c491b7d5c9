"""Texts that are cut: copies of a tokenizer that do, which tokens of an encoding stay, and where these stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from tokenizers import Tokenizer

from archport.checkpoint import duplicate

T = TypeVar("T")
Side = Literal["right", "left"]
# Copies of a tokenizer that are kept.
MOST_CUTTERS = 4
# Stretches of an encoding's tokens.
Kept = tuple[slice, ...]
WHOLE: Kept = (slice(None),)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of one row stand in its text.

    Args:
        offsets: (start, end) characters of each token.
        special: 1 at tokens that the tokenizer put around the text.
    """

    offsets: list[tuple[int, int]]
    special: list[int]


def chosen(values: Sequence[T], kept: Kept) -> list[T]:
    """Those of a value per token that are kept."""
    return [value for stretch in kept for value in values[stretch]]


def around(special: Sequence[int]) -> tuple[int, int]:
    """How many tokens the tokenizer put before a text, and after it; all of them before one that has none."""
    if 0 not in special:
        return len(special), 0
    return special.index(0), special[::-1].index(0)


def common_characters(text: str, read: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(text), len(read))
    while low < high:
        middle = (low + high + 1) // 2
        if text[low:middle] == read[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class Cutters:
    """Copies of a tokenizer that cut what is too long, by the limit; those of the latest few limits.

    A copy takes as many bytes as the tokenizer, and each caller may ask for a limit of its own. Any thread may ask.

    Args:
        side: the end at which a text is cut.
    """

    tokenizer: Tokenizer
    side: Side
    _made: dict[int, Tokenizer] = field(default_factory=dict[int, Tokenizer], init=False, repr=False, compare=False)

    def __call__(self, limit: int) -> Tokenizer:
        """The copy that leaves so many tokens, special ones included; of a pair the longer text is cut first."""
        cutter = self._made.get(limit)
        if cutter is None:
            cutter = duplicate(self.tokenizer)
            cutter.enable_truncation(limit, strategy="longest_first", direction=self.side)
            self._made[limit] = cutter
            for oldest in list(self._made)[:-MOST_CUTTERS]:
                self._made.pop(oldest, None)
        return cutter
