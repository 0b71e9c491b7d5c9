"""Load a model by name and use it: the stages in their order, and nothing else.

name -> checkpoint -> claim -> dtype and budget -> weights -> Model
texts -> tokens -> plan -> hidden rows -> vectors
"""

from __future__ import annotations

# First, because it says what to install where MLX can't run, and whatever follows imports MLX.
import archport.device.backend  # noqa: F401  # isort: skip

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

import numpy as np

from archport import loading
from archport.answering.collecting import Collected, Errors
from archport.answering.precision import Precision, check_dimensions, check_precision, quantise
from archport.answers import EncoderAnswers
from archport.attention import limits_from_environment
from archport.checkpoint.dtype import DTypeChoice
from archport.contract import AttentionLimits, DeviceFacts, EmbeddingHead
from archport.contract.arguments import checked
from archport.contract.plugins import Plugin
from archport.contract.sizes import parse_bytes
from archport.contract.spellings import refuse_foreign
from archport.device import tf32, workers
from archport.device.blas import warn_if_late
from archport.device.facts import this_device
from archport.device.failures import failure_of
from archport.device.heap import keep_freed_memory
from archport.device.process import use_device
from archport.faults import explained, unexpected
from archport.habits import Habits, ModelMemory, Recipe
from archport.loading import Description, describe
from archport.options import EmbedOptions, OnePrompt, Output
from archport.planning import Plan, Request
from archport.reading.texts import Overflow, iterable
from archport.running.calls import DeviceIterator, device_call

if TYPE_CHECKING:
    import mlx.core as mx

    from archport.generating.pieces import Generation, Piece
    from archport.options import GenerateOptions
    from archport.runtime import Runtime

__all__ = ["Model", "ModelMemory", "describe", "load"]


@checked
@device_call
def load(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    max_context: int | None = None,
    memory_budget: int | str | None = None,
    limits: AttentionLimits | None = None,
    prefix_cache: int | str | None = None,
    overrides: Sequence[ModuleType] = (),
    plugin: str | None = None,
    plugins: Sequence[Plugin] | None = None,
    share_weights: bool = True,
) -> Model:
    """Load a model that is ready to run.

    Args:
        name: a folder, a hub id ("Qwen/Qwen3-Embedding-0.6B"), or an alias ("all-MiniLM-L6-v2").
        revision: branch, tag or commit on the hub.
        dtype: "float32", "float16", "bfloat16", or "checkpoint" for what is stored, quantisation included. Default: the
            checkpoint's on a GPU, float32 on a CPU (where quantised weights are unpacked if they fit).
        max_context: longest text in tokens, at most the model's positions. Default: the model's own limit.
        memory_budget: bytes, or "16GB"; default: most of the device, a constant of the machine.
        limits: what one attention call may use; MLX_SDPA_CHUNK_THRESHOLD and MLX_SDPA_CHUNK_SIZE change its chunks.
        prefix_cache: bytes that `generate` keeps of earlier prompts and texts, for later ones that begin alike; 0 turns
            it off. Default: a sixteenth of the budget.
        overrides: modules whose hooks answer before the plugin's.
        plugin: the name of the plugin to ask, where several claim the checkpoint; ARCHPORT_PREFER says it for all.
        plugins: who may claim the checkpoint; the installed ones when left out.
        share_weights: use the buffers of a model of this process whose files, plugin and dtype are the same.

    Raises:
        ModelNotFound: the name leads nowhere; near matches are listed.
        ClaimError: no plugin, or more than one, claims the checkpoint.
        CheckpointError: files are missing, damaged or inconsistent.
        MemoryBudgetExceeded: the weights exceed the budget; raised before any is read.
        ContextLengthExceeded: `max_context` is above the model's positions.
        ForkedProcess: this process was forked from one that had loaded a model.
    """
    warn_if_late()
    about = describe(name, revision=revision, overrides=overrides, plugin=plugin, plugins=plugins, weights=True)
    try:
        model = _loaded(about, dtype, max_context, memory_budget, limits, prefix_cache, share_weights)
    except Exception as error:
        if not unexpected(error) or failure_of(error):
            raise
        again = partial(loading.read_again, name, revision, plugins or (about.plugin,))
        better = explained(error, about.checkpoint.folder, () if overrides else (about.plugin,), again)
        if better is error:
            raise
        raise better from error
    options = {"dtype": dtype, "max_context": max_context, "memory_budget": memory_budget, "limits": limits,
               "prefix_cache": prefix_cache, "plugin": plugin, "share_weights": share_weights}  # fmt: skip
    model.recipe = Recipe.of(about, overrides, plugins, options)
    return model


