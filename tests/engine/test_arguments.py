"""Every public call against every kind of wrong argument: an answer, or an archport error; never a bare TypeError.

The calls are found by their signatures, so a new public method or argument is tried as soon as it exists.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import types
from collections import Counter
from numbers import Real
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.contract import ArchportError, AttentionLimits, InputError
from archport.running.calls import DeviceIterator

from .odd_values import ODD

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = ["one", "two words"]
CHAT = [{"role": "user", "content": "one"}]

# Public call -> the checkpoints it is tried on, and arguments with which it answers.
CALLS: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "load": ((), {"name": GOLDENS / "bert-plain"}),
    "describe": ((), {"name": GOLDENS / "bert-plain"}),
    "embed": (("bert-plain", "qwen3-vl"), {"texts": TEXTS}),
    "stream": (("bert-plain",), {"texts": TEXTS}),
    "encode_query": (("qwen3-embed",), {"texts": TEXTS}),
    "encode_document": (("bert-plain",), {"texts": TEXTS}),
    "rerank": (("qwen3-reranker", "xlm-roberta-rerank", "colbert"), {"query": "one", "documents": TEXTS}),
    "classify": (("bert-classify",), {"texts": TEXTS}),
    "fill_mask": (("roberta",), {"texts": "a <mask>"}),
    "tag": (("tags/bert",), {"texts": TEXTS}),
    "decode": (("splade",), {"vectors": [[0.0, 0.5] * 120]}),
    "maxsim": (("colbert",), {"query": "one", "documents": TEXTS}),
    "generate": (("qwen3-windowed", "qwen3-vl"), {"prompt": "one", "max_tokens": 2}),
    "plan": (("bert-plain",), {"lengths": [3, 4]}),
    "similarity": (("bert-plain",), {"a": [[1.0, 0.0]], "b": [[0.5, 1.0]]}),
    "forward": (("bert-plain",), {"input_ids": [[1, 2]], "attention_mask": [[1, 1]]}),
    "memory": (("bert-plain",), {}),
    "count_tokens": (("bert-plain", "qwen3-embed"), {"texts": TEXTS}),
}
# (call, argument) -> what an odd value is put into, beside being given as the whole argument.
INSIDE = {
    ("embed", "texts"): [
        lambda odd: ["one", odd],
        lambda odd: [{"text": odd}],
        lambda odd: [{"image": odd}],
        lambda odd: [{"video": odd}],
        lambda odd: [{"text": "a", "instruction": odd}],
        lambda odd: [{"image": [odd], "min_pixels": odd}],
        lambda odd: [{"video": [odd], "fps": odd, "max_pixels": odd}],
        lambda odd: [[{"role": "user", "content": odd}]],
        lambda odd: [[{"role": odd, "content": "a"}]],
        lambda odd: [[{"role": "user", "content": [{"type": odd, "a": odd}, {"type": "image", "url": odd}]}]],
        lambda odd: [[{"role": "user", "content": [{"type": "image", "base64": odd}]}]],
    ],
    ("rerank", "documents"): [lambda odd: ["one", odd], lambda odd: [{"text": odd}]],
    ("rerank", "query"): [lambda odd: {"text": odd}],
    ("classify", "texts"): [lambda odd: ["one", odd], lambda odd: [("one", odd)], lambda odd: [(odd, odd, odd)]],
    ("fill_mask", "texts"): [lambda odd: ["a <mask>", odd]],
    ("tag", "texts"): [lambda odd: ["one", odd]],
    ("decode", "vectors"): [lambda odd: [[1.0, odd]], lambda odd: [odd] * 240, lambda odd: [[odd] * 240]],
    ("maxsim", "documents"): [lambda odd: ["one", odd]],
    ("count_tokens", "texts"): [lambda odd: ["one", odd]],
    ("generate", "prompt"): [
        lambda odd: ["one", odd],
        lambda odd: [1, odd],
        lambda odd: [[1, 2], odd],
        lambda odd: [{"role": "user", "content": odd}],
        lambda odd: [{"role": odd, "content": "a"}],
        lambda odd: [{"role": "user", "content": [odd]}],
        lambda odd: [{"role": "user", "content": [{"type": odd, "text": odd}]}],
        lambda odd: [{"role": "user", "content": [{"type": "image", "image": odd}]}],
        lambda odd: [{"role": "user", "content": [{"type": odd, "a": odd}]}],
        lambda odd: [{"role": "user", "content": [{"type": "video", "path": odd}]}],
        lambda odd: {"text": "a", "image": odd},
    ],
    ("generate", "tools"): [lambda odd: [odd], lambda odd: [{"type": "function", "function": odd}]],
    ("generate", "stop"): [lambda odd: [odd], lambda odd: [[odd]]],
    ("generate", "stop_token_ids"): [lambda odd: [odd], lambda odd: [[odd]], lambda odd: [1, [odd]]],
    ("generate", "logit_bias"): [lambda odd: {1: odd}, lambda odd: [{1: odd}], lambda odd: {repr(type(odd)): odd}],
    ("generate", "temperature"): [lambda odd: [odd]],
    ("generate", "max_tokens"): [lambda odd: [odd], lambda odd: [1, odd]],
    ("generate", "min_tokens"): [lambda odd: [odd]],
    ("plan", "lengths"): [lambda odd: [3, odd]],
    ("plan", "cached"): [lambda odd: [0, odd]],
    ("forward", "input_ids"): [lambda odd: [[1, odd]], lambda odd: [[1], odd]],
    ("forward", "attention_mask"): [lambda odd: [[1, odd]], lambda odd: [odd]],
    ("similarity", "a"): [lambda odd: [[1.0, odd]], lambda odd: [odd, odd]],
    ("load", "overrides"): [lambda odd: [odd]],
    ("load", "plugins"): [lambda odd: [odd]],
}
# Arguments whose type says nothing; what they hold is what the call checks.
FREE = {
    ("generate", "prompt"),
    ("similarity", "a"),
    ("similarity", "b"),
    ("forward", "input_ids"),
    ("forward", "attention_mask"),
    ("maxsim", "query"),
    ("decode", "vectors"),
}
# What each simple annotation takes, by the type of the value; numpy's scalars count as Python's.
TAKES = {
    "str": str,
    "int": int,
    "float": Real,
    "bool": bool,
    "None": type(None),
    "Overflow": (),
    "Precision": (),
    "Output": (),
}


def public() -> list[str]:
    """Names of all public calls but `close`, which takes nothing, and async twins, which hand on what they get."""
    methods = [
        name
        for name, method in inspect.getmembers(engine.Model, inspect.isfunction)
        if not name.startswith("_") and name != "close" and not inspect.iscoroutinefunction(method)
    ]
    functions = [name for name in engine.__all__ if inspect.isfunction(getattr(engine, name))]
    return sorted([*methods, *functions])


def function(name):
    return getattr(engine, name, None) or getattr(engine.Model, name)


def parameters(name):
    """name -> annotation of what a caller may give; what is passed on is checked where it arrives."""
    given = dict(inspect.signature(function(name)).parameters)
    given.pop("self", None)
    passed_on = inspect.Parameter.VAR_KEYWORD
    return {key: str(each.annotation) for key, each in given.items() if each.kind is not passed_on}


def cases():
    """(call, checkpoint, argument, how deep the odd value lies, its name)."""
    for name in public():
        for checkpoint in CALLS[name][0] or (None,):
            for argument in parameters(name):
                for depth in range(1 + len(INSIDE.get((name, argument), ()))):
                    for odd in ODD:
                        yield name, checkpoint, argument, depth, odd


@pytest.fixture(scope="module")
def models():
    kept: dict[str, engine.Model] = {}

    def of(name):
        if name not in kept:
            kept[name] = engine.load(GOLDENS / name, max_context=64 if name.startswith(("tags", "splade")) else 200)
        return kept[name]

    return of


def tried(models, name, checkpoint, argument, value):
    """What a call does with a value: "answered", or the archport error it raises."""
    call = function(name) if checkpoint is None else getattr(models(checkpoint), name)
    arguments = {**CALLS[name][1], argument: value}
    try:
        answer = call(**arguments)
        if isinstance(answer, DeviceIterator | types.GeneratorType):
            with contextlib.closing(answer):
                list(answer)
    except ArchportError as error:
        return error
    return "answered"


def wrong(annotation, value):
    """Whether a value is of no type that an annotation of simple types names; None where that is not so simple."""
    names = [each.strip() for each in annotation.split("|")]
    if any(name not in TAKES for name in names):
        return None
    if type(value).__module__ == "numpy" and value.ndim == 0:
        return None
    if isinstance(value, bool):
        return "bool" not in names
    return not any(isinstance(value, TAKES[name]) for name in names)


def check(models, chosen):
    outcomes = Counter()
    for name, checkpoint, argument, depth, odd in chosen:
        value = ODD[odd]()
        where = f"{name}({argument}={odd}, depth {depth}) on {checkpoint}"
        given = INSIDE[name, argument][depth - 1](value) if depth else value
        try:
            outcome = tried(models, name, checkpoint, argument, given)
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error!s:.200}") from error
        outcomes["answered" if outcome == "answered" else "refused"] += 1
        if outcome != "answered":
            assert len(str(outcome)) < 2000, where
        if not depth and wrong(parameters(name)[argument], value):
            assert isinstance(outcome, InputError), f"{where}: {outcome}"
            assert argument in str(outcome), f"{where}: {outcome}"
    return outcomes


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_every_public_call_is_tried():
    assert set(public()) == set(CALLS)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_an_argument_without_a_type_is_one_that_the_call_reads_itself(name):
    for argument, annotation in parameters(name).items():
        if annotation in ("object", "Any", "inspect._empty") or "np.ndarray" in annotation.split(" | "):
            assert (name, argument) in FREE, f"{name}({argument}) takes anything; give it a type, or list it in FREE"


def test_a_wrong_argument_is_named(models):
    outcomes = check(models, random.Random(0).sample(list(cases()), 2000))
    assert outcomes["refused"] > 1000
    assert outcomes["answered"] > 50


@pytest.mark.truth
def test_every_wrong_argument_is_named(models):
    every = list(cases())
    outcomes = check(models, every)
    print(f"{len(every):,} calls: {dict(outcomes)}")


@pytest.mark.parametrize("argument", list(inspect.signature(AttentionLimits).parameters))
def test_limits_refuse_what_is_no_limit(argument):
    for make in ODD.values():
        with contextlib.suppress(ArchportError):
            AttentionLimits(**{argument: make()})


def test_numpy_scalars_are_numbers(models):
    model = models("bert-plain")
    plain = model.embed("one", dimensions=8, max_tokens=9, normalize=True)
    assert (model.embed("one", dimensions=np.int64(8), max_tokens=np.uint8(9), normalize=np.True_) == plain).all()
    assert model.plan(np.array([3, 4]), cached=np.int32(0)) == model.plan([3, 4])


@pytest.mark.parametrize("value", [True, np.True_])
def test_a_bool_is_no_number(models, value):
    with pytest.raises(InputError, match=r"max_tokens=.*True.*; expected an integer or None"):
        models("bert-plain").embed("one", max_tokens=value)
