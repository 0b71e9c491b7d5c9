"""On a GPU: four layers of Qwen3.5-4B's shape against mlx-lm and transformers, and 131,072 tokens within their plan.

    python benchmarks/qwen35_gpu.py [--write] [--python PYTHON_WITH_TORCH]
    python benchmarks/qwen35_gpu.py --tiny        # a quick look at small shapes on any device; checks no speed

First the gated delta rule's kernel against float64, then its time beside the chunked form's. Then whole layers, random
weights, bfloat16: archport and mlx-lm in this process, transformers (torch, its chunk rule, sdpa) in one of its own.
Medians after a warm-up. Last a prefill in planned chunks with its caches. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from archport.testing.plans import planned

# archport is imported where it is needed: the worker's Python has torch and not MLX.
LAYERS = ["linear_attention"] * 3 + ["full_attention"]
SHAPE = {
    "hidden_size": 2560,
    "intermediate_size": 9216,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "vocab_size": 8192,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262_144,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "vocab_size": 199,
}
ROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10]}
# Tokens -> required tokens/s over (mlx-lm's, transformers').
BARS = {128: (5.0, None), 512: (None, None), 2048: (25.0, 3.0)}
EXACT = 2e-6
# Milliseconds of the rule over 8,192 tokens, and tokens a second of the long prefill; both of an H200.
RULE, PREFILL_RATE = 1.5, 150_000
PREFILL = 131_072


def seconds(run: Callable[[], Any], finish: Callable[[], None], runs: int) -> list[float]:
    """Seconds of each run after one that warms up."""
    times: list[float] = []
    for _ in range(runs + 1):
        finish()
        started = time.perf_counter()
        run()
        finish()
        times.append(time.perf_counter() - started)
    return times[1:]


def torch_worker(shape: dict[str, Any], lengths: list[int], runs: int) -> None:
    """Print transformers' median seconds per length as JSON; runs where torch is."""
    import torch
    import transformers
    from transformers import Qwen3_5TextConfig, Qwen3_5TextModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rope = ROPE if shape["head_dim"] == 256 else {**ROPE, "mrope_section": [2, 1, 1]}
    config = Qwen3_5TextConfig(**shape, layer_types=LAYERS, rope_parameters=rope)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = Qwen3_5TextModel(config).to(device=device, dtype=dtype).eval()
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    found: dict[str, float] = {}
    with torch.inference_mode():
        for length in lengths:
            ids = torch.randint(0, shape["vocab_size"], (1, length), device=device)
            found[str(length)] = statistics.median(
                seconds(lambda ids=ids: model(input_ids=ids, use_cache=False), finish, runs)
            )
    versions = (
        f"transformers {transformers.__version__}, torch {torch.__version__}, {model.config._attn_implementation}"
    )
    print(json.dumps({"versions": versions, "seconds": found}))


def rule_cases(heads: tuple[int, int, int, int], tokens: int) -> Iterator[tuple[str, list[Any]]]:
    """Inputs that break careless forms, float32, by name."""
    import numpy as np

    Hk, Hv, Dk, Dv = heads
    for name in ("random", "slow decay", "correlated keys", "identical keys", "decay spikes", "resets"):
        rng = np.random.default_rng(0)
        q, k = rng.normal(size=(2, tokens, Hk, Dk)), rng.normal(size=(2, tokens, Hk, Dk))
        v, decay = rng.normal(size=(2, tokens, Hv, Dv)), -rng.exponential(0.3, size=(2, tokens, Hv))
        beta, state = rng.uniform(size=(2, tokens, Hv)), 0.3 * rng.normal(size=(2, Hv, Dk, Dv))
        if name == "slow decay":
            decay *= 1e-4
        elif name == "correlated keys":
            k, beta, decay = 0.1 * k + rng.normal(size=(2, 1, Hk, Dk)), np.full(beta.shape, 0.98), decay * 1e-3
        elif name == "identical keys":
            k, beta, decay = np.broadcast_to(k[:, :1], k.shape), np.full(beta.shape, 0.999), np.zeros(decay.shape)
        elif name == "decay spikes":
            decay[:, 5::11] = -2000.0
        elif name == "resets":
            decay[:, [0, 37, 64, tokens - 1]] = -np.inf
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
        yield name, [x.astype(np.float32) for x in (q * Dk**-0.5, k, v, decay, beta, state)]


