"""What earlier calls leave behind changes no number of later ones; a run that did not end well leaves nothing."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import dataclasses
import types
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from archport import engine, planning
from archport.contract import AttentionLayer, KVAllocation, NonFiniteOutput
from archport.contract.hookspecs import hookimpl
from archport.generating.generate import Generator
from archport.memory import Caches, take
from archport.memory.snapshot import PrefixCache, PrefixDraft

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXT = ("qwen3-causal-sharded", "qwen3-moe", "qwen3-windowed", "qwen35-text", "qwen3-next")
SEEING = ("qwen3-vl", "qwen3-vl-moe", "qwen35-wrapper", "qwen35-moe-wrapper")


def loaded(name: str, *, chunk: int | None = None, **options: Any) -> engine.Model:
    """A tiny checkpoint in float32, reading prompts in chunks, that never ends a text by itself."""
    pins = types.ModuleType("pins")

    def archport_prefill_chunk(spec):
        return chunk

    pins.archport_prefill_chunk = hookimpl(archport_prefill_chunk)
    model = engine.load(GOLDENS / name, dtype="float32", overrides=[pins], **options)
    model._runtime = dataclasses.replace(model._runtime, stops=frozenset())
    return model


class Traffic:
    """Random prompts that begin alike: lists of ids, or conversations with pictures and video where the model sees."""

    def __init__(self, model: engine.Model, dice: np.random.Generator) -> None:
        self.sees, self.dice = model.spec.vision is not None, dice
        # Behind the special tokens of the tiny vocabularies.
        self.ids = min(model.spec.vocab_size, 250)
        self.beginnings = [dice.integers(0, self.ids, count).tolist() for count in (6, 21, 50)]
        self.pictures = [dice.integers(0, 256, size, dtype=np.uint8) for size in ((32, 48, 3), (64, 32, 3))]
        self.film = dice.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        self.systems = ["You answer in one short sentence.", "You answer in one short sentence, or in two."]
        self.told: list[tuple[Any, Any]] = []

    def batch(self) -> list[Any]:
        """One to four prompts; sometimes all of them go on from what an earlier one was, which a hybrid needs."""
        rows = int(self.dice.integers(1, 5))
        if not self.told or self.dice.random() < 0.4:
            return [self.prompt() for _ in range(rows)]
        told = self.told[self.dice.integers(len(self.told))]
        return [self.continued(told) for _ in range(rows)]

    def prompt(self) -> Any:
        return self.conversation() if self.sees and self.dice.random() < 0.8 else self.sequence()

    def continued(self, told: tuple[Any, Any]) -> Any:
        """A prompt that begins with an earlier one and, mostly, what was made of it."""
        prompt, made = told
        if isinstance(prompt[0], dict):
            answer = {"role": "assistant", "content": made.text or "no"}
            return [*prompt, answer, {"role": "user", "content": self.parts()}] if len(prompt) < 5 else prompt
        made = made.tokens if self.dice.random() < 0.8 else ()
        return [*prompt, *made, *self.dice.integers(0, self.ids, self.dice.integers(0, 12)).tolist()][:120]

    def sequence(self) -> list[int]:
        start = self.beginnings[self.dice.integers(3)]
        cut = len(start) if self.dice.random() < 0.6 else int(self.dice.integers(1, len(start) + 1))
        return [*start[:cut], *self.dice.integers(0, self.ids, self.dice.integers(1, 25)).tolist()]

    def conversation(self) -> list[dict[str, Any]]:
        system = {"role": "system", "content": self.systems[self.dice.integers(2)]}
        return [system, {"role": "user", "content": self.parts()}]

    def parts(self) -> list[dict[str, Any]]:
        """What a user says: text, and now and then pictures or a video around it."""
        said = ["what is it?", "and this", "name the capital"][self.dice.integers(3)]
        parts = [{"type": "text", "text": said}]
        for _ in range(self.dice.integers(0, 3)):
            kind = self.dice.integers(3)
            film = {"type": "video", "video": self.film, "fps": 4.0, "sample_fps": 100.0}
            part = film if kind == 2 else {"type": "image", "image": self.pictures[kind]}
            parts.insert(int(self.dice.integers(0, len(parts) + 1)), part)
        return parts


def check_batches(name: str, batches: int, seed: int) -> int:
    """Run random batches one after the other; each row is what it is alone and uncached. Answers tokens not read again.

    Every few batches the chunk and the bytes of the cache change.
    """
    dice = np.random.default_rng(seed)
    cold, reused = loaded(name, prefix_cache=0), 0
    for first in range(0, batches, 10):
        chunk = [None, 7, 16][first // 10 % 3]
        warm = loaded(name, chunk=chunk, prefix_cache=["64MB", 60_000][first // 10 % 2])
        traffic = Traffic(warm, dice)
        for _ in range(min(10, batches - first)):
            prompts = traffic.batch()
            options = {"max_tokens": int(dice.integers(1, 6)), "logprobs": 0}
            for prompt, made in zip(prompts, warm.generate(prompts, **options), strict=True):
                (want,) = cold.generate([prompt], **options)
                assert made.tokens == want.tokens, (name, seed, first)
                gaps = [abs(a.logprob - b.logprob) for a, b in zip(made.logprobs, want.logprobs, strict=True)]
                assert max(gaps) <= 1e-4, (name, seed, first, max(gaps))
                reused += made.usage.cached_tokens
                traffic.told.append((prompt, made))
    return reused


@pytest.mark.parametrize("name", ["qwen3-moe", "qwen3-windowed", "qwen35-text", "qwen3-vl", "qwen35-wrapper"])
def test_random_batches_equal_their_rows_alone_without_a_cache(name):
    assert check_batches(name, 2, seed=3) > 0


@pytest.mark.truth
@pytest.mark.parametrize("name", [*TEXT, *SEEING])
def test_three_hundred_random_batches_equal_their_rows_alone_without_a_cache(name):
    assert check_batches(name, 34, seed=2) > 1000


@pytest.mark.parametrize("name", ["qwen3-vl", "qwen3-vl-moe", "qwen35-wrapper"])
def test_text_beside_a_picture_goes_on_where_the_shared_beginning_ended(name):
    warm, cold = loaded(name), loaded(name, prefix_cache=0)
    shared = [{"role": "system", "content": "You answer briefly."}, {"role": "user", "content": "hello"}]
    shared.append({"role": "assistant", "content": warm.generate(shared, max_tokens=2).text})
    picture = np.random.default_rng(5).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    seen = [*shared, {"role": "user", "content": [{"type": "image", "image": picture}, "what is it?"]}]
    text = [*shared, {"role": "user", "content": "what is the capital of France?"}]
    options = {"max_tokens": 6, "logprobs": 0}
    together, wanted = warm.generate([seen, text], **options), [cold.generate(each, **options) for each in (seen, text)]
    # The text alone, afterwards, starts from what that batch left behind.
    for made, want in zip([*together, warm.generate(text, **options)], [*wanted, wanted[1]], strict=True):
        assert made.usage.cached_tokens > 0
        assert made.tokens == want.tokens
        assert max(abs(a.logprob - b.logprob) for a, b in zip(made.logprobs, want.logprobs, strict=True)) <= 1e-4


def windowed(model: engine.Model, left: int) -> engine.Model:
    """The model with a sliding window in every layer."""
    runtime, encoder = model._runtime, model._runtime.encoder
    spec = dataclasses.replace(
        encoder.spec, layers=tuple(dataclasses.replace(each, reach=(left, 0)) for each in encoder.spec.layers)
    )
    plan = dataclasses.replace(encoder.plan, spec=spec)
    encoder = dataclasses.replace(encoder, spec=spec, plan=plan)
    model._runtime = dataclasses.replace(runtime, encoder=encoder)
    return model


def test_pictures_are_seen_where_rows_are_read_one_by_one_through_windows(monkeypatch):
    # Or so short a prompt is kept whole.
    monkeypatch.setattr(planning.caches, "RING_STEP", 16)
    picture = np.random.default_rng(5).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    image = {"type": "image", "image": picture}
    prompts = [[{"role": "user", "content": each}] for each in ([image, "what is it?"], "what?", ["and", image])]
    model = windowed(loaded("qwen3-vl", chunk=7, prefix_cache=0), 9)
    together = model.generate(prompts, max_tokens=8)
    assert [each.tokens for each in together] == [model.generate(each, max_tokens=8).tokens for each in prompts]


def poisoned(model: engine.Model, calls: int, error: type[BaseException] | None) -> None:
    """From a number of calls on the model's logits are NaN, or asking for them raises."""
    trunk, count = model._runtime.encoder.trunk, iter(range(1_000_000))
    logits = type(trunk).logits

    def wrong(self, hidden):
        if next(count) < calls:
            return logits(self, hidden)
        if error is not None:
            raise error
        return logits(self, hidden) * mx.nan

    object.__setattr__(trunk, "__class__", type(type(trunk).__name__, (type(trunk),), {"logits": wrong}))


