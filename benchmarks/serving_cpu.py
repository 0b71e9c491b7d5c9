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
from pathlib import Path

import archport  # noqa: F401  # before MLX
from archport import engine
from archport.serving import driver

ROOT = Path(__file__).parents[1]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(command: list[str], port: int, path: str):
    """A server as a process, once it answers at `path`."""
    import urllib.request

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
    texts = [a_text(chance) for _ in range(asked.texts)]
    model = engine.load(MODEL)
    model.embed(texts[:64])
    found: dict[str, object] = {"texts": asked.texts, "load": os.getloadavg()}
    if asked.all:
        asked.mixed = asked.mixed or 20_000
        if not asked.infinity:
            asked.infinity, found["infinity"] = infinity_environment()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        port, archport_command = free_port(), [sys.executable, "-c", "from archport.cli import main; main()"]
        command = [*archport_command, "serve", "--quiet", "--port", str(port)]
        command += ["-m", f"minilm={MODEL}", "-m", f"chat={tiny_chat(Path(folder))}"]
        server = stack.enter_context(process(command, port, "/health/ready"))
        target, peers = driver.Target("127.0.0.1", port), {}
        if asked.infinity:
            other = free_port()
            # The package has a command and can't be run as a module.
            started = [str(Path(asked.infinity).parent / "infinity_emb"), "v2", "--model-id", str(model.name)]
            started += ["--port", str(other)]
            started += ["--no-bettertransformer", "--engine", "torch", "--device", "cpu", "--url-prefix", "/v1"]
            stack.enter_context(process(started, other, "/v1/models"))
            peers["infinity"] = driver.Target("127.0.0.1", other)

        def through(where: driver.Target, name: str | None) -> float:
            """Seconds for all texts by 64 callers."""
            left = iter(texts)

            def make(_: random.Random):
                return "/v1/embeddings", {"input": next(left), "model": name, "encoding_format": "base64"}

            answers = driver.run(driver.closed_loop(where, make, 64, 600, most=len(texts)))
            assert all(each.status == 200 for each in answers), driver.summary(answers).statuses
            made = driver.summary(answers)
            return made.seconds

        found["memory_before"] = resident(server.pid)
        ratios: dict[str, list[float]] = {"server / embed": []}
        for _ in range(asked.rounds):
            begin = time.perf_counter()
            model.embed(texts)
            alone = time.perf_counter() - begin
            served = through(target, "minilm")
            ratios["server / embed"].append(alone / served)
            for name, where in peers.items():
                ratios.setdefault(f"server / {name}", []).append(through(where, str(model.name)) / served)
        found["throughput"] = {name: (statistics.median(each), each) for name, each in ratios.items()}
        # Latency of one caller, then arrivals at half of what was just measured.
        make = driver.texts("minilm", 8, 78)
        lone = driver.summary(driver.run(driver.closed_loop(target, make, 1, asked.seconds)))
        rate = 0.5 * asked.texts / served
        poisson = driver.summary(driver.run(driver.arrivals(target, make, rate, asked.seconds)))
        found["poisson"] = {
            "rate": rate,
            "p50 / lone p50": poisson.latency[50] / lone.latency[50],
            "p99 / lone p50": poisson.latency[99] / lone.latency[50],
            "statuses": poisson.statuses,
        }
        # Chat alone, embeddings alone, and both.
        talk, flood = driver.chats("chat", 8, 40, 100), driver.texts("minilm", 8, 78)
        chat = driver.summary(driver.run(driver.closed_loop(target, talk, 1, asked.seconds)))
        rows = driver.summary(driver.run(driver.closed_loop(target, flood, 64, asked.seconds)))

        async def both():
            import asyncio

            return await asyncio.gather(
                driver.closed_loop(target, talk, 1, asked.seconds), driver.closed_loop(target, flood, 64, asked.seconds)
            )

        mixed = [driver.summary(each) for each in driver.run(both())]
        found["chat beside a flood"] = {
            "time per token": mixed[0].gap[50] / chat.gap[50],
            "mean time per token": (mixed[0].seconds / mixed[0].made) / (chat.seconds / chat.made),
            "first token": mixed[0].first[50] / chat.first[50],
            "embeddings kept": mixed[1].token_rate / rows.token_rate,
        }
        if asked.mixed:
            kinds = [driver.texts("minilm", 1, 200), driver.chats("chat", 1, 60, 6)]

            def any_kind(chance: random.Random):
                return kinds[chance.random() < 0.1](chance)

            held = []
            for part in range(10):
                answers = driver.run(driver.closed_loop(target, any_kind, 32, 3600, part, most=asked.mixed // 10))
                held.append(resident(server.pid))
                assert all(each.status == 200 for each in answers), driver.summary(answers).statuses
            found["memory"] = {"requests": asked.mixed, "bytes": held, "last / second": held[-1] / held[1]}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
