"""What passes between a plugin's module and the engine: the layer context, heads, inputs and the checkpoint's view.

Protocols and pure data. Knows nothing of how attention runs, how tokens are batched or where files come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from archport.contract.errors import SpecError
from archport.contract.recurrence import RecurrentStep, Segments

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from archport.contract.attention import DistanceBias
    from archport.contract.heads import Head
    from archport.contract.media import Reader, VisualRows

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last", "sum"]
# As torch names its modules, in small letters, each with the arguments it has by default.
Activation = Literal[
    "identity", "tanh", "relu", "gelu", "sigmoid", "silu", "relu6", "leakyrelu", "elu", "selu", "celu", "mish",
    "softplus", "softsign", "hardtanh", "hardsigmoid", "hardswish", "logsigmoid", "tanhshrink", "softshrink",
    "hardshrink", "softmax", "logsoftmax",
]  # fmt: skip
# From a row's token ids (L,) int32 to the stretches (start, stop) of them that see each other.
SpanRule = Callable[["np.ndarray"], Sequence[tuple[int, int]]]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]


class LayerContext(Protocol):
    """All that a layer may know of the request it runs in. It holds every mask, cache and position there is."""

    @property
    def positions(self) -> mx.array:
        """Position of each token inside its own document, (B, L) int32."""
        ...

    @property
    def decoding(self) -> mx.array | None:
        """Position of each row's only token, (B,) int32, in a step that tells blocks to compile what surrounds
        their attention; None in all others. A block that does not care works, and keeps a GPU waiting."""
        ...

    @property
    def visual(self) -> VisualRows | None:
        """The pictures among this step's tokens; None where there are none."""
        ...

    def attend(
        self,
        layer: int,
        q: mx.array,
        k: mx.array | None,
        v: mx.array | None,
        *,
        scale: float,
        sinks: mx.array | None = None,
        softcap: float | None = None,
        bias: DistanceBias | None = None,
    ) -> mx.array:
        """Attention of layer number `layer` as its spec declares it.

        Shapes: q (B, H, L, Dh), k (B, K, L, Dh), v (B, K, L, Dv), all without repeated heads; returns (B, H, L, Dv).
        A layer that reads another's keys and values hands over None for both; one with a latent cache k (B, K, L, Dh)
        alone, of which the first Dv numbers are the values.

        Args:
            scale: factor of the scores.
            sinks: (H,), one more logit per head, where the spec says so.
            softcap: the spec's, which also holds when it is left out.
            bias: what distances add to the scaled and capped scores, where the spec says that there is one.

        Raises:
            InputError: what is handed over is not what the spec declares.
        """
        ...

    def rotate(
        self, q: mx.array, k: mx.array, rope: Callable[[mx.array, int | mx.array], mx.array]
    ) -> tuple[mx.array, mx.array]:
        """Apply `rope(x, offset)` to q and k at this request's positions; `offset` is an int or one per row (B,).

        Where tokens stand on several axes, `rope.at(positions, known)` is asked instead, once per step, with positions
        (axes, B, L), and what it returns is applied to q and k. A rope that has `along(offset, tokens, known)` is asked
        for the same where they follow each other.
        """
        ...

    def state(self, layer: int, *inputs: mx.array) -> RecurrentStep:
        """How recurrent layer number `layer` runs in this step, and its state.

        Args:
            inputs: what the layer computed so far, evaluated here where the plan wants the layers before it finished.
        """
        ...

    @property
    def segments(self) -> Segments:
        """Where documents begin and padding starts, for layers that pass something on from token to token."""
        ...

    def pause(self, x: mx.array) -> None:
        """Say that `x` is all that is needed from here on, as between a block's attention and its MLP and behind that.

        The plan may evaluate the graph here, and hold less. A block that says so less than twice works, and holds more.
        """
        ...