@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", ["qwen3-moe", "qwen35-text"])
def test_a_run_that_did_not_end_well_leaves_nothing_behind(name, error, calls):
    model = loaded(name, prefix_cache="64MB")
    prompts = [list(range(100, 130)), list(range(20))]
    stop = model.generate(prompts[1], max_tokens=1).tokens[0]
    model._runtime.prefixes.clear()
    # The short row ends at its first token, while the other goes on to where it fails.
    model._runtime = dataclasses.replace(model._runtime, stops=frozenset({stop}))
    poisoned(model, calls, error)
    with pytest.raises(error or NonFiniteOutput):
        model.generate(prompts, max_tokens=6)
    assert len(model._runtime.prefixes) == 0


def test_a_stream_that_was_read_to_its_last_piece_leaves_its_text_behind():
    model = loaded("qwen3-moe", prefix_cache="64MB")
    stream = model.generate(list(range(30)), max_tokens=3, stream=True)
    made = [next(stream) for _ in range(3)]
    assert made[-1].finish_reason == "length"
    stream.close()
    assert model.generate(list(range(30)), max_tokens=1).usage.cached_tokens == 29


def test_numbers_that_are_not_finite_are_never_remembered():
    caches = Caches([AttentionLayer("causal", 4, 2, 8)], [KVAllocation("planned", 64, 64)], 1, "float32")
    k = mx.ones((1, 2, 5, 8))
    k[0, 1, 3, 2] = mx.nan
    caches.layers[0].append(k, mx.ones((1, 2, 5, 8)))
    draft = PrefixDraft(PrefixCache(1_000_000))
    draft.add(np.arange(5), take(caches))
    draft.keep()
    assert len(draft.cache) == 0


