"""Plugins that say that tokens of a span see each other, and do not let them."""

from liar import Liar
from lies import plugin
from lies_of_spans import CLAIM, PAST_ALL, PAST_CACHED, PAST_LONE_ROWS, every_second_time, names, overlap, pictures

BOTH, CUT, NAMED = "spans_see_both_ways", "spans_are_never_cut", "spans_are_named_by_ids"


def bringing(name, backend):
    return plugin(
        name,
        archport_claim=CLAIM,
        archport_inputs=names(pictures),
        archport_sdpa_backends=lambda: [backend],
    )


LIARS_OF_SPANS = [
    Liar(
        "mask_policies_agree",
        "it brings a fast backend that names spans and looks past them",
        bringing("past_all", PAST_ALL),
        "rows with spans",
        also={
            BOTH: "a lone row's spans are looked past as well",
        },
    ),
    Liar(
        BOTH,
        "it brings a fast backend that looks past the spans of a row by itself",
        bringing("past_lone_rows", PAST_LONE_ROWS),
        "did not move row",
        also={CUT: "in chunks the row has cached keys, where spans are seen"},
    ),
    Liar(
        CUT,
        "it brings a fast backend that looks past spans behind cached keys, in a row by itself",
        bringing("past_cached", PAST_CACHED),
        "from one pass",
        also={"mask_policies_agree": "rows behind different numbers of cached tokens are run one by one"},
    ),
    Liar(
        NAMED,
        "its inputs name a row's spans every second time",
        plugin("every_second_time", archport_claim=CLAIM, archport_inputs=names(every_second_time())),
        "when it is first asked about",
    ),
    Liar(
        NAMED,
        "its layers know spans, and nothing names any",
        plugin("unnamed", archport_claim=CLAIM),
        "archport_inputs names none",
    ),
    Liar(
        NAMED,
        "its inputs name spans that overlap",
        plugin("overlapping", archport_claim=CLAIM, archport_inputs=names(overlap)),
        "ascending and apart",
    ),
]
