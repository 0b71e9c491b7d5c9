"""What a host that feeds a GPU does beside it: planning texts it never saw, and tokenising in a thread.

    python benchmarks/host_share_cpu.py [--write]

4,096 texts of mixed length, planned for an H200 at the shapes of BERT-base and ModernBERT-base. While a thread
tokenises them, another sleeps for half a millisecond over and over, as one does that feeds a GPU; what it wakes up
late is counted. "In one go" is the same with all encodings of a window held until its end. Needs no GPU. Exits 1 when
planning fresh texts takes above 0.1 s, or the second thread is not at least 3 times less late.
"""

from __future__ import annotations

import os

# One core is left to the second thread.
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import archport

# isort: split
import argparse
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from bidirectional_gpu import BERT, MODERNBERT, corpus
from tokenizers import Tokenizer, models, pre_tokenizers

from archport.attention import Chooser, builtin_backends
from archport.checkpoint import normalise_config
from archport.contract import TextInputs
from archport.contract.plugins import claim, discover
from archport.device.profiles import profile
from archport.planning import Planner, Request
from archport.reading.texts import TextTokeniser

TEXTS, RUNS = 4096, 5
WINDOWS = (256, 512, 1024, 2304)
PLANNED, LESS_LATE = 0.1, 3.0
NAP, LATE = 5e-4, 1e-3


def lengths(seed: int, longest: int) -> list[int]:
    drawn = np.exp(np.random.default_rng(seed).normal(5.0, 0.9, TEXTS))
    return [int(each) for each in np.clip(drawn, 8, longest)]


def planning(config: dict[str, object], longest: int) -> tuple[float, list[float]]:
    """(seconds of the first request, those of further ones with other texts)."""
    _, spec = claim(normalise_config(config), discover())
    planner = Planner.of(spec, profile("h200"), Chooser(builtin_backends()), dtype="bfloat16")
    seconds: list[float] = []
    for seed in range(RUNS + 1):
        rows = lengths(seed, longest)
        started = time.perf_counter()
        planner(Request(lengths=rows, pack=True))
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1:]


def lateness(work: Callable[[Sequence[str]], object], parts: Sequence[Sequence[str]]) -> float:
    """Seconds by which a second thread woke up late while `work` ran over the parts; above a millisecond they count."""
    late, worker = 0.0, threading.Thread(target=lambda: [work(part) for part in parts])
    worker.start()
    while worker.is_alive():
        started = time.perf_counter()
        time.sleep(NAP)
        over = time.perf_counter() - started - NAP
        late += over if over > LATE else 0.0
    return late


def windows(texts: Sequence[str]) -> list[Sequence[str]]:
    edges = np.cumsum([0, *WINDOWS])
    return [texts[first:end] for first, end in pairwise(edges.tolist())]


def in_one_go(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    encodings = tokenizer.encode_batch(list(texts))
    return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="also write results/host_share_cpu.txt")
    lines: list[str] = []
    missed: list[str] = []
    write = parser.parse_args().write

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    say(f"archport {archport.__version__}, python {platform.python_version()}, {machine}")
    for name, config, longest in (("BERT-base", BERT, 512), ("ModernBERT-base", MODERNBERT, 2048)):
        first, others = planning(config, longest)
        say(
            f"{name}, {TEXTS} texts planned for an H200: {first * 1e3:.0f} ms at first, fresh texts "
            f"{statistics.median(others) * 1e3:.0f} ms ({', '.join(f'{each * 1e3:.0f}' for each in others)})"
        )
        if statistics.median(others) > PLANNED:
            missed.append(f"{name}: fresh texts planned in {statistics.median(others):.3f} s, above {PLANNED}")
    texts, count = corpus(TEXTS, 512, 30522)
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(30522)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenise = TextTokeniser(tokenizer, TextInputs(), 512)
    ways: dict[str, Callable[[Sequence[str]], object]] = {
        "in one go": lambda part: in_one_go(tokenizer, part),
        "one by one": tokenise,
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(RUNS):
        for way, call in ways.items():
            found[way].append(lateness(call, windows(texts)))
    for way, late in found.items():
        say(
            f"{count:,} tokens, encodings {way}: the second thread {statistics.median(late) * 1e3:.0f} ms late "
            f"({', '.join(f'{each * 1e3:.0f}' for each in late)})"
        )
    ratio = statistics.median(found["in one go"]) / max(statistics.median(found["one by one"]), 1e-6)
    say(f"less late: {ratio:.1f}x")
    if ratio < LESS_LATE:
        missed.append(f"{ratio:.1f}x less late, below {LESS_LATE}x")
    say("MISSED: " + "; ".join(missed) if missed else "all bars met")
    if write:
        (Path(__file__).parent / "results" / "host_share_cpu.txt").write_text("\n".join(lines) + "\n")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
