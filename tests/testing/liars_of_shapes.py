"""Plugins that are right in small and wrong in large, or every second time."""

import mlx.core as mx
from liar import Liar
from lies import ENCODER, plugin
from lies_of_shapes import (
    FROM_ZERO,
    NEIGHBOURLY,
    RUNS_ON,
    AddsTheTokenBefore,
    claims_in_turn,
    examples_in_turn,
    mixing,
    nowhere,
    special,
)

# What a device pads batches of 9 and of 65 rows to.
NINE, ABOVE_64 = (9, 65) if mx.default_device().type == mx.DeviceType.cpu else (16, 128)
LARGE, RAGGED = "row_alone_equals_row_in_large_batch", "row_alone_equals_row_in_ragged_batch"

LIARS_OF_SHAPES = [
    Liar(
        LARGE,
        "it subtracts the mean over batches of more than 64 rows",
        plugin("above_64", trunk=mixing(lambda rows: rows > 64)),
        f"in a batch of {ABOVE_64}",
    ),
    Liar(
        LARGE,
        "it subtracts the mean over batches of 9 rows",
        plugin("of_nine", trunk=mixing(lambda rows: rows == NINE)),
        f"in a batch of {NINE}",
        also={"batches_decode_as_one_pass": "nine rows are decoded together as well"},
    ),
    Liar(
        RAGGED,
        "it brings a fast backend that ignores lengths which differ by more than 64",
        plugin("neighbourly", examples=[ENCODER], archport_sdpa_backends=lambda: [NEIGHBOURLY]),
        "in a batch of rows of 1, 200, 100, 200 tokens",
        also={"no_length_is_special": "what a row is padded with is another row of its batch"},
    ),
    Liar(
        "no_length_is_special",
        "it computes something else for rows of exactly 128 tokens",
        plugin("of_128", trunk=special(128)),
        "a row of 128 tokens",
    ),
    Liar(
        "no_length_is_special",
        "it computes something else for rows of exactly 64 tokens, and sees all",
        plugin("of_64", trunk=special(64), examples=[ENCODER]),
        "a row of 64 tokens",
    ),
    Liar(
        "mask_policies_agree",
        "it brings a fast backend that forgets what rows had cached",
        plugin("from_zero", archport_sdpa_backends=lambda: [FROM_ZERO]),
        "cached tokens",
    ),
    Liar(
        "packed_documents_do_not_leak",
        "it brings a fast backend that runs documents on into each other",
        plugin("runs_on", archport_sdpa_backends=lambda: [RUNS_ON]),
        "packed document 0",
        also={
            "row_alone_equals_row_in_batch": "short texts are packed where that is fast",
            "mask_policies_agree": "a packed row is one of the steps that are planned",
        },
    ),
    Liar(
        "chunked_prefill_equals_whole",
        "it adds the token before, past the context",
        plugin("before", trunk=AddsTheTokenBefore),
        "in chunks of 7",
        also={
            "decode_equals_full_forward": "a decoded token has none before it in its step",
            "batches_decode_as_one_pass": "the same, in batches",
            "growing_kv_keeps_its_contents": "it is run in chunks",
            "packed_documents_do_not_leak": "a document's first token gets the last one of the document before",
        },
    ),
    Liar(
        "hooks_answer_the_same_again",
        "its claims take turns",
        plugin("turns", archport_claim=claims_in_turn()),
        "archport_claim answers",
    ),
    Liar(
        "hooks_answer_the_same_again",
        "it names its examples otherwise whenever it is asked",
        plugin("renames", archport_examples=examples_in_turn()),
        "archport_examples or archport_models",
    ),
    Liar(
        "policy_hooks_answer_legally",
        "it pins a backend for some shapes that nobody has",
        plugin("nowhere", archport_sdpa_backend=nowhere),
        "names 'nowhere'",
    ),
]
