"""What a layer's tokens leave in memory until they were evaluated, and which layers are alike in that.

The numbers are data: `temporaries.csv` has rows of coefficients per device, bytes of an element and kind of block. A
quantity is the largest of its rows, each a sum of coefficients times a layer's widths; `make fit` measures them. Knows
nothing of attention paths, chunks or budgets.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from archport.contract import (
    ArchSpec,
    DeviceFacts,
    DeviceKind,
    DType,
    LayerSpec,
    RecurrentLayer,
)
from archport.contract.spec import itemsize
from archport.planning.costs import (
    HOST_ELEMENTS,
    Weights,
    active_elements,
    element_bytes,
    has_experts,
    kinds_of,
    recurrent_widths,
)

TABLE = Path(__file__).with_name("temporaries.csv")
# Numbers that a sum counts, per token. Of the model: D. Of heads: q, k, v (0 where values are a part of the keys; V in
# any case), out, gate. Of the MLP: its width, what is inside it at most, one expert, the shared one, copies for a
# token's experts, the widths of all that it visits, its routes and biases. Of a recurrence: what is projected, values,
# keys, and values where it has a state.
COLUMNS = (
    *("D", "q", "k", "v", "V", "out", "gate", "mlp", "inside"),
    *("expert", "shared", "routed", "wide", "routes", "biases"),
    *("channels", "values", "keys", "state"),
)
# How a layer's temporaries coexist with its attention; the field of TokenBytes and the quantity of the table.
MANNERS = ("lazy", "unfused", "documents", "mixed", "split", "held")
# What a quantity is where the table has no row of it.
LIKE = {"unfused": "lazy", "documents": "lazy", "split": "lazy", "mixed": "documents"}


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What one token of one layer leaves in memory until the stretch it belongs to was evaluated.

    Args:
        lazy: bytes of all temporaries when the layer runs in one stretch.
        unfused: the same when attention materialises its scores.
        documents: the same when attention runs document by document, without evaluating anything.
        mixed: the same when some documents evaluate what is before them, and others wait for what follows.
        split: bytes in flight when attention evaluates the graph in its middle, so that only one half is.
        held: of those, what is there while such an attention runs.
        carried: bytes that attention reads and what follows it adds to: q, k, v and the residual.
        output: bytes of attention's output.
        part: bytes of the heavier of its projections and its MLP.
        widest: bytes of the largest of them.
        widest_name: what that is.
        fewest: tokens of a step from which on the activation, or a recurrence's convolution, is computed on the host,
            which evaluates what is before it.
        small: bytes with fewer tokens, of which the layer is one stretch, whatever its attention does.
    """

    lazy: int
    unfused: int
    documents: int
    mixed: int
    split: int
    held: int
    carried: int
    output: int
    part: int
    widest: int
    widest_name: str
    fewest: int = 0
    small: int = 0


@dataclass(frozen=True, slots=True)
class LayerClass:
    """Layers that cost the same: equal specs, and both or neither with experts.

    Args:
        kind: index of the spec among the distinct ones.
        count: layers of this class.
        experts: whether its MLP is experts.
        token: temporaries of one token.
        flops: arithmetic of one token, attention excluded.
        matrix_bytes: bytes of the matrices that one token meets.
    """

    kind: int
    count: int
    experts: bool
    token: TokenBytes
    flops: float
    matrix_bytes: int


def classes_of(
    spec: ArchSpec, dtype: DType, device: DeviceFacts, weights: Weights, *, summed: bool = False
) -> tuple[tuple[LayerClass, ...], tuple[int, ...]]:
    """Distinct layer classes, and the index of each layer's own.

    Args:
        summed: whether the halves of a layer are summed over the processes of a group, each into an array of its own.
    """
    kinds, layer_kinds = kinds_of(spec.layers)
    classes, indices = kinds_of([(kind, has_experts(spec, index)) for index, kind in enumerate(layer_kinds)])
    per_element = element_bytes(dtype, spec.quantization if weights.packed else None)
    host = device.kind == "cpu" and device.vector_threads > 0 and dtype == "float32"
    counts, found = Counter(indices), list[LayerClass]()
    for index, (kind, experts) in enumerate(classes):
        elements = active_elements(spec, kinds[kind], experts)
        token = token_bytes(spec, kinds[kind], experts, dtype, device.kind, host=host)
        found.append(
            LayerClass(
                kind=kind,
                count=counts[index],
                experts=experts,
                token=_with_sums(token, spec.hidden_size * itemsize(dtype)) if summed else token,
                flops=2.0 * elements,
                matrix_bytes=int(elements * per_element),
            )
        )
    return tuple(found), indices


