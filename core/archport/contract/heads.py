"""Every head: one vector, sparse words, yes or no, labels, masked words, a vector per token. Pure data and protocols.

How rows are run is the engine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from archport.contract.errors import SpecError
from archport.contract.model import LayerContext, Trunk

if TYPE_CHECKING:
    import mlx.core as mx

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last", "sum"]
SparsePooling = Literal["max", "sum"]
# As torch names its modules, in small letters, each with the arguments it has by default.
Activation = Literal[
    "identity", "tanh", "relu", "gelu", "sigmoid", "silu", "relu6", "leakyrelu", "elu", "selu", "celu", "mish",
    "softplus", "softsign", "hardtanh", "hardsigmoid", "hardswish", "logsigmoid", "tanhshrink", "softshrink",
    "hardshrink", "softmax", "logsoftmax",
]  # fmt: skip
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
ScoreActivation = Literal["softmax", "sigmoid", "identity"]


class Classifier(Trunk, Protocol):
    """A trunk with a classifier: what `archport_build` returns for a `ClassificationHead` or a `TaggingHead`."""

    def scores(self, pooled: mx.array) -> mx.array:
        """Raw scores (..., labels) of pooled rows (B, D), or of every token's (B, L, D)."""
        ...


class MaskedLM(Trunk, Protocol):
    """A trunk with a masked-LM head: what `archport_build` returns when the spec's tasks include `fill_mask`."""

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits (n, V) of the words at hidden rows (n, D)."""
        ...


class TypedTrunk(Trunk, Protocol):
    """A trunk that tells the two texts of a pair apart by a type per token."""

    def __call__(self, input_ids: mx.array, ctx: LayerContext, token_types: mx.array | None = None) -> mx.array:
        """Hidden states (B, L, D); token_types is (B, L) of 0 and 1, None for a single text."""
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
        sparse, tokens: what else the same hidden rows become, where a checkpoint has such heads too (bge-m3).
    """

    pooling: tuple[PoolingMode, ...]
    include_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    similarity: Similarity = "cosine"
    dimensions: int | None = None
    source: str = "default"
    stated: bool = True
    sparse: SparseHead | None = None
    tokens: TokenHead | None = None

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.pooling if mode not in get_args(PoolingMode)]
        if unknown or not self.pooling:
            raise SpecError(
                f"embedding head: pooling={self.pooling!r}; expected one or more of {', '.join(get_args(PoolingMode))}"
            )


@dataclass(frozen=True, slots=True)
class SparseHead:
    """A weight for some words of the vocabulary: what the tokens of a text say of words, pooled over the tokens.

    Args:
        pooling: the largest or the sum of what tokens say of a word.
        logarithms: how often log(1 + x) follows relu(x).
        own: the layer that gives each token a weight, which is that of its own word (bge-m3); None where the trunk's
            masked-LM head has a logit for every word (SPLADE).
        skipped: ids that never have a weight.
        top_k: largest weights that are kept by default; None keeps all above zero.
        similarity: how vectors of this model are compared.
        source: where this was read from, for `archport info`.
    """

    pooling: SparsePooling = "max"
    logarithms: int = 1
    own: Dense | None = None
    skipped: tuple[int, ...] = ()
    top_k: int | None = None
    similarity: Similarity = "dot"
    source: str = "default"

    def __post_init__(self) -> None:
        if self.pooling not in get_args(SparsePooling) or self.logarithms < 0:
            raise SpecError(
                f"sparse head: pooling={self.pooling!r}, logarithms={self.logarithms}; expected one of "
                f"{', '.join(get_args(SparsePooling))}, and a number >= 0"
            )
        if self.top_k is not None and self.top_k < 1:
            raise SpecError(f"sparse head: top_k={self.top_k}; expected a number >= 1 or None")


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
class ClassificationHead:
    """A score per label from one pooled row.

    Args:
        labels: their names, in the order of the scores.
        pooling: which row is scored.
        activation: what makes probabilities of the scores, over labels (`softmax`) or one by one.
        ranks_by: the same for the score of a pair, when `rerank` asks.
        vector: the pooling and Dense layers whose vector is the scores; None for the trunk's own classifier.
        temperature: what raw scores are divided by.
        token_types: whether the trunk wants a type per token for pairs (a `TypedTrunk`).
        padding: an id that no row ends with: rows of a causal trunk are scored at their last token that is another,
            whatever made the ones after it; of a row of nothing else the first token. None: at their last token.
        source: where this was read from, for `archport info`.
    """

    labels: tuple[str, ...]
    pooling: PoolingMode = "cls"
    activation: ScoreActivation = "softmax"
    ranks_by: Activation = "sigmoid"
    temperature: float = 1.0
    token_types: bool = False
    padding: int | None = None
    source: str = "default"
    vector: EmbeddingHead | None = None

    def __post_init__(self) -> None:
        for name, known in (("activation", ScoreActivation), ("ranks_by", Activation)):
            if getattr(self, name) not in get_args(known):
                raise SpecError(
                    f"classification head: {name}={getattr(self, name)!r}; expected one of {', '.join(get_args(known))}"
                )
        if not self.labels or self.pooling not in get_args(PoolingMode):
            raise SpecError(
                f"classification head: {len(self.labels)} labels, pooling={self.pooling!r}; expected at least one "
                f"label, and one of {', '.join(get_args(PoolingMode))}"
            )
        if not self.temperature > 0:
            raise SpecError(f"classification head: temperature={self.temperature!r}; expected a number > 0")


@dataclass(frozen=True, slots=True)
class Expansion:
    """Tokens that fill a query up to a length, whose vectors count in MaxSim.

    Args:
        token: the vocabulary id that fills.
        length: tokens that a query has at least.
        attended: whether other tokens see them.
    """

    token: int
    length: int
    attended: bool = False


@dataclass(frozen=True, slots=True)
class TokenHead:
    """A vector per token, for late interaction: project each hidden row, scale it to unit length.

    Args:
        dense: Dense layers in order, applied to every token.
        normalize: whether vectors are scaled to unit length.
        query_marker, document_marker: ids put after the first token of a query or document; None for none.
        expansion: what fills queries; None for nothing.
        skipped: ids whose vectors do not count in documents.
        leading: first tokens of every text whose vectors do not count.
        query_tokens, document_tokens: tokens that they have at most by default, None for the model's limit.
        source: where this was read from, for `archport info`.
    """

    dense: tuple[Dense, ...] = ()
    normalize: bool = True
    query_marker: int | None = None
    document_marker: int | None = None
    expansion: Expansion | None = None
    skipped: tuple[int, ...] = ()
    query_tokens: int | None = None
    document_tokens: int | None = None
    leading: int = 0
    source: str = "default"


@dataclass(frozen=True, slots=True)
class TaggingHead:
    """A score per label from every token's hidden row: names, places, parts of speech.

    Args:
        labels: their names, in the order of the scores; `B-` begins a span, `I-` goes on, and `O` is none.
        source: where this was read from, for `archport info`.
    """

    labels: tuple[str, ...]
    source: str = "default"

    def __post_init__(self) -> None:
        if not self.labels:
            raise SpecError("tagging head: labels is empty; expected at least one label")


Head = EmbeddingHead | SparseHead | YesNoHead | ClassificationHead | TokenHead | TaggingHead
