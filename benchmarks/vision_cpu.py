"""On a CPU: one block of Qwen3-VL-2B's vision tower over images of 0.25, 1 and 4 megapixels, measured against its plan.

    python benchmarks/vision_cpu.py [--write]

Random weights, float32, one tap, one image at a time. Prints MLX's peak counter above the weights, what the plan
predicts, and how the peak grows; and by plan alone the largest stretch between two evaluations of images of up to 16
megapixels on two Macs. Exits 1 when a peak exceeds its prediction, grows faster than the patches, or a stretch exceeds
the device's watchdog bound.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path
from typing import Any

import archport
from archport.contract import ArchSpec, AttentionLayer, VisionTower
from archport.device.facts import this_device
from archport.device.profiles import profile

HIDDEN, INNER, HEADS, OUT, PATCH = 1024, 4096, 16, 2048, 16
MACS = ("m1-16gb", "m2-ultra-128gb")
# Rounding of what is little beside any image.
SLACK = 2**20


def spec_of(depth: int, dtype: Any) -> ArchSpec:
    block = AttentionLayer("bidirectional", HEADS, HEADS, HIDDEN // HEADS)
    tower = VisionTower((block,) * depth, HIDDEN, INNER, PATCH, merge_size=2, taps=1)
    text = AttentionLayer("causal", 16, 8, 128)
    return ArchSpec(
        arch="vision",
        tasks=("embed",),
        layers=(text,),
        vocab_size=1000,
        hidden_size=OUT,
        intermediate_size=6144,
        max_positions=262_144,
        dtype=dtype,
        vision=tower,
    )


class Square:
    """A picture, as far as a tower's context needs it."""

    def __init__(self, side: int) -> None:
        self.grid = (side // PATCH, side // PATCH)


class Halves:
    normalisation = ((0.5,) * 3, (0.5,) * 3)


def measured(side: int) -> tuple[int, int, float, str]:
    """(measured bytes, predicted bytes, seconds, path) of one image."""
    import mlx.core as mx
    import numpy as np

    from archport.attention import Chooser, ProbedRoutes, builtin_backends
    from archport.layers.vision import PatchMergingTower, TowerShape
    from archport.running.vision import TowerStep
    from archport.testing.plans import plan_of

    shape = TowerShape(hidden=HIDDEN, inner=INNER, heads=HEADS, depth=1, out=OUT, taps=(0,))
    tower = PatchMergingTower(shape)
    mx.eval(tower.parameters())
    patches = (side // PATCH) ** 2
    choose = Chooser(builtin_backends(ProbedRoutes(), ()))
    device = this_device()
    plan = plan_of(
        spec_of(1, "float32"), [patches // 4], device=device, choose=choose, images=[[patches]], weight_bytes=0
    )
    (batch,) = plan.batches
    (step,) = batch.quote.vision
    pixels = np.random.default_rng(0).integers(0, 256, (1, step.padded, 3 * PATCH**2), dtype=np.uint8)
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    started = time.perf_counter()
    rows = mx.array(pixels)
    pictures: Any = [Square(side)]
    reader: Any = Halves()
    features = tower(rows, TowerStep(plan, step, pictures, reader, lambda arrays: mx.eval(*arrays)))
    mx.eval(*features)
    seconds = time.perf_counter() - started
    peak = mx.get_peak_memory() - before
    path = step.paths[0]
    assert path is not None
    # The tower's own part of the plan: what it holds beside the features, and these.
    predicted = step.room
    return peak, predicted, seconds, f"{path.backend.name}, pieces of {step.piece:,}"


def on(mac: str, side: int) -> tuple[float, float, str]:
    """(seconds of the largest stretch, bound, what it is) of one image on a Mac, by plan."""
    from archport.attention import Chooser, TableRoutes, builtin_backends
    from archport.testing.plans import plan_of

    patches = (side // PATCH) ** 2
    plan = plan_of(
        spec_of(24, "bfloat16"),
        [patches // 4],
        device=profile(mac),
        choose=Chooser(builtin_backends(TableRoutes(), ())),
        images=[[patches]],
    )
    assert plan.work.limit is not None
    return plan.work.seconds, plan.work.limit, plan.work.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048])
    arguments = parser.parse_args()
    device = this_device()
    lines = [
        f"archport {archport.__version__}, mlx {device.mlx_version}, python {platform.python_version()}, {device.name}"
    ]
    missed: list[str] = []
    before: tuple[int, int] | None = None
    for side in arguments.sides:
        peak, predicted, seconds, path = measured(side)
        patches = (side // PATCH) ** 2
        lines.append(
            f"{side} x {side}, {patches:,} patches: {peak:,} bytes measured, {predicted:,} predicted "
            f"({predicted / peak:.2f}), {peak / patches:,.0f} per patch, {seconds:.1f} s; {path}"
        )
        print(lines[-1], flush=True)
        if peak > predicted + SLACK:
            missed.append(f"{side} x {side} above its plan")
        if before is not None and peak / before[1] > patches / before[0]:
            missed.append(f"{side} x {side} grows faster than its patches")
        before = patches, peak
    for mac in MACS:
        for side in (512, 1024, 2048, 4096):
            seconds, bound, what = on(mac, side)
            lines.append(f"{mac}, {side} x {side}, by plan: {seconds:.3f} s of {bound:.2f} allowed for {what}")
            print(lines[-1])
            if seconds > bound:
                missed.append(f"{mac} {side} x {side} beyond the watchdog")
    lines.append("all bars met" if not missed else "MISSED: " + "; ".join(missed))
    print(lines[0], lines[-1], sep="\n")
    if arguments.write:
        (Path(__file__).parent / "results" / f"vision_{device.kind}.txt").write_text("\n".join(lines) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
