"""On a GPU: a corpus through the server against one `embed`, and 32 chat streams against one `generate` of 32 rows.

    python benchmarks/serving_gpu.py [--write] [--tiny]

Random weights in the shape of Qwen3's 0.6B, bfloat16. The server is a process of its own on the same device, its
callers are in this one; each pair of figures is taken in turns, three times. Prompts are read within both figures of
chat. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import archport  # isort: skip  (before mlx, which it prepares)

import argparse
import json
import platform
import random
import runpy
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import mlx.core as mx

from archport import engine
from archport.serving import driver

shape: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("pool_gpu.py")))
server: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("serving_cpu.py")))
CORPUS_BAR, CHAT_BAR = 0.7, 0.85
# Texts of one request, and callers at once.
TEXTS, CALLERS, STREAMS = 64, 16, 32
TURNS = 3


def generated(port: int) -> float:
    """Tokens that the server says it has generated."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("archport_generated_tokens_total"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a look at the script")
    given = parser.parse_args()
    folder, draw = Path(tempfile.mkdtemp(prefix="archport-serving-")), random.Random(1)
    count, most, words = (256, 24, 40) if given.tiny else (8192, 256, 128)
    config = {**shape["SHAPE"], **(shape["TINY"] if given.tiny else {})}
    for name, architecture in (("embed", "Qwen3Model"), ("chat", "Qwen3ForCausalLM")):
        (folder / name).mkdir()
        shape["write_checkpoint"](folder / name, {**config, "architectures": [architecture]})
    (folder / "chat" / "modules.json").unlink()
    (folder / "chat" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    dtype = "float32" if given.tiny else "bfloat16"
    texts = [shape["text"](draw, min(400, max(10, round(draw.lognormvariate(4.3, 0.7))))) for _ in range(count)]
    prompts = [shape["text"](draw, words) for _ in range(STREAMS)]
    tokens = sum(text.count(" ") + 1 for text in texts)
    embedder, writer = (engine.load(folder / name, dtype=dtype) for name in ("embed", "chat"))
    lines = [
        f"archport {archport.__version__}, mlx {embedder.device.mlx_version}, python {platform.python_version()}, "
        f"{embedder.device.name}",
        f"{count:,} texts of {tokens:,} tokens in requests of {TEXTS}, {CALLERS} callers; {STREAMS} streams of {most} "
        f"tokens behind {words}",
    ]
    port = server["free_port"]()
    command = [sys.executable, "-c", "from archport.cli import main; main()", "serve", "--quiet", "--port", str(port)]
    command += ["--dtype", dtype, "-m", f"embed={folder / 'embed'}", "-m", f"chat={folder / 'chat'}"]
    target = driver.Target("127.0.0.1", port)
    with server["process"](command, port, "/health/ready") as running:
        assert running.poll() is None, "the server did not start"

        def through_server() -> float:
            left = iter([texts[at : at + TEXTS] for at in range(0, count, TEXTS)])

            def make(_: random.Random) -> tuple[str, Any]:
                return "/v1/embeddings", {"input": next(left), "model": "embed", "encoding_format": "base64"}

            asked = count // TEXTS
            answers = driver.run(driver.closed_loop(target, make, CALLERS, 600, most=asked))
            assert [each.status for each in answers] == [200] * asked, driver.summary(answers).statuses
            return driver.summary(answers).seconds

        def chats() -> float:
            left = iter(prompts)
            body = {"model": "chat", "max_tokens": most, "stream": True, "temperature": 0}

            def make(_: random.Random) -> tuple[str, Any]:
                return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": next(left)}]}

            before = generated(port)
            answers = driver.run(driver.closed_loop(target, make, STREAMS, 600, most=STREAMS))
            assert [each.status for each in answers] == [200] * STREAMS, driver.summary(answers).statuses
            made = generated(port) - before
            return made / driver.summary(answers).seconds

        def timed(work: Any) -> float:
            mx.synchronize()
            begin = time.perf_counter()
            work()
            mx.synchronize()
            return time.perf_counter() - begin

        def alone() -> float:
            begin = time.perf_counter()
            rows: Any = writer.generate(prompts, max_tokens=most)
            return sum(len(row.tokens) for row in rows) / (time.perf_counter() - begin)

        # Shapes that are new take a while on CUDA, so each way has run once before it is timed.
        embedder.embed(texts)
        through_server()
        alone()
        chats()
        corpus = [(timed(lambda: embedder.embed(texts)), through_server()) for _ in range(TURNS)]
        talking = [(alone(), chats()) for _ in range(TURNS)]
    kept = statistics.median(ours / served for ours, served in corpus)
    ours, served = (statistics.median(each) for each in zip(*corpus, strict=True))
    lines.append(
        f"corpus: embed {tokens / ours:,.0f} tokens/s, server {tokens / served:,.0f}, {kept:.2f} of it; bar "
        f"{CORPUS_BAR}"
    )
    streamed = statistics.median(chat / plain for plain, chat in talking)
    plain, chat = (statistics.median(each) for each in zip(*talking, strict=True))
    lines.append(f"chat: generate {plain:,.0f} tokens/s, server {chat:,.0f}, {streamed:.2f} of it; bar {CHAT_BAR}")
    lines.append(json.dumps({"corpus": corpus, "chat": talking}))
    print("\n".join(lines))
    if given.write:
        Path(__file__).with_name("results").joinpath("serving_gpu_cuda.txt").write_text("\n".join(lines) + "\n")
    sys.exit(0 if kept >= CORPUS_BAR and streamed >= CHAT_BAR else 1)


if __name__ == "__main__":
    main()