def float64_rule(case: list[Any]) -> tuple[Any, Any]:
    """The definition, token by token."""
    import numpy as np

    q, k, v, decay, beta, S = (x.astype(np.float64) for x in case)
    repeat, y = v.shape[2] // k.shape[2], np.zeros(v.shape)
    q, k = np.repeat(q, repeat, 2), np.repeat(k, repeat, 2)
    for t in range(q.shape[1]):
        S = np.exp(decay[:, t])[..., None, None] * S
        u = beta[:, t, :, None] * (v[:, t] - np.einsum("bhkv,bhk->bhv", S, k[:, t]))
        S = S + k[:, t, ..., None] * u[:, :, None]
        y[:, t] = np.einsum("bhkv,bhk->bhv", S, q[:, t])
    return y, S


def check_rule(heads: tuple[int, int, int, int], kernel: bool, lines: list[str], missed: list[str]) -> None:
    """The kernel (or, without one, the chunked form) against float64."""
    import mlx.core as mx
    import numpy as np

    from archport.kernels import gated_delta as gated_delta_kernels
    from archport.layers import gated_delta

    def error(got: Any, want: Any) -> float:
        got = np.array(got.astype(mx.float32))
        return float(np.abs(got - want).max() / np.abs(want).max()) if np.isfinite(got).all() else float("inf")

    for name, case in rule_cases(heads, 301):
        want, arrays = float64_rule(case), [mx.array(x) for x in case]
        forms = {"chunks of 64": gated_delta.chunked(*arrays, 64)}
        if kernel:
            forms["kernel"] = gated_delta_kernels.cuda(*arrays)
            low = [x.astype(mx.bfloat16) for x in arrays[:3]] + arrays[3:]
            rounded = float64_rule([np.array(x.astype(mx.float32)) for x in low])
            answer = gated_delta_kernels.cuda(*low)
            sixteen = (error(answer[0], rounded[0]), error(answer[1], rounded[1]))
            if sixteen[0] > 2**-7 or sixteen[1] > EXACT:
                missed.append(f"kernel on {name} in bfloat16: {sixteen[0]:.1e}, state {sixteen[1]:.1e}")
        errors = {form: max(error(a, b) for a, b in zip(found, want, strict=True)) for form, found in forms.items()}
        told = ", ".join(f"{form} {each:.1e}" for form, each in errors.items())
        lines.append(f"rule, {heads[1]} heads, {name}: {told}")
        # The chunked form's products may run in TF32 on a GPU: only what plans take there has a bar.
        counted = errors["kernel" if kernel else "chunks of 64"]
        if counted > EXACT:
            missed.append(f"rule on {name}: {counted:.1e} above {EXACT:.0e}")


def time_rule(
    heads: tuple[int, int, int, int], kernel: bool, lengths: list[int], lines: list[str], missed: list[str]
) -> None:
    import mlx.core as mx

    from archport.kernels import gated_delta as gated_delta_kernels
    from archport.layers import gated_delta

    Hk, Hv, Dk, Dv = heads
    for T in lengths:
        q, k = (mx.random.normal((1, T, Hk, Dk)).astype(mx.bfloat16) * Dk**-0.5 for _ in range(2))
        v = mx.random.normal((1, T, Hv, Dv)).astype(mx.bfloat16)
        decay, beta, S = (
            -mx.random.uniform(shape=(1, T, Hv)),
            mx.random.uniform(shape=(1, T, Hv)),
            mx.zeros((1, Hv, Dk, Dv)),
        )
        mx.eval(q, k, v, decay, beta, S)
        wide = [x.astype(mx.float32) for x in (q, k, v)]
        mx.eval(wide)
        forms = {"chunks of 64": lambda wide=wide, g=(decay, beta, S): mx.eval(gated_delta.chunked(*wide, *g, 64))}
        if kernel:
            forms["kernel"] = lambda a=(q, k, v, decay, beta, S): mx.eval(gated_delta_kernels.cuda(*a))
        times = {form: statistics.median(seconds(run, mx.synchronize, 5)) for form, run in forms.items()}
        lines.append(f"rule, one layer, {T} tokens: " + ", ".join(f"{f} {1e3 * t:.2f} ms" for f, t in times.items()))
        if kernel and T == 8192 and 1e3 * times["kernel"] > RULE:
            missed.append(f"rule of {T} tokens: {1e3 * times['kernel']:.2f} ms, {RULE} required")


