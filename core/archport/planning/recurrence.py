"""The form of a gated delta net in one step: which one runs on a device, and what it costs.

The price counts what is above the rule's inputs and output. Knows nothing of attention, caches or budgets.
"""

from __future__ import annotations

from dataclasses import replace

from archport.contract import DeltaHeads, DeviceFacts, DType, Price, RecurrentLayer, RecurrentPath
from archport.contract.recurrence import RecurrentForm
from archport.planning.costs import HOST_ELEMENTS, rate

# Tokens per chunk of the chunked form: small products stay in a CPU's cache, a GPU wants them larger.
CHUNK = {"cpu": 32, "cuda": 64, "metal": 64}
# Tokens whose inner products exist at once in the chunked form.
SPAN = 512
# Time of one token in a kernel that walks the tokens one by one, each waiting for the one before. CUDA: by latency of
# its reductions; Metal: not measured.
TOKEN_SECONDS = {"cuda": 0.2e-6, "metal": 1e-6}


def choose_form(layer: RecurrentLayer, device: DeviceFacts, *, B: int, tokens: int, dtype: DType) -> RecurrentPath:
    """The form of a recurrent layer for B rows of `tokens` of a model in `dtype`."""
    heads = layer.heads
    if heads is None:
        return RecurrentPath("own", 0, Price(0, 0, 0, 0.0, 0.0))
    against: dict[RecurrentForm, str] = {}
    kernels: tuple[RecurrentForm, ...] = ("cuda", "metal")
    for form in kernels:
        reason = _against_kernel(form, heads, device)
        if reason:
            against[form] = reason
    if tokens == 1:
        against["chunked"] = "one token has no chunks"
    else:
        against["sequential"] = "one step per token"
    order: tuple[RecurrentForm, ...] = ("cuda", "metal", "chunked", "sequential")
    form: RecurrentForm = next(each for each in order if each not in against)
    against |= {each: f"{form} is faster" for each in order if each != form and each not in against}
    chunk = min(CHUNK[device.kind], tokens) if form == "chunked" else 0
    price = _price(form, heads, device, B, tokens, chunk)
    if form == "chunked" and dtype != "float32" and tokens <= SPAN:
        # q, k and v in float32: of longer rows they are released while the spans run.
        price = replace(price, transient=price.transient + 4 * B * tokens * heads.channels)
    small = device.vector_threads > 0 and B * tokens * heads.channels < HOST_ELEMENTS
    if device.kind == "cpu" and dtype == "float32" and not small:
        # What is before the rule was evaluated by the convolution, which runs on the host.
        price = replace(price, evaluations=1)
    return RecurrentPath(form, chunk, price, tuple(against.items()))


def _against_kernel(form: str, heads: DeltaHeads, device: DeviceFacts) -> str:
    """Why a kernel can't run these heads here; "" when it can."""
    if device.kind != form:
        return f"{device.name} is not a {form} device"
    if form == "cuda" and (heads.key_dim % 32 or heads.key_dim > 256 or heads.value_dim % 16):
        return f"heads of {heads.key_dim} x {heads.value_dim}; it takes multiples of 32 up to 256, and of 16"
    if form == "metal" and (heads.key_dim % 32 or heads.value_dim % 8):
        return f"heads of {heads.key_dim} x {heads.value_dim}; it takes multiples of 32 and of 8"
    return ""


def _price(form: str, heads: DeltaHeads, device: DeviceFacts, B: int, tokens: int, chunk: int) -> Price:
    state = 4 * B * heads.values * heads.key_dim
    output = 4 * B * tokens * heads.values
    # Decay, read, update and answer of a key_dim x value_dim matrix.
    flops = 7.0 * B * tokens * heads.values * heads.key_dim
    seconds = flops / rate(device, "float32")
    if form in TOKEN_SECONDS:
        # All heads walk at once, unless there are more than the device holds.
        seconds = max(seconds, tokens * TOKEN_SECONDS[form])
    transient = state
    if form == "chunked":
        # States of a few chunks, and the sums that they are made of, are there at once.
        transient = _chunked_bytes(heads, B, tokens, chunk) + (3 * state if tokens <= chunk else 15 * state // 2)
        flops += 2.0 * B * tokens * chunk * (2 * heads.keys + 2 * heads.values)
        seconds = flops / rate(device, "float32")
    if form == "sequential":
        transient = 3 * state
    return Price(
        transient=transient,
        output=output,
        largest_buffer=max(state, output),
        flops=flops,
        dispatch_flops=flops,
        seconds=seconds,
        dispatch_seconds=seconds,
        route=form,
    )


def _chunked_bytes(heads: DeltaHeads, B: int, tokens: int, chunk: int) -> int:
    """Scratch of the chunked form: while a span's inner products are made, or while its chunks run one by one.

    Fitted to MLX's peak counter over heads and widths varied one by one, on a CPU.
    """
    # What does not fill a chunk is a span of its own.
    span = min(max(tokens - tokens % chunk, tokens % chunk), max(1, SPAN // chunk) * chunk)
    made = span * (chunk * (2 * heads.n_key_heads + 13 * heads.n_value_heads) + 3 * heads.keys)
    # Of the next span, the inputs are copied already.
    copies = 3 * heads.keys + 3 * heads.values if tokens > span else 2 * heads.keys + heads.values // 2
    kept = span * (chunk * (2 * heads.n_key_heads + 5 * heads.n_value_heads) + copies)
    # Answers of all spans, what they are put together in, and some that are released late.
    return 4 * B * max(made, kept + 19 * tokens * heads.values // 8)
