"""What a loaded encoder answers beside vectors: labels, words for masks, late interaction. `Model` takes these on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from archport.contract.arguments import checked
from archport.running.calls import device_call
from archport.running.tokenise import Overflow, iterable

if TYPE_CHECKING:
    from archport.running.classify import Classified
    from archport.running.fill_mask import Filled
    from archport.running.runtime import Runtime


class EncoderAnswers:
    """Methods of a loaded model that need an encoder's head; each says what to load where the head is another."""

    _runtime: Runtime

    @checked
    @device_call
    def classify(
        self,
        texts: str | Iterable[str | tuple[str, str]],
        *,
        raw_scores: bool = False,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
    ) -> list[Classified]:
        """Scores of every label for texts, or for pairs of texts, in their order.

        Args:
            raw_scores: as the classifier gives them, instead of probabilities.
            max_tokens, overflow: as in `embed`; of a pair the longer text is cut first.

        Raises:
            InputError, ContextLengthExceeded, NonFiniteOutput: naming the text's index.
        """
        items = [texts] if isinstance(texts, str) else iterated(texts)
        return self._runtime.labels().classify(items, raw=raw_scores, max_tokens=max_tokens, overflow=overflow)

    @checked
    @device_call
    def fill_mask(
        self,
        texts: str | Iterable[str],
        *,
        top_k: int = 5,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
    ) -> list[list[list[Filled]]]:
        """Per text, per mask token in it, the `top_k` likeliest tokens, best first.

        Raises:
            InputError, ContextLengthExceeded, NonFiniteOutput: naming the text's index.
        """
        inputs = [texts] if isinstance(texts, str) else iterated(texts)
        return self._runtime.filler()(inputs, top_k=top_k, max_tokens=max_tokens, overflow=overflow)

    @checked
    def maxsim(self, query: str | np.ndarray, documents: str | Sequence[str | np.ndarray]) -> np.ndarray:
        """Late interaction (N,) float32 of a query with documents, as texts or as their vectors per token (n, D).

        For each token of the query the best dot product with a token of the document, summed. Padding never counts.
        """
        from archport.running.tokens import late_interaction

        return late_interaction(self._runtime.tokens(), query, documents)


def iterated(texts: object) -> list[Any]:
    """The items of an iterable that is no string of bytes; raises InputError for anything else."""
    return list(iterable(texts))
