"""Qwen3 on a GPU against mlx-lm and mlx-embeddings: one short text, prefill of many shapes, one long text, decoding.

    python benchmarks/qwen3_gpu.py [--write] [--only one|prefill|long|decode] [--tiny]

Random weights in the shape of Qwen3-Embedding-0.6B, bfloat16, the same for all. Every figure is the median of five runs
after one that is not counted, and the contestants take turns, so that a machine that slows down slows all.
mlx-embeddings takes part where it is installed. `--tiny` runs small shapes, to see that the script works. Exits 1 when
a bar is missed.
"""

from __future__ import annotations

import archport  # isort: skip  (before mlx, which it prepares)

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from archport import engine
from archport.contract.plugins import claim, discover
from archport.device.mlx_lm import reused
from archport.running.steps import batch_caches
from archport.testing.plans import planned
from archport.testing.writing import tokenizer

RUNS = 5
SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
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
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "vocab_size": 512,
    "num_attention_heads": 8,
}
TABLE = ((1, 16), (1, 512), (32, 128), (32, 512), (8, 2048), (1, 32768))
LONG = 32768
ONE, ONE_RUNS = (16, 128, 512), 40
PROMPT, FEW, MANY = 128, 16, 272
# Of the time of mlx-lm's trunk, plain and under one mx.compile, for a text from its string to its vector.
ONE_BARS = (0.8, 1.0)
# Bars: of mlx-lm's trunk at every shape, of mlx-embeddings on the long text, of mlx-lm's decoding.
PREFILL_BAR, LONG_BAR, DECODE_BAR = 0.97, 2.9, 1.0


def make(folder: Path, config: dict[str, Any]) -> Any:
    """mlx-lm's model with random weights, and the same as a checkpoint on disk."""
    arguments = reused("models.qwen3.ModelArgs").from_dict({**config, "rope_scaling": None})
    model = reused("models.qwen3.Model")(arguments)
    model.update(tree_map(lambda x: x.astype(mx.bfloat16), model.parameters()))
    mx.eval(model.parameters())
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "pt"})
    _, spec = claim(config, discover())
    tokenizer(spec).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>"})
    )
    model.eval()
    return model


def say(lines: list[str], *more: str) -> None:
    """Print lines as they are found, and keep them for the file."""
    lines += more
    print(*more, sep="\n", flush=True)


def race(contestants: dict[str, Callable[[], object]], runs: int = RUNS, warm: int = 1) -> dict[str, float]:
    """Median seconds of each, taken in turns, after `warm` ones that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in range(runs + warm):
        for name, work in contestants.items():
            mx.synchronize()
            started = time.perf_counter()
            work()
            mx.synchronize()
            if run >= warm:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()}


def ours(model: engine.Model, ids: np.ndarray) -> Callable[[], object]:
    """The trunk as `embed` runs it, to the last hidden state of every row."""
    encoder = model._runtime.encoder
    plan = planned(encoder.plan, [ids.shape[1]] * ids.shape[0])

    def work() -> None:
        for batch in plan.batches:
            rows = [ids[row] for row in batch.rows]
            mx.eval(encoder.last_hidden(plan, batch, rows, batch_caches(encoder.spec, plan, batch)))

    return work


def text_of(model: engine.Model, tokens: int) -> str:
    """A text of so many tokens."""
    for end in ("", "a", " a", "\n"):
        text = " a" + end
        while (count := model.count_tokens([text])[0]) < tokens:
            text = " a" + text
        if count == tokens:
            return text
    raise SystemExit(f"no text of {tokens} tokens was found")


def one_text(model: engine.Model, theirs: Any, table: Any, lines: list[str], missed: list[str]) -> None:
    """One short text at a time: the host's work, which the trunks of the others are spared before and behind theirs."""
    say(lines, "", f"one text, ms, medians of {ONE_RUNS} in turns")
    say(lines, f"{'tokens':<12}{'mlx-lm':>12}{'compiled':>12}{'archport':>12}{'ratios':>14}")
    for L in table:
        text = text_of(model, L)
        fed = mx.array(np.random.default_rng(L).integers(0, model.spec.vocab_size, (1, L)).astype(np.int32))
        compiled: Any = mx.compile(lambda ids: theirs.model(ids))
        found = race(
            {
                "mlx-lm": lambda fed=fed: mx.eval(theirs.model(fed)),
                "compiled": lambda fed=fed, compiled=compiled: mx.eval(compiled(fed)),
                "archport": lambda text=text: model.embed([text]),
            },
            ONE_RUNS,
            warm=5,
        )
        ratios = [found["archport"] / found[name] for name in ("mlx-lm", "compiled")]
        ms = [1e3 * found[name] for name in ("mlx-lm", "compiled", "archport")]
        say(lines, f"{L:<12}{ms[0]:>12.3f}{ms[1]:>12.3f}{ms[2]:>12.3f}{ratios[0]:>8.2f}{ratios[1]:>6.2f}")
        for ratio, bar, name in zip(ratios, ONE_BARS, ("mlx-lm's trunk", "the same compiled"), strict=True):
            if ratio > bar:
                missed.append(f"one text of {L} tokens takes {ratio:.2f} of {name}, {bar} required")


