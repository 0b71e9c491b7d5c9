"""Liars of the ranks tier: they are right in one process, and not where each of two holds a part of a weight."""

import reads_a_table
from liar import Liar

LIARS_OF_RANKS = [
    Liar(
        "two_ranks_answer_as_one",
        "its logits are products with the weight of its head, of which each rank holds a part",
        reads_a_table,
        "has no attribute 'weight'",
        tier="ranks",
    ),
]
