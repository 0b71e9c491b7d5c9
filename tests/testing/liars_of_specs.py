"""Plugins whose claims and modules are two things."""

from types import ModuleType

import opens_a_file
from liar import Liar
from lies import ENCODER, config_with, plugin, spec_with
from lies_of_specs import (
    AttendsTwice,
    CoarseInHalf,
    DropsStrangers,
    EvaluatesWithin,
    GoesThroughNumpy,
    NoGates,
    PadsWhatIsShort,
    Repeats,
    TransposesSquares,
    built_as,
    claims_the_nameless,
    declaring,
    footprint,
    one_more_in_reach,
)

CONFIG, WEIGHTS, PRICED = "spec_matches_config", "spec_matches_weights", "peak_is_predicted"


def archport_claim(config):
    return None


def archport_prefill_chunk(spec, shape=None):
    return None


def unmarked():
    module = ModuleType("liar_unmarked")
    module.archport_claim = archport_claim
    return module


LIARS_OF_SPECS = [
    Liar(
        "hooks_match_the_contract",
        "an argument of a hook has a default",
        plugin("default", archport_prefill_chunk=archport_prefill_chunk),
        "parameter 'shape' has a default",
    ),
    Liar("hooks_match_the_contract", "its hooks are not marked", unmarked(), "put @hookimpl above it"),
    Liar("import_is_cheap", "it opens a file when it is imported", opens_a_file, "opens"),
    Liar(
        "example_is_small",
        "its example has a single layer",
        plugin("one_layer", examples=[config_with(num_hidden_layers=1, layer_types=["full_attention"])]),
        "1 layers (2 to 8)",
    ),
    Liar(
        "claims_its_own_and_no_other",
        "it claims configs that name no architecture",
        plugin("nameless", archport_claim=claims_the_nameless),
        "it claims the unknown config {}",
    ),
    Liar(
        CONFIG,
        "it declares an MLP of 192, as the config states, and builds one of 128",
        plugin("narrow", trunk=built_as(intermediate_size=128), examples=[config_with(intermediate_size=192)]),
        "declares intermediate_size=192, the MLP of layer 0 is built 128 wide",
    ),
    Liar(
        CONFIG,
        "it declares an MLP of 96 and builds one of 112",
        plugin("wide", trunk=built_as(intermediate_size=112)),
        "declares intermediate_size=96, the MLP of layer 0 is built 112 wide",
    ),
    Liar(
        CONFIG,
        "it declares more positions than the config states",
        plugin("positions", archport_claim=declaring(max_positions=600)),
        "max_position_embeddings=512, the spec declares 600",
    ),
    Liar(
        CONFIG,
        "its window is a token longer than the config states",
        plugin("window", archport_claim=spec_with(one_more_in_reach)),
        "that is a reach of 5, the spec declares 6",
    ),
    Liar(
        PRICED,
        "it normalises q and k per head and declares that it does not",
        plugin("norms_heads", archport_claim=declaring(qk_norm=False)),
        "declared qk_norm=False, but q is normalised per head",
    ),
    Liar(
        PRICED,
        "it declares an MLP without a gate and builds one with it",
        plugin("gates", archport_claim=declaring(gated_mlp=False)),
        "declared gated_mlp=False, but there is a gate beside up and down",
    ),
    Liar(
        PRICED,
        "it declares a gate that its MLP does not have",
        plugin("no_gates", trunk=NoGates),
        "declared gated_mlp=True, but there is no gate beside up and down",
    ),
    Liar(
        PRICED,
        "it declares that its mixer makes less than it does",
        plugin("light_mixer", archport_claim=spec_with(footprint(mixer=300))),
        "declares footprint mixer=300 and makes",
    ),
    Liar(
        PRICED,
        "it declares that its MLP makes less than it does",
        plugin("light_mlp", archport_claim=spec_with(footprint(mlp=200))),
        "declares footprint mlp=200 and makes",
    ),
    Liar(
        PRICED,
        "it declares that its mixer makes far more than it does",
        plugin("heavy_mixer", archport_claim=spec_with(footprint(mixer=8_000))),
        "(declared 8,000) numbers per token around its mixer",
    ),
    Liar(
        WEIGHTS,
        "its last layer attends twice",
        plugin("twice", trunk=AttendsTwice, examples=[ENCODER]),
        "ctx.attend was called for layers [0, 1, 1]",
    ),
    Liar(
        "published_checkpoint_loads",
        "sanitize transposes square matrices of published checkpoints",
        plugin("transposes", trunk=TransposesSquares),
        "`sanitize` changes values",
    ),
    Liar(
        "damaged_checkpoint_is_refused",
        "sanitize drops tensors that it does not know",
        plugin("drops", trunk=DropsStrangers),
        "unknown loads without an error",
    ),
    Liar(
        "damaged_checkpoint_is_refused",
        "sanitize pads matrices that have too few rows",
        plugin("pads", trunk=PadsWhatIsShort),
        "misshapen loads without an error",
    ),
    Liar(
        "compile_safe",
        "it evaluates in the middle of a pass",
        plugin("evaluates", trunk=EvaluatesWithin),
        "compiling a pass",
    ),
    Liar(
        "compile_safe",
        "it takes its embeddings through numpy",
        plugin("numpy", trunk=GoesThroughNumpy),
        "compiling a pass",
    ),
    Liar(
        "half_precision_is_finite",
        "in 16 bits it rounds its embeddings to eighths",
        plugin("coarse", trunk=CoarseInHalf),
        "a hidden state, padded left, has cosine",
    ),
    Liar(
        PRICED,
        "it writes every hidden state sixteen times",
        plugin("repeats", trunk=Repeats),
        "the plan predicts",
    ),
]
