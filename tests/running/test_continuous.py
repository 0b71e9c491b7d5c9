"""Rows that join and leave a running batch say what calls of their own say; whatever fails, fails alone."""

from __future__ import annotations

import random
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import AdmissionRefused
from archport.generating.continuous import ContinuousBatch
from archport.generating.pieces import RowOptions
from archport.generating.sampling import Sampling
from archport.generating.talks import Talk

GOLDENS = Path(__file__).parents[1] / "goldens"
# Full attention, rings, experts, recurrent layers, shared heads.
MODELS = ["qwen3-tied", "qwen3-windowed", "qwen35-text", "qwen3-moe"]
LOADED = {}


def load(name, **options):
    key = (name, tuple(options.items()))
    if key not in LOADED:
        LOADED[key] = engine.load(GOLDENS / name, dtype="float32", **options)
    return LOADED[key]


def batch_of(model, **options):
    return ContinuousBatch(model._runtime.generator(), **options)


class Caller:
    """A prompt with what is asked of it, and what came."""

    def __init__(self, chance, vocabulary):
        self.ids = np.array(
            [chance.randrange(1, vocabulary) for _ in range(chance.choice([1, 3, 17, 60, 130]))], np.int32
        )
        self.options = {
            "max_tokens": chance.choice([1, 2, 7, 20, 40]),
            "temperature": chance.choice([0.0, 0.0, 0.8, 1.5]),
            "top_p": chance.choice([1.0, 0.9]),
            "top_k": chance.choice([0, 0, 5]),
            "seed": chance.randrange(100),
            "repetition_penalty": chance.choice([None, None, 1.3]),
            "presence_penalty": chance.choice([0.0, 0.5]),
            "frequency_penalty": chance.choice([0.0, 0.5]),
            "logit_bias": chance.choice([None, {3: 5.0}]),
            "min_tokens": 0,
        }
        if chance.random() < 0.3:
            self.options["min_tokens"] = self.options["max_tokens"] // 2
        self.answers = chance.choice([1, 1, 1, 3])
        self.logprobs = chance.choice([None, None, 0, 3])
        self.pieces, self.error = [], None

    def talk(self):
        sampling = {k: v for k, v in self.options.items() if k not in ("max_tokens", "min_tokens")}
        options = RowOptions(self.options["max_tokens"], Sampling(**sampling), min_tokens=self.options["min_tokens"])
        return Talk(self.ids, options, self.told, self.answers, self.logprobs)

    def told(self, piece):
        if isinstance(piece, Exception):
            self.error = piece
        else:
            self.pieces.append(piece)

    def expected(self, model):
        return model.generate(self.ids.tolist(), n=self.answers, logprobs=self.logprobs, **self.options)

    def differences(self, model):
        """What differs from a call of its own."""
        if self.error is not None:
            return [repr(self.error)]
        found = []
        for answer, expected in enumerate(self.expected(model)):
            mine = [piece for piece in self.pieces if piece.answer == answer]
            if tuple(token for piece in mine for token in piece.tokens) != expected.tokens:
                found.append("tokens")
            elif "".join(piece.text for piece in mine) != expected.text:
                found.append("text")
            elif mine[-1].finish_reason != expected.finish_reason:
                found.append("finish_reason")
            elif self.logprobs is not None:
                theirs = [each.logprob for each in expected.logprobs]
                if not np.allclose([each.logprob for piece in mine for each in piece.logprobs], theirs, atol=2e-4):
                    found.append("logprobs")
                if any(len(each.top) > self.logprobs for piece in mine for each in piece.logprobs):
                    found.append("top")
        return found


def run(model, seed, count, **options):
    """Random callers that come while others are under way; returns what differs, by caller."""
    chance = random.Random(seed)
    batch = batch_of(model, chunk=chance.choice([16, 64, 512]), most_rows=chance.choice([2, 5, 64]), **options)
    callers = [Caller(chance, model.spec.vocab_size) for _ in range(count)]
    waiting = list(callers)
    for _ in range(10_000):
        while waiting and chance.random() < 0.3:
            batch.submit(waiting.pop().talk())
        batch.step()
        if not waiting and not batch.ready:
            break
    assert batch.reserved == 0
    return [found for caller in callers if (found := caller.differences(model))]


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_join_and_leave_say_what_calls_of_their_own_say(name):
    assert run(load(name, prefix_cache=0), 1, 6) == []


@pytest.mark.parametrize("name", MODELS[:3])
def test_rows_that_begin_where_others_left_off_say_the_same(name):
    model = load(name)
    chance = random.Random(5)
    first = Caller(chance, model.spec.vocab_size)
    first.ids, first.answers = np.arange(1, 90, dtype=np.int32), 1
    second = Caller(chance, model.spec.vocab_size)
    batch = batch_of(model)
    batch.submit(first.talk())
    while batch.ready:
        batch.step()
    second.ids = np.concatenate([first.ids, np.array([7, 9, 11], np.int32)])
    batch.submit(second.talk())
    while batch.ready:
        batch.step()
    assert second.pieces[-1].usage.cached_tokens > 0
    alone = load(name, prefix_cache=0)
    assert second.differences(alone) == []


@pytest.mark.truth
@pytest.mark.parametrize("name", MODELS)
def test_much_traffic_says_what_calls_of_their_own_say(name):
    found = {seed: wrong for seed in range(12) if (wrong := run(load(name, prefix_cache=0), seed, 16))}
    assert found == {}


