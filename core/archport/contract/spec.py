"""What an architecture promises about one checkpoint: an ArchSpec, with one LayerSpec per layer.

Pure data derived from `config.json` and validated on construction. Knows nothing of arrays, devices or plans.
"""

# Values come from plugins that nobody type-checked, so the checks below are not redundant.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from archport.contract.delta import DeltaHeads
from archport.contract.deprecation import POSITIONAL_SPEC, keywords_only
from archport.contract.errors import SpecError
from archport.contract.footprint import Footprint

Semantics = Literal["causal", "bidirectional"]
Task = Literal["embed", "rerank", "classify", "generate", "fill_mask", "tag"]
DType = Literal["float32", "float16", "bfloat16"]
QuantMode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]
KVKind = Literal["own", "shared", "latent", "none"]

UNLIMITED: tuple[None, None] = (None, None)


def itemsize(dtype: DType) -> int:
    """Bytes of one element."""
    return 4 if dtype == "float32" else 2


def _positive(owner: str, **values: int) -> None:
    for name, value in values.items():
        # bool is an int: `True` heads would pass silently.
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise SpecError(f"{owner}: {name}={value!r} is not a positive integer")


def _check_footprint(owner: str, value: object) -> None:
    if value is not None and not isinstance(value, Footprint):
        raise SpecError(f"{owner}: footprint={value!r}; expected a Footprint, or None")


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention layer.

    Args:
        semantics: `causal` or `bidirectional`.
        n_heads, n_kv_heads: query and key/value heads; the first is a multiple of the second.
        head_dim: width of a query and key head.
        v_head_dim: width of a value head; `head_dim` when left out.
        reach: tokens seen to the (left, right), excluding the token itself; None is unlimited. A causal layer reaches
            0 to the right. Hugging Face's `sliding_window` W of a causal layer is `(W - 1, 0)`.
        sinks: whether the softmax holds one learned sink logit per head.
        kv: `own` keeps a KV cache, `shared` reads that of another and allocates nothing, `none` keeps no cache.
            `latent` keeps one array of head_dim numbers per token and kv head, of which the first v_head_dim are its
            values: what multi-head latent attention compresses keys and values to (c_kv, then the rotated part).
            When left out `own` for a causal layer, `none` for a bidirectional one.
        kv_group: name under which keys and values are shared. A layer that keeps its own hands them to `shared` layers
            of that name after it, up to the next one that keeps its own under it; those hand over None.
        gated: whether its output is multiplied by a gate as wide, which plans price.
        softcap: c of scores that become c * tanh(score / c), as in Gemma 2; None for none.
        bias: whether `attend` is handed a rule of what distances add to the scores (ALiBi, relative tables); "content"
            where it answers with vectors that queries and keys meet (DeBERTa, Transformer-XL).
        spans: whether tokens of one span (a picture's, a prompt's prefix), which `TextInputs.spans` names, see each
            other whichever comes first, as far as the reach to the left lets them. Causal layers only.
        chunk: positions in a chunk, where tokens see only those of their own chunk, as in Llama 4; None where they see
            across. It is the reach then, which is left out: that of the chunk's last or first token.
        footprint: what modules of the plugin's own hold; None where all are archport's, or hold as much.

    Raises:
        SpecError: on any contradiction, such as a bidirectional layer with a KV cache.
    """

    semantics: Semantics
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int = 0
    reach: tuple[int | None, int | None] = UNLIMITED
    sinks: bool = False
    kv: KVKind | None = None
    gated: bool = False
    softcap: float | None = None
    bias: bool | Literal["content"] = False
    chunk: int | None = None
    kv_group: str | None = None
    spans: bool = False
    footprint: Footprint | None = None

    def __post_init__(self) -> None:
        if self.semantics not in get_args(Semantics):
            raise SpecError(f"attention layer: semantics={self.semantics!r}; expected 'causal' or 'bidirectional'")
        _positive("attention layer", n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, head_dim=self.head_dim)
        if self.n_heads % self.n_kv_heads:
            raise SpecError(
                f"attention layer: n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; "
                "grouped-query attention shares each key/value head between equally many query heads"
            )
        if self.v_head_dim == 0:
            object.__setattr__(self, "v_head_dim", self.head_dim)
        _positive("attention layer", v_head_dim=self.v_head_dim)
        self._check_chunk()
        self._check_reach()
        if self.spans and self.semantics != "causal":
            raise SpecError(
                "attention layer: spans=True in a bidirectional layer, where every token sees those after it anyway; "
                "leave spans out, or declare it causal"
            )
        _check_footprint("attention layer", self.footprint)
        if self.bias not in (True, False, "content"):
            raise SpecError(f"attention layer: bias={self.bias!r}; expected True, False or 'content'")
        if self.softcap is not None and not (isinstance(self.softcap, int | float) and 0 < self.softcap < math.inf):
            raise SpecError(f"attention layer: softcap={self.softcap!r}; expected a number above 0, or None for none")
        if self.kv is None:
            object.__setattr__(self, "kv", "own" if self.semantics == "causal" else "none")
        if self.kv not in get_args(KVKind):
            raise SpecError(f"attention layer: kv={self.kv!r}; expected one of {', '.join(get_args(KVKind))}")
        if self.semantics == "bidirectional" and self.kv != "none":
            raise SpecError(
                f"attention layer: a bidirectional layer with kv={self.kv!r} is impossible: every later token changes "
                "what earlier tokens saw, so nothing can be cached; use kv='none'"
            )
        if self.kv == "shared" and not self.kv_group:
            raise SpecError(
                "attention layer: kv='shared' without a kv_group; name what this layer and the one whose keys and "
                "values it reads have in common, such as kv_group='sliding' in both"
            )
        if self.kv_group is not None and (not isinstance(self.kv_group, str) or self.kv == "none"):
            raise SpecError(
                f"attention layer: kv_group={self.kv_group!r} with kv={self.kv!r}; expected a name, of a layer that "
                "keeps keys and values or reads those of another"
            )
        if self.kv == "latent" and self.v_head_dim > self.head_dim:
            raise SpecError(
                f"attention layer: kv='latent' with v_head_dim={self.v_head_dim} above head_dim={self.head_dim}; "
                "values are the first numbers of the keys"
            )

    def _check_chunk(self) -> None:
        if self.chunk is None:
            return
        _positive("attention layer", chunk=self.chunk)
        most = self.chunk - 1
        # What is made of a chunk below is taken as well, as `dataclasses.replace` hands it over.
        if self.reach not in (UNLIMITED, (None, 0), (most, 0 if self.semantics == "causal" else most)):
            raise SpecError(
                f"attention layer: chunk={self.chunk} with reach={self.reach}; a chunk is a reach of its own, so leave "
                "the other out"
            )
        object.__setattr__(self, "reach", (most, 0 if self.semantics == "causal" else most))

    def _check_reach(self) -> None:
        left, right = self.reach
        for side, value in (("left", left), ("right", right)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise SpecError(
                    f"attention layer: reach {side}={value!r}; expected None (unlimited) or an integer >= 0"
                )
        if self.semantics == "causal":
            if right not in (None, 0):
                raise SpecError(f"attention layer: a causal layer sees nothing to its right, but reach={self.reach}")
            object.__setattr__(self, "reach", (left, 0))

    @property
    def keeps(self) -> bool:
        """Whether it keeps a cache of its own."""
        return self.kv in ("own", "latent")

    @property
    def kv_widths(self) -> tuple[int, ...]:
        """Numbers per token and kv head in each array of its cache: keys and values, or both in one."""
        return (self.head_dim,) if self.kv == "latent" else (self.head_dim, self.v_head_dim)

    @property
    def is_windowed(self) -> bool:
        """Whether some token may be out of reach."""
        left, right = self.reach
        return left is not None or (right is not None and self.semantics == "bidirectional")


@dataclass(frozen=True, slots=True)
class RecurrentLayer:
    """One recurrent layer (gated delta net and the like).

    Args:
        state_bytes: recurrent state per sequence, in bytes, constant in the length of the sequence; 0 where nothing but
            the convolution's tail is kept.
        conv_taps: taps of the causal convolution in front of it, 0 when it has none.
        conv_bytes: bytes of the convolution tail kept per sequence.
        heads: of a gated delta net, so that plans choose and price its form; None for other recurrences.
        channels, values: numbers per token that its projections and convolution make, and that it answers with, which
            plans price; 0 of a gated delta net, which says it by its heads, and of a layer that leaves it to a guess
            from its bytes.
        footprint: what modules of the plugin's own hold, more exactly than the widths say.
    """

    state_bytes: int
    conv_taps: int = 0
    conv_bytes: int = 0
    heads: DeltaHeads | None = None
    channels: int = 0
    values: int = 0
    footprint: Footprint | None = None

    @classmethod
    def gated_delta(cls, heads: DeltaHeads, conv_taps: int) -> RecurrentLayer:
        """A gated delta net: a float32 state of key_dim x value_dim per value head, and a float32 convolution tail."""
        return cls(
            state_bytes=4 * heads.values * heads.key_dim,
            conv_taps=conv_taps,
            conv_bytes=4 * (conv_taps - 1) * heads.channels,
            heads=heads,
        )

    def __post_init__(self) -> None:
        for name in ("state_bytes", "conv_taps", "conv_bytes", "channels", "values"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise SpecError(f"recurrent layer: {name}={value!r}; expected an integer >= 0")
        _check_footprint("recurrent layer", self.footprint)
        if bool(self.channels) != bool(self.values) or (self.channels and self.heads):
            raise SpecError(
                f"recurrent layer: channels={self.channels}, values={self.values}, heads={self.heads}; expected both "
                "widths or neither, and neither of a gated delta net, whose heads say them"
            )


LayerSpec = AttentionLayer | RecurrentLayer


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture-of-experts MLP.

    Args:
        count: experts per MoE layer.
        per_token: experts each token visits.
        intermediate_size: width inside one expert.
        shared_intermediate_size: width of the expert that every token visits, 0 when there is none.
        layers: indices of the layers that hold experts; the others hold a dense MLP.
        biases: whether every expert's matrices have biases, which a GPU gathers for each token; plans price them.
    """

    count: int
    per_token: int
    intermediate_size: int
    layers: tuple[int, ...]
    shared_intermediate_size: int = 0
    biases: bool = False

    def __post_init__(self) -> None:
        _positive("experts", count=self.count, per_token=self.per_token, intermediate_size=self.intermediate_size)
        if self.per_token > self.count:
            raise SpecError(f"experts: per_token={self.per_token} exceeds count={self.count}")


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a checkpoint's matrices are packed, as `quantization` in its config says.

    Args:
        bits: bits per element.
        group_size: elements that share one scale.
        mode: `affine` (scale and bias per group), `mxfp4`, `mxfp8` or `nvfp4`.
        overrides: module path -> its own settings, or None for a module that stays unquantised.
    """

    bits: int
    group_size: int
    mode: QuantMode = "affine"
    overrides: Mapping[str, Quantization | None] = field(default_factory=dict[str, "Quantization | None"])

    def __post_init__(self) -> None:
        _positive("quantization", bits=self.bits, group_size=self.group_size)
        if self.mode not in get_args(QuantMode):
            raise SpecError(f"quantization: mode={self.mode!r}; expected one of {', '.join(get_args(QuantMode))}")


@dataclass(frozen=True, slots=True)
class VisionTower:
    """The image encoder in front of a language model: its own list of layers.

    Args:
        layers: one spec per block, bidirectional.
        hidden_size, intermediate_size: widths inside a block.
        patch_size: pixels per patch side.
        merge_size: patches per side that become one token of the language model.
        class_rows: further rows that become part of a token, such as a class token; its reader's rows hold them too.
        taps: features besides the token embeddings that it gives the language model for every token.
    """

    layers: tuple[LayerSpec, ...]
    hidden_size: int
    intermediate_size: int
    patch_size: int
    merge_size: int = 1
    taps: int = 0
    class_rows: int = 0

    def __post_init__(self) -> None:
        _positive(
            "vision tower",
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            patch_size=self.patch_size,
            merge_size=self.merge_size,
            layers=len(self.layers),
        )

    @property
    def rows_per_token(self) -> int:
        """Rows of the tower that become one token of the language model."""
        return self.merge_size**2 + self.class_rows


def kv_sources(layers: Sequence[LayerSpec]) -> tuple[int | None, ...]:
    """Per layer the number of the one whose keys and values it reads: its own, or the last one of its group before it.

    None for recurrent layers, and for a `shared` layer that nothing before it serves.
    """
    latest, found = dict[str | None, int](), list[int | None]()
    for index, layer in enumerate(layers):
        if not isinstance(layer, AttentionLayer):
            found.append(None)
            continue
        if layer.kv != "shared":
            latest[layer.kv_group] = index
        found.append(latest.get(layer.kv_group) if layer.kv == "shared" else index)
    return tuple(found)


@keywords_only(POSITIONAL_SPEC)
@dataclass(frozen=True, slots=True, kw_only=True)
class ArchSpec:
    """What a plugin promises about one checkpoint. Every field is given by name.

    Args:
        arch: the architecture's name, as the plugin knows it ("qwen3", "bert").
        tasks: what the checkpoint can do.
        layers: one LayerSpec per layer, in order; equal layers are equal values. Empty for a table of vectors, whose
            only task is `embed`.
        vocab_size, hidden_size, intermediate_size: widths V, D and that of the MLP.
        max_positions: the longest sequence the position scheme admits, in tokens.
        dtype: element type of the unquantised weights as stored.
        tied_head: whether the output head is the embedding matrix.
        gated_mlp: whether the MLP, and each expert, has a gate next to up and down (SwiGLU, GeGLU), which plans price.
        qk_norm: whether q and k are normalised per head, which copies them; plans price it.
        rotary: whether they are rotated, which copies them too; None: as causal models and those with a gated MLP
            usually do.
        experts, quantization, vision: None where the checkpoint has none.
        dtypes_refused: element types that overflow in this family, each with the reason.
        logit_softcap: c where logits are c tanh(products / c) of the output head's products; None where they are these.
    """

    arch: str
    tasks: tuple[Task, ...]
    layers: tuple[LayerSpec, ...]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    max_positions: int
    dtype: DType = "float32"
    tied_head: bool = True
    gated_mlp: bool = True
    qk_norm: bool = True
    rotary: bool | None = None
    experts: Experts | None = None
    quantization: Quantization | None = None
    vision: VisionTower | None = None
    dtypes_refused: Mapping[DType, str] = field(default_factory=dict["DType", str])
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        if not self.arch:
            raise SpecError("arch spec: arch is empty; expected the architecture's name")
        unknown = [task for task in self.tasks if task not in get_args(Task)]
        if unknown or not self.tasks:
            raise SpecError(f"{self.arch}: tasks={self.tasks!r}; expected one or more of {', '.join(get_args(Task))}")
        if not self.layers and self.tasks != ("embed",):
            raise SpecError(
                f"{self.arch}: layers is empty and tasks={self.tasks!r}; expected one LayerSpec per layer, or the task "
                "'embed' alone for a table of vectors"
            )
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, AttentionLayer | RecurrentLayer):
                raise SpecError(
                    f"{self.arch}: layer {index} is a {type(layer).__name__}; expected AttentionLayer or RecurrentLayer"
                )
        self._check_caches()
        widths = ("vocab_size", "hidden_size", "intermediate_size", "max_positions")
        _positive(self.arch, **{name: getattr(self, name) for name in widths})
        if self.dtype not in get_args(DType):
            raise SpecError(f"{self.arch}: dtype={self.dtype!r}; expected one of {', '.join(get_args(DType))}")

    def _check_caches(self) -> None:
        sources, owners = kv_sources(self.layers), dict[str | None, AttentionLayer]()
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, AttentionLayer):
                continue
            if layer.kv == "none" and "generate" in self.tasks:
                raise SpecError(
                    f"{self.arch}: layer {index} keeps no cache (kv='none'), so no token can follow another; "
                    "declare kv='own', or leave 'generate' out of tasks"
                )
            if layer.kv != "shared":
                continue
            at = sources[index]
            if at is None:
                raise SpecError(
                    f"{self.arch}: layer {index} reads the keys of kv_group={layer.kv_group!r}, and no layer before it "
                    "keeps any under that name; declare it in an earlier attention layer that keeps a cache of its own"
                )
            source = self.layers[at]
            assert isinstance(source, AttentionLayer)
            for name in ("semantics", "n_kv_heads", "head_dim", "v_head_dim", "reach", "chunk"):
                if getattr(layer, name) != getattr(source, name):
                    raise SpecError(
                        f"{self.arch}: layer {index} has {name}={getattr(layer, name)} and reads the keys of layer "
                        f"{at}, which has {getattr(source, name)}; expected the same"
                    )
            if owners.setdefault(layer.kv_group, source) != source:
                raise SpecError(
                    f"{self.arch}: layers that keep keys under kv_group={layer.kv_group!r} for others differ; expected "
                    "equal ones, or a name for each kind"
                )

    @property
    def attention_layers(self) -> tuple[AttentionLayer, ...]:
        return tuple(layer for layer in self.layers if isinstance(layer, AttentionLayer))

    @property
    def semantics(self) -> Literal["causal", "bidirectional", "mixed"]:
        """`causal` when no layer sees a later token, `bidirectional` when every attention layer does."""
        # A recurrent layer reads left to right.
        found: set[Semantics] = {
            layer.semantics if isinstance(layer, AttentionLayer) else "causal" for layer in self.layers
        }
        return found.pop() if len(found) == 1 else "mixed" if found else "bidirectional"

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Distinct head dims of the attention layers, ascending."""
        return tuple(sorted({layer.head_dim for layer in self.attention_layers}))
