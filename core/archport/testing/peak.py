"""The highest peak of a plan's runs, measured once for examples of a plugin whose runs are alike.

Knows what a run's peak depends on, and no limit.
"""

from __future__ import annotations

from collections.abc import Hashable

from archport.contract import AttentionPath, EmbeddingHead, RecurrentPath
from archport.planning import Plan
from archport.planning.batch import StepPlan
from archport.running.pool import VectorHead
from archport.testing.measure import RUNS, host_ahead, peaks, run_plan
from archport.testing.subject import Tiny
from archport.testing.touched import Itself, alike, reading

# Runs at least, so that what only some of them hold is seen.
LEAST = 3


def measured_peak(t: Tiny, plan: Plan, predicted: int, factor: float, *, floor: int) -> tuple[int, str]:
    """The highest peak of some runs of a plan, in bytes, and the example that it was measured of, "" for this one.

    Examples often share a trunk and differ in their heads. Where an earlier one of this plugin runs alike its peak
    counts, with the weights of this one; what would fail by it is measured here.

    Args:
        predicted: bytes that the plan predicts; runs end once `factor` times the highest peak reaches it.
        floor: bytes below which a peak is not compared.
    """
    weights, key = plan.bytes["weights"], _run_of(t, plan)
    example, own = t.subject.measured.get(key, ("", 0))
    if example and own + weights <= plan.peak and predicted <= factor * max(own + weights, floor):
        return own + weights, example
    highest = _highest(t, plan, predicted, factor)
    t.subject.measured[key] = t.example.name, highest - weights
    return highest, ""


def _head(t: Tiny) -> VectorHead:
    """What pools the rows: the example's own head, or where it makes no vectors the plainest."""
    return t.model._runtime.embedder().head if t.embeds else VectorHead(EmbeddingHead(("mean",)))


def _highest(t: Tiny, plan: Plan, predicted: int, factor: float) -> int:
    (batch,) = plan.batches
    rows = [t.tokens(length, seed) for seed, length in enumerate(batch.lengths)]
    encoder, head, weights, highest = t.model._runtime.encoder, _head(t), plan.bytes["weights"], 0

    def run() -> None:
        run_plan(encoder, plan, rows, head)

    for turn, peak in enumerate(peaks(run, weights=weights, runs=RUNS)):
        highest = max(highest, peak)
        if turn + 1 >= LEAST and highest * factor >= predicted:
            break
    if highest <= plan.peak and highest * factor < predicted:
        # The plan is for the worst that any run may meet: a host that is far ahead of its device.
        with host_ahead():
            for peak in peaks(run, weights=weights, runs=2 * RUNS):
                highest = max(highest, min(peak, plan.peak))
                if highest * factor >= predicted:
                    break
    return highest


def _run_of(t: Tiny, plan: Plan) -> Hashable:
    """What the peak of a plan's run depends on but for the bytes of the weights; equal of runs that are alike."""
    if t.spec.experts is not None:
        # Which experts tokens visit, and so how many each has, is in the numbers of the weights.
        return Itself(t)
    rows = [t.tokens(plan.batches[0].lengths[0], seed) for seed in range(2)]
    with reading(t.trunk) as reads:
        t.run(t.plan([len(row) for row in rows], mode="generate"), rows)
    own = _head(t)
    head = own.head.pooling, own.head.normalize, own.head.dimensions, alike(own.head.dense), alike(own.weights)
    batches = tuple((batch.lengths, batch.shape, batch.schedule, *map(_step, batch.steps)) for batch in plan.batches)
    planned = tuple((name, size) for name, size in plan.bytes.items() if name != "weights")
    return t.spec.layers, t.planner.dtype, head, planned, batches, reads.key()


def _step(step: StepPlan) -> Hashable:
    return step.start, step.tokens, *map(_path, step.paths)


def _path(path: AttentionPath | RecurrentPath) -> Hashable:
    """What a path runs, and how it is cut."""
    price = path.price
    cut = (price.transient, price.output, price.route, price.q_tile, price.evaluations, price.depth, price.rounds)
    if isinstance(path, RecurrentPath):
        return path.form, path.chunk, cut
    return path.call, path.backend.name, cut, tuple(map(_path, price.parts))
