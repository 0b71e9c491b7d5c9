"""Qwen3 on a CPU: the memory of one text of 16,384 tokens, and what reranking gains from what all pairs begin with.

    python benchmarks/qwen3_cpu.py [--write]

Random weights, float32. The embedding runs a small trunk of two heads, whose memory is the text's and not the weights'.
Reranking takes 64 documents of 300 tokens behind 200 that all pairs share, with and without sharing in turns, five
times each behind a first round that is not counted; the gain is that of the medians. The tokens around a pair are as
many as the published tokenizer's: nine behind the document. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import archport  # isort: skip  (before mlx, which it prepares)

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from archport import engine
from archport.contract import Example
from archport.contract.plugins import claim, discover
from archport.testing.writing import random_weights, write_checkpoint

TRUNK: dict[str, Any] = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 768,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 512,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
RERANKER = {**TRUNK, "architectures": ["Qwen3ForCausalLM"], "hidden_size": 512, "intermediate_size": 1536}
TOKENS, DOCUMENTS, BODY, SHARED = 16384, 64, 300, 200
ROUNDS = 5
# What the published tokenizer reads as one token each, of the text around a pair; the rest is one per character.
WORDS = ("yes", "no", "assistant", "system", "<think>", "</think>", "\n\n", "Document", "requirements", "Judge whether")
GAIN_BAR, SCORE_BAR = 1.4, 1e-5


def built(folder: Path, config: dict[str, Any], words: tuple[str, ...] = ()) -> engine.Model:
    """A loaded model with random weights and a tokenizer of one token per character."""
    (plugin, spec) = claim(config, discover())
    assert plugin.module is not None
    trunk = plugin.module.archport_build(spec, config)
    write_checkpoint(folder, config, random_weights(trunk, Example("bench", config)), spec)
    if words:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens(list(words))
        tokenizer.save(str(folder / "tokenizer.json"))
    return engine.load(folder)


def embedding_peak(model: engine.Model) -> tuple[int, int, float]:
    """(measured peak, planned peak, seconds) of embedding one long text."""
    text = "a" * (TOKENS - 1)
    model.embed(text[:100])
    plan = model.plan([TOKENS])
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    started = time.perf_counter()
    assert np.isfinite(model.embed(text)).all()
    return mx.get_peak_memory(), plan.peak, time.perf_counter() - started


def rerank_gain(model: engine.Model, count: int = DOCUMENTS) -> tuple[dict[bool, list[float]], float, int, int]:
    """(seconds of every round with and without sharing, largest difference of scores, shared tokens, a pair's)."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    rng = np.random.default_rng(0)
    scorer: Any = model._runtime.scorer()
    # One token per character: the query fills up what the published text leaves of the shared tokens.
    documents = ["".join(rng.choice(letters, BODY)) for _ in range(count)]
    query = "q" * (1 + SHARED - scorer._plan(scorer.tokeniser("q", documents, instruction=""), True)[1])
    rows = scorer.tokeniser(query, documents, instruction="")
    shared = scorer._plan(rows, True)[1]
    times: dict[bool, list[float]] = {True: [], False: []}
    scores: dict[bool, np.ndarray] = {}
    for run in range(1 + ROUNDS):
        # Each is first in every other round, so that neither has the quieter half of a busy machine.
        for share in (True, False) if run % 2 else (False, True):
            started = time.perf_counter()
            ranked = model.rerank(query, documents, instruction="", share_prefix=share)
            if run:
                times[share].append(time.perf_counter() - started)
            scores[share] = np.array([each.score for each in sorted(ranked, key=lambda each: each.index)])
    return times, float(np.abs(scores[True] - scores[False]).max()), shared, max(map(len, rows))


def told(seconds: list[float]) -> str:
    """Median and range of some times."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    arguments = parser.parse_args()
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        (folder := Path(scratch) / "Qwen3-Embedding").mkdir()
        model = built(folder, TRUNK)
        lines = [
            f"archport {archport.__version__}, mlx {model.device.mlx_version}, python {platform.python_version()}, "
            f"{model.device.name}"
        ]
        peak, planned, seconds = embedding_peak(model)
        lines.append(
            f"one text of {TOKENS:,} tokens: peak {peak:,} bytes, planned {planned:,} ({planned / peak:.2f}), "
            f"{seconds:.1f} s"
        )
        if peak > planned:
            missed.append("the long text above its plan")
        (folder := Path(scratch) / "Qwen3-Reranker").mkdir()
        times, difference, shared, pair = rerank_gain(built(folder, RERANKER, WORDS))
        gain = statistics.median(times[False]) / statistics.median(times[True])
        lines += [
            f"{DOCUMENTS} documents of {BODY} tokens behind {shared} shared ones, pairs of {pair}: "
            f"{told(times[True])}, without sharing {told(times[False])}",
            f"sharing gains {gain:.2f} times; scores differ by {difference:.1e}",
        ]
        if gain < GAIN_BAR:
            missed.append(f"sharing gains {gain:.2f}, {GAIN_BAR} required")
        if difference > SCORE_BAR:
            missed.append(f"scores differ by {difference:.1e}, {SCORE_BAR} allowed")
    lines.append("all bars met" if not missed else "MISSED: " + "; ".join(missed))
    print(*lines, sep="\n")
    if arguments.write:
        (Path(__file__).parent / "results" / "qwen3_cpu.txt").write_text("\n".join(lines) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
