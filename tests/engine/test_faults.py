"""Interrupts and errors at random points of requests: the next one is as from a fresh load, and no byte stays in use.

The garbage collector is off meanwhile: what a failed request held is freed by nobody else.
"""

from __future__ import annotations

import gc
import io
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.answering import vectors as embed
from archport.contract import InputError
from archport.generating.decode import Decoding
from archport.planning import Planner
from archport.reading import texts as tokenise
from archport.running.encode import Encoder
from archport.running.pool import VectorHead

# A class, and the name of a method of it.
Site = tuple[Any, str]
GOLDENS = Path(__file__).parents[1] / "goldens"
WORDS = ["the", "hack", "of", "a", "word", "and", "another", "text", "on", "paper", "with", "some", "more"]


class Injected(Exception):
    """Raised by the tests at some call."""


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) for _ in range(count)]


def picture(seed: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def streamed(model: engine.Model, prompts: Any) -> list[tuple[int, ...]]:
    made: Any = model.generate(prompts, max_tokens=10, stream=True)
    return [(piece.row, *piece.tokens) for piece in made]


def generated(model: engine.Model, prompts: Any) -> list[tuple[int, ...]]:
    made: Any = model.generate(prompts, max_tokens=10)
    return [each.tokens for each in made]


@dataclass(frozen=True)
class Request:
    """A request of one checkpoint, and what of the checkpoint's parts it calls besides those of all requests."""

    folder: str
    ask: Callable[[engine.Model], Any]
    parts: tuple[Site, ...] = ()
    prefix_cache: int = 0


PROMPTS = ["the hack of", "a text with more words than the other one", "some paper"]
SHOWN = [{"text": "a word", "image": picture(index)} for index in range(3)]


def ranked(model: engine.Model, documents: list[str]) -> np.ndarray:
    return np.array([each.score for each in model.rerank("which word", documents)])


POOLED, DECODED = ((VectorHead, "project"), (VectorHead, "finish")), ((Decoding, "step"),)
REQUESTS = {
    "embed": Request("bert-plain", lambda m: m.embed(texts(60, 1)), POOLED),
    "embed pictures": Request("qwen3-vl", lambda m: m.embed([*texts(3, 2), *SHOWN]), POOLED),
    "embed tokens": Request("colbert", lambda m: np.concatenate(list(m.embed(texts(20, 3), output="tokens")))),
    "rerank": Request("qwen3-reranker", lambda m: ranked(m, texts(20, 4)), ((Encoder, "_pool"),)),
    "rerank labels": Request("xlm-roberta-rerank", lambda m: ranked(m, texts(20, 5))),
    "generate": Request("qwen3-moe", lambda m: generated(m, PROMPTS), DECODED, 1 << 20),
    "stream": Request("qwen35-text", lambda m: streamed(m, PROMPTS), DECODED, 1 << 20),
    "stream pictures": Request("qwen35-wrapper", lambda m: streamed(m, [SHOWN[0], "a text"]), DECODED),
}


@pytest.fixture(autouse=True)
def several_windows(monkeypatch) -> Iterator[None]:
    """Texts are tokenised ahead in windows of a few; nothing is collected but by counting references."""
    monkeypatch.setitem(embed._WINDOWS, "cpu", (8, 8, 16))
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def points(model: engine.Model, request: Request) -> list[Site]:
    """What may fail: layers, tokenizer, planner, decoder of pictures, and the request's own parts."""
    runtime: Any = model._runtime
    trunk = runtime.encoder.trunk
    layers = sorted({type(module) for module in trunk.modules()} - {type(trunk)}, key=lambda kind: kind.__name__)
    reader = runtime.tokeniser.inputs.reader
    found = [(kind, "__call__") for kind in layers if hasattr(kind, "__call__")]  # noqa: B004
    found += [(tokenise.TextTokeniser, "__call__"), (Planner, "__call__"), *request.parts]
    if hasattr(trunk, "logits"):
        found.append((type(trunk), "logits"))
    return found if reader is None else [*found, (type(reader), "decode"), (type(trunk), "see")]


def interrupted(ask: Callable[[], object], seconds: float) -> bool:
    """Whether an interrupt after so many seconds came before the answer did."""
    armed, answered = True, False

    def handler(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            ask()
            answered = True
        finally:
            armed = False
    except KeyboardInterrupt:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return not answered


@contextmanager
def watched(sites: Sequence[Site], fail: tuple[Site, int] | None = None) -> Iterator[Counter[Site]]:
    """Counts the calls of methods; one of them fails at its call of that number."""
    counts, lock = Counter[Site](), threading.Lock()

    def counting(site: Site, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with lock:
                counts[site] += 1
                number = counts[site]
            if fail == (site, number):
                raise Injected
            return real(*args, **options)

        return call

    before = [(site, getattr(*site)) for site in sites]
    for site, real in before:
        setattr(*site, counting(site, real))
    try:
        yield counts
    finally:
        for site, real in before:
            setattr(*site, real)


def fails(ask: Callable[[], object], site: Site, number: int) -> None:
    """Ask, while a method fails at its call of this number."""
    with watched([site], (site, number)):
        try:
            ask()
        except Injected:
            return
    raise AssertionError("the request answered")


def left_of(threads: Iterable[threading.Thread]) -> list[str]:
    """Threads that have not ended half a minute later; those for MKL stay, whose buffers belong to threads."""
    own = [each for each in threads if not each.name.startswith("archport_")]
    until = time.monotonic() + 30
    # Not joined: one that an interrupt caught while it was started can't be, and ends by itself.
    while any(each in threading.enumerate() for each in own) and time.monotonic() < until:
        time.sleep(0.001)
    return [each.name for each in own if each in threading.enumerate()]


def check_faults(name: str, count: int, seed: int) -> int:
    """Requests that fail in turn by errors and interrupts, each followed by one that must not; answers how many did."""
    request, draw, failed = REQUESTS[name], random.Random(f"{name} {seed}"), 0
    options: Any = {"prefix_cache": request.prefix_cache}
    expected = request.ask(engine.load(GOLDENS / request.folder, prefix_cache=0))
    model = engine.load(GOLDENS / request.folder, **options)

    def ask() -> object:
        return request.ask(model)

    def active() -> int:
        # What is remembered on purpose is not left behind.
        model._runtime.prefixes.clear()
        return mx.get_active_memory()

    ask()
    with watched(points(model, request)) as counts:
        ask()
    sites = sorted(counts.items(), key=repr)
    started = time.perf_counter()
    ask()
    seconds = time.perf_counter() - started
    for index in range(count):
        threads, before = set(threading.enumerate()), active()
        if index % 2 == 0:
            site, most = draw.choice(sites)
            number = draw.randint(1, most)
            fails(ask, site, number)
            failed, where = failed + 1, f"call {number} of {most} of {site[0].__name__}.{site[1]}"
        else:
            delay = draw.uniform(0.02, 1) * seconds
            came, where = interrupted(ask, delay), f"{delay:.4f} s of {seconds:.4f}"
            failed += came
            if not came:
                # An answer does not wait for the device to give its last buffers back.
                mx.synchronize()
        left = active() - before
        assert left <= 0, f"after {where}: {left} bytes more"
        assert not left_of(set(threading.enumerate()) - threads), where
        found = ask()
        if isinstance(expected, np.ndarray):
            assert np.abs(found - expected).max() <= 1e-6, where
        else:
            assert found == expected, where
    return failed


@pytest.mark.parametrize("name", REQUESTS)
def test_after_an_error_or_interrupt_nothing_is_left_and_the_next_request_is_as_from_a_fresh_load(name):
    assert check_faults(name, 2, seed=0) >= 1


@pytest.mark.truth
@pytest.mark.parametrize("name", REQUESTS)
def test_after_hundreds_of_errors_and_interrupts_too(name):
    assert check_faults(name, 34, seed=1) >= 20


@pytest.mark.parametrize("kind", [KeyboardInterrupt, InputError])
def test_whoever_keeps_an_interrupt_or_a_refusal_keeps_none_of_its_arrays(kind, monkeypatch):
    model = engine.load(GOLDENS / "qwen3-moe", prefix_cache=0)
    step, calls = Decoding.step, 0

    def failing(self, tokens):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise kind("in the third step")
        return step(self, tokens)

    generated(model, PROMPTS)
    mx.synchronize()
    before = mx.get_active_memory()
    monkeypatch.setattr(Decoding, "step", failing)
    with pytest.raises(kind) as kept:
        generated(model, PROMPTS)
    assert kept.value.__traceback__ is not None
    assert mx.get_active_memory() <= before


def test_after_any_other_error_a_debugger_sees_the_frames(monkeypatch):
    model = engine.load(GOLDENS / "bert-plain")

    def failing(*_: object, **__: object) -> None:
        here = "a value"
        raise Injected(here)

    monkeypatch.setattr(VectorHead, "finish", failing)
    with pytest.raises(Injected) as kept:
        model.embed("a")
    assert kept.traceback[-1].frame.f_locals["here"] == "a value"


def test_the_frames_of_the_error_that_a_caller_handles_are_its_own():
    model = engine.load(GOLDENS / "bert-plain")

    def raised() -> None:
        here = "a value"
        raise Injected(here)

    with pytest.raises(Injected) as kept:
        raised()
    try:
        raise kept.value
    except Injected:
        with pytest.raises(InputError):
            model.embed([None])
    assert kept.traceback[-1].frame.f_locals["here"] == "a value"


def test_a_stream_that_is_dropped_in_a_cycle_is_freed_by_the_collector_of_another_thread():
    model = engine.load(GOLDENS / "qwen3-moe", prefix_cache=0)
    generated(model, PROMPTS)
    mx.synchronize()
    before = mx.get_active_memory()
    cycle: list[Any] = [model.generate(PROMPTS, max_tokens=100, stream=True)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    assert mx.get_active_memory() > before
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join(60)
    mx.synchronize()
    assert not collector.is_alive()
    assert mx.get_active_memory() <= before


def test_a_block_closes_a_stream_and_waits_for_the_step_that_runs_ahead():
    model = engine.load(GOLDENS / "qwen3-moe", prefix_cache=0)
    generated(model, PROMPTS)
    mx.synchronize()
    before = mx.get_active_memory()
    with model.generate(PROMPTS, max_tokens=100, stream=True) as pieces:  # pyright: ignore
        next(pieces)
    assert mx.get_active_memory() <= before
    assert list(pieces) == []
