"""Plugins that break one rule each: the toy plugin with one thing changed.

LIARS is the matrix: for every check the plugins that must fail it, and which other checks the same lie reaches, each
with its reason in one line.
"""

import imports_mlx
from liar import Liar
from liars_of_ranks import LIARS_OF_RANKS
from liars_of_references import LIARS_OF_REFERENCES
from liars_of_shapes import LIARS_OF_SHAPES
from liars_of_spans import LIARS_OF_SPANS
from liars_of_specs import LIARS_OF_SPECS
from liars_of_words import LIARS_OF_WORDS
from lies import (
    BLIND,
    ENCODER,
    FORGETFUL,
    SLOPPY,
    AddsOneToNorms,
    AnotherNorm,
    CountsFromTheFirst,
    CountsFromZero,
    Deaf,
    DoublesNorms,
    FillsIn,
    KeepsPositions,
    LeavesEarly,
    LooksAhead,
    LooksAtFreeMemory,
    MakesAMask,
    MixesRows,
    Noisy,
    Overflows,
    ReadsValues,
    ReadsWeight,
    ShortTable,
    SmallVocabulary,
    SwapsIndices,
    TreatsOneTokenApart,
    always_the_mean,
    archport_prefil_chunk,
    boundless,
    by_position,
    changing_wish,
    claims_strangers,
    config_with,
    ignores_flags,
    more_heads,
    own_prompts,
    pins_blind,
    plugin,
    ring_for_all,
    rounds_when_it_grows,
    spec_with,
)
from toy_vision import SEER, RemembersPictures, reads_images

SAME_FILES = "packed conversions are saved under the module's own names too"

