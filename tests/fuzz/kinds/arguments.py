"""Arguments of every public call that nobody expects."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from archport import engine
from archport.engine import Model
from fuzz.cases import Seen, loaded
from fuzz.values import odd

FILES = False
CALLS = [
    "embed",
    "encode_query",
    "encode_document",
    "rerank",
    "generate",
    "classify",
    "fill_mask",
    "tag",
    "count_tokens",
    "maxsim",
    "plan",
    "similarity",
    "forward",
    "load",
    "describe",
]
# What an argument is where it is not odd.
SOUND: dict[str, Any] = {
    "texts": "a",
    "query": "a",
    "documents": ["a"],
    "prompt": "a",
    "lengths": [3],
    "a": [[1.0]],
    "b": [[1.0]],
    "input_ids": [[1, 2]],
}
STRANGE: list[Any] = [
    *(
        b"a",
        bytearray(b"a"),
        object(),
        int,
        print,
        1j,
        frozenset({1}),
        {1, 2},
        range(3),
        (),
        ("a", 5),
        [["a"]],
        [[]],
        [None],
    ),
    *(
        np.array(5),
        np.zeros((2, 0)),
        np.array(["a"]),
        np.array([1.5]),
        np.array([[1, 2]], np.uint64),
        np.float32(1),
        np.array(None),
    ),
    *(
        [1, 2**40],
        [[1], [1, 2]],
        {"text": 5},
        {"image": None},
        [{}],
        [{"role": 1}],
        Path("/"),
        iter(["a"]),
        (x for x in [1]),
        "a",
    ),
    *([True], -(2**70), [0.5], "1GB", "-1GB", "1e400GB", "float16", {"a": "b"}, [b"a"], slice(1)),
]


def cases() -> st.SearchStrategy[Any]:
    value = st.one_of(odd(), st.integers(0, len(STRANGE) - 1).map(lambda at: ("strange", at)))
    return st.tuples(
        st.sampled_from(["bert", "labels", "masked", "qwen3", "generates", "sees"]),
        st.sampled_from(CALLS),
        st.lists(st.tuples(st.integers(0, 99), value), max_size=2),
    )


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, call, changes = case
    model = loaded(base, bases, seen)
    function: Any = {"load": engine.load, "describe": engine.describe}.get(call) or getattr(model, call)
    # `options` of encode_query are those of embed.
    of = function if call not in ("encode_query", "encode_document") else model.embed
    parameters = inspect.signature(of).parameters.values()
    named = [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    arguments = {name: SOUND[name] for name in named if name in SOUND}
    if call in ("load", "describe"):
        arguments["name"] = str(bases / base)
    if call == "generate":
        arguments["max_tokens"] = 2
    for at, value in changes:
        name = named[at % len(named)]
        if name == "name" and call in ("load", "describe") and isinstance(value, str) and "/" not in value:
            # A name would be looked for on the hub.
            continue
        arguments[name] = STRANGE[value[1]] if isinstance(value, tuple) and value[:1] == ("strange",) else value
    result = function(**arguments)
    if inspect.isgenerator(result) or hasattr(result, "__next__"):
        list(result)
    seen.reached = not isinstance(result, Model)
