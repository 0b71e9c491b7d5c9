"""Peak memory of `archport convert` on a random checkpoint of 1 GB with a tensor of 311 MB, in 1 shard and in 20.

    python benchmarks/convert_memory.py [--small] > benchmarks/results/convert_memory.txt

RssAnon of the converting process, read every 5 ms from /proc (Linux). The checkpoint is a random Qwen3 in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

COMMAND = "from archport.cli import main; main()"
LIMIT = 300 << 20


def write_checkpoint(folder: Path, *, hidden: int, layers: int, vocabulary: int, shards: int) -> int:
    """A random Qwen3 of bfloat16 tensors, dealt out over shards, without a tokenizer; returns its bytes."""
    heads, head_dim, inner = max(hidden // 128, 1), 128, 3 * hidden
    config = {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": hidden, "dtype": "bfloat16",
        "num_hidden_layers": layers, "intermediate_size": inner, "num_attention_heads": heads, "head_dim": head_dim,
        "num_key_value_heads": heads, "vocab_size": vocabulary, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 4096, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (heads * head_dim, hidden) for name in "qkv"}
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, heads * head_dim)
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{at}.self_attn.{name}_norm.weight": (head_dim,) for name in "qk"}
        shapes |= {f"{at}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (hidden,)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    rng, weight_map, total = np.random.default_rng(0), {}, 0
    for shard in range(shards):
        names = list(shapes)[shard::shards]
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header, position = {}, 0
        for name in names:
            nbytes = 2 * int(np.prod(shapes[name]))
            offsets = [position, position + nbytes]
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": offsets}
            position += nbytes
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                left = int(np.prod(shapes[name]))
                while left:
                    count = min(left, 4 << 20)
                    values = rng.standard_normal(count, np.float32) * 0.02
                    out.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                    left -= count
        weight_map |= dict.fromkeys(names, file)
        total += position
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def peak_of(source: Path, out: Path, options: list[str]) -> tuple[int, float]:
    """(peak RssAnon in bytes, seconds) of one conversion."""
    asked = [sys.executable, "-c", COMMAND, "convert", "-m", str(source), "-o", str(out), "--no-measure", *options]
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"RssAnon:\s+(\d+) kB", status):
            peak = max(peak, int(found[1]) << 10)
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"archport convert ended with {process.returncode}")
    return peak, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tenth of the size")
    small = parser.parse_args().small
    from importlib.metadata import version

    print(f"{platform.platform()}, Python {platform.python_version()}, mlx {version('mlx')}")
    shape = {"hidden": 512, "layers": 2, "vocabulary": 60_000} if small else {
        "hidden": 1024, "layers": 27, "vocabulary": 151_936,
    }  # fmt: skip
    worst = 0
    for shards in (1, 20):
        with tempfile.TemporaryDirectory() as place:
            total = write_checkpoint(Path(place) / "source", shards=shards, **shape)
            for options in (["--bits", "4"], ["--bits", "8"], ["--mode", "nvfp4"], ["--dtype", "float32"]):
                out = Path(place) / "-".join(options)
                peak, seconds = peak_of(Path(place) / "source", out, options)
                worst = max(worst, peak)
                print(
                    f"{total / 1e9:.2f} GB in {shards:2} shards, {' '.join(options):16} peak RssAnon "
                    f"{peak / 2**20:6.1f} MiB, {seconds:5.1f} s",
                    flush=True,
                )
                for path in out.rglob("model*"):
                    path.unlink()
    print(f"worst {worst / 2**20:.1f} MiB of {LIMIT >> 20}")
    raise SystemExit(worst > LIMIT)


if __name__ == "__main__":
    main()