def built(shape: dict[str, Any], dtype: Any) -> tuple[Any, Any, Any, Any]:
    """archport's trunk of these layers with random weights, its spec, its hooks, and what makes its planner."""
    import runpy

    memory = runpy.run_path(str(Path(__file__).with_name("model_memory.py")))
    config = {
        **shape,
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "layer_types": LAYERS,
        "rope_parameters": ROPE,
    }
    return (*memory["built"](config, dtype), memory["planner_for"])


def mlx_lm_trunk(shape: dict[str, Any], dtype: Any) -> Any:
    import mlx.core as mx
    from mlx.utils import tree_map

    from archport.device.mlx_lm import reused

    settings = {**shape, "model_type": "qwen3_5_text", "rope_parameters": dict(ROPE)}
    model = reused("models.qwen3_5.Qwen3_5TextModel")(reused("models.qwen3_5.TextModelArgs").from_dict(settings))
    model.update(tree_map(lambda array: (mx.random.normal(array.shape) * 0.02).astype(dtype), model.parameters()))
    mx.eval(model.parameters())
    return model


def compare(shape: dict[str, Any], peer: dict[str, Any] | None, runs: int, tiny: bool) -> tuple[list[str], list[str]]:
    """Tokens per second of whole layers; (lines, missed bars)."""
    import mlx.core as mx
    import numpy as np

    from archport.device.facts import this_device
    from archport.running.encode import Encoder
    from archport.running.steps import run_steps

    gpu = this_device().kind != "cpu"
    dtype = mx.bfloat16 if gpu else mx.float32
    trunk, spec, hooks, planner_for = built(shape, dtype)
    encoder = Encoder(trunk, spec, planner_for(trunk, spec, hooks, this_device().default_budget))
    other = mlx_lm_trunk(shape, dtype)
    lines, missed = [], []
    for tokens, (over_mlx, over_torch) in BARS.items():
        ids = np.random.default_rng(0).integers(0, shape["vocab_size"], tokens).astype(np.int32)
        plan = planned(encoder.plan, [tokens])
        (batch,) = plan.batches

        def ours(plan: Any = plan, batch: Any = batch, ids: Any = ids) -> None:
            for _, hidden in run_steps(trunk, plan, batch, [ids]):
                mx.eval(hidden)

        theirs = mx.array(ids[None])
        rates = {
            "archport": tokens / statistics.median(seconds(ours, mx.synchronize, runs)),
            "mlx-lm": tokens / statistics.median(seconds(lambda x=theirs: mx.eval(other(x)), mx.synchronize, 2)),
        }
        if peer is not None:
            rates["transformers"] = tokens / peer["seconds"][str(tokens)]
        lines.append(f"four layers, {tokens} tokens: " + ", ".join(f"{n} {r:,.0f} tokens/s" for n, r in rates.items()))
        forms = {path.form for path in batch.steps[0].paths if hasattr(path, "form")}
        lines[-1] += f"; form {', '.join(sorted(forms))}"
        for name, bar in (("mlx-lm", over_mlx), ("transformers", over_torch)):
            if bar is None:
                continue
            if name not in rates:
                missed.append(f"{tokens} tokens: {name} did not run")
            elif rates["archport"] < bar * rates[name] and not tiny:
                missed.append(f"{tokens} tokens: {rates['archport'] / rates[name]:.1f} times {name}, {bar} required")
            else:
                lines[-1] += f"; {rates['archport'] / rates[name]:.1f} times {name} ({bar} required)"
    more, also = prefill(encoder, shape, 2048 if tiny else PREFILL)
    return [*lines, *more], [*missed, *also]


