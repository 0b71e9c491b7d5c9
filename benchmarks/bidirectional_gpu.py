"""On a GPU: encoders on texts of mixed length against sentence-transformers, and 32 x 8,192 tokens of ModernBERT.

    python benchmarks/bidirectional_gpu.py [--write]
    python benchmarks/bidirectional_gpu.py --tiny        # a quick look at small shapes; checks no bar, writes nothing

Random weights in the shapes of BERT-base and ModernBERT-base, bfloat16, saved once as a checkpoint that both libraries
load. archport runs in this process; sentence-transformers (torch, sdpa) in one of its own, with `--python`. Both are
handed the same texts, so both tokenise, sort and batch by themselves. Tokens count without padding. sentence-
transformers runs with several batch sizes and its best one counts. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# archport is imported where it is needed: the worker's Python has torch and not MLX.
REQUIRED_SPEEDUP = 2.0
REQUIRED_COSINE = 0.99
MEMORY_BAR = 12 * 10**9
GROWTH = 2.2
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}
MODERNBERT = {
    "architectures": ["ModernBertModel"],
    "model_type": "modernbert",
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "vocab_size": 50368,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "reference_compile": False,
    "torch_dtype": "bfloat16",
}
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TINY = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}


# --- the worker: sentence-transformers, in a process and a Python of its own ---


def work(folder: str, job: str, answer: str) -> None:
    """Encode the job's texts with each batch size; write vectors and seconds."""
    import numpy as np
    import sentence_transformers
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    settings = json.loads(Path(job).read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    model = SentenceTransformer(folder, device=device, model_kwargs={"dtype": kind, "attn_implementation": "sdpa"})
    texts, seconds, vectors, peaks = settings["texts"], {}, None, {}
    for size in settings["batch_sizes"]:
        times = []
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(settings["runs"] + 1):
            started = time.perf_counter()
            vectors = model.encode(texts, batch_size=size, show_progress_bar=False)
            times.append(time.perf_counter() - started)
        seconds[str(size)] = times[1:]
        peaks[str(size)] = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    versions = (
        f"sentence-transformers {sentence_transformers.__version__}, transformers {transformers.__version__}, torch "
        f"{torch.__version__}, {model[0].auto_model.config._attn_implementation}, {kind}"
    )
    np.save(answer + ".npy", np.asarray(vectors, dtype=np.float32))
    Path(answer).write_text(json.dumps({"seconds": seconds, "peaks": peaks, "versions": versions}))


# --- the driver ---


def write_checkpoint(folder: Path, config: dict[str, Any], limit: int) -> None:
    """A checkpoint of random weights with a tokenizer of whole words and a pipeline: mean, unit length."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from archport.checkpoint import defaults, normalise_config
    from archport.contract.hooks import Hooks, Speaker
    from archport.contract.plugins import claim, discover

    plugin, spec = claim(normalise_config(config), discover())
    assert plugin.module is not None
    hooks = Hooks([Speaker("core defaults", defaults), Speaker(plugin.label, plugin.module)])
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {}
    for name, value in tree_flatten(hooks.build(spec, normalise_config(config)).parameters()):
        noise = 0.03 * rng.standard_normal(value.shape, dtype=np.float32)
        weights[name] = mx.array(noise if value.ndim > 1 else np.array(value) + noise).astype(mx.bfloat16)
    publish = next(each.publish for each in hooks.examples() if each.config["model_type"] == config["model_type"])
    assert publish is not None
    mx.save_safetensors(str(folder / "model.safetensors"), dict(publish(weights)), metadata={"format": "pt"})
    vocabulary = {name: index for index, name in enumerate(SPECIALS)}
    vocabulary |= {f"w{index}": index for index in range(len(SPECIALS), config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files: dict[str, Any] = {
        "config.json": config,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": limit,
            **{f"{name[1:-1].lower()}_token": name for name in SPECIALS},
        },
        "sentence_bert_config.json": {"max_seq_length": limit, "do_lower_case": False},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": config["hidden_size"],
            "pooling_mode_mean_tokens": True,
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def corpus(count: int, longest: int, vocabulary: int) -> tuple[list[str], int]:
    """Texts of random words with lengths like those of documents (lognormal), and their tokens, [CLS] and [SEP] too."""
    import numpy as np

    rng = np.random.default_rng(1)
    lengths = np.clip(np.exp(rng.normal(5.0, 0.9, count)), 8, longest).astype(int)
    texts = [" ".join(f"w{word}" for word in rng.integers(len(SPECIALS), vocabulary, length - 2)) for length in lengths]
    return texts, int(lengths.sum())


def timed(call: Callable[[], Any], runs: int) -> tuple[Any, list[float]]:
    """The last answer of `call` and the seconds of each run, after two that do not count."""
    answer, seconds = None, []
    for _ in range(runs + 2):
        started = time.perf_counter()
        answer = call()
        seconds.append(time.perf_counter() - started)
    return answer, seconds[2:]


def planned(model: Any, texts: list[str]) -> tuple[str, int]:
    """What the plans of one more run do, in a line, and their largest peak."""
    from archport.planning import Planner

    plans: list[Any] = []
    seconds = 0.0
    plan = Planner.__call__

    def keeping(*arguments: Any, **options: Any) -> Any:
        nonlocal seconds
        started = time.perf_counter()
        plans.append(plan(*arguments, **options))
        seconds += time.perf_counter() - started
        return plans[-1]

    Planner.__call__ = keeping
    try:
        model.embed(texts)
    finally:
        Planner.__call__ = plan
    used: Counter[str] = Counter()
    padded = real = 0
    for batch in (batch for each in plans for batch in each.batches):
        padded += batch.shape.B * batch.shape.L
        real += sum(batch.lengths)
        for step in batch.steps:
            for kind, path in zip(batch.kinds, step.paths, strict=True):
                if path is not None:
                    used[f"{kind.mask.kind}/{path.backend.name}"] += kind.count
    # Texts that had not run when more were tokenised are in two plans.
    batches, peak = sum(len(each.batches) for each in plans), max(each.peak for each in plans)
    paths = ", ".join(f"{name} {count}" for name, count in used.most_common())
    line = f"  planned in {seconds:.3f} s: {len(plans)} plans, {batches} batches, {padded / real - 1:.1%} padding, "
    return f"{line}peak {peak:,}; {paths}", peak


def throughput(name: str, config: dict[str, Any], arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(lines, missed bars) of one shape on the corpus."""
    import mlx.core as mx
    import numpy as np

    from archport import engine

    longest = 512 if name.startswith("BERT") else 2048
    texts, tokens = corpus(arguments.texts, longest, config["vocab_size"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        write_checkpoint(folder, config, longest)
        job, answer = Path(scratch) / "job.json", Path(scratch) / "answer.json"
        job.write_text(json.dumps({"texts": texts, "batch_sizes": arguments.batch_sizes, "runs": arguments.runs}))
        command = [arguments.python, str(Path(__file__).resolve()), "--worker", str(folder), str(job), str(answer)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"sentence-transformers failed:\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}")
        peer, vectors = json.loads(answer.read_text()), np.load(str(answer) + ".npy")
        model = engine.load(folder)
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        ours, seconds = timed(lambda: model.embed(texts), arguments.runs)
        peak = mx.get_peak_memory()
        lines = [
            f"{name}: {len(texts)} texts, {tokens:,} tokens, longest {longest}",
            f"  {peer['versions']}",
            f"  archport: {statistics.median(seconds):.3f} s, {tokens / statistics.median(seconds):,.0f} tokens/s, "
            f"peak {peak:,} bytes; runs {', '.join(f'{each:.3f}' for each in seconds)}",
        ]
        best = 0.0
        for size, times in peer["seconds"].items():
            rate = tokens / statistics.median(times)
            best = max(best, rate)
            lines.append(
                f"  sentence-transformers, batches of {size}: {statistics.median(times):.3f} s, {rate:,.0f} tokens/s, "
                f"peak {peer['peaks'][size]:,} bytes; runs {', '.join(f'{each:.3f}' for each in times)}"
            )
        told, expected = planned(model, texts)
        lines.append(told)
    ratio = tokens / statistics.median(seconds) / best
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(vectors, axis=1)
    cosine = float(((ours * vectors).sum(axis=1) / norms).min())
    lines.append(f"  archport / best of sentence-transformers: {ratio:.2f}x; least cosine {cosine:.5f}")
    missed = [f"{name} {ratio:.2f}x < {REQUIRED_SPEEDUP}x"] * (ratio < REQUIRED_SPEEDUP)
    missed += [f"{name} cosine {cosine:.4f}"] * (not cosine >= REQUIRED_COSINE)
    missed += [f"{name}: peak {peak:,} above the planned {expected:,}"] * (peak > expected)
    return lines, missed


def long_rows(config: dict[str, Any], arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(lines, missed bars) of 32 rows of the longest length, within the bar's bytes, equal and ragged."""
    import mlx.core as mx
    import numpy as np

    from archport import engine

    L, count = config["max_position_embeddings"], 4 if arguments.tiny else 32
    lines: list[str] = []
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        write_checkpoint(folder, config, L)
        rng = np.random.default_rng(2)
        for title, budget in (("no budget", None), ("a budget of 12 GB", MEMORY_BAR)):
            model = engine.load(folder, memory_budget=budget)
            for kind, lengths in (("equal", [L] * count), ("ragged", [L - 37 * i for i in range(count)])):
                words = [" ".join(f"w{w}" for w in rng.integers(5, config["vocab_size"], n - 2)) for n in lengths]
                model.embed(words[:1])
                mx.synchronize()
                mx.clear_cache()
                mx.reset_peak_memory()
                started = time.perf_counter()
                vectors = model.embed(words)
                seconds = time.perf_counter() - started
                peak, plan = mx.get_peak_memory(), model.plan(lengths)
                lines.append(
                    f"ModernBERT-base, {count} x {L} tokens, {kind}, {title}: peak {peak:,} bytes (predicted "
                    f"{plan.peak:,}), {seconds:.2f} s, {sum(lengths) / seconds:,.0f} tokens/s, {len(plan.batches)} "
                    "batches"
                )
                if not np.isfinite(vectors).all():
                    missed.append(f"{count} x {L} is not finite")
                if peak > MEMORY_BAR:
                    missed.append(f"{count} x {L}, {kind}, {title}: {peak:,} bytes")
            del model
            mx.clear_cache()
    return lines, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--python", default="python3", help="a Python with sentence-transformers")
    parser.add_argument("--only", choices=("bert", "modernbert", "memory"), help="one part")
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "JOB", "ANSWER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker)
        return
    import archport
    from archport.device.facts import this_device

    device = this_device()
    bert, modernbert = dict(BERT), dict(MODERNBERT)
    if arguments.tiny:
        bert |= {**TINY, "vocab_size": 500}
        modernbert |= {**TINY, "vocab_size": 500, "max_position_embeddings": 2048}
    lines = [
        f"archport {archport.__version__}, mlx {device.mlx_version}, python {platform.python_version()}, {device.name}"
    ]
    missed: list[str] = []
    for key, part in (
        ("bert", lambda: throughput("BERT-base", bert, arguments)),
        ("modernbert", lambda: throughput("ModernBERT-base", modernbert, arguments)),
        ("memory", lambda: long_rows(modernbert, arguments)),
    ):
        if arguments.only in (None, key):
            found, bad = part()
            print(*found, sep="\n", flush=True)
            lines, missed = lines + found, missed + bad
    lines.append("all bars met" if not missed else "MISSED: " + "; ".join(missed))
    print(lines[0], lines[-1], sep="\n")
    if arguments.tiny:
        return
    if arguments.write:
        path = Path(__file__).parent / "results" / f"bidirectional_gpu_{device.kind}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
