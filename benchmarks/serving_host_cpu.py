"""What the host does for a request of one text, and how long: HTTP, JSON, tokenising, planning, the device, the answer.

    python benchmarks/serving_host_cpu.py [--write] [--seconds 10] [--callers 64]

all-MiniLM-L6-v2 in this process, asked by another process: that many callers, each with one text of 10 to 80 tokens at
a time. Two tables: where the time of a request goes as its headers tell it, and the processor time per request of every
thread and of the steps on the event loop and on the device's thread, each counted without the steps inside it. The
device's own time is that of MLX's, BLAS' and the tokeniser's threads and of `evaluation`.
"""

from __future__ import annotations

import archport

# isort: split
import argparse
import functools
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
from serving_cpu import MODEL
from uvicorn.protocols.http import h11_impl

from archport.answering import callers
from archport.planning import Planner
from archport.serving import app, connections, http, models, scheduler
from archport.serving.dialects import openai
from archport.serving.server import Server, wanted
from archport.serving.settings import Settings

RESULTS = Path(__file__).parent / "results" / "serving_host_cpu.txt"
# Step -> the functions that it is made of.
STEPS: dict[str, list[tuple[Any, str]]] = {
    "HTTP, in": [(connections.Connection, "data_received")],
    "HTTP, out": [(h11_impl.RequestResponseCycle, "send")],
    "Host, Origin, key": [(app, "check_host"), (app, "check_origin"), (app, "check_key")],
    "JSON, in": [(app, "parsed")],
    "tokenising": [(callers.VectorWork, "read")],
    "whether it fits": [(models.Served, "check_fits")],
    "queue": [(scheduler.Scheduler, name) for name in ("admit", "release", "submit", "take", "answer")],
    "planning": [(Planner, "__call__")],
    "evaluation": [(mx, "eval")],
    "windows": [(callers.VectorWork, "run")],
    "encoding": [(openai, "encoded"), (openai, "json_response")],
    "metrics and log": [(app.App, "_note")],
}


class Clock:
    """Processor time of each step, without that of the steps that it calls."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = threading.local()

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def begin() -> list[float]:
            stack = self._inside.__dict__.setdefault("stack", [])
            stack.append(0.0)
            return stack

        def end(stack: list[float], started: float) -> None:
            took = time.thread_time() - started
            self.seconds[step] += took - stack.pop()
            if stack:
                stack[-1] += took

        async def awaited(*arguments: Any, **options: Any) -> Any:
            # An answer of this size never waits for its client.
            stack, started = begin(), time.thread_time()
            try:
                return await function(*arguments, **options)
            finally:
                end(stack, started)

        def called(*arguments: Any, **options: Any) -> Any:
            stack, started = begin(), time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                end(stack, started)

        return functools.wraps(function)(awaited if inspect.iscoroutinefunction(function) else called)


def processor(thread: threading.Thread) -> float:
    """Seconds of processor time that a thread has had."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    clock, ready, timings = Clock(), threading.Event(), list[Any]()
    for step, functions in STEPS.items():
        for owner, name in functions:
            setattr(owner, name, clock.timed(step, getattr(owner, name)))
    note = app.App._note

    def noted(self: Any, context: http.Context, *arguments: Any) -> None:
        timings.append((context.timing, time.monotonic()))
        note(self, context, *arguments)

    app.App._note = noted  # pyright: ignore[reportAttributeAccessIssue]
    server = Server(Settings(port=0), [wanted(f"minilm={MODEL}", {})], started=lambda _: ready.set())
    loop = threading.Thread(target=server.run, name="loop", daemon=True)
    loop.start()
    assert ready.wait(300), "the model did not load"

    def drive(seconds: float) -> dict[str, Any]:
        command = [sys.executable, "-c", "from archport.cli import main; main()", "bench-serve"]
        command += [f"http://127.0.0.1:{server.port}", "--concurrency", str(asked.callers), "--json"]
        done = subprocess.run([*command, "--seconds", str(seconds)], capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    drive(min(3.0, asked.seconds))
    threads = {each.name: each for each in threading.enumerate() if each is loop or each.name.startswith("archport")}
    before = {name: processor(thread) for name, thread in threads.items()}
    clock.seconds.clear()
    timings.clear()
    whole = time.process_time()
    load = os.getloadavg()
    row = drive(asked.seconds)
    whole = time.process_time() - whole
    used = {name: processor(thread) - before[name] for name, thread in threads.items()}
    count = len(timings)

    lines = [
        f"archport {archport.__version__}, mlx {metadata.version('mlx')}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, load {load[0]:.1f}",
        f"{asked.callers} callers, {count} requests in {asked.seconds:g} s: {row['requests_per_second']:.0f} a second",
        "",
        "ms of a request's time, by its headers: median, 90th of a hundred",
    ]
    parts = {
        "tokenising": [each.reading for each, _ in timings],
        "queue": [each.queue for each, _ in timings],
        "device, with its window": [each.device for each, _ in timings],
        "rest of the host": [end - each.begun - each.reading - each.queue - each.device for each, end in timings],
        "whole": [end - each.begun for each, end in timings],
    }
    for name, values in parts.items():
        lines.append(f"{name:>26} {1e3 * statistics.median(values):9.2f} {1e3 * sorted(values)[9 * count // 10]:9.2f}")
    lines += ["", "ms of processor time per request"]
    workers = sum(seconds for name, seconds in used.items() if name not in ("loop", "archport-device"))
    shares = {"event loop": used["loop"], "device's thread": used["archport-device"], "host workers": workers}
    for name, seconds in shares.items():
        lines.append(f"{name:>26} {1e3 * seconds / count:9.3f}")
    rest = whole - sum(used.values())
    lines.append(f"{'MLX, BLAS, tokenisers':>26} {1e3 * rest / count:9.3f}")
    lines.append(f"{'whole process':>26} {1e3 * whole / count:9.3f}")
    lines += ["", "of which, on the two threads"]
    lines += [f"{step:>26} {1e3 * seconds / count:9.3f}" for step, seconds in clock.seconds.items()]
    left = used["loop"] + used["archport-device"] - sum(clock.seconds.values())
    lines.append(f"{'asyncio, Starlette, others':>26} {1e3 * left / count:9.3f}")
    text = "\n".join(lines)
    print(text)
    if asked.write:
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