def prefill(encoder: Any, shape: dict[str, Any], tokens: int) -> tuple[list[str], list[str]]:
    """A long prompt in planned chunks, KV and state kept, its peak against the plan's."""
    import mlx.core as mx
    import numpy as np

    from archport.device.evaluation import finish
    from archport.running.steps import batch_caches, run_steps

    plan = planned(encoder.plan, [tokens], new_tokens=16)
    (batch,) = plan.batches
    ids = np.random.default_rng(0).integers(0, shape["vocab_size"], tokens).astype(np.int32)
    caches = batch_caches(encoder.spec, plan, batch)
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    started = time.perf_counter()
    last = None
    for _, hidden in run_steps(encoder.trunk, plan, batch, [ids], caches):
        last = hidden[:, -1]
        # As generation does: a chunk's buffers are given back before the next one begins.
        finish(last)
    mx.synchronize()
    took, peak = time.perf_counter() - started, mx.get_peak_memory()
    assert last is not None
    finite = bool(mx.isfinite(last).all())
    scratch = max(path.price.largest_buffer for step in batch.steps for path in step.paths)
    lines = [
        f"prefill of {tokens:,} tokens in chunks of {plan.chunk:,}: {took:.2f} s, {tokens / took:,.0f} tokens/s, peak "
        f"{peak:,} bytes, predicted {plan.peak:,} ({plan.peak / peak:.2f}), largest buffer of attention {scratch:,}, "
        f"caches {caches.bytes if caches else 0:,}"
    ]
    missed = [] if finite else ["the prefill's result is not finite"]
    if peak > plan.peak:
        missed.append("prefill above its plan")
    if plan.bytes["attention"] > plan.budget:
        missed.append("attention's scratch above the budget")
    if tokens == PREFILL and tokens < PREFILL_RATE * took:
        missed.append(f"prefill of {tokens:,} tokens: {tokens / took:,.0f} tokens/s, {PREFILL_RATE:,} required")
    return lines, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--tiny", action="store_true", help="small shapes, no bars on speed")
    parser.add_argument("--python", default="python3", help="a Python with torch and transformers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    shape = {**SHAPE, **(TINY if arguments.tiny else {})}
    if arguments.worker:
        torch_worker(shape, [int(each) for each in arguments.worker.split(",")], arguments.runs)
        return
    flags = ["--tiny"] if arguments.tiny else []
    lengths = ",".join(map(str, BARS))
    command = [arguments.python, __file__, "--worker", lengths, "--runs", str(arguments.runs), *flags]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    peer = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else None

    # First, because it loads the BLAS that MLX uses on a CPU.
    import archport

    # isort: split
    import mlx.core as mx

    from archport.device.facts import this_device

    device = this_device()
    kernel = device.kind == "cuda"
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    Hk, Hv, Dk, Dv = (shape[f"linear_{name}"] for name in names)
    lines = [
        f"archport {archport.__version__}, mlx {device.mlx_version}, python {platform.python_version()}, {device.name}",
        peer["versions"] if peer else f"transformers did not run: {ran.stderr.strip().splitlines()[-1:]}",
    ]
    missed: list[str] = []
    mx.random.seed(0)
    # Both of the kernel's shapes of threads.
    for few in ((4, 8), (Hk, Hv)):
        check_rule((*few, Dk, Dv), kernel, lines, missed)
    time_rule((Hk, Hv, Dk, Dv), kernel, [64, 128] if arguments.tiny else [128, 512, 2048, 8192], lines, missed)
    more, also = compare(shape, peer, arguments.runs, arguments.tiny)
    lines, missed = [*lines, *more], [*missed, *also]
    lines.append("all bars met" if not missed else "MISSED: " + "; ".join(missed))
    print(*lines, sep="\n")
    if arguments.write and not arguments.tiny:
        (Path(__file__).parent / "results" / f"qwen35_gpu_{device.kind}.txt").write_text("\n".join(lines) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
