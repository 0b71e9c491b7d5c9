"""What a token of a layer leaves in memory: measured on this machine, against the table that plans are made by.

    python benchmarks/fit_temporaries.py                  measure, and print how far the table is from it
    python benchmarks/fit_temporaries.py --write          write rows that measurements exceed anew (`make fit`)
    python benchmarks/fit_temporaries.py --two-passes     a line through two short passes instead (docs/adr/0015)

Models of each family with one width varied at a time run equal short rows. What their peak holds above what does not
belong to layers is divided by tokens, and compared with what the table says of the same. A row that is fitted anew is a
sum of coefficients that no measurement exceeds: least squares without negative coefficients, raised by the worst case.
Exits 1 when a measurement is above its plan.
"""

from __future__ import annotations

# First, because it loads the BLAS that MLX uses on a CPU.
import archport  # noqa: F401

# isort: split
import argparse
import csv
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from archport.contract import AttentionLayer, AttentionPath, EmbeddingHead
from archport.device.facts import this_device
from archport.planning import Plan, activations
from archport.planning.activations import COLUMNS, TABLE, block_of
from archport.running.encode import Encoder
from archport.running.pool import VectorHead
from archport.testing.measure import peaks, run_plan
from archport.testing.plans import planned

memory: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("model_memory.py")))
FAMILIES = {name: memory[name] for name in ("SMALL_QWEN", "SMALL_BERT", "SMALL_MODERN", "SMALL_GEMMA")}
# Widths that are varied one at a time, as multiples of the family's own.
VARIED = ({}, {"hidden_size": 2}, {"intermediate_size": 3}, {"num_attention_heads": 2}, {"num_key_value_heads": 2})
FITTED = ("D", "q", "k", "v", "out", "mlp")
ROWS, TOKENS, RUNS = 48, 32, 3


@dataclass(frozen=True)
class Point:
    """One model: its block, the quantity that its layers are priced by, widths, and numbers per token."""

    block: str
    quantity: str
    widths: dict[str, float]
    measured: float
    planned: float


def highest(encoder: Encoder, plan: Plan, lengths: Sequence[int]) -> int:
    """The highest peak of some runs."""
    head = VectorHead(EmbeddingHead(("mean",)))
    ids = [np.full(length, 3, np.int32) for length in lengths]
    _, *found = peaks(lambda: run_plan(encoder, plan, ids, head), weights=plan.bytes["weights"], runs=1 + RUNS)
    return max(found)


def models(dtype: mx.Dtype) -> Iterator[tuple[str, Encoder]]:
    """Every family with each of its widths varied."""
    for name, config in FAMILIES.items():
        for change in VARIED:
            # Gemma's three heads can't share two of keys and values.
            odd = "num_key_value_heads" in change and config["num_attention_heads"] % 2
            if odd or not change.keys() <= config.keys():
                continue
            trunk, spec, hooks = memory["built"](
                {**config, **{key: config[key] * by for key, by in change.items()}}, dtype
            )
            planner = memory["planner_for"](trunk, spec, hooks, this_device().default_budget)
            yield f"{name} {' '.join(change)}".strip(), Encoder(trunk, spec, planner)


def layers_of(plan: Plan) -> int:
    """Bytes of a plan that belong to layers."""
    return plan.bytes["activations"] + plan.bytes["attention"] + plan.bytes["margin"]


def quantity_of(plan: Plan, host: bool) -> str:
    """The quantity of the table that prices a plan's layers."""
    paths = [path for path in plan.batches[0].steps[0].paths if isinstance(path, AttentionPath)]
    return "split" if host or any(path.price.evaluations for path in paths) else "lazy"


def points(dtype: mx.Dtype) -> Iterator[tuple[str, Point]]:
    for name, encoder in models(dtype):
        lengths, spec = [TOKENS] * ROWS, encoder.spec
        plan = planned(encoder.plan, lengths, tokens_per_batch=ROWS * TOKENS)
        size, tokens = 4 if dtype == mx.float32 else 2, ROWS * plan.batches[0].shape.L
        peak = highest(encoder, plan, lengths)
        layer = next(layer for layer in spec.layers if isinstance(layer, AttentionLayer))
        widths = activations._widths(spec, layer, False, size)
        host = this_device().vector_threads > 0 and dtype == mx.float32
        yield (
            name,
            Point(
                block_of(spec, layer, False),
                quantity_of(plan, host),
                widths,
                (peak - plan.peak + layers_of(plan)) / tokens / size,
                layers_of(plan) / tokens / size,
            ),
        )


