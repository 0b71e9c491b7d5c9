"""Tiny tier: bytes that a run takes against bytes that its plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archport.contract import LayerSpec
from archport.testing.check import check, fail
from archport.testing.halves import Halves, in_words, too_small
from archport.testing.halves import measured as measured_halves
from archport.testing.peak import measured_peak
from archport.testing.subject import Tiny
from archport.testing.weights import misdeclared, own_blocks, shown_by

# Below this a measurement is mostly page rounding.
WORTH_MEASURING = 32 << 20
FACTOR = 1.25
# On a GPU what kernels held comes back with the graph of kernels that they ran in, and where one graph ends and another
# begins differs by tens of operations: a plan has room for all of them, a run of a tiny model needs less.
FACTOR_ON_GPU = 1.5
# Blocks that are not archport's are priced as if they were: attention through a narrow row, say, needs less.
FACTOR_OF_OTHERS = 1.85
FACTOR_OF_OTHERS_ON_GPU = FACTOR_OF_OTHERS * FACTOR_ON_GPU / FACTOR


@check("tiny")
def peak_is_predicted(t: Tiny) -> str:
    """No run's peak is above what its plan predicts, and above 32 MB the prediction is within 1.25 of the highest.

    Declare `qk_norm`, `rotary` and `gated_mlp` as the module is built, and make no arrays that the declared widths do
    not account for: masks, repeated heads, wide temporaries. A layer with modules of its own may need less, down to
    1 / 1.85, and declares a `Footprint` where it needs more, or far less; a half that makes more than its footprint
    fails alone.
    """
    from archport.planning.costs import WORKSPACE

    wrong = misdeclared(t)
    if wrong:
        fail(f"{'; '.join(wrong)}: plans are priced with what is declared")
    footprints = any(layer.footprint is not None for layer in t.spec.layers)
    halves = measured_halves(t) if footprints else {}
    low = too_small(halves)
    if low:
        fail(f"{'; '.join(low)}: declare what the half makes at most")
    # A power of two, which is one batch whatever its tokens.
    length, count = t.length(256), 8
    # Taken once a process by a device's libraries, and as large for a tiny model as for a large one.
    constant = WORKSPACE[t.planner.device.kind]
    while True:
        plan = t.plan([length] * count, tokens_per_batch=length * count)
        # Above the constant by so much that what a plugin makes and does not declare can't hide in it.
        if plan.peak - constant > max(1.5 * WORTH_MEASURING, 3 * constant) or count >= 4096:
            break
        count *= 2
    predicted = plan.peak - constant
    others = own_blocks(t)
    usual, of_others = FACTOR, FACTOR_OF_OTHERS
    if t.planner.device.kind != "cpu":
        usual, of_others = FACTOR_ON_GPU, FACTOR_OF_OTHERS_ON_GPU
    factor = of_others if others else usual
    measured, example = measured_peak(t, plan, predicted, factor, floor=WORTH_MEASURING)
    if measured > plan.peak:
        fail(
            f"{count} rows of {length} tokens took {measured:,} bytes, the plan predicts {plan.peak:,} "
            f"(measured / predicted {measured / plan.peak:.2f}, limit 1){_advice(t, halves, others)}"
        )
    # A plan that is far above runs few rows, whose peak is small.
    if predicted > factor * max(measured, WORTH_MEASURING):
        parts = ", ".join(f"{name} {size:,}" for name, size in plan.bytes.items() if size)
        shown = shown_by(t)
        norms = shown is not None and t.spec.qk_norm and not shown.normalised
        over = "; qk_norm=True is declared, but q is not normalised" if norms else ""
        fail(
            f"{count} rows of {length} tokens took {measured:,} bytes, the plan predicts {predicted:,} (predicted / "
            f"measured {predicted / measured:.2f}, limit {factor}): {parts}{over}{_advice(t, halves, others)}"
        )
    own = f", with {', '.join(others)} of its own" if others else ""
    own += f", measured of {example!r}, whose passes are alike" if example else ""
    ratio = predicted / measured
    return f"{count} x {length} tokens: {measured >> 20} MiB, predicted {predicted >> 20} MiB, {ratio:.2f}{own}"


def _advice(t: Tiny, halves: Mapping[LayerSpec, Halves], own: Sequence[str]) -> str:
    """What the halves of layers with modules of their own make, and what declares it; "" where nothing is measured."""
    if not own and not halves:
        return ""
    shown = in_words(halves or measured_halves(t))
    return f". Measured, {shown}: `Footprint(mixer=, mlp=)` of a layer's spec declares it" if shown else ""
