"""A loaded model's parts, and what its head makes of them: vectors, scores or text.

Says why where it makes none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from archport.contract import EmbeddingHead, Head, InputError, YesNoHead
from archport.running.embed import Embedder
from archport.running.encode import Encoder
from archport.running.pairs import PairTokeniser
from archport.running.pool import VectorHead
from archport.running.rerank import Scorer
from archport.running.tokenise import TextTokeniser
from archport.running.yes_no import YesNoScorer


@dataclass(frozen=True, slots=True)
class Runtime:
    """What `Model` runs with.

    Args:
        name: the model's, for messages.
        tokeniser: texts to ids.
        encoder: the trunk and its planner.
        head: what its rows become.
        dense: (weight, bias) of each Dense layer of an embedding head.
    """

    name: str
    tokeniser: TextTokeniser
    encoder: Encoder
    head: Head
    dense: tuple[tuple[mx.array, mx.array | None], ...] = ()
    _made: dict[str, Scorer] = field(default_factory=dict[str, Scorer], init=False, repr=False, compare=False)

    def embedder(self) -> Embedder:
        """Texts to vectors; raises InputError when the head makes none."""
        if not isinstance(self.head, EmbeddingHead):
            raise InputError(
                f"{self.name} has a {type(self.head).__name__} ({self.head.source}), which makes no vectors; use "
                "Model.rerank, or load an embedding model"
            )
        return Embedder(self.tokeniser, self.encoder, VectorHead(self.head, self.dense))

    def scorer(self) -> Scorer:
        """Pairs to scores; raises InputError when the head makes none."""
        if "scorer" not in self._made:
            self._made["scorer"] = self._scorer()
        return self._made["scorer"]

    def _scorer(self) -> Scorer:
        pair = self.tokeniser.inputs.pair
        if isinstance(self.head, YesNoHead) and pair is not None:
            tokeniser = PairTokeniser(self.tokeniser.tokenizer, pair, self.encoder.plan.max_context)
            return YesNoScorer(tokeniser, self.encoder, self.head)
        raise InputError(
            f"{self.name} has a {type(self.head).__name__} ({self.head.source}), which scores no pairs; load a "
            "reranker, or compare vectors with Model.similarity"
        )
