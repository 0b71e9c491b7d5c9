"""T5, mT5 and UMT5 encoders: pre-norm blocks without positions, whose scores are biased by bucketed distances.

A decoder that a file holds next to the encoder takes no part, as in sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    ConfigKeys,
    Example,
    Footprint,
    Head,
    SpecError,
    Task,
)
from archport_bidirectional.bert import TAGS
from archport_bidirectional.configs import of_model
from archport_bidirectional.scoring import encoder_head, pylate_inputs

ARCHS = ("t5",)
_TASKS: Mapping[str, tuple[Task, ...]] = {"EncoderModel": ("embed", "rerank"), "ForTokenClassification": ("tag",)}
ARCHITECTURES: Mapping[str, tuple[Task, ...]] = {
    f"{family}{kind}": tasks for family in ("T5", "MT5", "UMT5") for kind, tasks in _TASKS.items()
}
KEYS = ConfigKeys(
    "t5",
    obeyed=(
        *("d_ff", "d_kv", "d_model", "dense_act_fn", "feed_forward_proj", "head_dim", "hidden_size", "is_gated_act"),
        *("layer_norm_epsilon", "num_attention_heads", "num_heads", "num_hidden_layers", "num_layers"),
        *("relative_attention_max_distance", "relative_attention_num_buckets", "vocab_size"),
    ),
    # Of the decoder, of training, and a number of positions that no class reads.
    inert=("dropout_rate", "n_positions", "num_decoder_layers", "scale_decoder_outputs"),
    refused={"is_encoder_decoder": (True,)},
)
MODELS = {
    name: name
    for name in (
        *(f"sentence-transformers/sentence-t5-{size}" for size in ("base", "large", "xl", "xxl")),
        *(f"sentence-transformers/gtr-t5-{size}" for size in ("base", "large", "xl", "xxl")),
        *(f"hkunlp/instructor-{size}" for size in ("base", "large", "xl")),
    )
}
# Distances have no end, and no key that a class reads states one: eight times what the published ones were trained on.
LONGEST = 4096
OVERFLOWS = "its hidden states grow past float16's largest number, where transformers cuts them"


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    KEYS.check(config)
    heads, width = config["num_attention_heads"], config["head_dim"]
    _, gated = activation_of(config)
    D, W, inner = config["hidden_size"], heads * width, config["d_ff"]
    # Norms first and nothing turned, which no kind of block is priced as: a norm, q, k, v, the answer and its copy, the
    # output and the sum; a norm, what the MLP makes inside, its output and the sum.
    made = Footprint(mixer=3 * D + 5 * W, mlp=3 * D + (3 if gated else 2) * inner)
    layer = AttentionLayer("bidirectional", heads, heads, width, bias=True, footprint=made)
    return ArchSpec(
        arch="t5",
        tasks=ARCHITECTURES[name],
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["d_ff"],
        max_positions=LONGEST,
        dtype=config.get("dtype", "float32"),
        gated_mlp=gated,
        qk_norm=False,
        dtypes_refused={"float16": OVERFLOWS},
    )


def activation_of(config: Mapping[str, Any]) -> tuple[str, bool]:
    """(name of the MLP's activation, whether it gates), which later files spell out next to the key for both."""
    stated = config["feed_forward_proj"]
    gate, _, act = stated.rpartition("-")
    if gate not in ("", "gated"):
        raise SpecError(f"t5: feed_forward_proj={stated!r}; expected an activation, or gated- and an activation")
    # The one name that means another function here.
    act = "gelu_new" if stated == "gated-gelu" else act
    own, gated = config.get("dense_act_fn"), config.get("is_gated_act")
    return act if own is None else own, bool(gate) if gated is None else bool(gated)


def every_layer_has_its_own(config: Mapping[str, Any]) -> bool:
    """Whether each layer has a table of distances, as in UMT5, and not the first one for all."""
    return config.get("model_type") == "umt5"


build = of_model(__name__, "T5")
_published = of_model(__name__, "published")


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    return encoder_head(spec, checkpoint, typed=False)


inputs = pylate_inputs


EXAMPLE = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_model": 64,
    "d_kv": 24,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-6,
    "is_encoder_decoder": True,
    "vocab_size": 199,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}


def examples() -> Sequence[Example]:
    gated = {**EXAMPLE, "feed_forward_proj": "gated-gelu"}
    own = {**gated, "architectures": ["UMT5EncoderModel"], "model_type": "umt5"}
    tagger = {**EXAMPLE, "architectures": ["T5ForTokenClassification"], "id2label": TAGS}
    return [
        Example("t5, encoder", EXAMPLE, seed=51, publish=_published),
        Example("t5, encoder with a gated MLP", gated, seed=52, publish=_published),
        Example("umt5, a table of distances in every layer", own, seed=53, publish=_published),
        Example("t5, labels of tokens", tagger, seed=54, publish=_published),
    ]
