"""A loaded model's parts, and what its head makes of them: vectors, sparse or not, scores or text.

Says why where it makes none. What answers is imported when it is first asked for: a load waits for none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from archport.answering.collecting import Collected, Errors, collected
from archport.answering.precision import check_dimensions
from archport.checkpoint import duplicate
from archport.contract import (
    ClassificationHead,
    Dense,
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
from archport.contract.sizes import format_bytes
from archport.device.memory import ModelMemory, process_memory
from archport.memory.snapshot import PrefixCache
from archport.options import outputs_of
from archport.planning import Plan, Request
from archport.planning.readouts import readout_of
from archport.reading.texts import TextTokeniser, listed
from archport.running.calls import DeviceIterator
from archport.running.encode import Encoder
from archport.running.pool import VectorHead

if TYPE_CHECKING:
    from archport.answering.labels import Classified, LabelScorer
    from archport.answering.masked_words import MaskFiller
    from archport.answering.outputs import OutputEmbedder
    from archport.answering.readers import Reader
    from archport.answering.rerank import Ranked, Scorer
    from archport.answering.tags import Tagger
    from archport.answering.token_vectors import TokenEmbedder
    from archport.answering.vectors import Embedder
    from archport.generating.generate import Generator
    from archport.generating.pieces import Generation, Piece
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
        more: (weight, bias) of each layer of what an embedding head has besides its vectors, "sparse" and "tokens"; an
            output is missing whose layers are not stored as safetensors.
        tasks: the same with each adapter that is kept apart, by its name.
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
    more: Mapping[str, tuple[tuple[mx.array, mx.array | None], ...]] = field(default_factory=dict[str, Any])
    tasks: Mapping[str, Runtime] = field(default_factory=dict[str, "Runtime"])
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

    def tokens(self, *, hidden: bool = False) -> TokenEmbedder:
        """Texts to a vector per token: of a token head as it says, of an embedding head its second one's.

        Args:
            hidden: of an embedding head the hidden states, as where it has no second one.
        """
        from archport.answering.token_vectors import TokenEmbedder

        plain = hidden and isinstance(self.head, EmbeddingHead)
        head, weights = (TokenHead(normalize=False), ()) if plain else self._late()
        return TokenEmbedder(self.tokeniser, self.encoder, head, weights)

    def _late(self) -> tuple[TokenHead, tuple[tuple[mx.array, mx.array | None], ...]]:
        """The head of vectors of tokens, and its layers."""
        if isinstance(self.head, TokenHead):
            return self.head, self.dense
        if not isinstance(self.head, EmbeddingHead):
            raise InputError(f"{self._its_head}, which makes no vectors; load an embedding or late-interaction model")
        if self.head.tokens is None:
            return TokenHead(normalize=False), ()
        return self.head.tokens, self._stored("tokens", self.head.tokens.dense)

    def _stored(self, output: str, layers: tuple[Dense, ...]) -> tuple[tuple[mx.array, mx.array | None], ...]:
        """The layers of an output besides the vectors; raises InputError where they are no safetensors."""
        if layers and output not in self.more:
            name = layers[0].folder
            raise InputError(
                f"{self.name} has no {name}.safetensors with weight and bias, which output={output!r} reads; archport "
                f"never opens {name}.pt, because such files can run code. Convert it where you trust it: "
                f"safetensors.torch.save_file(torch.load('{name}.pt', weights_only=True), '{name}.safetensors')"
            )
        return self.more.get(output, ())

    def sparse_head(self) -> SparseHead:
        """The head of sparse vectors: the files', or SPLADE's own for a masked language model without a pipeline.

        Raises:
            InputError: the model makes none.
        """
        if isinstance(self.head, SparseHead):
            return self.head
        if isinstance(self.head, EmbeddingHead) and self.head.sparse is not None:
            return self.head.sparse
        masked = "fill_mask" in self.encoder.spec.tasks
        if isinstance(self.head, EmbeddingHead) and not self.head.stated and masked:
            # As sentence-transformers' SparseEncoder takes such a checkpoint.
            return SparseHead(source="default of a masked language model without modules.json")
        raise InputError(f"{self._its_head}, which makes no sparse vectors; load a SPLADE model or bge-m3")

    def sparse(self, top_k: int | None = None) -> OutputEmbedder:
        """Texts to sparse vectors of at most `top_k` weights; raises InputError when the head makes none."""
        from archport.answering.outputs import OutputEmbedder

        return OutputEmbedder(self.tokeniser, self.encoder, self._sparse_reader(top_k))

    def _sparse_reader(self, top_k: int | None) -> Reader:
        from archport.answering.readers import OwnWeightReader, SparseReader

        head = self.sparse_head()
        if top_k is not None and top_k < 1:
            raise InputError(f"{top_k=}; expected a number >= 1, or None for the model's own")
        kept = head.top_k if top_k is None else top_k
        wide, width = self.encoder.plan.dtype == "float32", self.encoder.spec.vocab_size
        if head.own is not None:
            (weights,) = self._stored("sparse", (head.own,))
            return OwnWeightReader(head, weights, width, kept)
        return SparseReader(cast(MaskedLM, self.encoder.trunk), head, width, wide, kept)

    def several(
        self, outputs: Sequence[str], *, top_k: int | None, dimensions: int | None, normalize: bool | None
    ) -> OutputEmbedder:
        """Texts to several outputs of one pass; raises InputError for one that the model does not make."""
        from archport.answering.outputs import OutputEmbedder
        from archport.answering.readers import SeveralReader, TokenReader, VectorReader

        hidden, readers = self.encoder.spec.hidden_size, dict[str, "Reader"]()
        for output in outputs:
            if output == "sparse":
                readers[output] = self._sparse_reader(top_k)
            elif output == "tokens":
                head, weights = self._late()
                if head.query_marker is not None or head.document_marker is not None or head.expansion is not None:
                    raise InputError(
                        f"{self.name} adds tokens of its own to texts for output='tokens', which other outputs have "
                        "not; ask for it alone"
                    )
                readers[output] = TokenReader(head, weights, hidden)
            else:
                vector = self.embedder().head
                readers[output] = VectorReader(vector, hidden, self.width, dimensions, normalize)
        return OutputEmbedder(self.tokeniser, self.encoder, SeveralReader(readers))

    @property
    def width(self) -> int:
        """Of this model's vectors; raises InputError when it makes none."""
        if isinstance(self.head, SparseHead):
            return self.encoder.spec.vocab_size
        head = self.embedder().head.head
        full = head.dense[-1].out_features if head.dense else self.encoder.spec.hidden_size * len(head.pooling)
        return min(full, head.dimensions or full)

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

    # What `Model`'s methods of the same names answer, which say what the arguments mean.

    def embed(self, texts: Any, output: Any, form: Mapping[str, Any], asked: Mapping[str, Any], errors: Errors) -> Any:
        """What `Model.embed` answers.

        Args:
            form: dimensions, normalize, precision and top_k, as given.
            asked: prompt, prompt_name, max_tokens, overflow and progress.
        """
        if output == "vectors" and form["top_k"] is None:
            from archport.answering.vectors import embed

            return embed(self.embedder(), texts, {**form, **asked}, errors, self.width)
        from archport.answering.token_vectors import embed_tokens, refuse_given

        names = outputs_of(output)
        if "sparse" not in names:
            refuse_given(output, {"top_k": form["top_k"]})
        fixed = {"precision": None if form["precision"] == "float32" else form["precision"]}
        if "vectors" not in names:
            fixed |= {"dimensions": form["dimensions"], "normalize": form["normalize"]}
        refuse_given(output, fixed)
        if output == "tokens":
            return embed_tokens(self.tokens(), texts, **asked, errors=errors)
        if output == "sparse":
            embedder = self.sparse(form["top_k"])
        else:
            if "vectors" in names:
                check_dimensions(form["dimensions"], self.width)
            vector = {name: form[name] for name in ("dimensions", "normalize", "top_k")}
            embedder = self.several(names, **vector)
        return embedder.answer(texts, **asked, errors=errors)

    def of_role(self, prompt_name: str | None, tokens: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `Model.embed` for texts of a role: with its prompt and limit where the caller chose none."""
        role = dict(options)
        if options.get("prompt") is None and options.get("prompt_name") is None:
            task = self.tasks.get(options.get("task") or "", self)
            # A role without a prompt has none; the default one is for texts without a role. A task has its own words.
            if prompt_name is not None or task.tokeniser is self.tokeniser:
                role |= {"prompt": ""} if prompt_name is None else {"prompt_name": prompt_name}
        if tokens is not None and options.get("max_tokens") is None:
            role["max_tokens"] = min(tokens, self.encoder.plan.max_context)
        return role

    def generate(
        self, prompt: object, reading: Mapping[str, Any], options: Mapping[str, Any], *, stream: bool
    ) -> Generation | list[Generation] | list[list[Generation]] | DeviceIterator[Piece]:
        from archport.generating.pieces import generate_request

        generator = self.generator()
        read = self.prompts()(prompt, **reading)
        request = generate_request(options, len(read.rows), self.encoder.spec.vocab_size, generator.stops)
        if stream:
            return DeviceIterator(generator.stream(read.rows, request, read.measured))
        answers = generator.run(read.rows, request, read.measured)
        texts = answers if options["n"] is not None else [first for first, *_ in answers]
        return texts if read.several else texts[0]

    def plan(self, lengths: Sequence[int], cached: int | Sequence[int], new_tokens: int | None) -> Plan:
        start = [cached] * len(lengths) if isinstance(cached, int) else cached
        pack, spec = isinstance(self.head, EmbeddingHead), self.encoder.spec
        dtype = self.encoder.plan.dtype
        readout = None if pack else readout_of(self.head, spec.vocab_size, spec.hidden_size, dtype)
        request = Request(lengths=lengths, cached=start, new_tokens=new_tokens, pack=pack, readout=readout)
        return self.encoder.plan(request)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        from archport.answering.similarity import similarity
        from archport.answering.sparse_vectors import is_sparse, sparse_similarity

        if is_sparse(a) or is_sparse(b):
            return sparse_similarity(a, b, self.sparse_head().similarity)
        return similarity(a, b, self.embedder().head.head.similarity)

    def rerank(
        self, query: Any, documents: Any, asked: tuple[Any, ...], top_k: int | None, whole: bool, errors: Errors
    ) -> list[Ranked] | Collected[list[Ranked]]:
        from archport.answering.rerank import RerankRequest, rerank

        request, scorer = RerankRequest(*asked), self.scorer()
        ranked = rerank(scorer, query, documents, request, top_k=top_k, return_documents=whole, errors=errors)
        return ranked if errors == "collect" else ranked.results

    def classify(
        self, texts: Sequence[Any], errors: Errors, **options: Any
    ) -> list[Classified] | Collected[list[Classified]]:
        run = partial(self.labels().classify, **options)
        return run(texts) if errors == "raise" else collected(texts, run, "text")

    def decode(self, vectors: Any, top_k: int | None) -> list[list[tuple[str, float]]]:
        from archport.answering.sparse_vectors import taken_in, words

        self.sparse_head()
        given, size = taken_in(vectors, "vectors"), self.encoder.spec.vocab_size
        if given.width != size:
            raise InputError(f"vectors of width {given.width}; expected {size}, the entries of the vocabulary")
        return words(given, self.tokeniser.tokenizer.id_to_token, top_k)

    def late_interaction(self, query: str | np.ndarray, documents: Any) -> np.ndarray:
        from archport.answering.token_vectors import late_interaction

        head = self.head
        if not isinstance(head, TokenHead) and not (isinstance(head, EmbeddingHead) and head.tokens is not None):
            raise InputError(
                f"maxsim with {self.name}, whose files declare no late interaction; load a late-interaction model "
                "(ColBERT), or compare one vector per text with embed and similarity"
            )
        return late_interaction(self.tokens(), query, documents)

    def count_tokens(self, texts: Any, prompt: str | None, prompt_name: str | None) -> np.ndarray:
        items: list[Any] = [texts] if isinstance(texts, Mapping) else listed(texts)
        tokens = self.tokeniser.unlimited()(items, prompt=self.tokeniser.prompt(prompt, prompt_name))
        return np.array(tokens.lengths, np.int64)

    def own_tokenizer(self) -> Tokenizer:
        return duplicate(self.tokeniser.tokenizer)

    def memory(self) -> ModelMemory:
        prefixes = sum(each.prefixes.bytes for each in (self, *self.tasks.values()))
        return ModelMemory(self.encoder.plan.weights.total, prefixes, process_memory())

    def facts(self) -> dict[str, str]:
        return {"weights": format_bytes(self.encoder.plan.weights.total)}


class Closed:
    """What a model runs with after `close`: nothing, and it says so."""

    def __init__(self, name: str) -> None:
        self._name = name

    def facts(self) -> dict[str, str]:
        return {}

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise InputError(f"the model {self._name} was closed; load it again with engine.load({self._name!r})")