def reloaded(recipe: Recipe) -> Model:
    """The model that a pickled one was, loaded in this process by its name and options; raises as `load` does."""
    return load(**recipe.arguments())


def _loaded(
    about: Description,
    dtype: str | None,
    max_context: int | None,
    memory_budget: int | str | None,
    limits: AttentionLimits | None,
    prefix_cache: int | str | None,
    share_weights: bool,
) -> Model:
    """What is loaded of a description: the stages behind the claim."""
    device = this_device()
    if device.kind == "cpu":
        keep_freed_memory()
        workers.begin()
    budget = device.default_budget if memory_budget is None else parse_bytes(memory_budget, what="memory_budget")
    head = about.hooks.head(about.spec, about.checkpoint)
    inputs = about.hooks.inputs(about.spec, about.checkpoint)
    about = loading.narrowed(about, head)
    max_tokens, ceiling = loading.context_ceiling(about, inputs, max_context)
    choice = loading.admit_weights(about, dtype, device, budget)
    use_device()
    tf32.choose_precision()
    trunk = loading.load_trunk(about, choice, share=share_weights)
    planner = loading.make_planner(about, trunk, device, budget, ceiling, limits_from_environment(limits))
    if planner.dtype == "float32":
        tf32.warn_if_rounded()
    runtime = loading.make_runtime(about, trunk, planner, choice, head, inputs, max_tokens, prefix_cache)
    return Model(about, device=device, budget=budget, dtype=choice, runtime=runtime)


