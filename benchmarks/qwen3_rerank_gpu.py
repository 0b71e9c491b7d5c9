"""What reranking on a GPU gains from what all pairs begin with, and its peak, at the shape of Qwen3-Reranker-0.6B.

    python benchmarks/qwen3_rerank_gpu.py [--write] [--tiny]

Random weights, bfloat16; 64 documents of 300 tokens behind 200 shared ones, the pairs of qwen3_cpu.py, with and without
sharing in turns, five times each behind a first round that is not counted. `--tiny` runs small shapes, to see that the
script works. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import archport  # isort: skip  (before mlx, which it prepares)

import argparse
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
from qwen3_cpu import DOCUMENTS, GAIN_BAR, WORDS, rerank_gain, told
from qwen3_gpu import SHAPE, SMALL, make
from tokenizers import Tokenizer

from archport import engine

# Of probabilities, in bfloat16: its steps are 2**-8 below 1.
SCORE_BAR = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a look at the script")
    arguments = parser.parse_args()
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        (folder := Path(scratch) / "Qwen3-Reranker").mkdir()
        make(folder, {**SHAPE, **(SMALL if arguments.tiny else {})})
        words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        words.add_tokens(list(WORDS))
        words.save(str(folder / "tokenizer.json"))
        count = 3 if arguments.tiny else DOCUMENTS
        mx.clear_cache()
        model = engine.load(folder, dtype="checkpoint")
        times, difference, shared, pair = rerank_gain(model, count)
        gain = statistics.median(times[False]) / statistics.median(times[True])
        lines = [
            f"archport {archport.__version__}, mlx {model.device.mlx_version}, python {platform.python_version()}, "
            f"{model.device.name}",
            f"{count} documents behind {shared} shared tokens, pairs of {pair}: {told(times[True])}, "
            f"without sharing {told(times[False])}",
            f"sharing gains {gain:.2f} times; scores differ by {difference:.1e}",
        ]
        peak, planned = peaks(model, count)
        lines.append(f"peak {peak:,} bytes, planned {planned:,} ({planned / peak:.2f})")
    if gain < GAIN_BAR:
        missed.append(f"sharing gains {gain:.2f}, {GAIN_BAR} required")
    if difference > SCORE_BAR:
        missed.append(f"scores differ by {difference:.1e}, {SCORE_BAR} allowed")
    if peak > planned:
        missed.append("the peak is above its plan")
    lines.append("all bars met" if not missed else "MISSED: " + "; ".join(missed))
    print(*lines, sep="\n")
    if arguments.write:
        out = Path(__file__).parent / "results" / f"qwen3_rerank_gpu_{model.device.kind}.txt"
        out.write_text("\n".join(lines) + "\n")
    sys.exit(1 if missed else 0)


def peaks(model: engine.Model, count: int) -> tuple[int, int]:
    """(measured, planned) peak of a call with sharing: of the shared tokens or of the rest, whichever is higher."""
    scorer: Any = model._runtime.scorer()
    documents = ["a" * 300] * (count - 1) + ["b" * 300]
    plan, shared = scorer._plan(scorer.tokeniser("q" * 40, documents), True)
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    model.rerank("q" * 40, documents)
    first = scorer._first_plan(shared).peak if shared else 0
    return mx.get_peak_memory(), max(plan.peak, first)


if __name__ == "__main__":
    main()
