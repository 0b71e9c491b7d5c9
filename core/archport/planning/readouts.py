"""What heads need beside the last hidden states: the arrays that a plan has to hold while they read.

Whoever reads them, and whoever only plans, asks here, so that both hold the same.
"""

from __future__ import annotations

from archport.contract import Dense, DType, Head, SparseHead, TokenHead
from archport.planning.batch import Readout

# Bytes of the logits that exist at once: as many tokens of the batch as these hold, one at the least.
_PIECE = 1 << 26


def tokens_at_once(vocabulary: int) -> int:
    """Tokens whose float32 logits exist at once while sparse vectors are pooled."""
    return max(1, _PIECE // (4 * vocabulary))


def logits_of_tokens(vocabulary: int, *, wide: bool) -> Readout:
    """What sparse vectors by a masked-LM head need.

    Args:
        wide: whether the trunk computes in float32.
    """
    # A row's pooled logits are there next to those of its tokens, three at the least; in 16 bits these are there
    # twice, in the model's type too.
    arrays, token = (1, 16 * vocabulary // 3) if wide else (2, 4 * vocabulary)
    return Readout("the logits of the vocabulary", "logits", arrays, token=token, most=tokens_at_once(vocabulary))


def weights_of_tokens(own: Dense) -> Readout:
    """What sparse vectors by a layer of one weight per token need."""
    return Readout("hidden states in float32", "outputs", 1, token=4 * (own.in_features + 4))


def vectors_of_tokens(head: TokenHead, width: int) -> Readout:
    """What a vector of each token needs, of hidden states of a width."""
    # An array that is made, the one it is made of, and what lies between them.
    widest = max([width, *(dense.out_features for dense in head.dense)])
    return Readout("the vectors of all tokens", "outputs", arrays=3, token=4 * widest)


def readout_of(head: Head, vocabulary: int, width: int, dtype: DType) -> Readout | None:
    """What `Model.embed` needs after the last layer, where that is more than a row of each text.

    Args:
        width: of the hidden states.
        dtype: their element type.
    """
    if isinstance(head, TokenHead):
        return vectors_of_tokens(head, width)
    if not isinstance(head, SparseHead):
        return None
    return logits_of_tokens(vocabulary, wide=dtype == "float32") if head.own is None else weights_of_tokens(head.own)
