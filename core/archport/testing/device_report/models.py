"""The examples of installed plugins on this machine: the kit, planned against measured peaks, tokens per second.

Takes plugins as discovery finds them; knows none by name.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import mlx.core as mx

from archport.contract import EmbeddingHead
from archport.contract.plugins import discover
from archport.running.encode import VARIABLE, MemoryReading
from archport.running.pool import VectorHead
from archport.testing.check import BAD, CHECKS, Check
from archport.testing.finding import find, subject_of
from archport.testing.measure import peaks, run_plan
from archport.testing.runner import run_check, run_checks
from archport.testing.subject import Subject, Tiny

# Lengths of the rows of requests whose peaks are compared with their plans.
_SHAPES = ((256,), (64,) * 16, (200, 64, 1, 1))
_NEW_TOKENS = 12
# Examples of a plugin that the kit runs on: bounded in time, a report is of the device rather than of the plugins.
_EXAMPLES = 3
# Peaks are another part of a report as well, and this one takes longer than all others.
_SLOW = frozenset({"peak_is_predicted"})
_MESSAGE = 600


def kit(done: Callable[[], bool], *, quick: bool) -> Iterator[dict[str, Any]]:
    """Every check of the two fast tiers, all plugins in turn, so that time that ends leaves some of each.

    Args:
        done: whether time is up.
        quick: one example of each plugin; else some.
    """
    subjects: list[Subject] = []
    for plugin in discover():
        if plugin.module is None:
            yield from (_outcome(outcome) for outcome in run_checks(plugin))
        else:
            subjects.append(_first_of(subject_of(find(plugin)), 1 if quick else _EXAMPLES))
    for each in sorted((check for check in CHECKS if check.tier in ("contract", "tiny")), key=_order):
        for subject in subjects:
            if done():
                yield {"plugin": subject.plugin.name, "check": each.name, "tier": each.tier, "status": "skipped"}
            else:
                yield _outcome(run_check(subject, each))


def _first_of(subject: Subject, count: int) -> Subject:
    """The same plugin with its first examples alone; their models are shared."""
    some = Subject(subject.plugin, subject.others)
    # A hook of a stranger that fails is told by the checks, and hides no other plugin.
    with suppress(Exception):
        some.tinies = subject.tinies[:count]
    return some


def _order(each: Check) -> tuple[bool, bool, int]:
    return (each.tier != "contract", each.name in _SLOW, CHECKS.index(each))


def _outcome(outcome: Any) -> dict[str, Any]:
    bad = outcome.status in BAD or outcome.status == "blocked"
    return {
        "plugin": outcome.plugin,
        "check": outcome.check.name,
        "tier": outcome.check.tier,
        "status": outcome.status,
        "seconds": round(outcome.seconds, 3),
        "message": outcome.message[: _MESSAGE if bad else _MESSAGE // 4],
        **({"where": outcome.where} if bad and outcome.where else {}),
    }


def examples() -> Iterator[Tiny]:
    """The first example of every plugin that loads here."""
    for plugin in discover():
        if plugin.module is None:
            continue
        try:
            tinies = subject_of(find(plugin)).tinies
        # As above: the kit tells it.
        except Exception:
            continue
        tiny = next((each for each in tinies if not each.broken), None)
        if tiny is not None:
            yield tiny


def memory(done: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Peaks of requests against those of their plans, prefill and decoding."""
    for tiny in examples():
        name = f"{tiny.subject.plugin.name}/{tiny.example.name}"
        for shape in _SHAPES:
            lengths = [tiny.length(length) for length in shape]
            entry = {"model": name, "request": f"rows of {', '.join(map(str, lengths[:4]))} ({len(lengths)})"}
            yield from _tried(entry, done, lambda t=tiny, rows=lengths: [_prefill(t, rows)])
        if "generate" in tiny.spec.tasks:
            yield from _tried({"model": name, "request": "generate"}, done, lambda t=tiny: _generation(t))


