"""Plugins whose words are wrong: their heads, or what they decode."""

from dataclasses import replace

from liar import Liar
from lies import plugin, spec_with
from lies_of_words import (
    FRONTLESS,
    GENERATOR,
    SHORT_MEMORY,
    TIED,
    DecodesAtTheFirst,
    LastLogitsApart,
    LogitsScaled,
    MixesDecoded,
    NoHead,
    NoLogits,
    NoPlaces,
    OneTooFar,
    OwnHead,
    ReadsHeadWeight,
    RowsReversed,
    RowsSorted,
    SpareNorm,
    TiresOfWords,
    WrongMatrix,
    WrongMatrixThroughout,
)

HEAD, TIE, USED = "logits_are_those_of_the_head", "tied_head_is_as_declared", "every_weight_is_used"
DECODES = "batches_decode_as_one_pass"


def speaker(name, trunk=None, example=GENERATOR, **hooks):
    return plugin(name, trunk=trunk, examples=[example], **hooks)


LIARS_OF_WORDS = [
    Liar(
        HEAD,
        "its logits are zero",
        speaker("no_logits", NoLogits),
        "the factor that fits best is 0",
        also={TIE: "no matrix moves its logits", USED: "its head's matrix least of all"},
    ),
    Liar(
        HEAD,
        "its logits are of the embedding, its head's rows of the head",
        speaker("wrong_matrix", WrongMatrix),
        "from head_rows times hidden states",
        also={TIE: "logits are of a matrix that embeds", USED: "the head's own matrix moves nothing"},
    ),
    Liar(
        TIE,
        "its logits and rows are of the embedding, and its own head lies idle",
        speaker("wrong_throughout", WrongMatrixThroughout),
        "declared tied_head=False, but logits are of embed.weight",
        also={USED: "the head's own matrix moves nothing"},
    ),
    Liar(HEAD, "it gives the head's rows in reverse", speaker("reversed", RowsReversed), "from those rows among all"),
    Liar(HEAD, "it gives the head's rows sorted", speaker("sorted", RowsSorted), "from those rows among all"),
    Liar(
        HEAD,
        "it halves its logits and not its head's rows",
        speaker("scaled", LogitsScaled),
        "the factor that fits best is 0.5",
    ),
    Liar(
        HEAD,
        "it gives a single position other logits than one of many",
        speaker("apart", LastLogitsApart),
        "logits of one position",
        also={"generated_tokens_are_the_likeliest": "every generated token is a single position"},
    ),
    Liar(
        "generated_tokens_are_the_likeliest",
        "it makes the word less likely that it said last",
        speaker("tires", TiresOfWords),
        "one pass gives it",
    ),
    Liar(
        TIE,
        "it is declared tied, and has a head of its own",
        speaker("own_head", OwnHead, TIED),
        "declared tied_head=True, but logits are of lm_head.weight",
    ),
    Liar(
        TIE,
        "it is declared not to be tied, and reads the embedding",
        speaker("no_head", NoHead, TIED, archport_claim=spec_with(lambda spec: replace(spec, tied_head=False))),
        "declared tied_head=False, but logits are of embed.weight",
    ),
    Liar(USED, "it loads a norm that it never applies", plugin("spare", trunk=SpareNorm), "spare_norm.weight"),
    Liar(USED, "it multiplies its learned positions by zero", plugin("places", trunk=NoPlaces), "place.weight"),
    Liar(
        "quantised_round_trip",
        "its logits read the head's weight instead of asking the head",
        speaker("head_weight", ReadsHeadWeight),
        "8 bits, packed",
    ),
    Liar(
        DECODES,
        "it is one position off when it decodes past position 100",
        plugin("too_far", trunk=OneTooFar),
        "behind its 261 from one pass",
    ),
    Liar(
        DECODES,
        "it mixes rows when four or more are decoded together",
        plugin("mixes_decoded", trunk=MixesDecoded),
        "of 4 rows decoded together",
    ),
    Liar(
        DECODES,
        "it decodes every row at the first one's position",
        plugin("first_position", trunk=DecodesAtTheFirst),
        "rows decoded together, row 1",
    ),
    Liar(
        DECODES,
        "it brings a fast backend that forgets what lies far back when decoding",
        plugin("short_memory", archport_sdpa_backends=lambda: [SHORT_MEMORY]),
        "of 1 rows decoded together",
    ),
    Liar(
        DECODES,
        "it brings a fast backend that shows decoded rows what stands in front of short ones",
        plugin("frontless", archport_sdpa_backends=lambda: [FRONTLESS]),
        "rows decoded together",
        also={"mask_policies_agree": "one query in a window has a dense mask as well where that is pinned"},
    ),
]
