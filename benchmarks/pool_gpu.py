"""On a GPU: what a process holds after requests of ever new lengths, and what limiting the pool of freed buffers costs.

    python benchmarks/pool_gpu.py [--write] [--requests 300] [--tiny]

Random weights in the shape of Qwen3-Embedding-0.6B, bfloat16. First 300 requests of 1 to 32 texts of 5 to 1,500
tokens: the device's memory as its driver reports it, less what the process holds beside its active bytes after one text
of 5 tokens (CUDA context, kernels, library workspaces; stated). Then 4,096 texts with and without archport's limit, in
turns in one process. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import archport  # isort: skip  (before mlx, which it prepares)

import argparse
import gc
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from tokenizers import Tokenizer, models, pre_tokenizers

from archport import engine
from archport.device import pool as pools
from archport.device.facts import this_device
from archport.device.mlx_lm import reused
from archport.planning import Planner

RUNS = 5
SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
TINY = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "vocab_size": 512}
# Of the largest plan's transient, what the process may hold beside its weights, and a constant; of the unlimited rate.
SHARE, CONSTANT, RATE = 1.25, 10**9, 0.98


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """Random weights, and a tokenizer of whole words, so that a text of n words has n tokens."""
    arguments = reused("models.qwen3.ModelArgs").from_dict({**config, "rope_scaling": None})
    model = reused("models.qwen3.Model")(arguments)
    model.update(tree_map(lambda x: x.astype(mx.bfloat16), model.parameters()))
    weights = {name.removeprefix("model."): value for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    write_tokenizer(folder, config)


def write_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    """A tokenizer of whole words, the config, and a pipeline that pools the last token."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config["vocab_size"])}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    files: dict[str, Any] = {
        "config.json": config,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "eos_token": "w1"},
        "sentence_bert_config.json": {"max_seq_length": 8192, "do_lower_case": False},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_N", "Normalize")))
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": config["hidden_size"], "pooling_mode_lasttoken": True},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def text(generator: random.Random, length: int) -> str:
    """So many words that the vocabulary of every size has."""
    return " ".join(f"w{generator.randrange(2, 500)}" for _ in range(length))


def device_memory() -> int:
    """Bytes of the device that are in use, as its driver reports them; no other process uses it."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError:
        return mx.get_active_memory() + mx.get_cache_memory()
    return int(answer.split()[0]) * 2**20


def requests(model: engine.Model, count: int, lines: list[str], missed: list[str]) -> None:
    """Random requests, and what the device holds behind them."""
    plans: list[Any] = []
    plan = Planner.__call__

    def keeping(*arguments: Any, **options: Any) -> Any:
        plans.append(plan(*arguments, **options))
        return plans[-1]

    generator = random.Random(1)
    model.embed([text(generator, 5)])
    mx.synchronize()
    beside = device_memory() - mx.get_active_memory()
    weights = mx.get_active_memory()
    Planner.__call__ = keeping
    most = tokens = 0
    started = time.perf_counter()
    try:
        for index in range(count):
            lengths = [generator.randint(5, 1500) for _ in range(generator.randint(1, 32))]
            model.embed([text(generator, length) for length in lengths])
            tokens += sum(lengths)
            if index % 10 == 9:
                most = max(most, device_memory())
    finally:
        Planner.__call__ = plan
    seconds = time.perf_counter() - started
    gc.collect()
    mx.synchronize()
    after, transient = device_memory(), max(each.moving for each in plans)
    bound = weights + round(SHARE * transient) + CONSTANT
    lines += [
        f"{count} requests of 1 to 32 texts of 5 to 1,500 tokens: {tokens:,} tokens in {seconds:.1f} s, "
        f"{tokens / seconds:,.0f} tokens/s (texts made meanwhile)",
        f"  largest plan: peak {max(each.peak for each in plans):,}, transient {transient:,}, pool "
        f"{max(each.pool for each in plans):,} bytes; MLX's peak {mx.get_peak_memory():,}",
        f"  device memory after one text of 5 tokens: {beside + weights:,}, of which active {weights:,}",
        f"  device memory after all: {after:,}, during: {most:,} at most; active {mx.get_active_memory():,}, pool "
        f"{mx.get_cache_memory():,}, limit {pools.pool().limit:,}",
        f"  less {beside:,} beside active bytes: {after - beside:,} of {bound:,} (weights, {SHARE} x transient, 1 GB)",
    ]
    if after - beside > bound:
        missed.append(f"{after - beside:,} bytes held, {bound:,} allowed")


def throughput(model: engine.Model, count: int, lines: list[str], missed: list[str]) -> None:
    """A corpus with and without the limit, in turns."""
    rng = np.random.default_rng(1)
    generator = random.Random(2)
    lengths = np.clip(np.exp(rng.normal(5.0, 0.9, count)), 8, 2048).astype(int).tolist()
    texts, tokens = [text(generator, length) for length in lengths], sum(lengths)
    hold = pools.Pool.hold
    seconds: dict[str, list[float]] = {"limited": [], "unlimited": []}
    vectors: dict[str, np.ndarray] = {}
    for run in range(RUNS + 1):
        for name in seconds:
            if name == "unlimited":
                pools.Pool.hold = lambda self, needed, room: 0
                usual = mx.set_cache_limit(2**60)
            started = time.perf_counter()
            vectors[name] = model.embed(texts)
            took = time.perf_counter() - started
            if name == "unlimited":
                pools.Pool.hold = hold
                mx.set_cache_limit(usual)
            if run:
                seconds[name].append(took)
            mx.clear_cache()
    rates = {name: tokens / statistics.median(each) for name, each in seconds.items()}
    ratio = rates["limited"] / rates["unlimited"]
    lines += [f"{count} texts, {tokens:,} tokens, {RUNS} runs each in turns, pool emptied between them:"]
    lines += [
        f"  {name}: {rates[name]:,.0f} tokens/s; runs {', '.join(f'{each:.3f}' for each in found)}"
        for name, found in seconds.items()
    ]
    lines += [f"  limited / unlimited: {ratio:.3f}; largest difference {np.abs(np.subtract(*vectors.values())).max()}"]
    if ratio < RATE:
        missed.append(f"{ratio:.3f} of the unlimited rate, {RATE} required")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    arguments = parser.parse_args()
    device = this_device()
    config = {**SHAPE, **TINY} if arguments.tiny else SHAPE
    lines = [
        f"archport {archport.__version__}, mlx {device.mlx_version}, python {platform.python_version()}, {device.name}"
    ]
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoint(folder, config)
        gc.collect()
        mx.clear_cache()
        model = engine.load(folder)
        requests(model, arguments.requests, lines, missed)
        print(*lines, sep="\n", flush=True)
        at = len(lines)
        throughput(model, arguments.texts, lines, missed)
        lines.append("all bars met" if not missed else "MISSED: " + "; ".join(missed))
        print(*lines[at:], sep="\n")
    if arguments.write:
        path = Path(__file__).parent / "results" / f"pool_gpu_{device.kind}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(1 if missed and not arguments.tiny else 0)


if __name__ == "__main__":
    main()
