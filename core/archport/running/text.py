"""Tokens of one row to text, piece by piece, up to its stop strings. mlx-lm's detokenizer keeps half characters back.

Knows nothing of how tokens are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from archport.layers.mlx_lm import reused


class _Decoder:
    """The few methods that the detokenizer asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


class RowText:
    """The text of one row.

    Args:
        tokenizer: the model's.
        stop: strings that end the text; they are never part of it.
        whole: settle all of it at the end.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], *, whole: bool = False) -> None:
        self._whole = whole
        self._detokenizer: Any = reused("tokenizer_utils.NaiveStreamingDetokenizer")(_Decoder(tokenizer))
        self._stop = tuple(stop)
        self._given = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that this token settles; "" while it may still belong to a character or to a stop string."""
        self._detokenizer.add_token(token)
        if self._whole:
            return ""
        return self._settled(self._detokenizer.text, final=False)

    def finish(self) -> str:
        """The rest."""
        if self.stopped:
            return ""
        self._detokenizer.finalize()
        return self._settled(self._detokenizer.text, final=True)

    def _settled(self, text: str, *, final: bool) -> str:
        # A stop string may begin in what was held back, never in what was given.
        places = [at for each in self._stop if (at := text.find(each, self._given)) >= 0]
        if places:
            self.stopped = True
            text = text[: min(places)]
        elif not final:
            text = text[: len(text) - self._withheld(text)]
        piece = text[self._given :]
        self._given, self.text = len(text), text
        return piece

    def _withheld(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max((len(each) for each in self._stop), default=0) - 1
        for count in range(min(longest, len(text) - self._given), 0, -1):
            if any(each.startswith(text[-count:]) for each in self._stop):
                return count
        return 0
