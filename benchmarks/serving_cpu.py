"""A server of all-MiniLM-L6-v2 and a tiny decoder on this machine's CPU, against one call of `embed` of the same texts.

Everything is measured in one run, each pair of figures one after the other several times, because only their ratios
mean anything on a machine that does other things too. `python benchmarks/serving_cpu.py` prints one JSON object; with
`--infinity PYTHON` the same callers ask infinity-emb, which that interpreter has installed (`--no-bettertransformer`).
`--all` is the whole issue in one command: it makes infinity-emb's environment in build/infinity where pip can, says why
where it can't, and sends 20,000 mixed requests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving_callers import Callers, Load, processor_seconds

import archport  # noqa: F401  # before MLX
from archport import engine
from archport.serving import driver

ROOT = Path(__file__).parents[1]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# What /metrics says of memory.
GAUGES = ("weights", "prefix", "planned", "device", "pool", "host")
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(command: list[str], port: int, path: str):
    """A server as a process, once it answers at `path`."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 180
        while time.monotonic() < until and running.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2)
                break
            time.sleep(0.2)
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(60)
        running.kill()


def infinity_environment() -> tuple[str | None, str]:
    """(an interpreter with infinity-emb, None where there is none; its version, or why there is none)."""
    python = ROOT / "build" / "infinity" / "bin" / "python"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ask = [str(python), "-c", "import infinity_emb, importlib.metadata as m; print(m.version('infinity-emb'))"]
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    done = subprocess.run(ask, env=env, capture_output=True, text=True)
    if done.returncode:
        install = [str(python), "-m", "pip", "install", "-q", "infinity-emb[torch,server]", "torch==2.13.0"]
        subprocess.run(install, env=env, capture_output=True)
        done = subprocess.run(ask, env=env, capture_output=True, text=True)
    if done.returncode:
        return None, "\n".join(done.stderr.splitlines()[-3:])
    return str(python), done.stdout.strip()


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def a_text(chance: random.Random) -> str:
    """A text of about 10 to 80 tokens."""
    return " ".join(chance.choices(driver.WORDS, k=chance.randint(8, 78)))


def tiny_chat(folder: Path) -> Path:
    """A tiny decoder with a chat template."""
    made = folder / "tiny"
    shutil.copytree(ROOT / "tests" / "goldens" / "qwen3-windowed", made)
    (made / "chat_template.jinja").write_text(TEMPLATE)
    return made


def throughput(
    asked: argparse.Namespace, model: engine.Model, texts: tuple[str, ...], callers: Callers,
    server: tuple[int, int], peers: dict[str, tuple[int, int]],
) -> dict[str, object]:  # fmt: skip
    """64 callers of single texts against one call of `embed`, and the same callers at other servers, in turns.

    Args:
        server, peers: port and process of each.
    """
    names = {"archport": ("minilm", *server)}
    names |= {name: ("minilm", *where) for name, where in peers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("embed", *names)}
    processor: dict[str, list[float]] = {name: [] for name in ("embed", *names, "callers")}
    for turn in range(asked.rounds + 1):
        # The first turn makes what is made once.
        part = texts if turn else texts[:64]
        begin, used = time.perf_counter(), time.process_time()
        model.embed(list(part))
        rows = [("embed", time.perf_counter() - begin, time.process_time() - used, 0.0)]
        for name, (called, port, pid) in names.items():
            used = processor_seconds(pid)
            (made,), own = callers.send(Load(port, called, texts=part))
            assert made.statuses == {200: len(part)}, made.statuses
            rows.append((name, made.seconds, processor_seconds(pid) - used, own))
        for name, took, used, own in rows if turn else ():
            seconds[name].append(took)
            processor[name].append(1000 * used / len(part))
            if name == "archport":
                processor["callers"].append(1000 * own / len(part))
    pairs = [("archport", "embed"), *(("archport", name) for name in peers)]
    return {
        "throughput": {f"{one} / {other}": ratios(seconds[other], seconds[one]) for one, other in pairs},
        "throughput by processor time": {
            f"{one} / {other}": ratios(processor[other], processor[one]) for one, other in pairs
        },
        "ms of processor time per text": {name: statistics.median(each) for name, each in processor.items()},
        "requests_per_second": {name: len(texts) / statistics.median(each) for name, each in seconds.items()},
    }