class Model(EncoderAnswers, Habits):
    """A loaded model. Made by `load`.

    Attributes:
        name: what was loaded: a hub id or a folder.
        spec: what its plugin declares.
        plugin: who claimed it.
        checkpoint: its folder, and the commit of one from the hub.
        device, budget: where it runs and the bytes it may use.
        max_tokens: longest text it takes, in tokens.
        dtype: what its weights became, and why.
        head, inputs: what its rows become, and its prompts.
    """

    def __init__(
        self, about: Description, *, device: DeviceFacts, budget: int, dtype: DTypeChoice, runtime: Runtime
    ) -> None:
        self.name, self.spec, self.plugin = about.checkpoint.name, about.spec, about.plugin
        self.checkpoint = about.checkpoint
        self.device, self.budget, self.dtype = device, budget, dtype
        self.head, self.inputs = runtime.head, runtime.tokeniser.inputs
        self.max_tokens = runtime.tokeniser.max_tokens
        self._runtime = runtime

    def __reduce__(self) -> tuple[Callable[[Recipe], Model], tuple[Recipe]]:
        return reloaded, (self.recipe,)

    @overload
    def embed(self, texts: Any, *, errors: Literal["raise"] = ..., **options: Unpack[EmbedOptions]) -> np.ndarray: ...
    @overload
    def embed(
        self, texts: Any, *, errors: Literal["collect"], **options: Unpack[EmbedOptions]
    ) -> Collected[np.ndarray]: ...
    @checked
    @device_call
    def embed(
        self,
        texts: str | Mapping[str, Any] | Iterable[Any],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        precision: Precision = "float32",
        output: Output | Sequence[Output] = "vectors",
        top_k: int | None = None,
        progress: bool | Callable[..., object] = False,
        errors: Errors = "raise",
    ) -> np.ndarray | Collected[np.ndarray]:
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
        from archport.answering.vectors import EmbedRequest
        from archport.device.progress import Counter, counted

        shown = cast("bool | Counter", progress)
        check_precision(precision)
        if output != "vectors" or top_k is not None:
            form = {"dimensions": dimensions, "normalize": normalize, "precision": precision, "top_k": top_k}
            limits = {"prompt": prompt, "prompt_name": prompt_name, "max_tokens": max_tokens, "overflow": overflow}
            return self._other_outputs(texts, output, form, **limits, progress=shown, errors=errors)
        embedder = self._runtime.embedder()
        check_dimensions(dimensions, self.dimensions)
        request = EmbedRequest(
            embedder.tokeniser.prompt(prompt, prompt_name), dimensions, normalize, max_tokens, overflow
        )
        inputs = [texts] if isinstance(texts, str | Mapping) else iterable(texts)
        parts: list[np.ndarray] = []
        with counted("embedding", len(inputs) if isinstance(inputs, Sized) else None, shown=shown) as done:
            if errors == "collect":
                made = embedder.collected(inputs, request, dimensions or self.dimensions, done)
                return replace(made, results=quantise(made.results, precision))
            embedder.run(inputs, request, parts.append, done)
        vectors = np.concatenate(parts) if parts else np.zeros((0, dimensions or self.dimensions), np.float32)
        return quantise(vectors, precision)

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
        role = self._role(self.inputs.query_prompt, self.inputs.query_tokens, options)
        return self.embed(texts, **role)

    @checked
    def encode_document(self, texts: str | Iterable[Any], **options: Unpack[EmbedOptions]) -> np.ndarray:
        """`embed` with the model's prompt for documents, unless another prompt is given; without one, with none.

        A limit of tokens that the model has for documents takes the place of the one for all texts.
        """
        role = self._role(self.inputs.document_prompt, self.inputs.document_tokens, options)
        return self.embed(texts, **role)

    def _role(self, prompt_name: str | None, tokens: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        role = dict(options)
        if options.get("prompt") is None and options.get("prompt_name") is None:
            # A role without a prompt has none; the default one is for texts without a role.
            role |= {"prompt": ""} if prompt_name is None else {"prompt_name": prompt_name}
        if tokens is not None and options.get("max_tokens") is None:
            role["max_tokens"] = min(tokens, self._runtime.encoder.plan.max_context)
        return role

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
    @checked
    @device_call
    def generate(
        self,
        prompt: object,
        *,
        max_tokens: int | Sequence[int | None] | None = 256,
        temperature: float | Sequence[float] = 0.0,
        top_p: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        min_p: float | Sequence[float] = 0.0,
        repetition_penalty: float | Sequence[float | None] | None = None,
        presence_penalty: float | Sequence[float] = 0.0,
        frequency_penalty: float | Sequence[float] = 0.0,
        logit_bias: Mapping[int, float] | Sequence[Mapping[int, float] | None] | None = None,
        seed: int | Sequence[int | None] | None = None,
        stop: str | Iterable[str | Iterable[str] | None] | None = None,
        stop_token_ids: Iterable[int | Iterable[int] | None] | None = None,
        min_tokens: int | Sequence[int] = 0,
        n: int | None = None,
        logprobs: int | None = None,
        stream: bool = False,
        progress: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None,
        continue_final_message: bool | str = False,
        **template: object,
    ) -> Generation | list[Generation] | list[list[Generation]] | DeviceIterator[Piece]:
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
            seed: of the draws, for the same text again: a prompt's own, whichever others run beside it. Equal prompts,
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
        from archport.generating.options import generate_request

        refuse_foreign(template)
        options = {
            "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
            "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty, "logit_bias": logit_bias, "seed": seed, "stop": stop,
            "stop_token_ids": stop_token_ids, "min_tokens": min_tokens, "n": n, "logprobs": logprobs,
            "progress": progress,
        }  # fmt: skip
        generator = self._runtime.generator()
        read = self._runtime.prompts()(
            prompt, tools=tools, options=template, continue_final_message=continue_final_message
        )
        request = generate_request(options, len(read.rows), self.spec.vocab_size, generator.stops)
        if stream:
            return DeviceIterator(generator.stream(read.rows, request, read.measured))
        answers = generator.run(read.rows, request, read.measured)
        texts = answers if n is not None else [first for first, *_ in answers]
        return texts if read.several else texts[0]

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
        start = [cached] * len(lengths) if isinstance(cached, int) else cached
        pack = isinstance(self._runtime.head, EmbeddingHead)
        request = Request(
            lengths=lengths, cached=start, new_tokens=new_tokens, pack=pack, readout=self._runtime.readout
        )
        return self._runtime.encoder.plan(request)

    @checked
    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Similarity of every row of a (N, D) with every row of b (M, D), (N, M), as this model's vectors compare."""
        from archport.answering.similarity import similarity
        from archport.answering.sparse_vectors import is_sparse, sparse_similarity

        if is_sparse(a) or is_sparse(b):
            return sparse_similarity(a, b, self._runtime.sparse_head().similarity)
        return similarity(a, b, self._runtime.embedder().head.head.similarity)

    @checked
    @device_call
    def forward(self, input_ids: object, attention_mask: object = None) -> mx.array:
        """Hidden states (B, L, D) after the final norm, for people who pad themselves.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L), 1 at real tokens, padded left or right; None: all real. Padding comes back as zeros.

        Raises:
            InputError: for wrong shapes, ids outside the vocabulary, or a mask with holes.
        """
        return self._runtime.encoder.forward(input_ids, attention_mask)