LIARS = [
    Liar(
        "hooks_match_the_contract",
        "a hook's name is misspelt",
        plugin("hook", archport_prefil_chunk=archport_prefil_chunk),
        "archport_prefil_chunk",
    ),
    Liar(
        "nothing_deprecated_is_used",
        "it makes its spec by position, which still works",
        plugin("by_position", archport_claim=spec_with(by_position)),
        "lies.py:",
    ),
    Liar("import_is_cheap", "it imports MLX at the top of its module", imports_mlx, "loads mlx"),
    Liar(
        "spec_matches_config",
        "it declares, and builds, more KV heads than the config states",
        plugin("config", archport_claim=spec_with(more_heads)),
        "num_key_value_heads (layer 0)=2",
    ),
    Liar(
        "example_is_small",
        "its example is as large as a real model's layers",
        plugin("small", examples=[config_with(intermediate_size=6016)]),
        "(limit 2,000,000)",
    ),
    Liar(
        "claims_its_own_and_no_other",
        "it claims an architecture that nobody knows",
        plugin("claims", archport_claim=claims_strangers),
        "AcmeForCausalLM",
    ),
    Liar(
        "flags_change_the_semantics",
        "it overlooks that a checkpoint is bidirectional",
        plugin("flags", archport_claim=ignores_flags),
        "still declared causal",
    ),
    Liar(
        "policy_hooks_answer_legally",
        "it pins a ring for a layer that sees all tokens",
        plugin("policy", archport_kv_allocation=ring_for_all),
        "a ring keeps only the last tokens",
    ),
    Liar(
        "published_checkpoint_loads",
        "sanitize doubles the norms of published checkpoints",
        plugin("published", trunk=DoublesNorms),
        "`sanitize` changes values",
    ),
    Liar(
        "spec_matches_weights",
        "its layers attend under each other's index",
        plugin("indices", trunk=SwapsIndices, examples=[config_with(layer_types=["full_attention"] * 2)]),
        "called for layers [1, 0]",
    ),
    Liar(
        "saved_model_loads_equal",
        "sanitize adds one to norms that are already its own",
        plugin("saved", trunk=AddsOneToNorms),
        "not idempotent",
        also={"quantised_round_trip": SAME_FILES},
    ),
    Liar(
        "damaged_checkpoint_is_refused",
        "sanitize fills missing tensors with zeros",
        plugin("damaged", trunk=FillsIn),
        "missing loads without an error",
    ),
    Liar(
        "quantised_round_trip",
        "it reads the embedding's weight instead of asking the embedding",
        plugin("packed", trunk=ReadsWeight),
        "8 bits, packed",
    ),
    Liar(
        "declared_mask_is_observed",
        "it is declared bidirectional, and drops what attention returns",
        plugin("deaf", trunk=Deaf, examples=[ENCODER]),
        "deaf to it",
        also={"every_weight_is_used": "what leads into attention leads nowhere"},
    ),
    Liar(
        "declared_mask_is_observed",
        "it is declared causal, and adds the next token's embedding",
        plugin("ahead", trunk=LooksAhead),
        "moved output",
        also={
            "row_alone_equals_row_in_batch": "the last token of a row sees the padding behind it",
            "row_alone_equals_row_in_large_batch": "the same, in large batches",
            "row_alone_equals_row_in_ragged_batch": "the same, with more padding",
            "no_length_is_special": "the last token of a row sees what follows it",
            "packed_documents_do_not_leak": "the last token of a document sees the next document",
            "chunked_prefill_equals_whole": "the last token of a chunk can't see the next chunk",
            "decode_equals_full_forward": "a decoded token has no next token",
            "batches_decode_as_one_pass": "the same, in batches",
            "growing_kv_keeps_its_contents": "it is run in chunks",
        },
    ),
    Liar(
        "each_layer_sees_its_reach",
        "it pins a backend that forgets the window",
        plugin("reach", archport_sdpa_backends=lambda: [BLIND], archport_sdpa_backend=pins_blind),
        "declared causal with reach (5, 0), but key",
        also={
            "backends_agree": "the same backend, asked without the pin",
            "mask_policies_agree": "the same backend, pinned for equal rows",
        },
    ),
    Liar(
        "backends_agree",
        "it brings a backend that is a thousandth off",
        plugin("backends", archport_sdpa_backends=lambda: [SLOPPY]),
        "backend 'sloppy' differs by 0.001",
    ),
    Liar(
        "mask_policies_agree",
        "it brings a fast backend that ignores the lengths of rows",
        plugin("policies", archport_sdpa_backends=lambda: [FORGETFUL]),
        "policy 'key_padding' on backend 'forgetful'",
    ),
    Liar(
        "packed_documents_do_not_leak",
        "it counts positions from the first token of a row",
        plugin("counts", trunk=CountsFromTheFirst),
        "document 1",
    ),
    Liar(
        "row_alone_equals_row_in_batch",
        "it subtracts the mean over the batch",
        plugin("mixes", trunk=MixesRows),
        "in a batch of",
        also={
            "row_alone_equals_row_in_large_batch": "the mean of a large batch is no other than that of a small one",
            "row_alone_equals_row_in_ragged_batch": "the same with longer rows",
            "batches_decode_as_one_pass": "rows are decoded together as well",
        },
    ),
    Liar(
        "no_state_between_calls",
        "it keeps the positions of the last call on the module",
        plugin("state", trunk=KeepsPositions),
        "holds new arrays",
    ),
    Liar(
        "no_state_between_calls",
        "it keeps what it saw of the last picture, and text behind that is moved by it",
        plugin("pictures", trunk=RemembersPictures, examples=[SEER], archport_inputs=reads_images),
        "(limit 0) after",
    ),
    Liar(
        "deterministic",
        "it computes something else when much memory is in use",
        plugin("memory", trunk=LooksAtFreeMemory),
        "MiB taken by others",
    ),
    Liar(
        "compile_safe",
        "it reads a value in the middle of a pass",
        plugin("item", trunk=ReadsValues),
        "compiling a pass",
    ),
    Liar(
        "chunked_prefill_equals_whole",
        "it counts positions from zero in every step",
        plugin("zero", trunk=CountsFromZero),
        "in chunks of 7",
        also={
            "decode_equals_full_forward": "a decoded token is a step behind position 0 as well",
            "batches_decode_as_one_pass": "the same in batches",
            "growing_kv_keeps_its_contents": "it is run in chunks",
            "packed_documents_do_not_leak": "a packed document starts behind the row's position 0",
        },
    ),
    Liar(
        "decode_equals_full_forward",
        "it takes a single token for something special",
        plugin("one", trunk=TreatsOneTokenApart),
        "decoded behind",
        also={
            "row_alone_equals_row_in_batch": "a row of one token looks like a decoded one",
            "row_alone_equals_row_in_ragged_batch": "the same, beside longer rows",
            "batches_decode_as_one_pass": "the same as for a single row",
        },
    ),
    Liar(
        "kv_allocated_equals_kv_planned",
        "it leaves after the first layer when a step is short",
        plugin("early", trunk=LeavesEarly),
        "bytes of KV, planned were",
        also={
            "decode_equals_full_forward": "a decoded token is a short step",
            "batches_decode_as_one_pass": "the same in batches",
            "row_alone_equals_row_in_large_batch": "rows of two tokens are short alone",
            "row_alone_equals_row_in_ragged_batch": "a row of one token is short alone",
            "row_alone_equals_row_in_batch": "a row of one token is short alone and long in a batch",
        },
        only_on=("cpu", "a GPU pads the steps that are short here"),
    ),
    Liar(
        "growing_kv_keeps_its_contents",
        "it packs caches to 4 bits once they grow",
        plugin("grows", archport_kv_allocation=rounds_when_it_grows),
        "grown from 256 differ",
        also={"batches_decode_as_one_pass": "more tokens are decoded behind than a cache starts with"},
    ),
    Liar(
        "ceiling_refuses_before_allocation",
        "it pins a ceiling of ten times the context",
        plugin("ceiling", archport_kv_allocation=boundless),
        "caches admit 513 tokens",
    ),
    Liar(
        "chunk_wish_is_an_upper_bound",
        "its wish for a chunk shrinks whenever it is asked",
        plugin("wish", archport_prefill_chunk=changing_wish()),
        "the hook answers",
        also={"hooks_answer_the_same_again": "it answers differently when asked again"},
    ),
    Liar(
        "half_precision_is_finite",
        "its embeddings overflow in float16",
        plugin("overflow", trunk=Overflows),
        "float16: row 0",
    ),
    Liar(
        "peak_is_predicted",
        "it makes an array of every token against every token",
        plugin("mask", trunk=MakesAMask),
        "the plan predicts",
    ),
    Liar(
        "pooling_is_as_declared",
        "its head is the mean, whatever is stored with the weights",
        plugin("pooling", archport_head=always_the_mean),
        "the checkpoint stores cls pooling",
    ),
    Liar(
        "prompts_are_as_declared",
        "its prompts hide those that are stored with the weights",
        plugin("prompts", archport_inputs=own_prompts),
        "the checkpoint stores the prompt query='find: '",
    ),
    Liar(
        "over_long_input_is_refused",
        "its table ends before the declared positions do",
        plugin("long", trunk=ShortTable),
        "position out of range",
    ),
    Liar(
        "malformed_input_is_refused",
        "its embedding has fewer rows than the declared vocabulary",
        plugin("vocabulary", trunk=SmallVocabulary),
        "the largest embedding has 192 rows",
        also={"spec_matches_weights": "the same table, compared with the spec"},
    ),
    Liar(
        "golden_vectors_repeat",
        "it adds noise",
        plugin("noise", trunk=Noisy),
        "embedded again differ",
        also={
            "golden_hidden_states_match": "the noise is more than rounding",
            "golden_vectors_match": "vectors are made of hidden states",
        },
        tier="golden",
    ),
    Liar(
        "golden_batch_invariance",
        "it subtracts the mean over the batch",
        plugin("mixes_golden", trunk=MixesRows),
        "in a batch of 4",
        also={
            "golden_vectors_match": "stored vectors came from a batch",
            "golden_hidden_states_match": "a row alone has its own mean subtracted",
        },
        tier="golden",
    ),
    Liar(
        "golden_vectors_match",
        "it adds a constant behind the final norm",
        plugin("norm", trunk=AnotherNorm),
        "with its stored vector",
        also={"golden_hidden_states_match": "vectors are made of hidden states"},
        tier="golden",
    ),
]
LIARS += LIARS_OF_SPANS + LIARS_OF_SPECS + LIARS_OF_WORDS + LIARS_OF_SHAPES + LIARS_OF_REFERENCES + LIARS_OF_RANKS