def _tried(
    entry: dict[str, Any], done: Callable[[], bool], run: Callable[[], list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    if done():
        yield {**entry, "status": "skipped"}
        return
    try:
        found = run()
    # Whatever a device makes of a request is what is reported.
    except Exception as error:
        yield {**entry, "status": "failed", "failure": f"{type(error).__name__}: {error}"[:_MESSAGE]}
        return
    yield from ({**entry, "status": "done", **each} for each in found)


def _prefill(tiny: Tiny, lengths: list[int]) -> dict[str, Any]:
    plan = tiny.plan(lengths)
    head = tiny.model._runtime.embedder().head if tiny.embeds else VectorHead(EmbeddingHead(("mean",)))
    rows = [tiny.tokens(length, seed) for seed, length in enumerate(lengths)]
    encoder, started = tiny.model._runtime.encoder, time.perf_counter()
    run_plan(encoder, plan, rows, head)
    seconds = time.perf_counter() - started
    measured = max(peaks(lambda: run_plan(encoder, plan, rows, head), weights=plan.bytes["weights"], runs=3))
    return {
        "stage": "prefill",
        "planned_bytes": plan.peak,
        "measured_bytes": measured,
        "holds": measured <= plan.peak,
        "seconds": round(seconds, 4),
    }


def _generation(tiny: Tiny) -> list[dict[str, Any]]:
    """What the engine's own verification says of a short generation of three rows."""
    prompts: Any = [tiny.tokens(tiny.length(length)).tolist() for length in (40, 7, 1)]
    with _readings() as found:
        tiny.model.generate(prompts, max_tokens=_NEW_TOKENS)
    return [
        {
            "stage": each.stage,
            "planned_bytes": each.planned,
            "measured_bytes": each.measured,
            "holds": each.holds,
        }
        for each in found
    ]


@contextmanager
def _readings() -> Iterator[list[MemoryReading]]:
    """What plans are found to take inside this block; nothing of it is printed."""
    found: list[MemoryReading] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reading = getattr(record, "reading", None)
            if isinstance(reading, MemoryReading):
                found.append(reading)

    log, handler, before = logging.getLogger("archport"), Collect(), os.environ.get(VARIABLE)
    shown = log.propagate
    log.addHandler(handler)
    log.propagate = False
    os.environ[VARIABLE] = "1"
    try:
        yield found
    finally:
        log.removeHandler(handler)
        log.propagate = shown
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def benchmark(done: Callable[[], bool], *, on_cpu: bool) -> Iterator[dict[str, Any]]:
    """Products, copies, the cost of an evaluation, and tokens per second of every plugin's first example."""
    size = 512 if on_cpu else 4096
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        name = f"product of {size} x {size} in {str(dtype).removeprefix('mlx.core.')}"
        # A CPU has no fast product in 16 bits, and would spend the time of all others on it.
        if on_cpu and dtype != mx.float32:
            continue
        yield from _timed(name, "flop/s", 2.0 * size**3, done, lambda d=dtype: _product(size, d))
    count = 1 << (22 if on_cpu else 26)
    yield from _timed("addition to an array of float32", "byte/s", 8.0 * count, done, lambda: _copy(count))
    yield from _timed("evaluation of one addition", "1/s", 100.0, done, _additions)
    for tiny in examples():
        name = f"{tiny.subject.plugin.name}/{tiny.example.name}: 64 rows"
        length = tiny.length(128)
        yield from _timed(name, "token/s", 64.0 * length, done, lambda t=tiny, n=length: _rows(t, n))
        if "generate" in tiny.spec.tasks:
            name = f"{tiny.subject.plugin.name}/{tiny.example.name}: decoding 4 rows"
            yield from _timed(name, "token/s", 4.0 * _NEW_TOKENS, done, lambda t=tiny: _decoding(t))


def _timed(
    name: str, unit: str, amount: float, done: Callable[[], bool], make: Callable[[], Callable[[], object]]
) -> Iterator[dict[str, Any]]:
    def run() -> list[dict[str, Any]]:
        work, seconds = make(), []
        for _ in range(4):
            mx.synchronize()
            started = time.perf_counter()
            work()
            mx.synchronize()
            seconds.append(time.perf_counter() - started)
        # The first one compiles.
        return [{"unit": unit, "rate": amount / max(min(seconds[1:]), 1e-9), "first_seconds": round(seconds[0], 5)}]

    yield from _tried({"what": name}, done, run)


def _product(size: int, dtype: mx.Dtype) -> Callable[[], object]:
    a, b = (mx.random.normal((size, size)).astype(dtype) for _ in range(2))
    mx.eval(a, b)
    return lambda: mx.eval(a @ b)


def _copy(count: int) -> Callable[[], object]:
    source = mx.zeros((count,))
    mx.eval(source)
    return lambda: mx.eval(source + 1)


def _additions() -> Callable[[], object]:
    def run() -> None:
        value = mx.zeros((1,))
        for _ in range(100):
            value = value + 1
            mx.eval(value)

    return run


def _rows(tiny: Tiny, length: int) -> Callable[[], object]:
    rows = [tiny.tokens(length, seed) for seed in range(64)]
    plan, head = tiny.plan([length] * 64), VectorHead(EmbeddingHead(("mean",)))
    return lambda: run_plan(tiny.model._runtime.encoder, plan, rows, head)


def _decoding(tiny: Tiny) -> Callable[[], object]:
    prompts: Any = [tiny.tokens(tiny.length(16), seed).tolist() for seed in range(4)]
    return lambda: tiny.model.generate(prompts, max_tokens=_NEW_TOKENS, min_tokens=_NEW_TOKENS)
