"""Values that people, and programs, hand to public calls by mistake: every type, and the edges of each.

Each is made anew by a function, because a call may use an iterator up.
"""

from __future__ import annotations

import pathlib
import types
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import mlx.core as mx
import numpy as np

import archport  # noqa: F401


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no representation")

    __str__ = __repr__


class Text(str):
    """A str of somebody's own type."""


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "numpy True": lambda: np.True_,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "2**31": lambda: 2**31,
    "2**64": lambda: 2**64,
    "10**30": lambda: 10**30,
    "-10**30": lambda: -(10**30),
    "10**5000": lambda: 10**5000,
    "int64 3": lambda: np.int64(3),
    "uint64": lambda: np.uint64(2**64 - 1),
    "0.5": lambda: 0.5,
    "-0.5": lambda: -0.5,
    "1e400": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "nan": lambda: float("nan"),
    "float32 0.5": lambda: np.float32(0.5),
    "float32 nan": lambda: np.float32("nan"),
    "complex": lambda: 1j,
    "Decimal": lambda: Decimal("0.5"),
    "Fraction": lambda: Fraction(1, 2),
    "empty str": lambda: "",
    "str": lambda: "x",
    "str of digits": lambda: "3",
    "str subclass": lambda: Text("x"),
    "numpy str": lambda: np.str_("x"),
    "surrogate": lambda: "\ud800",
    "zero byte": lambda: "a\0b",
    "long str": lambda: "ab " * 3000,
    "bytes": lambda: b"x",
    "bytearray": lambda: bytearray(b"x"),
    "memoryview": lambda: memoryview(b"x"),
    "[]": list,
    "[1]": lambda: [1],
    "[-1]": lambda: [-1],
    "[True]": lambda: [True],
    "[0.5]": lambda: [0.5],
    "[10**5000]": lambda: [10**5000],
    "[None]": lambda: [None],
    "[str]": lambda: ["x"],
    "['']": lambda: [""],
    "[bytes]": lambda: [b"x"],
    "[surrogate]": lambda: ["\ud800"],
    "[str, int]": lambda: ["x", 1],
    "ragged": lambda: [[1, 2], [1]],
    "ragged floats": lambda: [[0.5, 1.0], [1.0]],
    "rows": lambda: [[1, 2], [3, 4]],
    "rows of str": lambda: [["a", "b"]],
    "nested": lambda: _nested(50),
    "[{}]": lambda: [{}],
    "[object]": lambda: [object()],
    "()": tuple,
    "(1,)": lambda: (1,),
    "set": lambda: {1},
    "set of str": lambda: {"x"},
    "{}": dict,
    "dict": lambda: {"text": 1},
    "dict of ints": lambda: {1: 2},
    "dict of None": lambda: {"text": None, "image": None},
    "message": lambda: [{"role": "user", "content": 3}],
    "message of None": lambda: [{"role": "user", "content": None}],
    "messages": lambda: [{"role": "user", "content": "x"}],
    "parts": lambda: [{"role": "user", "content": [{"type": "image", "image": 3}, 7]}],
    "range": lambda: range(2),
    "empty iterator": lambda: iter(()),
    "iterator": lambda: iter([1, 2]),
    "generator": lambda: (str(each) for each in range(2)),
    "object": object,
    "unprintable": Unprintable,
    "[unprintable]": lambda: [Unprintable()],
    "type": lambda: int,
    "function": lambda: len,
    "module": lambda: types.ModuleType("odd_module"),
    "[module]": lambda: [types.ModuleType("odd_module")],
    "namespace": types.SimpleNamespace,
    "path": lambda: pathlib.Path("/no/such/folder"),
    "long path": lambda: pathlib.Path("/" + "a" * 5000),
    "exception": lambda: ValueError("x"),
    "0-d int": lambda: np.array(3),
    "0-d str": lambda: np.array("x"),
    "0-d object": lambda: np.array(None, dtype=object),
    "ints": lambda: np.array([1, 2]),
    "floats": lambda: np.array([0.5, 1.0]),
    "floats with nan": lambda: np.array([[0.5, np.nan]], np.float32),
    "empty array": lambda: np.zeros((2, 0)),
    "3-d array": lambda: np.zeros((1, 2, 3)),
    "strings": lambda: np.array(["x", "y"]),
    "objects": lambda: np.array([object(), None], dtype=object),
    "bools": lambda: np.array([True, False]),
    "structured": lambda: np.zeros(2, dtype=[("a", int), ("b", float)]),
    "dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "mlx scalar": lambda: mx.array(3),
    "mlx ints": lambda: mx.array([[1, 2]]),
    "mlx bfloat16": lambda: mx.array([[0.5, 1.0]], dtype=mx.bfloat16),
}
