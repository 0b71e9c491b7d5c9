"""Attention per document: several documents packed in one row, or one per row of a ragged batch.

Each document, or run of equally long ones, becomes a call of its own that any other backend runs. Nothing is computed
between documents, nothing for padding, and padded query rows come out as zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from archport.attention import prices
from archport.attention.choose import Chooser
from archport.contract.attention import AttentionCall, AttentionPath, Backend, DistanceBias, Feature, MaskKind, Price
from archport.contract.device import DeviceFacts
from archport.device.evaluation import finish, traced

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive documents of equal lengths.

    Args:
        row, count: index of the first document, which is its row in a ragged batch, and number of documents.
        q_start, k_start: first query and key of the first document.
        queries, keys: tokens of each document.
    """

    row: int
    count: int
    q_start: int
    k_start: int
    queries: int
    keys: int


def groups(call: AttentionCall) -> tuple[Group, ...]:
    """The documents of a `documents` call, equal neighbours together; empty documents are left out."""
    queries = call.real_queries or (call.q_len,) * len(call.lengths)
    packed = call.B == 1
    found: list[Group] = []
    q_start = k_start = 0
    for row, (n_q, n_k) in enumerate(zip(queries, call.lengths, strict=True)):
        if n_q and n_k:
            last = found[-1] if found else None
            if last and (last.queries, last.keys) == (n_q, n_k) and last.row + last.count == row:
                found[-1] = replace(last, count=last.count + 1)
            else:
                found.append(Group(row, 1, q_start, k_start, n_q, n_k))
        if packed:
            q_start, k_start = q_start + n_q, k_start + n_k
    return tuple(found)


def misfits(call: AttentionCall) -> list[str]:
    """Why the documents of a `documents` call are none that its rows can hold; empty when they are."""
    if not call.lengths:
        return ["the call names no document lengths"]
    queries = call.real_queries
    if queries and len(queries) != len(call.lengths):
        return [f"{len(queries)} query lengths for {len(call.lengths)} documents"]
    if call.B > 1:
        if len(call.lengths) != call.B:
            return [f"{len(call.lengths)} documents in {call.B} rows; expected one per row, or a single row"]
        if max(call.lengths) > call.kv_len or (queries and max(queries) > call.q_len):
            return [f"a document is longer than its row of {call.q_len} queries and {call.kv_len} keys"]
    elif sum(call.lengths) > call.kv_len or sum(queries) > call.q_len:
        return [f"documents of {sum(call.lengths)} tokens do not fit a row of {call.kv_len}"]
    elif len(call.lengths) > 1 and call.spans:
        return ["documents packed in one row can't have spans"]
    elif len(call.lengths) > 1 and call.q_len != call.kv_len:
        return ["documents packed in one row can't have cached keys"]
    if any(n_q > n_k for n_q, n_k in zip(queries, call.lengths, strict=False)):
        return ["a document has more queries than keys"]
    return []


