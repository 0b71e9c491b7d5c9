"""Arguments of public calls against their annotations: a wrong one is an InputError that names it.

Types alone: which numbers, names or texts make sense is for the call itself to say. Knows no call.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, ParamSpec, TypeVar, cast

import numpy as np

from archport.contract.errors import InputError, shown

P = ParamSpec("P")
R = TypeVar("R")

# Of an integer that counts anything: more can't even be written in a message.
_MOST_BITS = 128
_WRONG = object()
# An argument as other libraries spell it -> what to write instead.
SPELLINGS = {
    # sentence-transformers
    "batch_size": "leave it out: archport plans its batches (engine.load's memory_budget= bounds them)",
    "show_progress_bar": "write progress=True",
    "output_value": "write output='vectors' or output='tokens'",
    "max_active_dims": "write top_k=",
    "normalize_embeddings": "write normalize=True or False; left out, the model's own pipeline decides",
    "convert_to_numpy": "leave it out: vectors are numpy arrays",
    "convert_to_tensor": "leave it out: vectors are numpy arrays, which torch.from_numpy takes",
    "truncate_dim": "write dimensions=",
    "device": "leave it out: MLX chooses it; mlx.core.set_default_device changes it before a model is loaded",
    "prompts": "write prompt= or prompt_name= in each call",
    "default_prompt_name": "write prompt_name= in each call",
    "model_name_or_path": "give the name as the first argument",
    "trust_remote_code": "leave it out: no code of a repository is run; an architecture is a plugin",
    "model_kwargs": "write dtype=, max_context= and the other arguments of engine.load",
    "tokenizer_kwargs": "write max_tokens= and overflow= in each call",
    "config_kwargs": "leave it out: config.json decides",
    "max_seq_length": "write max_tokens= in a call, max_context= of engine.load",
    "cache_folder": "leave it out: the hub's cache is used; HF_HUB_CACHE moves it",
    "similarity_fn_name": "leave it out: the model's files decide",
    "chunk_size": "leave it out: archport plans its chunks",
    "pool": "use archport.bulk for several devices",
    "sentences": "give the texts as the first argument",
    "corpus": "write documents=",
    "activation_fn": "write raw_scores=True, for scores without the activation",
    "apply_softmax": "write raw_scores=False, which applies the model's own activation",
    "top_n": "write top_k=",
    # transformers
    "torch_dtype": "write dtype='float32', 'float16', 'bfloat16' or 'checkpoint'",
    "device_map": "leave it out: MLX chooses the device",
    "max_length": "write max_tokens=",
    "truncation": "write overflow='truncate'",
    "padding": "leave it out: archport packs or pads as planned",
    "return_tensors": "leave it out: answers are numpy arrays",
    "max_new_tokens": "write max_tokens=",
    "do_sample": "write temperature=: above 0 draws, 0 takes the likeliest",
    "stop_strings": "write stop=",
    "num_return_sequences": "write n=",
    # FlagEmbedding
    "return_dense": "write output='vectors', or a sequence of outputs",
    "return_sparse": "write output='sparse', or a sequence of outputs",
    "return_colbert_vecs": "write output='tokens', or a sequence of outputs",
    # spellings that come near
    "dimension": "write dimensions=",
    "dims": "write dimensions=",
    "normalise": "write normalize=",
}


def checked(method: Callable[P, R]) -> Callable[P, R]:
    """A public function that refuses arguments of other types than it is annotated with.

    numpy's scalars count as Python's and arrive as such; a bool is no number. Parameters annotated with `Any`, `object`
    or an array are left to the function.

    Raises:
        InputError: naming the argument, its value and what was expected.
    """
    signature = inspect.signature(method)

    @cache
    def rules() -> dict[str, _Rule]:
        kept = {
            name: parameter.annotation
            for name, parameter in signature.parameters.items()
            if parameter.annotation is not parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        }
        # Without the annotation of what is returned, which may name a module that is only imported for types.
        hints = typing.get_type_hints(SimpleNamespace(__annotations__=kept), vars(inspect.getmodule(method)))
        return {name: _Rule(annotation) for name, annotation in hints.items()}

    @wraps(method)
    def call(*args: P.args, **options: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **options)
        except TypeError:
            refuse_foreign(name for name in options if name not in signature.parameters)
            # Python's own words for an argument too many or too few.
            return method(*args, **options)
        for name, rule in rules().items():
            if name in bound.arguments:
                bound.arguments[name] = rule(name, bound.arguments[name])
        return method(*bound.args, **bound.kwargs)

    return call


def refuse_foreign(names: Iterable[str]) -> None:
    """Raise InputError for the first argument that another library spells so, with archport's word for it."""
    for name in names:
        if name in SPELLINGS:
            raise InputError(f"{name}= is no argument of archport's; {SPELLINGS[name]}")


