"""Plugins that agree with themselves and not with a reference. Each breaks one stage between a text and its answer."""

import mlx.nn as nn
from honest_toys import GENERATES, SCORES, Scores, scoring
from liar import Liar
from lies import plugin
from lies_of_words import GENERATOR, TiresOfWords
from toy_model import Toy

from archport.contract import EmbeddingHead, TextInputs
from archport.layers import head_rows


def lowers(spec):
    return TextInputs(lowercase=True)


def ends_with_one_more(spec):
    return TextInputs(final_token=7)


def unit_length(spec):
    return EmbeddingHead(("mean",), normalize=True)


class WideNorm(Toy):
    """Its final norm divides by a little more."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.norm = nn.RMSNorm(spec.hidden_size, eps=1e-4)


class HalvesWords(Toy):
    """Logits and rows are halved alike, which no comparison of the two shows; the likeliest word stays."""

    def logits(self, hidden):
        return super().logits(hidden) * 0.5

    def head_rows(self, ids):
        return head_rows(self.head, ids) * 0.5


class TurnsScores(Scores):
    def scores(self, pooled):
        return super().scores(pooled)[..., ::-1]


def speaker(name, trunk=None, **hooks):
    return plugin(name, trunk=trunk, examples=[GENERATOR], **hooks)


IDS, HIDDEN = "golden_token_ids_match", "golden_hidden_states_match"
LIARS_OF_REFERENCES = [
    Liar(
        IDS,
        "it lower-cases texts",
        speaker("lowers", archport_inputs=lowers),
        "the reference's",
        tier="golden",
        honest=GENERATES,
    ),
    Liar(
        IDS,
        "it ends every text with a token of its own",
        speaker("final", archport_inputs=ends_with_one_more),
        "is 7, the reference's none",
        tier="golden",
        honest=GENERATES,
    ),
    Liar(
        HIDDEN,
        "its final norm has another epsilon",
        speaker("epsilon", WideNorm),
        "from the reference's hidden states, from token 0 on",
        tier="golden",
        honest=GENERATES,
    ),
    Liar(
        "golden_vectors_match",
        "it scales vectors to unit length, whatever is stored",
        plugin("unit_length", archport_head=unit_length),
        "with a cosine of 1.000000: lengths",
        tier="golden",
    ),
    Liar(
        "golden_logits_match",
        "it halves its logits and its head's rows alike",
        speaker("halves", HalvesWords),
        "the factor that fits best is 0.5",
        tier="golden",
        honest=GENERATES,
    ),
    Liar(
        "golden_greedy_tokens_match",
        "it makes the word less likely that it said last, and embeds as it should",
        speaker("tires_golden", TiresOfWords),
        "generated token",
        tier="golden",
        honest=GENERATES,
    ),
    Liar(
        "golden_scores_match",
        "it gives the scores of its labels in reverse",
        scoring(TurnsScores, "turns_scores"),
        "scores differ by",
        tier="golden",
        honest=SCORES,
    ),
]
