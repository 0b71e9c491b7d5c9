"""A loaded model's parts, and what its head makes of them: vectors, sparse or not, scores or text.

Says why where it makes none. What answers is imported when it is first asked for: a load waits for none of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from archport.contract import (
    ClassificationHead,
    EmbeddingHead,
    Head,
    InputError,
    MaskedLM,
    PairReader,
    SparseHead,
    TaggingHead,
    TokenHead,
    YesNoHead,
)
from archport.memory.prefix_cache import PrefixCache
from archport.reading.texts import TextTokeniser
from archport.running.encode import Encoder
from archport.running.pool import VectorHead

if TYPE_CHECKING:
    from archport.answering.labels import LabelScorer
    from archport.answering.masked_words import MaskFiller
    from archport.answering.outputs import OutputEmbedder
    from archport.answering.rerank import Scorer
    from archport.answering.tags import Tagger
    from archport.answering.token_vectors import TokenEmbedder
    from archport.answering.vectors import Embedder
    from archport.generating.generate import Generator
    from archport.planning import Readout
    from archport.reading.chat import ChatTemplate
    from archport.reading.pairs import Pairs
    from archport.reading.prompts import PromptReader


@dataclass(frozen=True, slots=True)
class Runtime:
    """What `Model` runs with.

    Args:
        name: the model's, for messages.
        tokeniser: texts to ids.
        encoder: the trunk and its planner.
        head: what its rows become.
        dense: (weight, bias) of each Dense layer of an embedding or token head.
        chat: the checkpoint's chat templates; None for a model that reads no messages.
        stops: ids after which nothing is generated.
        prefixes: what calls of `generate` leave behind for later ones.
        mask: vocabulary id of the mask token, of a masked language model.
    """

    name: str
    tokeniser: TextTokeniser
    encoder: Encoder
    head: Head
    dense: tuple[tuple[mx.array, mx.array | None], ...] = ()
    chat: ChatTemplate | None = None
    stops: frozenset[int] = frozenset()
    prefixes: PrefixCache = field(default_factory=lambda: PrefixCache(0))
    mask: int | None = None
    _made: dict[str, Scorer] = field(default_factory=dict[str, "Scorer"], init=False, repr=False, compare=False)

    @property
    def _its_head(self) -> str:
        return f"the head of {self.name} is {type(self.head).__name__} ({self.head.source})"

    def embedder(self) -> Embedder:
        """Texts to vectors; raises InputError when the head makes none."""
        from archport.answering.vectors import Embedder

        if not isinstance(self.head, EmbeddingHead):
            uses = {
                YesNoHead: "Model.rerank",
                ClassificationHead: "Model.classify",
                TaggingHead: "Model.tag",
                TokenHead: "embed(output='tokens')",
                SparseHead: "embed(output='sparse')",
            }
            raise InputError(
                f"{self._its_head}, which makes no vectors of texts; "
                f"use {uses[type(self.head)]}, or load an embedding model"
            )
        return Embedder(self.tokeniser, self.encoder, VectorHead(self.head, self.dense))

    def generator(self) -> Generator:
        """Prompts to text; raises InputError when the model has no output head for that."""
        from archport.generating.generate import Generator

        spec = self.encoder.spec
        if "generate" not in spec.tasks:
            why = f"{type(self.head).__name__} of {self.head.source}" if spec.tasks else "no output head"
            raise InputError(
                f"{self.name} is for {', '.join(spec.tasks)} ({why}), so it generates no text; load a checkpoint with "
                "an output head"
            )
        reader = self.tokeniser.inputs.reader
        return Generator(self.tokeniser.tokenizer, self.encoder, self.stops, self.prefixes, reader)

    def prompts(self) -> PromptReader:
        """Prompts, messages or ids to ids."""
        from archport.reading.prompts import PromptReader

        return PromptReader(self.tokeniser, self._templates(), self.encoder.spec.vocab_size)

    def _templates(self) -> ChatTemplate:
        from archport.reading.chat import ChatTemplate

        return self.chat or ChatTemplate({}, {}, self.name)

    def scorer(self) -> Scorer:
        """Pairs to scores; raises InputError when the head makes none."""
        if "scorer" not in self._made:
            self._made["scorer"] = self._scorer()
        return self._made["scorer"]

    def _scorer(self) -> Scorer:
        from archport.answering.yes_no import VisualScorer, YesNoScorer

        reader = self.tokeniser.inputs.reader
        if isinstance(self.head, YesNoHead) and isinstance(reader, PairReader):
            return VisualScorer(self.tokeniser, reader, self.encoder, self.head)
        if isinstance(self.head, YesNoHead):
            return YesNoScorer(self._pairs(), self.encoder, self.head)
        if isinstance(self.head, ClassificationHead):
            return self.labels()
        if isinstance(self.head, TokenHead):
            return self.tokens()
        raise InputError(
            f"{self._its_head}, which scores no pairs; load a reranker, or compare vectors with Model.similarity"
        )

    def _pairs(self) -> Pairs:
        """Pairs to ids: by the published text around them, the checkpoint's chat template, or the tokenizer's own."""
        from archport.reading.messages import Conversation, MessagePairs
        from archport.reading.pairs import JoinedPairs, JoinedTokeniser, PairTokeniser

        texts = self.tokeniser
        if texts.inputs.pair is not None:
            return PairTokeniser(texts.tokenizer, texts.inputs.pair, self.encoder.plan.max_context)
        prompt = texts.prompt(None, None)
        if texts.inputs.messages is not None:
            conversation = Conversation(texts.tokenizer, self._templates(), texts.inputs.messages, texts.side)
            return MessagePairs(conversation, texts.max_tokens, prompt)
        return JoinedPairs(JoinedTokeniser(texts.tokenizer, texts.max_tokens, texts.side), prompt)

    def labels(self) -> LabelScorer:
        """Texts and pairs to scores of labels; raises InputError when the head has none."""
        from archport.answering.labels import LabelScorer
        from archport.reading.pairs import JoinedTokeniser, PairTokeniser

        if not isinstance(self.head, ClassificationHead):
            raise InputError(f"{self._its_head}, which knows no labels; load a checkpoint for sequence classification")
        texts, limit = self.tokeniser, self.tokeniser.max_tokens
        joined = JoinedTokeniser(texts.tokenizer, limit, texts.side)
        pair = texts.inputs.pair
        templated = None if pair is None else PairTokeniser(texts.tokenizer, pair, self.encoder.plan.max_context)
        return LabelScorer(joined, self.encoder, self.head, templated, self.dense, texts.prompt(None, None))

    def tokens(self) -> TokenEmbedder:
        """Texts to a vector per token: of a token head as it says, of an embedding head the hidden states."""
        from archport.answering.token_vectors import TokenEmbedder

        head = TokenHead(normalize=False) if isinstance(self.head, EmbeddingHead) else self.head
        if not isinstance(head, TokenHead):
            raise InputError(f"{self._its_head}, which makes no vectors; load an embedding or late-interaction model")
        dense = self.dense if isinstance(self.head, TokenHead) else ()
        return TokenEmbedder(self.tokeniser, self.encoder, head, dense)

    def sparse_head(self) -> SparseHead:
        """The head of sparse vectors: the files', or SPLADE's own for a masked language model without a pipeline.

        Raises:
            InputError: the model makes none.
        """
        if isinstance(self.head, SparseHead):
            return self.head
        masked = "fill_mask" in self.encoder.spec.tasks
        if isinstance(self.head, EmbeddingHead) and not self.head.stated and masked:
            # As sentence-transformers' SparseEncoder takes such a checkpoint.
            return SparseHead(source="default of a masked language model without modules.json")
        raise InputError(f"{self._its_head}, which makes no sparse vectors; load a SPLADE model")

    def sparse(self, top_k: int | None = None) -> OutputEmbedder:
        """Texts to sparse vectors of at most `top_k` weights; raises InputError when the head makes none."""
        from archport.answering.outputs import OutputEmbedder, SparseReader

        head = self.sparse_head()
        if top_k is not None and top_k < 1:
            raise InputError(f"{top_k=}; expected a number >= 1, or None for the model's own")
        kept = head.top_k if top_k is None else top_k
        wide, width = self.encoder.plan.dtype == "float32", self.encoder.spec.vocab_size
        reader = SparseReader(cast(MaskedLM, self.encoder.trunk), head, width, wide, kept)
        return OutputEmbedder(self.tokeniser, self.encoder, reader)

    @property
    def readout(self) -> Readout | None:
        """What `embed` needs after the last layer, where that is more than a row of each text."""
        return self.sparse().reader.readout() if isinstance(self.head, SparseHead) else None

    def tagger(self) -> Tagger:
        """Texts to labelled spans; raises InputError when the head labels no tokens."""
        from archport.answering.tags import Tagger

        if not isinstance(self.head, TaggingHead):
            raise InputError(f"{self._its_head}, which labels no tokens; load a checkpoint for token classification")
        return Tagger(self.tokeniser, self.encoder, self.head)

    def filler(self) -> MaskFiller:
        """Texts with masked words to candidates; raises InputError for a model without such a head."""
        from archport.answering.masked_words import MaskFiller

        if "fill_mask" not in self.encoder.spec.tasks or self.mask is None:
            raise InputError(
                f"{self.name} fills no masks: it is for {', '.join(self.encoder.spec.tasks)}, and its mask token is "
                f"{self.mask}; load a masked language model"
            )
        return MaskFiller(self.tokeniser, self.encoder, self.mask)