def _with_sums(token: TokenBytes, each: int) -> TokenBytes:
    """The same where each half ends in a sum of `each` bytes, which the backend makes beside what it is handed."""
    grown = {name: getattr(token, name) + 2 * each for name in MANNERS}
    return replace(token, **grown, part=token.part + each, small=token.small + 2 * each if token.small else 0)


def token_bytes(
    spec: ArchSpec, layer: LayerSpec, experts: bool, dtype: DType, kind: DeviceKind, *, host: bool = False
) -> TokenBytes:
    """Temporaries of one token in one layer: residuals, norms, projections, heads, MLP; by the table.

    Args:
        host: whether attention and activations are computed on the host, as a CPU with vector functions does in
            float32. Each evaluates what is before it, so the two halves of a layer never coexist.
    """
    s, device = itemsize(dtype), "cpu+host" if host else kind
    block, mlp = block_of(spec, layer, experts), mlp_of(spec, experts)
    widths = _widths(spec, layer, experts, s)
    widths["inside"] = _largest(device, s, mlp, "inside", widths) or 0.0
    found = {name: _largest(device, s, block, name, widths) or 0.0 for name in MANNERS}
    # Experts evaluate as they go, whatever their activation is.
    plain = not experts or isinstance(layer, RecurrentLayer)
    most = _largest(device, s, block, "unfused_most", widths) if plain else None
    small = _largest(device, s, block, "small", widths) if plain else None
    if most is not None:
        found["unfused"] = min(found["unfused"], most)
    D, made = widths["D"], widths["channels"] or widths["mlp"]
    halves = _largest(device, s, block, "mixer", widths) or 0.0, widths["inside"] + 3 * D
    entry, read, output = D * s, widths["q"] + widths["k"] + widths["v"], widths["out"] or widths["values"]
    bytes_of = {name: int(numbers * s) for name, numbers in found.items()} | {"part": int(max(halves) * s)}
    own = layer.footprint
    if own is not None and own.more is not None:
        bytes_of = {name: held + own.more * s for name, held in bytes_of.items()}
        small = small if small is None else small + own.more
    if own is not None and (own.mixer is not None or own.mlp is not None):
        # A half of archport's is what splitting a layer takes it for, and on a CPU no less than what attention holds.
        parted = kind == "cpu" and not isinstance(layer, RecurrentLayer)
        usual = max(halves[0], bytes_of["held"] / s - D) if parted else halves[0]
        # On a CPU MLX computes 16 bits by way of float32, in arrays of their own.
        wide = 4 if kind == "cpu" else s
        mixer = wide * int(usual if own.mixer is None else own.mixer)
        inside = wide * int(halves[1] if own.mlp is None else own.mlp)
        # Its input, which its caller holds as well, and what the half before ended in.
        bytes_of = _declared(3 * entry, mixer, inside, (read + output) * s, apart=host)
        small = small if small is None else bytes_of["lazy"] / s
    arrays = _arrays(spec, layer, experts, s, widths)
    name = max(arrays, key=lambda each: arrays[each])
    return TokenBytes(
        **bytes_of,
        carried=int(entry + read * s),
        output=int(output * s),
        widest=int(arrays[name] * s),
        widest_name=name,
        fewest=0 if small is None else -(-HOST_ELEMENTS // int(made)),
        small=int((small or 0.0) * s),
    )


def _declared(entry: float, mixer: int, mlp: int, copies: float, *, apart: bool) -> dict[str, int]:
    """Bytes of a layer whose plugin declares what its own modules hold, by how they coexist with its attention.

    Args:
        entry: of what is there next to either half, such as the block's input.
        mixer, mlp: of the two halves.
        copies: of q, k, v and the output, which attention that is one call or runs document by document copies.
        apart: whether each half ends in an evaluation; otherwise what follows attention coexists with the next layer's
            beginning, although attention evaluates.
    """
    whole, part = int(entry) + mixer + mlp, int(entry) + max(mixer, mlp)
    copied = dict.fromkeys(("unfused", "documents", "mixed"), int(whole + copies))
    split = part if apart else whole
    return {"lazy": whole, **copied, "split": split, "held": int(entry) + mixer, "part": part}


def block_of(spec: ArchSpec, layer: LayerSpec, experts: bool) -> str:
    """The table's name of a layer's block; rows of what comes before a " + " count where it has none of its own."""
    if isinstance(layer, RecurrentLayer):
        return "recurrence" if layer.heads is None else "delta net"
    # Rows of norms before each half are of blocks that rotate q and k, the others of those that leave them as they are.
    rotated = spec.semantics == "causal" if spec.rotary is None else spec.rotary
    words = ["pre-norm" if spec.gated_mlp or rotated else "post-norm", *(["experts"] if experts else [])]
    words += ["gated heads"] if layer.gated else ["normed heads"] if spec.qk_norm else []
    if rotated and not spec.gated_mlp and not experts:
        words += ["ungated"]
    elif spec.semantics == "bidirectional":
        # A spec does not say how many norms a block has. Gemma has four: the bidirectional family with norms of heads.
        words += ["four norms"]
    return " + ".join(words)


def mlp_of(spec: ArchSpec, experts: bool) -> str:
    if experts:
        return "experts MLP" if spec.gated_mlp else "experts MLP + plain"
    return "gated MLP" if spec.gated_mlp else "plain MLP"


def _widths(spec: ArchSpec, layer: LayerSpec, experts: bool, s: int) -> dict[str, float]:
    """Numbers of one token by the table's columns, for elements of `s` bytes."""
    widths = dict.fromkeys(COLUMNS, 0.0) | {"D": spec.hidden_size, "mlp": spec.intermediate_size}
    if isinstance(layer, RecurrentLayer):
        channels, values = recurrent_widths(layer)
        keys, state = (channels - values) // 2, values if layer.state_bytes else 0
        widths |= {"channels": channels, "values": values, "keys": keys, "state": state}
    else:
        out, V = layer.n_heads * layer.v_head_dim, layer.n_kv_heads * layer.v_head_dim
        # Values that are a part of the keys are not made.
        v = V if len(layer.kv_widths) == 2 else 0
        q, k = layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
        widths |= {"q": q, "k": k, "v": v, "V": V, "out": out, "gate": out if layer.gated else 0}
    if experts and spec.experts is not None:
        e = spec.experts
        inner, shared = e.intermediate_size, e.shared_intermediate_size
        widths |= {"expert": inner, "shared": shared, "wide": e.per_token * inner + shared}
        # Eight bytes of each expert's place, whatever the type.
        widths |= {"routed": e.per_token * spec.hidden_size, "routes": 8 * e.count / s}
        inward = 2 if spec.gated_mlp else 1
        widths["biases"] = e.per_token * (inward * inner + spec.hidden_size) if e.biases else 0
    return widths


def _arrays(spec: ArchSpec, layer: LayerSpec, experts: bool, s: int, widths: Mapping[str, float]) -> dict[str, float]:
    """Numbers of one token in the widest arrays, by what they are."""
    arrays = {"hidden states": widths["D"]}
    if isinstance(layer, RecurrentLayer):
        arrays["the recurrence's fp32 heads"] = 4 * widths["values"] / s
        arrays["the convolution's channels"] = widths["channels"]
    else:
        arrays["the projections of q, k and v"] = widths["q"] + widths["gate"] + widths["k"] + widths["v"]
    if experts and spec.experts is not None:
        arrays["the experts' inputs"] = widths["routed"]
        name, inward = ("the experts' gate and up", 2) if spec.gated_mlp else ("the experts' insides", 1)
        arrays[name] = inward * spec.experts.per_token * widths["expert"]
    elif spec.gated_mlp:
        arrays["gate and up"] = 2 * widths["mlp"]
    else:
        arrays["the MLP's inside"] = widths["mlp"]
    return arrays


def _largest(device: str, s: int, block: str, quantity: str, widths: Mapping[str, float]) -> float | None:
    """Numbers of one token: the largest of the sums that the table has of a quantity; None where it has none."""
    sums = _sums(device, s, block, quantity)
    if sums is None:
        return None
    return max(sum(count * widths[name] for name, count in row.items()) for row in sums)


@cache
def _sums(device: str, s: int, block: str, quantity: str) -> list[dict[str, float]] | None:
    rows, name = _table(), block
    while name:
        found = rows.get((device, str(s), name, quantity)) or rows.get((device, "any", name, quantity))
        if found is not None:
            return found
        name = name.rpartition(" + ")[0]
    return _sums(device, s, block, LIKE[quantity]) if quantity in LIKE else None


@cache
def _table() -> dict[tuple[str, ...], list[dict[str, float]]]:
    rows: dict[tuple[str, ...], list[dict[str, float]]] = {}
    with TABLE.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            sums = {name: float(row[name]) for name in COLUMNS if row[name]}
            rows.setdefault(tuple(row[name] for name in ("device", "bytes", "block", "quantity")), []).append(sums)
    return rows