def fitted(found: Sequence[Point]) -> dict[str, float]:
    """Coefficients of a sum that none of these measurements exceeds."""
    left = [name for name in FITTED if any(point.widths[name] for point in found)]
    wanted = np.array([point.measured for point in found])
    while True:
        matrix = np.array([[point.widths[name] for name in left] for point in found])
        numbers = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
        if (numbers >= 0).all():
            break
        left.pop(int(numbers.argmin()))
    numbers *= max(1.0, float((wanted / (matrix @ numbers)).max()))
    return {name: float(np.ceil(100 * number) / 100) for name, number in zip(left, numbers, strict=True)}


def write(device: str, size: int, block: str, quantity: str, sums: dict[str, float]) -> None:
    """Put one row in place of a quantity's rows."""
    with TABLE.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        names, rows = list(reader.fieldnames or ()), list(reader)
    own = {"device": device, "bytes": str(size), "block": block, "quantity": quantity}
    kept = [row for row in rows if any(row[name] != value for name, value in own.items())]
    kept.append({**dict.fromkeys(COLUMNS, ""), **own, **{name: f"{value:g}" for name, value in sums.items()}})
    with TABLE.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def compare(*, writes: bool) -> int:
    device, bad = this_device(), 0
    for dtype, size in ((mx.float32, 4), (mx.bfloat16, 2)):
        where = "cpu+host" if device.vector_threads and size == 4 else device.kind
        by: dict[tuple[str, str], list[Point]] = {}
        for _, point in points(dtype):
            by.setdefault((point.block, point.quantity), []).append(point)
        for (block, quantity), found in by.items():
            ratios = [point.planned / point.measured for point in found]
            bad += min(ratios) < 1
            between = f"plan {min(ratios):.2f} to {max(ratios):.2f} x measured"
            print(f"{where:9}{size} {block:40}{quantity:6} {len(found)} models: {between}", flush=True)
            if min(ratios) < 1:
                sums = fitted(found)
                print(f"          fitted: {sums}")
                if writes:
                    write(where, size, block, quantity, sums)
    return bad


def passed(encoder: Encoder, tokens: int) -> int:
    """What one pass of a row of so many tokens holds above the weights."""
    plan = planned(encoder.plan, [tokens])
    weights, ids = plan.bytes["weights"], [np.full(tokens, 3, np.int32)]
    (peak,) = peaks(lambda: run_plan(encoder, plan, ids, VectorHead(EmbeddingHead(("mean",)))), weights=weights, runs=1)
    return peak - weights


def two_passes() -> int:
    """How a line through the peaks of two short passes predicts longer requests, next to the table."""
    requests, (short, longer) = ([256] * 8, [60, 300, 20, 200] * 2), (64, 128)
    ratios: dict[str, list[float]] = {"line": [], "table": []}
    for name, encoder in models(mx.float32):
        started = time.perf_counter()
        first, second = passed(encoder, short), passed(encoder, longer)
        seconds, slope = time.perf_counter() - started, (second - first) / (longer - short)
        for lengths in requests:
            plan = planned(encoder.plan, lengths)
            weights = plan.bytes["weights"]
            tokens = max(batch.shape.B * min(batch.shape.L, batch.chunk) for batch in plan.batches)
            measured = highest(encoder, plan, lengths) - weights
            ratios["line"].append((first + slope * (tokens - short)) / measured)
            ratios["table"].append((plan.peak - weights) / measured)
        print(f"{name:40} two passes {seconds:.3f} s, {slope:,.0f} bytes a token", flush=True)
        for way, found in ratios.items():
            wrong = sum(ratio < 1 for ratio in found)
            between = f"{min(found):.2f} to {max(found):.2f} x measured"
            print(f"  {way}: {wrong} of {len(found)} requests above it; {between}", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write rows that measurements exceed anew")
    parser.add_argument("--two-passes", action="store_true", help="try a line through two short passes instead")
    asked = parser.parse_args()
    if asked.two_passes:
        return two_passes()
    return 1 if compare(writes=asked.write) else 0


if __name__ == "__main__":
    sys.exit(main())