def test_prompts_are_read_in_chunks_between_the_tokens_of_others():
    model = load("qwen3-tied", prefix_cache=0)
    chance = random.Random(2)
    talking, late = Caller(chance, model.spec.vocab_size), Caller(chance, model.spec.vocab_size)
    talking.options |= {"max_tokens": 60, "min_tokens": 60}
    talking.answers, late.ids = 1, np.arange(1, 200, dtype=np.int32)
    batch = batch_of(model, chunk=32)
    batch.submit(talking.talk())
    while len(talking.pieces) < 3:
        batch.step()
    batch.submit(late.talk())
    before = len(talking.pieces)
    while not late.pieces:
        batch.step()
    # One token between any two of seven chunks.
    assert len(talking.pieces) - before >= 6


def test_a_first_token_is_awaited_until_it_is_told():
    model = load("qwen3-tied", prefix_cache=0)
    caller = Caller(random.Random(2), model.spec.vocab_size)
    caller.ids, caller.answers = np.arange(1, 90, dtype=np.int32), 1
    caller.options |= {"max_tokens": 5, "min_tokens": 5}
    batch = batch_of(model, chunk=32)
    assert not batch.awaited
    batch.submit(caller.talk())
    while not caller.pieces:
        assert batch.awaited
        batch.step()
    while batch.ready:
        assert not batch.awaited
        batch.step()
    assert len(caller.pieces) == 5


def test_a_caller_that_left_runs_no_more_and_the_others_go_on():
    model = load("qwen3-tied", prefix_cache=0)
    chance = random.Random(3)
    callers = [Caller(chance, model.spec.vocab_size) for _ in range(3)]
    for caller in callers:
        caller.options |= {"max_tokens": 30, "min_tokens": 30}
    batch, talks = batch_of(model), [caller.talk() for caller in callers]
    for talk in talks:
        batch.submit(talk)
    while not all(caller.pieces for caller in callers):
        batch.step()
    talks[1].gone = True
    left = len(callers[1].pieces)
    while batch.ready:
        batch.step()
    assert len(callers[1].pieces) == left
    assert callers[0].differences(model) == callers[2].differences(model) == []


def test_a_row_whose_logits_are_nan_fails_alone(monkeypatch):
    model = load("qwen3-tied", prefix_cache=0)
    trunk = model._runtime.encoder.trunk
    logits, rows = type(trunk).logits, {"bad": None}

    def broken(self, hidden):
        found = logits(self, hidden)
        if rows["bad"] is not None and found.shape[0] == 3:
            bad = mx.array([row == rows["bad"] for row in range(3)])[:, None, None]
            found = mx.where(bad, mx.nan, found)
        return found

    monkeypatch.setattr(type(trunk), "logits", broken)
    chance = random.Random(4)
    callers = [Caller(chance, model.spec.vocab_size) for _ in range(3)]
    for caller in callers:
        caller.options |= {"max_tokens": 20, "min_tokens": 20}
        caller.answers, caller.ids = 1, caller.ids[:10]
    batch = batch_of(model)
    for caller in callers:
        batch.submit(caller.talk())
    while not all(caller.pieces for caller in callers):
        batch.step()
    rows["bad"] = 1
    while batch.ready:
        batch.step()
    rows["bad"] = None
    assert "NaN" in str(callers[1].error)
    assert callers[0].differences(model) == callers[2].differences(model) == []


@pytest.mark.parametrize("method", ["allowed", "take"])
def test_a_text_whose_form_can_t_be_followed_fails_alone(method):
    model = load("qwen3-tied", prefix_cache=0)

    class Form:
        def allowed(self):
            return np.ones(model.spec.vocab_size, bool)

        def take(self, token):
            setattr(self, method, self.fail)

        def fail(self, *_):
            raise RuntimeError("too complex")

    chance = random.Random(5)
    callers = [Caller(chance, model.spec.vocab_size) for _ in range(3)]
    for caller in callers:
        caller.options |= {"max_tokens": 20, "min_tokens": 20}
        caller.answers, caller.ids = 1, caller.ids[:10]
    batch, talks = batch_of(model), [caller.talk() for caller in callers]
    talks[1].constraints = Form
    for talk in talks:
        batch.submit(talk)
    while batch.ready:
        batch.step()
    assert "too complex" in str(callers[1].error)
    assert callers[0].differences(model) == callers[2].differences(model) == []


def test_what_can_never_fit_is_refused_and_what_does_not_fit_now_waits():
    model = load("qwen3-tied", prefix_cache=0)
    generator = model._runtime.generator()
    chance = random.Random(6)
    callers = [Caller(chance, model.spec.vocab_size) for _ in range(5)]
    for caller in callers:
        caller.answers, caller.ids = 1, np.arange(1, 20, dtype=np.int32)
        caller.options |= {"max_tokens": 30, "min_tokens": 10, "logit_bias": None}
    one = batch_of(model)._whole([], 0, [callers[0].talk()]).minimum
    # What all of them need at least, less a byte: a device with room to run ahead has a larger peak.
    budget = batch_of(model)._whole([], 0, [caller.talk() for caller in callers]).minimum - 1
    from dataclasses import replace

    def tight(budget):
        encoder = replace(generator.encoder, plan=replace(generator.encoder.plan, budget=budget))
        return ContinuousBatch(replace(generator, encoder=encoder))

    with pytest.raises(AdmissionRefused):
        tight(one - 100_000).check(callers[0].talk())
    batch = tight(budget)
    for caller in callers:
        batch.submit(caller.talk())
    most = 0
    while batch.ready:
        batch.step()
        most = max(most, batch.rows)
        assert batch.reserved + model._runtime.encoder.plan.weights.total <= budget
    assert 1 <= most < len(callers)
    assert [caller.differences(model) for caller in callers] == [[]] * 5