def test_a_draft_and_its_cache_hold_no_more_than_the_limit():
    caches = Caches([AttentionLayer("causal", 4, 2, 8)], [KVAllocation("planned", 64, 64)], 1, "float32")
    caches.layers[0].append(mx.ones((1, 2, 5, 8)), mx.ones((1, 2, 5, 8)))
    snapshot = take(caches)
    cache = PrefixCache(3 * snapshot.bytes)
    cache.add(np.full(5, 9), snapshot)
    draft = PrefixDraft(cache)
    for first in range(4):
        assert draft.make_room(snapshot.bytes)
        draft.add(np.arange(first, first + 5), snapshot)
    assert len(cache) == 0
    draft.keep()
    assert [cache.find(np.arange(first, first + 6)) is not None for first in range(4)] == [False, True, True, True]
    assert not draft.make_room(cache.limit + 1)


@pytest.mark.parametrize("name", ["qwen3-windowed", "qwen35-text"])
def test_a_prompt_that_nothing_follows_is_remembered_once(name, monkeypatch):
    model, added = loaded(name), list[int]()
    add = PrefixDraft.add
    monkeypatch.setattr(
        PrefixDraft, "add", lambda draft, ids, snapshot: (added.append(len(ids)), add(draft, ids, snapshot))
    )
    model.generate([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]], max_tokens=0)
    assert added == [6, 6]
    assert len(model._runtime.prefixes) == 2


def test_what_a_call_may_generate_is_worked_out_once(monkeypatch):
    model, asked = loaded("qwen3-causal-sharded"), list[int]()
    most = Generator.most_of
    monkeypatch.setattr(
        Generator, "most_of", lambda self, rows, options: (asked.append(len(rows)), most(self, rows, options))[1]
    )
    model.generate([[5, 6, 7], [8, 9]], max_tokens=2)
    assert asked == [2]
