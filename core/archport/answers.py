"""What a loaded model answers beside vectors and text: rankings, labels, words for masks, late interaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args, overload

import numpy as np

from archport.answering.collecting import Collected, Errors, apart
from archport.answering.precision import check_dimensions
from archport.contract import EmbeddingHead, InputError, TokenHead
from archport.contract.arguments import checked
from archport.options import ClassifyOptions, Output, RerankOptions
from archport.reading.texts import Overflow, iterable
from archport.running.calls import device_call

if TYPE_CHECKING:
    from archport.answering.labels import Classified
    from archport.answering.masked_words import Filled
    from archport.answering.rerank import Ranked
    from archport.answering.tags import Span
    from archport.runtime import Runtime


class EncoderAnswers:
    """Methods of `Model` that need a head of their own; each says what to load where the head is another."""

    _runtime: Runtime

    def _other_outputs(
        self, texts: Any, output: Any, form: Mapping[str, Any], *, progress: Any, errors: Errors, **limits: Any
    ) -> Any:
        """What `embed` answers beside dense vectors alone.

        Args:
            form: dimensions, normalize, precision and top_k, as given.
            limits: prompt, prompt_name, max_tokens and overflow.
        """
        from archport.answering.token_vectors import embed_tokens, refuse_given

        names = _outputs(output)
        if "sparse" not in names:
            refuse_given(output, {"top_k": form["top_k"]})
        fixed = {"precision": None if form["precision"] == "float32" else form["precision"]}
        if "vectors" not in names:
            fixed |= {"dimensions": form["dimensions"], "normalize": form["normalize"]}
        refuse_given(output, fixed)
        if output == "tokens":
            return embed_tokens(self._runtime.tokens(), texts, **limits, progress=progress, errors=errors)
        if output == "sparse":
            embedder = self._runtime.sparse(form["top_k"])
        else:
            if "vectors" in names:
                check_dimensions(form["dimensions"], self._runtime.width)
            vector = {name: form[name] for name in ("dimensions", "normalize", "top_k")}
            embedder = self._runtime.several(names, **vector)
        return embedder.answer(texts, **limits, progress=progress, errors=errors)

    @overload
    def rerank(
        self,
        query: str | Mapping[str, Any],
        documents: Iterable[Any],
        *,
        errors: Literal["raise"] = "raise",
        **options: Unpack[RerankOptions],
    ) -> list[Ranked]: ...
    @overload
    def rerank(
        self,
        query: str | Mapping[str, Any],
        documents: Iterable[Any],
        *,
        errors: Literal["collect"],
        **options: Unpack[RerankOptions],
    ) -> Collected[list[Ranked]]: ...
    @checked
    @device_call
    def rerank(
        self,
        query: str | Mapping[str, Any],
        documents: Iterable[Any],
        *,
        instruction: str | None = None,
        top_k: int | None = None,
        return_documents: bool = False,
        raw_scores: bool = False,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        share_prefix: bool = True,
        progress: bool = False,
        errors: Errors = "raise",
    ) -> list[Ranked] | Collected[list[Ranked]]:
        """Documents by how well they answer a query, the best first.

        Args:
            query, documents: texts; a model that sees also takes mappings such as {"text": ..., "image": ...}.
            instruction: what counts as an answer; default: the model's own.
            top_k: keep so many; None keeps all.
            return_documents: put each document beside its score.
            raw_scores: the head's own number (of a yes/no head the difference of two logits) instead of a probability.
            max_tokens: limit of a pair; default: the model's own, within its context.
            overflow: `error` refuses a longer pair, naming the document; `truncate` cuts it, but nothing around it.
            share_prefix: run what all pairs begin with once, where the plan says that this is faster.
            progress: show a progress bar on standard error.
            errors: `raise` for the first document that can't be scored, or `collect`, as in `embed`.

        Returns:
            `Ranked(index, score, document)`, by descending score; equal ones in the order of the documents. With
            `collect` a `Collected(results, rows, errors)` with such a ranking of the documents that have scores.

        Raises:
            InputError, AdmissionRefused, NonFiniteOutput: naming the document's index.
        """
        from archport.answering.rerank import RerankRequest, rerank

        request = RerankRequest(instruction, raw_scores, max_tokens, overflow, share_prefix, progress)
        scorer = self._runtime.scorer()
        ranked = rerank(
            scorer, query, documents, request, top_k=top_k, return_documents=return_documents, errors=errors
        )
        return ranked if errors == "collect" else ranked.results

    @overload
    def classify(
        self,
        texts: str | Iterable[str | tuple[str, str]],
        *,
        errors: Literal["raise"] = "raise",
        **options: Unpack[ClassifyOptions],
    ) -> list[Classified]: ...
    @overload
    def classify(
        self,
        texts: str | Iterable[str | tuple[str, str]],
        *,
        errors: Literal["collect"],
        **options: Unpack[ClassifyOptions],
    ) -> Collected[list[Classified]]: ...
    @checked
    @device_call
    def classify(
        self,
        texts: str | Iterable[str | tuple[str, str]],
        *,
        raw_scores: bool = False,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        errors: Errors = "raise",
    ) -> list[Classified] | Collected[list[Classified]]:
        """Scores of every label for texts, or for pairs of texts, in their order.

        Args:
            raw_scores: as the classifier gives them, instead of probabilities.
            max_tokens, overflow: as in `embed`; of a pair the longer text is cut first.
            errors: `raise` for the first text that can't be scored, or `collect`, which sets such texts aside and
                answers a `Collected(results, rows, errors)`.

        Raises:
            InputError, AdmissionRefused, NonFiniteOutput: naming the text's index.
        """
        items, labels = [texts] if isinstance(texts, str) else iterated(texts), self._runtime.labels()

        def run(some: Sequence[Any]) -> list[Classified]:
            return labels.classify(some, raw=raw_scores, max_tokens=max_tokens, overflow=overflow)

        if errors == "raise":
            return run(items)
        # What is wrong with the call is wrong without texts, too.
        run([])
        found, faults = apart(items, run, "text")
        return Collected(list(found.values()), tuple(found), faults)

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
    @device_call
    def tag(
        self, texts: str | Iterable[str], *, max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> list[list[Span]]:
        """Per text its labelled spans, as transformers' pipeline joins them (`aggregation_strategy="simple"`).

        Returns:
            Lists of `Span(label, score, text, start, end)`, places in characters; one list for a single text, too.

        Raises:
            InputError, ContextLengthExceeded, NonFiniteOutput: naming the text's index.
        """
        inputs = [texts] if isinstance(texts, str) else iterated(texts)
        return self._runtime.tagger()(inputs, max_tokens=max_tokens, overflow=overflow)

    @checked
    def decode(self, vectors: Any, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """Sparse vectors in words: per row (token, weight), the largest weight first.

        Args:
            vectors: as `embed(output="sparse")` gives them, a sparse array of scipy, or floats (N, V).
            top_k: words of a row; None for all that have a weight.

        Raises:
            InputError: the model makes no sparse vectors, or these are of another width than its vocabulary.
        """
        from archport.answering.sparse_vectors import taken_in, words

        self._runtime.sparse_head()
        given, size = taken_in(vectors, "vectors"), self._runtime.encoder.spec.vocab_size
        if given.width != size:
            raise InputError(f"vectors of width {given.width}; expected {size}, the entries of the vocabulary")
        return words(given, self._runtime.tokeniser.tokenizer.id_to_token, top_k)

    @checked
    def maxsim(self, query: str | np.ndarray, documents: str | Sequence[str | np.ndarray]) -> np.ndarray:
        """Late interaction (N,) float32 of a query with documents, as texts or as their vectors per token (n, D).

        For each token of the query the best dot product with a token of the document, summed. Padding never counts.

        Raises:
            InputError: the model's files declare no late interaction, so that its vectors per token mean nothing here.
        """
        from archport.answering.token_vectors import late_interaction

        head = self._runtime.head
        if not isinstance(head, TokenHead) and not (isinstance(head, EmbeddingHead) and head.tokens is not None):
            raise InputError(
                f"maxsim with {self._runtime.name}, whose files declare no late interaction; load a late-interaction "
                "model (ColBERT), or compare one vector per text with embed and similarity"
            )
        return late_interaction(self._runtime.tokens(), query, documents)


def _outputs(output: Any) -> tuple[str, ...]:
    """The outputs that were asked for; raises InputError for none, a name twice, or one that there is not."""
    names = (output,) if isinstance(output, str) else tuple(output)
    known = get_args(Output)
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise InputError(f"{output=}; expected one of {', '.join(known)}, or several of them, each once")
    return names


def iterated(texts: object) -> list[Any]:
    """The items of an iterable that is no string of bytes; raises InputError for anything else."""
    return list(iterable(texts))
