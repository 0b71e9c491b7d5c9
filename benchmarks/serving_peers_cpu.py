"""Servers on MLX next to `archport serve` on this machine's CPU: chats of a tiny decoder, and single texts to embed.

    python benchmarks/serving_peers_cpu.py                   # makes the peers' environment
    python benchmarks/serving_peers_cpu.py --python PYTHON   # one that has mlx-lm, mlx-vlm and vllm-mlx

All servers run at once and are asked in turns, by callers in a closed loop, one answer after the other, not streamed.
A tiny decoder's arithmetic is nothing, so that chats measure what a server does beside it. Texts are embedded by
all-MiniLM-L6-v2; of the peers vllm-mlx has a route for them. A server that does not start or answer is told with what
it said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving_cpu import MODEL, ROOT, TEMPLATE, free_port, process

import archport  # before MLX
from archport import engine
from archport.serving.driver import WORDS

PEERS = ("mlx-lm", "mlx-vlm", "vllm-mlx")
RESULT = ROOT / "benchmarks" / "results" / "serving_peers_cpu.json"
CHAT, TEXT = "/v1/chat/completions", "/v1/embeddings"


def environment() -> Path:
    """The Python of build/serving-peers, where the peers are installed as published."""
    python = ROOT / "build" / "serving-peers" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS, "mlx[cpu]"], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    """What of the peers that interpreter has."""
    ask = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {(*PEERS, 'mlx')!r}}}))"
    return json.loads(subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout)


def tiny(folder: Path) -> Path:
    """A tiny decoder with a chat template, its config as every version of transformers writes it."""
    made, source = folder / "tiny", ROOT / "tests" / "goldens" / "qwen3-windowed"
    made.mkdir()
    for each in source.iterdir():
        (made / each.name).write_bytes(each.read_bytes())
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "rope_theta": config["rope_parameters"]["rope_theta"]}))
    (made / "chat_template.jinja").write_text(TEMPLATE)
    return made


def commands(python: Path, chat: Path, texts: str, ports: dict[str, int]) -> dict[str, list[str]]:
    """What starts each server."""
    own, beside = [sys.executable, "-c", "from archport.cli import main; main()"], python.parent
    models = ["-m", f"{chat}={chat}", "-m", f"{texts}={MODEL}"]
    started = {
        "archport": [*own, "serve", "--quiet", *models],
        "mlx-lm": [f"{beside}/mlx_lm.server", "--model", str(chat)],
        "mlx-vlm": [f"{beside}/mlx_vlm.server", "--model", str(chat)],
        "vllm-mlx": [f"{beside}/vllm-mlx", "serve", str(chat), "--continuous-batching", "--embedding-model", texts],
    }
    return {name: [*command, "--port", str(ports[name])] for name, command in started.items()}


def ask(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A server's answer to one request."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def rate(port: int, path: str, bodies: list[dict[str, Any]], callers: int) -> tuple[float, list[dict[str, Any]]]:
    """(requests a second, the answers) of so many callers."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        answers = list(pool.map(lambda body: ask(port, path, body), bodies))
    return len(bodies) / (time.perf_counter() - begin), answers


def loads(asked: argparse.Namespace, chat: str, texts: str) -> dict[str, tuple[str, int, list[dict[str, Any]]]]:
    """(path, callers, requests) of what is measured."""
    chance = random.Random(0)

    def words() -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(8, 40)))

    def talk() -> dict[str, Any]:
        messages = [{"role": "user", "content": words()}]
        return {"model": chat, "messages": messages, "max_tokens": asked.tokens, "temperature": 0}

    talks = [talk() for _ in range(asked.chats)]
    return {
        "chats, 1 caller": (CHAT, 1, talks[: asked.chats // 4]),
        "chats, 8 callers": (CHAT, 8, talks),
        "texts, 16 callers": (TEXT, 16, [{"model": texts, "input": words()} for _ in range(asked.texts)]),
    }


def measured(
    asked: argparse.Namespace, load: tuple[str, int, list[dict[str, Any]]], ports: dict[str, int]
) -> dict[str, Any]:
    """Requests a second of each server that answers, in turns, and archport's over theirs."""
    path, callers, bodies = load
    found: dict[str, Any] = {}
    made: dict[str, list[float]] = {}
    for name, port in ports.items():
        try:
            answer = ask(port, path, bodies[0])
        except OSError as error:
            found[name] = f"does not answer: {error}"
            continue
        made[name] = []
        if path == CHAT:
            found.setdefault("tokens of a chat", {})[name] = answer["usage"]["completion_tokens"]
    for _ in range(asked.rounds):
        for name, each in made.items():
            each.append(rate(ports[name], path, bodies, callers)[0])
    found["requests a second"] = {
        name: {"median": statistics.median(each), "each": each} for name, each in made.items()
    }
    for name, each in made.items():
        if name != "archport":
            ratios = [own / theirs for own, theirs in zip(made["archport"], each, strict=True)]
            found[f"archport / {name}"] = {"median": statistics.median(ratios), "each": ratios}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", type=Path, help="an interpreter that has the peers")
    parser.add_argument("--chats", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=40, help="of a chat's answer")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"{RESULT.name}, where the defaults run")
    asked = parser.parse_args()
    python = asked.python or environment()
    texts = str(engine.describe(MODEL).checkpoint.folder)
    found: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    found |= {"archport": archport.__version__, **versions(python), "load": os.getloadavg()}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        chat = tiny(Path(folder))
        ports = {name: free_port() for name in ("archport", *PEERS)}
        for name, command in commands(python, chat, texts, ports).items():
            stack.enter_context(process(command, ports[name], "/v1/models"))
        for name, load in loads(asked, str(chat), texts).items():
            found[name] = measured(asked, load, ports)
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))
    if asked.write:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