class Trunk(Protocol):
    """The module a plugin builds: token ids in, hidden states out. `archport_build` returns one."""

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        """Hidden states (B, L, D) after the final norm, for token ids (B, L)."""
        ...

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The checkpoint's tensors under this module's parameter names; drops what the module does not use."""
        ...


class CausalLM(Trunk, Protocol):
    """A trunk with an output head: what `archport_build` returns when the spec's tasks include generate or rerank."""

    def logits(self, hidden: mx.array) -> mx.array:
        """Next-token logits (B, n, V) of hidden states (B, n, D)."""
        ...

    def head_rows(self, ids: Sequence[int]) -> mx.array:
        """Rows (n, D) of the output head for these vocabulary ids; of a packed head only they are unpacked."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """One Dense module of a sentence-transformers pipeline: `activation(x @ W.T + b)`, plus x when `residual`.

    Where `residual` stands between sizes that differ, a second matrix projects x.

    Args:
        folder: where its weights are, relative to the checkpoint ("2_Dense"), or the name in front of them among the
            main weights ("linear", "dense.0").
        unit_input: whether x is scaled to unit length first.
    """

    folder: str
    in_features: int
    out_features: int
    bias: bool = True
    activation: Activation = "tanh"
    residual: bool = False
    unit_input: bool = False

    @property
    def projects_residual(self) -> bool:
        """Whether the residual goes through a matrix of its own."""
        return self.residual and self.in_features != self.out_features


@dataclass(frozen=True, slots=True)
class EmbeddingHead:
    """How hidden rows become one vector: pool, concatenate the modes, Dense layers, then unit length.

    Args:
        pooling: modes in the order in which their results are concatenated.
        include_prompt: whether prompt tokens take part in pooling.
        dense: Dense layers in order.
        normalize: whether vectors are scaled to unit length.
        similarity: how vectors of this model are compared.
        dimensions: default number of leading dimensions kept, None for all.
        source: where this was read from, for `archport info`.
        stated: whether the checkpoint or its model card says so; False for the default of a checkpoint that says
            nothing, which may as well generate.
    """

    pooling: tuple[PoolingMode, ...]
    include_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    similarity: Similarity = "cosine"
    dimensions: int | None = None
    source: str = "default"
    stated: bool = True

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.pooling if mode not in get_args(PoolingMode)]
        if unknown or not self.pooling:
            raise SpecError(
                f"embedding head: pooling={self.pooling!r}; expected one or more of {', '.join(get_args(PoolingMode))}"
            )


@dataclass(frozen=True, slots=True)
class YesNoHead:
    """A reranker that answers yes or no: its score is the logit of yes less that of no at the last position.

    Args:
        yes, no: vocabulary ids of the two answers; without a `no` the logit of yes alone is the score.
        source: where this was read from, for `archport info`.
        activation: what a score goes through, unless raw ones are asked for.
    """

    yes: int
    no: int | None
    source: str = "default"
    activation: Activation = "sigmoid"

    def __post_init__(self) -> None:
        if self.yes < 0 or (self.no is not None and self.no < 0) or self.yes == self.no:
            raise SpecError(f"yes/no head: yes={self.yes}, no={self.no}; expected two different vocabulary ids")


@dataclass(frozen=True, slots=True)
class PairText:
    """The text around a query and a document. The three parts are tokenised apart, without special tokens.

    Args:
        prefix, suffix: never cut.
        body: with `{instruction}`, `{query}` and `{document}`, which are filled in as they are.
        instruction: the default one.
        max_tokens: tokens of all three by default, at most the model's positions.
    """

    prefix: str
    body: str
    suffix: str
    instruction: str = ""
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for field_name in ("{query}", "{document}"):
            if self.body.count(field_name) != 1:
                raise SpecError(f"pair text: body={self.body!r} must hold {field_name} once")

    def fill(self, instruction: str, query: str, document: str) -> str:
        """The body for one document; braces inside the values mean nothing."""
        values = {"{instruction}": instruction, "{query}": query, "{document}": document}
        return re.sub("|".join(map(re.escape, values)), lambda found: values[found.group()], self.body)


@dataclass(frozen=True, slots=True)
class Messages:
    """How a text becomes chat messages, which the checkpoint's template then renders.

    A text is what the user says; of a pair, roles `query` and `document` say one each; a prompt is the system's.

    Args:
        form: whether a message's content is the text itself, or a list with one part of type text.
        options: whatever else the template is given.
        restore_suffix: whether a row that was cut gets back what the template puts after every content.
    """

    form: Literal["flat", "structured"]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    restore_suffix: bool = True


@dataclass(frozen=True, slots=True)
class TextInputs:
    """How text becomes token ids.

    Args:
        max_tokens: tokens per text that the model takes by default, special tokens included; None: its positions.
        query_tokens, document_tokens: the same of a text in that role; None: as any text.
        prompts: name -> text put in front of an input.
        query_prompt, document_prompt: names in `prompts` that `encode_query` and `encode_document`
            use; None: no prompt.
        default_prompt: name used by a plain `embed`, None for no prompt.
        final_token: the id every sequence must end with; appended where the tokenizer does not; None: no rule.
        lowercase: lower-case the text before tokenising (an old sentence-transformers setting).
        reader: reads every input itself, pictures included; None for text only.
        pair: the text around query and document, for rerankers that read both as one prompt.
        messages: how texts become messages for the checkpoint's chat template; None where they stay texts.
        source: where this was read from, for `archport info`.
        images_only: whether the model reads no text at all, so that its checkpoint needs no tokenizer.
        spans: which tokens of a row see each other whichever comes first, by their ids (L,): pairs (start, stop), in
            order and apart from each other; for specs with layers that declare `spans`. It is asked about every row
            that is embedded, scored or read as a prompt, and never about what is generated.
    """

    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    query_prompt: str | None = None
    document_prompt: str | None = None
    default_prompt: str | None = None
    final_token: int | None = None
    lowercase: bool = False
    reader: Reader | None = None
    pair: PairText | None = None
    images_only: bool = False
    query_tokens: int | None = None
    document_tokens: int | None = None
    spans: SpanRule | None = None
    messages: Messages | None = None
    source: str = "default"


class CheckpointView(Protocol):
    """What the head and inputs hooks may read of a checkpoint: its name, its normalised config and its small files."""

    @property
    def name(self) -> str:
        """The hub id or folder it was loaded as."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """`config.json`, normalised across dialects."""
        ...

    @property
    def folder(self) -> Path:
        """Where its files are."""
        ...

    def json(self, path: str) -> dict[str, Any] | None:
        """A JSON file of the checkpoint, None when absent. Raises CheckpointError when it is not a JSON object."""
        ...

    @property
    def label(self) -> str:
        """The last part of its hub id or folder, in small letters: all of a name that may decide anything, and only
        where no file speaks."""
        ...

    @property
    def modules(self) -> tuple[str, ...] | None:
        """The kinds of its pipeline's modules in order ("Transformer", "Pooling", ...); None without a pipeline."""
        ...

    def stored_head(self) -> Head:
        """What the checkpoint's pipeline files say of the head, or the documented default without them."""
        ...

    def score_activation(self, labels: int) -> Activation:
        """What the raw scores of pairs go through, by the checkpoint's files; sigmoid or identity where none speaks.

        Args:
            labels: scores per pair.
        """
        ...

    def stored_inputs(self) -> TextInputs:
        """What the checkpoint's pipeline files say of prompts and limits."""
        ...

    def tensor_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a stored tensor as the file has it (packed ones are narrower), None when absent."""
        ...

    def tells_pairs_apart(self) -> bool:
        """Whether the tokenizer numbers the texts of a pair (token_type_ids), by its files or its class."""
        ...

    def token_id(self, token: str) -> int | None:
        """The vocabulary id of a token, None when the tokenizer does not hold it."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """A tiny config of this architecture for the conformance kit, and how to fill its random weights.

    Args:
        name: what is special about it ("gqa 4:1", "no pooler").
        config: a `config.json` as the published checkpoints have it, two to four layers.
        seed: of the random weights.
        scale: standard deviation of the random matrices; vectors (norms, biases) are perturbed around their default.
        publish: the module's tensors (name -> mx.array) as published checkpoints name and shape them, the inverse of
            `sanitize`; None where the two are the same.
    """

    name: str
    config: Mapping[str, Any]
    seed: int = 0
    scale: float = 0.05
    publish: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
