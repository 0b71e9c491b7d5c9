"""A loaded model: what each call takes and answers, and who runs it. Made by `archport.engine.load`.

Runs nothing itself: `archport.runtime` does, which each method names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, cast, overload

import numpy as np

from archport.answering.collecting import Collect, Collected, Errors, Raise
from archport.answering.precision import Precision
from archport.checkpoint.dtype import DTypeChoice
from archport.contract import DeviceFacts
from archport.contract.arguments import checked, refuse_foreign
from archport.device.pool import free
from archport.loading import Description
from archport.options import ClassifyOptions, EmbedOptions, OnePrompt, Output, Query, RerankOptions, TextsOrPairs
from archport.planning import Plan
from archport.reading.texts import Overflow, listed
from archport.running.calls import DeviceIterator, awaited, device_call, public
from archport.runtime import Closed, Runtime
from archport.tasks import chosen

if TYPE_CHECKING:
    import mlx.core as mx
    from tokenizers import Tokenizer

    from archport.answering.labels import Classified
    from archport.answering.masked_words import Filled
    from archport.answering.rerank import Ranked
    from archport.answering.tags import Span
    from archport.device.memory import ModelMemory
    from archport.generating.pieces import Generation, Piece
    from archport.options import GenerateOptions


class Model:
    """A loaded model. Made by `load`.

    `aembed`, `aencode_query`, `aencode_document`, `arerank`, `aclassify` and `agenerate` are for asyncio: calls of one
    process take turns, and one that has begun outlives its cancelled task.

    Attributes:
        name: what was loaded: a hub id or a folder.
        spec, plugin: what its plugin declares, and who that is.
        checkpoint: its folder, and the commit of one from the hub.
        device, budget: where it runs and the bytes it may use.
        max_tokens: longest text it takes, in tokens.
        dtype: what its weights became, and why.
        head, inputs: what its rows become, and its prompts.
        tasks: names of adapters that are kept apart; a call's `task` says which of them runs, and without it none does.
        recipe: loads it again, in another process too.
    """

    recipe: Callable[[], Model]

    def __init__(
        self, about: Description, device: DeviceFacts, budget: int, dtype: DTypeChoice, runtime: Runtime
    ) -> None:
        self.name, self.spec, self.plugin = about.checkpoint.name, about.spec, about.plugin
        self.checkpoint, self.tasks = about.checkpoint, tuple(runtime.tasks)
        self.device, self.budget, self.dtype, self._runtime = device, budget, dtype, runtime
        self.head, self.inputs, self.max_tokens = runtime.head, runtime.tokeniser.inputs, runtime.tokeniser.max_tokens

    def __reduce__(self) -> tuple[Callable[[], Model], tuple[()]]:
        return self.recipe, ()

    @overload
    def embed(self, texts: Any, *, errors: Raise = "raise", **options: Unpack[EmbedOptions]) -> np.ndarray: ...
    @overload
    def embed(self, texts: Any, *, errors: Collect, **options: Unpack[EmbedOptions]) -> Collected[np.ndarray]: ...
    @public
    def embed(
        self, texts: str | Mapping[str, Any] | Iterable[Any], *,
        prompt: str | None = None, prompt_name: str | None = None, dimensions: int | None = None,
        normalize: bool | None = None, max_tokens: int | None = None, overflow: Overflow = "error",
        precision: Precision = "float32", output: Output | Sequence[Output] = "vectors", top_k: int | None = None,
        task: str | None = None, progress: bool | Callable[..., object] = False, errors: Errors = "raise",
    ) -> np.ndarray | Collected[np.ndarray]:  # fmt: skip
        """One vector per text, in the order of the texts.

        Args:
            texts: a string, or any iterable of strings, read as a stream: a column of pyarrow, pandas or polars too,
                and an open file, a text per line. A model that sees also takes mappings such as {"text": ...,
                "image": ..., "instruction": ...} and lists of messages in place of strings.
            prompt, prompt_name: text put in front of each input, literally or by its stored name; default: the model's.
            dimensions: keep this many leading dimensions, for models trained that way (Matryoshka).
            normalize: scale to unit length, after `dimensions`; None: where the model's pipeline does so.
            max_tokens: a lower limit for this call.
            overflow: `error` refuses a text over the limit, naming it; `truncate` cuts it, keeping the final special
                tokens.
            precision: `float32`, or `int8`, `uint8` (calibrated over this call), `binary`, `ubinary` (packed signs).
            output: `vectors`, `tokens` for one per token that counts in late interaction, `sparse` for weights of
                words (SPLADE, bge-m3), or a sequence of them, which one pass gives.
            top_k: largest weights that a sparse vector keeps; None: as the model's files say, or all above zero.
            progress: show a progress bar on standard error, or call `progress(texts, tokens=...)` with what is done.
            errors: `raise` for the first text that has no vector, or `collect`, which sets such texts aside: too long
                or no texts, damaged pictures, what exceeds the budget alone, vectors that hold NaN.

        Returns:
            (N, D) float32, or as `precision` says. A single string gives (1, D). With `tokens` an object array (N,)
            of arrays (tokens, D) float32; with `sparse` a scipy.sparse.csr_array (N, V) float32, or SparseVectors
            without scipy; of several outputs {output: such an array}. With `collect` a `Collected(results, rows,
            errors)`: the same of the texts that have vectors, their indices, and {index: error} of the others.

        Raises:
            InputError, AdmissionRefused, NonFiniteOutput: naming the text's index.
        """
        form = {"dimensions": dimensions, "normalize": normalize, "precision": precision, "top_k": top_k}
        asked = {"prompt": prompt, "prompt_name": prompt_name, "max_tokens": max_tokens, "overflow": overflow}
        return chosen(self._runtime, task).embed(texts, output, form, {**asked, "progress": progress}, errors)

    @checked
    def stream(
        self, texts: Iterable[Any], *, window: int = 8192, progress: bool = False, **options: Any
    ) -> Iterator[tuple[int, Any]]:
        """Vectors window by window, in the memory of one: for more texts than their vectors leave room for.

        Args:
            texts: as `embed` takes them.
            window: texts at a time; fewer where they hold more than 32 million characters.
            options: as `embed` takes them, but for precisions that are calibrated over all vectors.

        Returns:
            An iterator of (index of the first text, vectors (n, D)), in order; with `errors="collect"` of (index,
            Collected), whose rows and errors go by the index in the whole stream.

        Raises:
            InputError: at once for wrong options; for a text as `embed` does, when its window is reached.
        """
        from archport.answering.streams import streamed

        return streamed(self.embed, texts, window, options, progress=progress)

    @checked
    def encode_query(self, texts: str | Iterable[Any], **options: Unpack[EmbedOptions]) -> np.ndarray:
        """`embed` with the model's prompt for queries, unless another prompt is given; without one, with none.

        A limit of tokens that the model has for queries takes the place of the one for all texts.
        """
        role = self._runtime.of_role(self.inputs.query_prompt, self.inputs.query_tokens, options)
        return self.embed(texts, **role)

    @checked
    def encode_document(self, texts: str | Iterable[Any], **options: Unpack[EmbedOptions]) -> np.ndarray:
        """`embed` with the model's prompt for documents, unless another prompt is given; without one, with none.

        A limit of tokens that the model has for documents takes the place of the one for all texts.
        """
        role = self._runtime.of_role(self.inputs.document_prompt, self.inputs.document_tokens, options)
        return self.embed(texts, **role)

    @overload
    def generate(
        self, prompt: object, *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> DeviceIterator[Piece]: ...
    @overload
    def generate(self, prompt: object, *, n: int, **options: Unpack[GenerateOptions]) -> list[Any]: ...
    @overload
    def generate(  # pyright: ignore[reportOverlappingOverload]  # a str is a sequence, too
        self, prompt: OnePrompt, *, n: None = None, **options: Unpack[GenerateOptions]
    ) -> Generation: ...
    @overload
    def generate(self, prompt: Sequence[Any], **options: Unpack[GenerateOptions]) -> list[Generation]: ...
    @public
    def generate(
        self, prompt: object, *,
        max_tokens: int | Sequence[int | None] | None = 256, temperature: float | Sequence[float] = 0.0,
        top_p: float | Sequence[float] = 1.0, top_k: int | Sequence[int] = 0, min_p: float | Sequence[float] = 0.0,
        repetition_penalty: float | Sequence[float | None] | None = None,
        presence_penalty: float | Sequence[float] = 0.0, frequency_penalty: float | Sequence[float] = 0.0,
        logit_bias: Mapping[int, float] | Sequence[Mapping[int, float] | None] | None = None,
        seed: int | Sequence[int | None] | None = None, stop: str | Iterable[str | Iterable[str] | None] | None = None,
        stop_token_ids: Iterable[int | Iterable[int] | None] | None = None, min_tokens: int | Sequence[int] = 0,
        n: int | None = None, logprobs: int | None = None, stream: bool = False, progress: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None, continue_final_message: bool | str = False,
        task: str | None = None, **template: object,
    ) -> Generation | list[Generation] | list[list[Generation]] | DeviceIterator[Piece]:  # fmt: skip
        """Go on from a prompt.

        Args:
            prompt: a str (taken as it is), a list of message dicts (a chat, by the checkpoint's template), a list of
                token ids, or a list of those, which run as one batch. A model that sees takes images and video in
                the messages, and mappings such as {"text": ..., "image": ...}.
            max_tokens: tokens per prompt; None: until the text or the context ends. More than the context has room for
                is clamped, with a warning and in `clamped_to`. 0 reads the prompt into the prefix cache and generates
                nothing: text "", no tokens, finish_reason "length".
            temperature, top_p, top_k, min_p: how tokens are drawn; temperature 0 takes the likeliest.
            repetition_penalty: above 1 makes tokens of the prompt and of the text less likely.
            presence_penalty, frequency_penalty: -2 to 2, taken from the logit of a token that was generated before:
                once, and as many times as it was. The prompt's tokens do not count.
            logit_bias: {token id: what is added to its logit, -100 to 100}, before the penalties.
            seed: of the draws, for the same text again: a prompt's own, whichever others run next to it. Equal prompts,
                and the answers of one, draw differently, in an order that the seed fixes.
            stop: strings that end a text; they are not part of it.
            stop_token_ids: tokens that end it, as the model's own final tokens do.
            min_tokens: tokens before which no final token comes; stop strings that they complete do not count.
            n: answers of each prompt, which is read once. They are those of a prompt given n times; with temperature 0
                they are equal.
            logprobs: tell each token's log-probability and so many of the likeliest tokens: after biases and penalties,
                before temperature and filters; the prompt's are not told.
            stream: return an iterator of pieces; closing it, or a `with` block, frees what the call holds.
            progress: show a progress bar on standard error, where nothing is streamed.
            tools: descriptions of functions, handed to the chat template.
            continue_final_message: go on from the end of the last message instead of answering it; a str names the
                field of the message that is continued ("content" when True).
            template: whatever else the chat template reads, such as `enable_thinking=False`.

        All from `max_tokens` to `min_tokens` may be a list with one value per prompt (`stop`, `stop_token_ids` and
        `logit_bias`: a list of lists or dicts, or None); no row depends on another one's.

        Returns:
            `Generation(text, tokens, finish_reason, usage, logprobs, clamped_to)`, a list of them for a list of
            prompts, and with `n` a list of n in place of each; or with `stream` an iterator of
            `Piece(text, tokens, row, finish_reason, usage, logprobs, answer, clamped_to)`.

        Raises:
            InputError, ContextLengthExceeded, AdmissionRefused: before anything runs.
            NonFiniteOutput: logits hold NaN or infinity.
        """
        refuse_foreign(template)
        options = {
            "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
            "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty, "n": n,
            "frequency_penalty": frequency_penalty, "logit_bias": logit_bias, "seed": seed, "stop": stop,
            "stop_token_ids": stop_token_ids, "min_tokens": min_tokens, "logprobs": logprobs, "progress": progress,
        }  # fmt: skip
        given = {"tools": tools, "continue_final_message": continue_final_message, "options": template}
        return chosen(self._runtime, task).generate(prompt, given, options, stream=stream)

    @checked
    def plan(self, lengths: Sequence[int], *, cached: int | Sequence[int] = 0, new_tokens: int | None = 0) -> Plan:
        """How rows of these lengths would run: batches, chunks, attention paths, bytes. Runs nothing.

        Args:
            lengths: tokens per row.
            cached: tokens already cached, for all rows or one number per row.
            new_tokens: tokens per row to reserve for decoding.

        Returns:
            The plan that `embed` runs for such texts; `plan.explain()` says why.

        Raises:
            AdmissionRefused: the rows do not fit; the message and attributes say what binds and what would fit.
        """
        return self._runtime.plan(lengths, cached, new_tokens)

    @checked
    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Similarity of every row of a (N, D) with every row of b (M, D), (N, M), as this model's vectors compare."""
        return self._runtime.similarity(a, b)

    @public
    def forward(self, input_ids: object, attention_mask: object = None) -> mx.array:
        """Hidden states (B, L, D) after the final norm, for people who pad themselves.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L), 1 at real tokens, padded left or right; None: all real. Padding comes back as zeros.

        Raises:
            InputError: for wrong shapes, ids outside the vocabulary, or a mask with holes.
        """
        return self._runtime.encoder.forward(input_ids, attention_mask)

    @overload
    def rerank(
        self, query: Query, documents: Iterable[Any], *, errors: Raise = "raise", **options: Unpack[RerankOptions]
    ) -> list[Ranked]: ...
    @overload
    def rerank(
        self, query: Query, documents: Iterable[Any], *, errors: Collect, **options: Unpack[RerankOptions]
    ) -> Collected[list[Ranked]]: ...
    @public
    def rerank(
        self, query: Query, documents: Iterable[Any], *,
        instruction: str | None = None, top_k: int | None = None, return_documents: bool = False,
        raw_scores: bool = False, max_tokens: int | None = None, overflow: Overflow = "error",
        share_prefix: bool = True, progress: bool = False, errors: Errors = "raise", task: str | None = None,
    ) -> list[Ranked] | Collected[list[Ranked]]:  # fmt: skip
        """Documents by how well they answer a query, the best first.

        Args:
            query, documents: texts; a model that sees also takes mappings such as {"text": ..., "image": ...}.
            instruction: what counts as an answer; default: the model's own.
            top_k: keep so many; None keeps all.
            return_documents: put each document next to its score.
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
        asked = (instruction, raw_scores, max_tokens, overflow, share_prefix, progress)
        return chosen(self._runtime, task).rerank(query, documents, asked, top_k, return_documents, errors)

    @overload
    def classify(
        self, texts: TextsOrPairs, *, errors: Raise = "raise", **options: Unpack[ClassifyOptions]
    ) -> list[Classified]: ...
    @overload
    def classify(
        self, texts: TextsOrPairs, *, errors: Collect, **options: Unpack[ClassifyOptions]
    ) -> Collected[list[Classified]]: ...
    @public
    def classify(
        self, texts: TextsOrPairs, *,
        raw_scores: bool = False, max_tokens: int | None = None, overflow: Overflow = "error", errors: Errors = "raise",
        task: str | None = None,
    ) -> list[Classified] | Collected[list[Classified]]:  # fmt: skip
        """Scores of every label for texts, or for pairs of texts, in their order.

        Args:
            raw_scores: as the classifier gives them, instead of probabilities.
            max_tokens, overflow: as in `embed`; of a pair the longer text is cut first.
            errors: `raise` for the first text that can't be scored, or `collect`, which sets such texts aside and
                answers a `Collected(results, rows, errors)`.

        Raises:
            InputError, AdmissionRefused, NonFiniteOutput: naming the text's index.
        """
        runtime = chosen(self._runtime, task)
        return runtime.classify(listed(texts), errors, raw=raw_scores, max_tokens=max_tokens, overflow=overflow)

    @public
    def fill_mask(
        self, texts: str | Iterable[str], *, top_k: int = 5, max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> list[list[list[Filled]]]:
        """Per text, per mask token in it, the `top_k` likeliest tokens, best first.

        Raises:
            InputError, ContextLengthExceeded, NonFiniteOutput: naming the text's index.
        """
        return self._runtime.filler()(listed(texts), top_k=top_k, max_tokens=max_tokens, overflow=overflow)

    @public
    def tag(
        self, texts: str | Iterable[str], *, max_tokens: int | None = None, overflow: Overflow = "error",
        task: str | None = None,
    ) -> list[list[Span]]:  # fmt: skip
        """Per text its labelled spans, as transformers' pipeline joins them (`aggregation_strategy="simple"`).

        Returns:
            Lists of `Span(label, score, text, start, end)`, places in characters; one list for a single text, too.

        Raises:
            InputError, ContextLengthExceeded, NonFiniteOutput: naming the text's index.
        """
        return chosen(self._runtime, task).tagger()(listed(texts), max_tokens=max_tokens, overflow=overflow)

    @checked
    def decode(self, vectors: Any, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """Sparse vectors in words: per row (token, weight), the largest weight first.

        Args:
            vectors: as `embed(output="sparse")` gives them, a sparse array of scipy, or floats (N, V).
            top_k: words of a row; None for all that have a weight.

        Raises:
            InputError: the model makes no sparse vectors, or these are of another width than its vocabulary.
        """
        return self._runtime.decode(vectors, top_k)

    @checked
    def maxsim(self, query: str | np.ndarray, documents: str | Sequence[str | np.ndarray]) -> np.ndarray:
        """Late interaction (N,) float32 of a query with documents, as texts or as their vectors per token (n, D).

        For each token of the query the best dot product with a token of the document, summed. Padding never counts.

        Raises:
            InputError: the model's files declare no late interaction, so that its vectors per token mean nothing here.
        """
        return self._runtime.late_interaction(query, documents)

    def __repr__(self) -> str:
        return f"<archport model {self.name!r}: {self.spec.arch}, {self.max_tokens} tokens, on {self.device.name}>"

    def _repr_html_(self) -> str:
        from archport.pages.assembly import table

        facts = {"model": self.name, "architecture": self.spec.arch, "tasks": ", ".join(self.spec.tasks),
                 "longest text": f"{self.max_tokens:,} tokens", "device": self.device.name}  # fmt: skip
        return table({**facts, **self._runtime.facts()})

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another handle of the same weights, which no call changes; each is closed by itself."""
        return self.__copy__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @device_call
    def close(self) -> None:
        """Let go of the weights and caches, once no copy of this model uses them; later calls raise InputError."""
        if not isinstance(self._runtime, Closed):
            self._runtime = cast("Runtime", Closed(self.name))
            free()

    @property
    def dimensions(self) -> int:
        """Width of this model's vectors; raises InputError when it makes none."""
        return self._runtime.width

    @property
    def tokenizer(self) -> Tokenizer:
        """A copy of the checkpoint's tokenizer, without padding and truncation; changing it changes no answer."""
        return self._runtime.own_tokenizer()

    @checked
    def count_tokens(
        self, texts: str | Iterable[Any], *, prompt: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        """Tokens (N,) int64 of each text as `embed` reads it, special tokens and prompt included, whatever the limit.

        Raises:
            InputError: for a text that can't be read, naming its index.
        """
        return self._runtime.count_tokens(texts, prompt, prompt_name)

    def memory(self) -> ModelMemory:
        """What this model holds, and what the process it is in holds, in bytes, now."""
        return self._runtime.memory()

    @property
    def last_plan(self) -> Plan | None:
        """The plan that was made last, of a call or by `plan`; None before the first. `explain()` says why it is so."""
        return next(iter(self._runtime.encoder.plan.latest), None)

    aembed, aencode_query, aencode_document = awaited(embed), awaited(encode_query), awaited(encode_document)
    arerank, aclassify, agenerate = awaited(rerank), awaited(classify), awaited(generate)