@dataclass(frozen=True, slots=True)
class PerDocument:
    """Runs any of `inner` per document."""

    inner: tuple[Backend, ...]
    features: frozenset[Feature] = frozenset({"softcap", "bias", "content", "chunk", "spans"})
    name: str = "documents"
    _choose: Chooser = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Documents of one length recur in every batch, so their paths are remembered.
        object.__setattr__(self, "_choose", Chooser(self.inner))

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if call.mask != "documents":
            return ["the call is not divided into documents"]
        return misfits(call)

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        limit, bound = call.limits.transient_on(device), call.limits.seconds_on(device)
        slack = prices.SLACK[device.kind]
        parts = tuple(
            self._choose(_part(call, piece, limit - slack), device)
            for group in groups(call)
            for piece in _split(call, group, (limit - slack) // 2)
        )
        rounds = _rounds(call, parts, limit - slack, bound)
        stretches: list[tuple[AttentionPath, ...]] = []
        for first, count in zip(_starts(rounds), rounds, strict=True):
            stretches.append(parts[first : first + count])
        pauses = max(0, len(rounds) - 1)
        held = max((_held(call, stretch) for stretch in stretches), default=0)
        return Price(
            transient=held + slack,
            output=call.output_bytes,
            largest_buffer=max([call.output_bytes, *(part.price.largest_buffer for part in parts)]),
            flops=sum(part.price.flops for part in parts),
            dispatch_flops=max((sum(p.price.dispatch_flops for p in stretch) for stretch in stretches), default=0.0),
            evaluations=sum(part.price.evaluations for part in parts) + pauses,
            seconds=sum(part.price.seconds for part in parts)
            + pauses * prices.sync_seconds(device)
            + _shapes(parts) * prices.shape_seconds(device),
            dispatch_seconds=max((sum(_longest(part) for part in stretch) for stretch in stretches), default=0.0),
            parts=parts,
            rounds=rounds,
        )

    def run(
        self,
        call: AttentionCall,
        price: Price,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: mx.array | None = None,
        sinks: mx.array | None = None,
        bias: DistanceBias | None = None,
    ) -> mx.array:
        import mlx.core as mx

        del mask
        parts = price.parts
        # Backends that know no bias are not chosen where there is one, and need not take the argument.
        more: dict[str, Any] = {} if bias is None else {"bias": bias}
        if len(parts) == 1 and _is_whole(call, parts[0].call):
            return parts[0].backend.run(parts[0].call, parts[0].price, q, k, v, scale=scale, sinks=sinks, **more)
        out = mx.zeros((call.B, call.n_heads, call.q_len, call.v_head_dim), dtype=q.dtype)
        lazy = traced(q, k, v, sinks)
        ends = {first + count - 1 for first, count in zip(_starts(price.rounds), price.rounds, strict=True)}
        for index, (piece, part) in enumerate(zip(_pieces(call, parts), parts, strict=True)):
            part_q = _take(q, call.B, piece, piece.q_start, piece.queries)
            part_k = _take(k, call.B, piece, piece.k_start, piece.keys)
            part_v = _take(v, call.B, piece, piece.k_start, piece.keys)
            got = part.backend.run(part.call, part.price, part_q, part_k, part_v, scale=scale, sinks=sinks, **more)
            if call.B == 1:
                stop = piece.q_start + piece.count * piece.queries
                got = got.swapaxes(0, 1).reshape(1, call.n_heads, stop - piece.q_start, call.v_head_dim)
                out[:, :, piece.q_start : stop] = got
            else:
                out[piece.row : piece.row + piece.count, :, : piece.queries] = got
            del got
            # The last stretch stays lazy, so that a batch of short documents costs no evaluation at all.
            if index in ends and index + 1 < len(parts) and not lazy:
                finish(out)
        return out


def _part(call: AttentionCall, group: Group, limit: int) -> AttentionCall:
    """The call of one group: its documents are whole, so only their reach is left to say."""
    kind: MaskKind = "window"
    spans = call.spans if len(call.spans) < 2 else call.spans[group.row : group.row + group.count]
    spans = spans if any(spans) else ()
    if call.reach == (None, None):
        kind = "none"
    elif call.reach == (None, 0) and not spans:
        kind = "causal"
    part = replace(call, B=group.count, q_len=group.queries, kv_len=group.keys, mask=kind, lengths=(), q_lengths=())
    part = replace(part, spans=spans)
    own = 0 if _is_whole(call, part) else _copies(call, part) * part.output_bytes
    return replace(part, limits=replace(call.limits, transient_bytes=max(0, limit - own)))


def _split(call: AttentionCall, group: Group, limit: int) -> list[Group]:
    """The group in pieces whose outputs, and the copies of them, keep half of what a stretch may hold."""
    each = 2 * call.n_heads * group.queries * call.v_head_dim * call.itemsize
    return _cut(group, call.B == 1, max(1, limit // each))


def _cut(group: Group, packed: bool, most: int) -> list[Group]:
    found: list[Group] = []
    for first in range(0, group.count, most):
        ahead = first if packed else 0
        piece = Group(
            group.row + first,
            min(most, group.count - first),
            group.q_start + ahead * group.queries,
            group.k_start + ahead * group.keys,
            group.queries,
            group.keys,
        )
        found.append(piece)
    return found


def _pieces(call: AttentionCall, parts: Sequence[AttentionPath]) -> list[Group]:
    """The documents that each planned part runs, found again from how many each takes."""
    found: list[Group] = []
    for group in groups(call):
        found.extend(_cut(group, call.B == 1, parts[len(found)].call.B))
    return found


def _is_whole(call: AttentionCall, part: AttentionCall) -> bool:
    return (part.B, part.q_len, part.kv_len) == (call.B, call.q_len, call.kv_len)


def _copies(call: AttentionCall, part: AttentionCall) -> int:
    """Outputs a part holds: its own, and once more when a batch of documents goes back into one packed row."""
    return 2 if call.B == 1 and part.B > 1 else 1


def _rounds(call: AttentionCall, parts: Sequence[AttentionPath], limit: int, seconds: float | None) -> tuple[int, ...]:
    """How many parts run between two evaluations, so that no stretch exceeds bytes or time; one part always runs."""
    found: list[int] = []
    stretch: list[AttentionPath] = []
    for part in parts:
        stretch.append(part)
        late = seconds is not None and sum(map(_longest, stretch)) > seconds
        if len(stretch) > 1 and not late and _held(call, stretch) <= limit:
            found[-1] += 1
        else:
            found.append(1)
            stretch = [part]
    return tuple(found)


def _shapes(parts: Sequence[AttentionPath]) -> int:
    """Distinct shapes that reach MLX's own fused attention; kernels of archport take every shape."""
    other = ("composite", "wgmma", "mma", "split")
    return len({(part.call.B, part.call.q_len, part.call.kv_len) for part in parts if part.price.route not in other})


def _starts(rounds: tuple[int, ...]) -> list[int]:
    return [sum(rounds[:index]) for index in range(len(rounds))]


def _held(call: AttentionCall, stretch: Sequence[AttentionPath]) -> int:
    """Bytes that parts between two evaluations hold beyond the output of the whole call."""
    own = sum(_copies(call, part.call) * part.price.output for part in stretch if not _is_whole(call, part.call))
    lazy = sum(part.price.transient for part in stretch if not part.price.evaluations)
    # A part that evaluates itself is done with its scratch before the next one starts.
    alone = max((part.price.transient for part in stretch if part.price.evaluations), default=0)
    return own + lazy + alone


def _longest(part: AttentionPath) -> float:
    return part.price.dispatch_seconds


def _take(x: mx.array, B: int, piece: Group, start: int, length: int) -> mx.array:
    """Documents as a batch (count, heads, length, width): rows of a ragged batch, or a stretch of a packed row."""
    if B > 1:
        return x[piece.row : piece.row + piece.count, :, :length]
    stretch = x[:, :, start : start + piece.count * length]
    if piece.count == 1:
        return stretch
    _, heads, _, width = stretch.shape
    return stretch.reshape(heads, piece.count, length, width).swapaxes(0, 1)