def prefill(model: engine.Model, theirs: Any, table: Any, lines: list[str], missed: list[str]) -> None:
    say(lines, "", "prefill, tokens/s", f"{'B x L':<12}{'mlx-lm':>12}{'archport':>12}{'ratio':>8}")
    above = 0
    for B, L in table:
        ids = np.random.default_rng(B * L).integers(0, model.spec.vocab_size, (B, L)).astype(np.int32)
        fed = mx.array(ids)
        found = race({"mlx-lm": lambda fed=fed: mx.eval(theirs.model(fed)), "archport": ours(model, ids)})
        ratio = found["mlx-lm"] / found["archport"]
        above += ratio > 1
        rates = [B * L / found[name] for name in ("mlx-lm", "archport")]
        say(lines, f"{f'{B} x {L}':<12}{rates[0]:>12,.0f}{rates[1]:>12,.0f}{ratio:>8.2f}")
        if ratio < PREFILL_BAR:
            missed.append(f"prefill {B} x {L} at {ratio:.2f} of mlx-lm, {PREFILL_BAR} required")
    say(lines, f"above mlx-lm at {above} of {len(table)} shapes")
    if above * 2 <= len(table):
        missed.append("prefill above mlx-lm at most shapes")


def long_text(model: engine.Model, folder: Path, length: int, lines: list[str], missed: list[str]) -> None:
    try:
        from mlx_embeddings import load  # pyright: ignore[reportMissingImports]
    except ImportError:
        say(lines, "", "mlx-embeddings is not installed; the long text is not compared")
        return
    (folder / "modules.json").unlink(missing_ok=True)
    peer, _ = load(str(folder))
    ids = np.random.default_rng(1).integers(0, model.spec.vocab_size, (1, length)).astype(np.int32)
    fed, mask = mx.array(ids), mx.ones((1, length), dtype=mx.int32)
    found = race(
        {
            "mlx-embeddings": lambda: mx.eval(peer(fed, attention_mask=mask).text_embeds),
            "archport": ours(model, ids),
        }
    )
    ratio = found["mlx-embeddings"] / found["archport"]
    say(lines, "", f"one text of {length:,} tokens: mlx-embeddings {metadata.version('mlx-embeddings')}")
    say(lines, *(f"  {name:<15}{seconds:.4f} s, {length / seconds:,.0f} tokens/s" for name, seconds in found.items()))
    say(lines, f"  ratio {ratio:.2f}")
    if ratio < LONG_BAR:
        missed.append(f"long text at {ratio:.2f} of mlx-embeddings, {LONG_BAR} required")


def decode(model: engine.Model, theirs: Any, few: int, many: int, lines: list[str], missed: list[str]) -> None:
    """Tokens/s between the `few`-th and the `many`-th token, so that reading the prompts counts for nobody."""
    step, batched = reused("generate.generate_step"), reused("generate.batch_generate")
    stub = SimpleNamespace(eos_token_ids=[], decode=lambda *_, **__: "", detokenizer=None)
    say(lines, "", "decoding, tokens/s", f"{'B':<12}{'mlx-lm':>12}{'archport':>12}{'ratio':>8}")
    for B, ragged in ((1, False), (32, False), (32, True)):
        rng = np.random.default_rng(B)
        lengths = [PROMPT - (3 * row if ragged else 0) for row in range(B)]
        prompts = [rng.integers(0, model.spec.vocab_size, n).astype(np.int32) for n in lengths]

        def mlx_lm(count: int, B: int = B, prompts: list[np.ndarray] = prompts) -> None:
            if B == 1:
                for token, _ in step(mx.array(prompts[0]), theirs, max_tokens=count):
                    int(token)
                return
            batched(
                theirs, stub, [each.tolist() for each in prompts], max_tokens=count, prefill_batch_size=B,
                completion_batch_size=B,
            )  # fmt: skip

        def archport_(count: int, prompts: list[np.ndarray] = prompts) -> None:
            made = model.generate(prompts, max_tokens=count)
            assert all(len(each.tokens) == count for each in made)  # pyright: ignore

        found = race(
            {
                "mlx-lm few": lambda f=mlx_lm: f(few),
                "mlx-lm many": lambda f=mlx_lm: f(many),
                "archport few": lambda f=archport_: f(few),
                "archport many": lambda f=archport_: f(many),
            }
        )
        rates = [B * (many - few) / (found[f"{name} many"] - found[f"{name} few"]) for name in ("mlx-lm", "archport")]
        ratio = rates[1] / rates[0]
        name = f"{B} ragged" if ragged else f"{B}"
        say(lines, f"{name:<12}{rates[0]:>12,.0f}{rates[1]:>12,.0f}{ratio:>8.2f}")
        if ratio < DECODE_BAR:
            missed.append(f"decoding {name} at {ratio:.2f} of mlx-lm, {DECODE_BAR} required")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--only", choices=("one", "prefill", "long", "decode"))
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a look at the script")
    arguments = parser.parse_args()
    config = {**SHAPE, **(SMALL if arguments.tiny else {})}
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        theirs = make(folder, config)
        model = engine.load(folder, dtype="checkpoint", prefix_cache=0)
        lines: list[str] = []
        say(
            lines,
            f"archport {archport.__version__}, mlx {model.device.mlx_version}, mlx-lm {metadata.version('mlx-lm')}, "
            f"python {platform.python_version()}, {model.device.name}",
            f"{config['num_hidden_layers']} layers of {config['hidden_size']}, bfloat16, medians of {RUNS} in turns",
        )
        if arguments.only in (None, "one"):
            one_text(model, theirs, (16,) if arguments.tiny else ONE, lines, missed)
        if arguments.only in (None, "prefill"):
            prefill(model, theirs, ((1, 16), (2, 64)) if arguments.tiny else TABLE, lines, missed)
        if arguments.only in (None, "long"):
            long_text(model, folder, 256 if arguments.tiny else LONG, lines, missed)
        if arguments.only in (None, "decode"):
            decode(model, theirs, 4 if arguments.tiny else FEW, 24 if arguments.tiny else MANY, lines, missed)
    say(lines, "", "all bars met" if not missed else "MISSED: " + "; ".join(missed))
    if arguments.write:
        out = Path(__file__).parent / "results" / f"qwen3_gpu_{model.device.kind}.txt"
        out.write_text("\n".join(lines) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
