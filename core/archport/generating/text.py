"""Tokens of one row to text, piece by piece, up to its stop strings.

Knows nothing of how tokens are made.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from archport.generating.detokeniser import Detokeniser


class RowText:
    """The text of one row.

    Args:
        tokenizer: the model's.
        stop: strings that end the text; they are never part of it.
        whole: give all of it at the end, which saves the work of every token.
        special: the tokenizer's special tokens, where several rows share what finding them costs.
        least: tokens whose text ends no stop string; one that they begin and a later token ends counts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        *,
        whole: bool = False,
        special: frozenset[str] | None = None,
        least: int = 0,
    ) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._detokeniser = None if whole else Detokeniser(tokenizer, special)
        self._ids: list[int] = []
        # Tokens that are still to come before a stop string counts, and characters that end none.
        self._early, self._free = least, 0
        # Settled, but maybe the beginning of a stop string.
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that this token settles; "" while it may still belong to a character or to a stop string."""
        if self._detokeniser is None:
            self._ids.append(token)
            return ""
        settled = self._detokeniser.add(token)
        if self._early:
            self._early -= 1
            self._free = len(self._held + settled) + len(self._detokeniser.tail())
        # A text stops where it would end with a stop string if this token were the last.
        return self._given(settled, self._detokeniser.tail()) if self._stop else settled

    def finish(self) -> str:
        """The rest."""
        if self.stopped:
            return ""
        if self._detokeniser is None:
            return self._given(self._tokenizer.decode(self._ids), None)
        rest = self._detokeniser.finish()
        if self._early:
            self._free = len(self._held + rest)
        return self._given(rest, None)

    def _given(self, settled: str, tail: str | None) -> str:
        """What can be given of settled text, up to a stop string in it or in its tail; None for the end of the text."""
        settled = self._held + settled
        text = settled + (tail or "")
        places = [at for each in self._stop if (at := text.find(each, max(0, self._free - len(each) + 1))) >= 0]
        if places:
            self.stopped = True
            return text[: min(places)]
        begun = 0 if tail is None else self._begun(settled)
        self._held = settled[len(settled) - begun :]
        self._free = max(0, self._free - len(settled) + begun)
        return settled[: len(settled) - begun]

    def _begun(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max(len(each) for each in self._stop) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(each.startswith(text[-count:]) for each in self._stop):
                return count
        return 0
