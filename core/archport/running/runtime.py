"""A loaded model's parts, and what its head makes of them: vectors, scores or text.

Says why where it makes none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from archport.contract import EmbeddingHead, Head, InputError, PairReader, YesNoHead
from archport.running.chat import ChatTemplate
from archport.running.embed import Embedder
from archport.running.encode import Encoder
from archport.running.generate import Generator
from archport.running.pairs import PairTokeniser
from archport.running.pool import VectorHead
from archport.running.prefix_cache import PrefixCache
from archport.running.prompts import PromptReader
from archport.running.rerank import Scorer
from archport.running.tokenise import TextTokeniser
from archport.running.visual_rerank import VisualScorer
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
        chat: the checkpoint's chat templates.
        stops: ids after which nothing is generated.
        prefixes: what calls of `generate` leave behind for later ones.
    """

    name: str
    tokeniser: TextTokeniser
    encoder: Encoder
    head: Head
    dense: tuple[tuple[mx.array, mx.array | None], ...] = ()
    chat: ChatTemplate | None = None
    stops: frozenset[int] = frozenset()
    prefixes: PrefixCache = field(default_factory=lambda: PrefixCache(0))
    _made: dict[str, Scorer] = field(default_factory=dict[str, Scorer], init=False, repr=False, compare=False)

    def embedder(self) -> Embedder:
        """Texts to vectors; raises InputError when the head makes none."""
        if not isinstance(self.head, EmbeddingHead):
            raise InputError(
                f"{self.name} has a {type(self.head).__name__} ({self.head.source}), which makes no vectors; use "
                "Model.rerank, or load an embedding model"
            )
        return Embedder(self.tokeniser, self.encoder, VectorHead(self.head, self.dense))

    def generator(self) -> Generator:
        """Prompts to text; raises InputError when the model has no output head for that."""
        spec = self.encoder.spec
        if "generate" not in spec.tasks:
            why = f"a {type(self.head).__name__} ({self.head.source})" if spec.tasks else "no output head"
            raise InputError(
                f"{self.name} is for {', '.join(spec.tasks)} ({why}), so it generates no text; load a checkpoint with "
                "an output head"
            )
        return Generator(self.tokeniser.tokenizer, self.encoder, self.stops, self.prefixes)

    def prompts(self) -> PromptReader:
        """Prompts, messages or ids to ids."""
        chat = self.chat or ChatTemplate({}, {}, self.name)
        return PromptReader(self.tokeniser.tokenizer, chat, self.encoder.spec.vocab_size)

    def scorer(self) -> Scorer:
        """Pairs to scores; raises InputError when the head makes none."""
        if "scorer" not in self._made:
            self._made["scorer"] = self._scorer()
        return self._made["scorer"]

    def _scorer(self) -> Scorer:
        reader, pair = self.tokeniser.inputs.reader, self.tokeniser.inputs.pair
        if isinstance(self.head, YesNoHead) and isinstance(reader, PairReader):
            return VisualScorer(self.tokeniser, reader, self.encoder, self.head)
        if isinstance(self.head, YesNoHead) and pair is not None:
            tokeniser = PairTokeniser(self.tokeniser.tokenizer, pair, self.encoder.plan.max_context)
            return YesNoScorer(tokeniser, self.encoder, self.head)
        raise InputError(
            f"{self.name} has a {type(self.head).__name__} ({self.head.source}), which scores no pairs; load a "
            "reranker, or compare vectors with Model.similarity"
        )