class _Rule:
    """What one annotation accepts.

    Args:
        annotation: a type, a Literal, a collection of types, or a union of those.
    """

    def __init__(self, annotation: Any) -> None:
        union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        kinds = typing.get_args(annotation) if union else (annotation,)
        self._alternatives = [_alternative(kind) for kind in kinds]
        # A path may hold bytes that are no text; what is only ever text has to have an encoding.
        self._text = set(kinds) <= {str, type(None)}
        self.free = any(accept is _anything for accept, _ in self._alternatives)
        self.expected = _listed([words for _, words in self._alternatives])

    def __call__(self, name: str, value: Any) -> Any:
        """The value as the function takes it.

        Raises:
            InputError: when it is none that the annotation names.
        """
        for accept, _ in self._alternatives:
            found = accept(name, value)
            if found is not _WRONG:
                if self._text and isinstance(found, str):
                    _check_encoding(name, found)
                return found
        raise InputError(f"{name}={shown(value)}; expected {self.expected}")


_Accept = Callable[[str, Any], Any]


def _alternative(kind: Any) -> tuple[_Accept, str]:
    """(the function that takes a value of that kind or answers `_WRONG`, the kind in words)."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Literal:
        words = _listed([repr(each) for each in inner])
        return lambda _, value: value if isinstance(value, str) and value in inner else _WRONG, words
    if origin is Mapping:
        return _mapping, "a mapping"
    if origin is Iterable:
        return _iterable, "an iterable"
    if origin is Sequence:
        rule = _Rule(inner[0]) if inner else _Rule(object)
        words = "a sequence" if rule.free else f"a sequence whose items are each {rule.expected}"
        return lambda name, value: _sequence(name, value, rule), words
    return lambda _, value: value if isinstance(value, origin) else _WRONG, f"a {origin.__name__}"


def _anything(name: str, value: Any) -> Any:
    return value


def _text(name: str, value: Any) -> Any:
    return value if isinstance(value, str) else _WRONG


def _flag(name: str, value: Any) -> Any:
    return bool(cast("object", value)) if isinstance(value, bool | np.bool_) else _WRONG


def _integer(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Integral):
        return _WRONG
    number = int(value)
    if number.bit_length() > _MOST_BITS:
        raise InputError(f"{name}={shown(number)}; expected an integer of {_MOST_BITS} bits at most")
    return number


def _number(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        return _WRONG
    try:
        return float(value)
    except (OverflowError, ValueError):
        return _WRONG


def _path(name: str, value: Any) -> Any:
    return Path(cast("PathLike[str]", value)) if isinstance(value, PathLike) else _WRONG


def _mapping(name: str, value: Any) -> Any:
    return cast("Mapping[Any, Any]", value) if isinstance(value, Mapping) else _WRONG


def _iterable(name: str, value: Any) -> Any:
    if isinstance(value, str | bytes | bytearray):
        return _WRONG
    try:
        iter(value)
    # An array without dimensions has the method and refuses it.
    except TypeError:
        return _WRONG
    return value


def _sequence(name: str, value: Any, rule: _Rule) -> Any:
    array = isinstance(value, np.ndarray) and cast("np.ndarray", value).ndim > 0
    if isinstance(value, str | bytes | bytearray | memoryview) or not (array or isinstance(value, Sequence)):
        return _WRONG
    items = cast("Sequence[Any]", value)
    return items if rule.free else [rule(f"{name}[{at}]", item) for at, item in enumerate(items)]


_PLAIN: dict[Any, tuple[_Accept, str]] = {
    Any: (_anything, "anything"),
    object: (_anything, "anything"),
    np.ndarray: (_anything, "an array"),
    None: (lambda _, value: value if value is None else _WRONG, "None"),
    type(None): (lambda _, value: value if value is None else _WRONG, "None"),
    str: (_text, "a str"),
    bool: (_flag, "True or False"),
    int: (_integer, "an integer"),
    float: (_number, "a number"),
    Path: (_path, "a path"),
}


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _check_encoding(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}={shown(text)} holds a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}, "
            "which has no encoding. Repair it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error


def as_array(value: object, what: str) -> np.ndarray:
    """What a caller gives as an array, of whatever type and shape; raises InputError for what numpy can't read."""
    try:
        return np.asarray(value)
    # Rows of several lengths, an object's own fault, or a type that numpy does not know, as MLX's bfloat16.
    except Exception as error:
        raise InputError(f"{what}={shown(value)} is no array that numpy reads ({error})") from error