def ratios(over: list[float], under: list[float]) -> dict[str, object]:
    """Of pairs that were measured one after the other, with their median."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(each), "each": each}


def arrivals(asked: argparse.Namespace, callers: Callers, port: int, rate: float) -> dict[str, object]:
    """Latency of arrivals at random against that of a lone caller, in turns."""
    rows: list[dict[str, float]] = []
    statuses: dict[int, int] = {}
    for turn in range(asked.rounds):
        (lone,), _ = callers.send(Load(port, "minilm", callers=1, seconds=asked.seconds / 2, seed=turn))
        (poisson,), _ = callers.send(Load(port, "minilm", rate=rate, seconds=asked.seconds, seed=turn))
        statuses |= poisson.statuses
        rows.append(
            {
                "p50 / lone p50": poisson.latency[50] / lone.latency[50],
                "p99 / lone p50": poisson.latency[99] / lone.latency[50],
                "lone p50 ms": 1000 * lone.latency[50],
            }
        )
    return {"rate": rate, "statuses": statuses, **medians(rows)}


def beside(asked: argparse.Namespace, callers: Callers, port: int) -> dict[str, object]:
    """A chat alone, embeddings alone, and both, in turns."""
    rows: list[dict[str, float]] = []
    for turn in range(asked.rounds):
        talk = Load(port, "chat", "chats", 8, 40, callers=1, seconds=asked.seconds, seed=turn)
        flood = Load(port, "minilm", seconds=asked.seconds, seed=turn)
        ((chat,), _), ((texts,), _) = callers.send(talk), callers.send(flood)
        (with_flood, with_chat), _ = callers.send(talk, flood)
        rows.append(
            {
                "first token": with_flood.first[50] / chat.first[50],
                "first token alone, ms": 1000 * chat.first[50],
                "time per token": with_flood.gap[50] / chat.gap[50],
                "mean time per token": (with_flood.seconds / with_flood.made) / (chat.seconds / chat.made),
                "embeddings kept": with_chat.token_rate / texts.token_rate,
            }
        )
    return medians(rows)


def overload(asked: argparse.Namespace, callers: Callers, command: list[str], rate: float) -> dict[str, object]:
    """How long a refusal takes while four times as many texts arrive as can be answered, of a queue of 32."""
    port = free_port()
    more = ["serve", "--quiet", "--port", str(port), "--queue-requests", "32", "-m", f"minilm={MODEL}"]
    with process([*command, *more], port, "/health/ready"):
        (made,), _ = callers.send(Load(port, "minilm", rate=rate, seconds=asked.seconds))
    milliseconds = {share: 1000 * value for share, value in made.refused.items()}
    return {"statuses": made.statuses, "ms of a refusal": milliseconds}


def medians(rows: list[dict[str, float]]) -> dict[str, object]:
    """Each figure's median and all of its values."""
    return {
        name: {"median": statistics.median(row[name] for row in rows), "each": [row[name] for row in rows]}
        for name in rows[0]
    }


def mixed(asked: argparse.Namespace, callers: Callers, port: int, pid: int) -> dict[str, object]:
    """Bytes that the server holds while it answers texts of all lengths and a tenth of chats, in ten parts."""
    parts: list[tuple[int, int]] = []
    told: dict[str, float] = {}
    for part in range(10):
        load = Load(port, "minilm", "mixed", 1, 200, callers=32, most=asked.mixed // 10, tokens=6, chat="chat",
                    seed=part)  # fmt: skip
        (made,), _ = callers.send(load)
        assert set(made.statuses) == {200}, made.statuses
        told = gauges(port)
        parts.append((resident(pid), int(told["prefix"])))
    # The prefix cache grows up to what it was given, and says so: what grows beside it would be a leak.
    rest = [total - prefixes for total, prefixes in parts]
    return {
        "requests": asked.mixed,
        "resident and prefix bytes": parts,
        "last / second, without the prefixes": rest[-1] / rest[1],
        "gauges": told,
    }


def gauges(port: int) -> dict[str, float]:
    """The bytes that the server says it holds, by what holds them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    told = dict(line.split() for line in lines if not line.startswith("#") and "{" not in line)
    return {name: float(told[f"archport_{name}_bytes"]) for name in GAUGES}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=384, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of arrivals and floods")
    parser.add_argument("--mixed", type=int, default=0, help="requests of the memory test")
    parser.add_argument("--infinity", help="an interpreter with infinity-emb")
    parser.add_argument("--all", action="store_true", help="infinity-emb, and 20,000 mixed requests")
    asked = parser.parse_args()
    chance = random.Random(0)
    texts = tuple(a_text(chance) for _ in range(asked.texts))
    model = engine.load(MODEL)
    found: dict[str, Any] = {"texts": asked.texts, "load": os.getloadavg()}
    if asked.all:
        asked.mixed = asked.mixed or 20_000
        if not asked.infinity:
            asked.infinity, found["infinity"] = infinity_environment()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        port, archport_command = free_port(), [sys.executable, "-c", "from archport.cli import main; main()"]
        command = [*archport_command, "serve", "--quiet", "--port", str(port)]
        command += ["-m", f"minilm={MODEL}", "-m", f"chat={tiny_chat(Path(folder))}"]
        server = stack.enter_context(process(command, port, "/health/ready"))
        peers: dict[str, tuple[int, int]] = {}
        if asked.infinity:
            other = free_port()
            folder = str(engine.describe(MODEL).checkpoint.folder)
            # The package has a command and can't be run as a module.
            started = [str(Path(asked.infinity).parent / "infinity_emb"), "v2", "--model-id", folder]
            started += ["--port", str(other), "--served-model-name", "minilm"]
            started += ["--no-bettertransformer", "--engine", "torch", "--device", "cpu", "--url-prefix", "/v1"]
            peers["infinity"] = other, stack.enter_context(process(started, other, "/v1/models")).pid
        callers = stack.enter_context(Callers())
        found |= throughput(asked, model, texts, callers, (port, server.pid), peers)
        rate = 0.5 * found["requests_per_second"]["archport"]
        parts: dict[str, Callable[[], object]] = {
            "poisson": lambda: arrivals(asked, callers, port, rate),
            "chat beside a flood": lambda: beside(asked, callers, port),
            "overload": lambda: overload(asked, callers, archport_command, 8 * rate),
        }
        if asked.mixed:
            parts["memory"] = lambda: mixed(asked, callers, port, server.pid)
        # The last one takes many minutes: what is known by then is told.
        print(json.dumps(found), file=sys.stderr, flush=True)
        for name, part in parts.items():
            found[name] = part()
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
