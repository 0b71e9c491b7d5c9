"""A device that gives up work at any evaluation: an error with the plan's numbers, and the next request as before.

Metal and CUDA are simulated: evaluation raises what MLX 0.32.4 says there. No Metal machine has run this.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import typer
from tolerances import CPU

from archport import engine
from archport.answering import vectors as embed
from archport.cli.words import message_and_code
from archport.contract import AttentionLimits, CheckpointError, DeviceFailure, NonFiniteOutput
from archport.device import failures
from archport.running import calls
from archport.running.pool import VectorHead

GOLDENS = Path(__file__).parents[1] / "goldens"
METAL = "[METAL] Command buffer execution failed: {}."
TIMEOUT = METAL.format("Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)")
MEMORY = METAL.format("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)")
# What MLX says, and what it means.
SAID = {
    TIMEOUT: "device_timeout",
    METAL.format(
        "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
    ): "device_timeout",
    METAL.format("Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)"): "device_timeout",
    MEMORY: "device_out_of_memory",
    "[metal::malloc] Attempting to allocate 137438953472 bytes which is greater than the maximum allowed buffer size "
    "of 86586540032 bytes.": "device_out_of_memory",
    "[metal::malloc] Resource limit (499000) exceeded.": "device_out_of_memory",
    "[malloc] Unable to allocate 34359738368 bytes.": "device_out_of_memory",
    "cudaMallocAsync(&data, size, stream) failed: out of memory": "device_out_of_memory",
    METAL.format(
        "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)"
    ): "device_page_fault",
    "cudaGraphLaunch failed: an illegal memory access was encountered": "device_page_fault",
    METAL.format("Internal Error (0000000e:Internal Error)"): "device_lost",
    METAL.format(
        "Ignored (for causing prior/excessive GPU errors) (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)"
    ): "device_lost",
}
WORDS = ["the", "hack", "of", "a", "word", "and", "another", "text", "on", "paper", "with", "some", "more"]


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) for _ in range(count)]


def shown(seed: int) -> dict[str, Any]:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    return {"text": "a word", "image": Image.fromarray(pixels)}


def tokens(model: Any, prompts: Any, stream: bool) -> list[tuple[int, ...]]:
    made = model.generate(prompts, max_tokens=8, stream=stream)
    return [(piece.row, *piece.tokens) for piece in made] if stream else [each.tokens for each in made]


PROMPTS = ["the hack of", "a text with more words than the other one", "some paper"]
# Checkpoint, request, and bytes of prefix cache.
REQUESTS: dict[str, tuple[str, Callable[[Any], Any], int]] = {
    "embed": ("bert-plain", lambda m: m.embed(texts(40, 1)), 0),
    "embed pictures": ("qwen3-vl", lambda m: m.embed([*texts(3, 2), shown(0), shown(1)]), 0),
    "rerank": ("qwen3-reranker", lambda m: np.array([each.score for each in m.rerank("which", texts(12, 4))]), 0),
    "generate": ("qwen3-moe", lambda m: tokens(m, PROMPTS, False), 1 << 20),
    "stream": ("qwen35-text", lambda m: tokens(m, PROMPTS, True), 1 << 20),
    "stream pictures": ("qwen35-wrapper", lambda m: tokens(m, [shown(0), "a text"], True), 0),
}


@contextmanager
def evaluations(fail: int | None = None, said: str = "") -> Iterator[list[int]]:
    """Counts evaluations in a list of one; the one of number `fail` raises, and as on Metal whatever follows it until
    the device is waited for does too."""
    count, lock, parked = [0], threading.Lock(), [False]
    real = {name: getattr(mx, name) for name in ("eval", "async_eval", "synchronize")}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with lock:
                count[0] += 1
                parked[0] = parked[0] or count[0] == fail
            if parked[0]:
                raise RuntimeError(said)
            return real[name](*args, **options)

        return call

    def synchronize(*args: Any) -> None:
        real["synchronize"](*args)
        if parked[0]:
            parked[0] = False
            raise RuntimeError(said)

    mx.eval, mx.async_eval, mx.synchronize = counting("eval"), counting("async_eval"), synchronize
    try:
        yield count
    finally:
        for name, function in real.items():
            setattr(mx, name, function)


@contextmanager
def parked(said: str) -> Iterator[None]:
    """The device has an error that it says when it is next waited for."""
    real, waiting = mx.synchronize, [True]

    def synchronize(*args: Any) -> None:
        real(*args)
        if waiting.pop() if waiting else False:
            raise RuntimeError(said)

    mx.synchronize = synchronize
    try:
        yield
    finally:
        mx.synchronize = real


# A GPU gives the last buffers of a few bytes back from another thread, a little after the work is done.
LATE = 0 if CPU else 4096


def check_failures(name: str, count: int, seed: int) -> int:
    """Requests that the device gives up in turn, each followed by one that it does not; answers how many it gave up."""
    folder, ask, prefix_cache = REQUESTS[name]
    draw = random.Random(f"{name} {seed}")
    expected = ask(engine.load(GOLDENS / folder, prefix_cache=0))
    model = engine.load(GOLDENS / folder, prefix_cache=prefix_cache)
    ask(model)
    with evaluations() as counted:
        ask(model)
    most, before = counted[0], -1
    for _ in range(count):
        said, number = draw.choice(list(SAID)), draw.randint(1, most)
        where = f"evaluation {number} of {most}: {said}"
        model._runtime.prefixes.clear()
        mx.synchronize()
        before = mx.get_active_memory()
        with evaluations(number, said), pytest.raises(DeviceFailure) as raised:
            ask(model)
        error = raised.value
        assert (error.code, error.said) == (SAID[said], said), where
        assert 0 < (error.planned_bytes or 0) <= (error.budget_bytes or 0), where
        assert f"{model.device.name} " in str(error)
        assert said[:40] in str(error), where
        assert mx.get_active_memory() <= before + LATE, where
        assert mx.get_cache_memory() <= LATE, where
        assert len(model._runtime.prefixes) == 0, where
        found = ask(model)
        if isinstance(expected, np.ndarray):
            assert np.abs(found - expected).max() <= 1e-6, where
        else:
            assert found == expected, where
    return count


@pytest.fixture(autouse=True)
def several_windows(monkeypatch) -> Iterator[None]:
    """Texts are tokenised ahead in windows of a few; nothing is collected but by counting references."""
    monkeypatch.setitem(embed._WINDOWS, "cpu", (8, 8, 16))
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", REQUESTS)
def test_after_the_device_gives_up_the_next_request_is_as_from_a_fresh_load(name):
    assert check_failures(name, 2, seed=0) == 2


@pytest.mark.truth
@pytest.mark.parametrize("name", REQUESTS)
def test_after_the_device_gives_up_often_too(name):
    assert check_failures(name, 40, seed=1) == 40


@pytest.mark.parametrize("said", SAID, ids=SAID.values())
def test_what_mlx_says_is_understood(said):
    assert failures.failure_of(RuntimeError(said)) == SAID[said]


@pytest.mark.parametrize(
    "error", [RuntimeError("out of luck"), ValueError(TIMEOUT), MemoryError(), NotImplementedError(TIMEOUT)]
)
def test_another_error_is_no_failure_of_the_device(error):
    assert failures.failure_of(error) is None


def failed(said: str, **options: Any) -> DeviceFailure:
    model = engine.load(GOLDENS / "qwen3-embed", **options)
    with evaluations(1, said), pytest.raises(DeviceFailure) as raised:
        model.embed(["a text", "another"])
    return raised.value


def test_out_of_memory_names_a_budget_that_the_same_request_fits():
    error = failed(MEMORY)
    less = int(str(error).partition("memory_budget=")[2].partition(" ")[0])
    assert less < (error.planned_bytes or 0)
    vectors = engine.load(GOLDENS / "qwen3-embed", memory_budget=less).embed(["a text", "another"])
    assert np.isfinite(vectors).all()


def test_a_timeout_names_limits_that_are_half_as_long():
    error = failed(TIMEOUT)
    seconds = float(str(error).partition("dispatch_seconds=")[2].partition(")")[0])
    assert 0 < seconds <= (error.longest_seconds or 0)
    engine.load(GOLDENS / "qwen3-embed", limits=AttentionLimits(dispatch_seconds=seconds))


def test_an_error_that_a_caller_keeps_holds_no_arrays():
    model = engine.load(GOLDENS / "bert-plain")
    model.embed("a text")
    mx.synchronize()
    before = mx.get_active_memory()
    with evaluations(1, MEMORY), pytest.raises(DeviceFailure) as kept:
        model.embed(texts(20, 7))
    assert kept.value.__traceback__ is not None
    assert mx.get_active_memory() <= before


def test_weights_that_do_not_fit_blame_neither_file_nor_plugin():
    with evaluations(1, MEMORY), pytest.raises(DeviceFailure, match="before any plan ran") as raised:
        engine.load(GOLDENS / "bert-plain", share_weights=False)
    assert not isinstance(raised.value, CheckpointError)
    engine.load(GOLDENS / "bert-plain").embed("a text")


def test_a_device_that_stays_gone_is_said_to_need_a_new_process(monkeypatch):
    def gone(*_: object) -> None:
        raise RuntimeError(TIMEOUT)

    model = engine.load(GOLDENS / "bert-plain")
    monkeypatch.setattr(mx, "synchronize", gone)
    monkeypatch.setattr(mx, "async_eval", gone)
    with pytest.raises(DeviceFailure, match="start a new process") as raised:
        model.embed("a text")
    assert raised.value.code == "device_lost"
    assert ".." not in str(raised.value)


def test_what_mlx_kept_to_itself_fails_the_request_that_caused_it(monkeypatch):
    # On Metal an evaluation may end well although one of its command buffers failed; what was read then is zeros.
    model = engine.load(GOLDENS / "bert-plain")
    monkeypatch.setattr(calls, "_on_metal", lambda: True)
    with parked(MEMORY), pytest.raises(DeviceFailure) as raised:
        model.embed("a text")
    assert raised.value.code == "device_out_of_memory"
    assert np.isfinite(model.embed("a text")).all()


def test_a_failure_of_the_first_request_leaves_nothing_in_an_empty_prefix_cache(monkeypatch):
    model: Any = engine.load(GOLDENS / "qwen3-moe", prefix_cache=1 << 20)
    real, waiting = mx.synchronize, [True]

    def synchronize(*args: Any) -> None:
        real(*args)
        # Said once the request has left what it read.
        if waiting and len(model._runtime.prefixes):
            waiting.pop()
            raise RuntimeError(MEMORY)

    monkeypatch.setattr(calls, "_on_metal", lambda: True)
    monkeypatch.setattr(mx, "synchronize", synchronize)
    with pytest.raises(DeviceFailure):
        tokens(model, PROMPTS[:1], False)
    assert waiting == []
    assert len(model._runtime.prefixes) == 0


@pytest.mark.parametrize("seen", [ValueError("no numbers"), NonFiniteOutput("NaN")], ids=["unread", "not finite"])
def test_a_failure_that_is_noticed_by_its_results_is_said_as_what_it_is(seen, monkeypatch):
    def finish(*_: object, **__: object) -> None:
        raise seen

    model = engine.load(GOLDENS / "bert-plain")
    # A GPU keeps a few bytes for every shape that it has seen.
    model.embed(texts(20, 8))
    before = mx.get_active_memory()
    with monkeypatch.context() as patched, parked(MEMORY), pytest.raises(DeviceFailure) as raised:  # noqa: PT012
        patched.setattr(VectorHead, "finish", finish)
        model.embed(texts(20, 8))
    assert (raised.value.code, raised.value.said) == ("device_out_of_memory", MEMORY)
    assert mx.get_active_memory() <= before
    assert np.isfinite(model.embed("a text")).all()


def test_the_error_that_a_caller_handles_meanwhile_keeps_its_place():
    model = engine.load(GOLDENS / "bert-plain")
    handled = ZeroDivisionError()
    try:
        raise handled
    except ZeroDivisionError:
        with evaluations(1, MEMORY), pytest.raises(DeviceFailure):
            model.embed("a text")
    assert handled.__traceback__ is not None


def test_an_interrupt_stays_one_whatever_the_device_says(monkeypatch):
    def finish(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    model = engine.load(GOLDENS / "bert-plain")
    monkeypatch.setattr(VectorHead, "finish", finish)
    with parked(MEMORY), pytest.raises(KeyboardInterrupt):
        model.embed("a text")


def test_a_stream_that_is_closed_says_that_its_last_step_failed():
    model: Any = engine.load(GOLDENS / "qwen35-text", prefix_cache=1 << 20)
    expected = tokens(model, PROMPTS, True)
    pieces = model.generate(PROMPTS, max_tokens=8, stream=True)
    next(pieces)
    with parked(MEMORY), pytest.raises(DeviceFailure) as raised:
        pieces.close()
    assert raised.value.planned_bytes
    assert len(model._runtime.prefixes) == 0
    assert tokens(model, PROMPTS, True) == expected


def test_the_command_line_ends_with_the_code_for_memory():
    message, code = message_and_code(failed(MEMORY))
    assert "Planned: a peak of" in message
    assert code != message_and_code(failed(TIMEOUT))[1]
    assert isinstance(typer.Exit(code).exit_code, int)
