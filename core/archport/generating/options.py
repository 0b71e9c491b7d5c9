"""A caller's options of generation, each for all prompts or one per prompt, to what every prompt is generated with.

A list or tuple is one value per prompt. `stop`, `stop_token_ids` and `logit_bias` are collections themselves: there, a
list that holds lists (or dicts, or None) is one per prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from archport.contract import InputError
from archport.contract.errors import shown
from archport.generating.pieces import GenerateRequest, RowOptions
from archport.generating.sampling import Sampling

SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"),
    *("presence_penalty", "frequency_penalty", "logit_bias"),
)


def generate_request(options: Mapping[str, Any], rows: int, vocabulary: int, stops: frozenset[int]) -> GenerateRequest:
    """The request of so many prompts.

    Args:
        options: by the names of `Model.generate`.
        vocabulary: entries of the model's logits.
        stops: the model's own final tokens.

    Raises:
        InputError: naming the option, its value and what was expected; the prompt too, where each has its own value.
    """
    own = {"n", "logprobs", "progress"}
    shared = {name: _kept(value) for name, value in options.items() if name not in own}
    columns = {name: column for name, value in shared.items() if (column := _column(name, value, rows)) is not None}
    each = bool(columns)
    found: list[RowOptions] = []
    for row in range(rows if each else 1):
        values = {**shared, **{name: column[row] for name, column in columns.items()}}
        try:
            found.append(_row(values, vocabulary, stops))
        except InputError as error:
            raise InputError(f"prompt {row}: {error}") if each else error from None
    return GenerateRequest(
        tuple(found) if each else tuple(found) * rows, options["n"], options["logprobs"], options["progress"]
    )


def _kept(value: Any) -> Any:
    """A value that may be read more than once: the items of an iterator or an array as a list."""
    if isinstance(value, Iterator | np.ndarray):
        return list(cast("Iterable[Any]", value))
    return value


def _column(name: str, value: Any, rows: int) -> list[Any] | None:
    """One value per prompt; None for a single one for all of them."""
    if not isinstance(value, list | tuple):
        return None
    items = list(cast("Sequence[Any]", value))
    collected = name in ("stop", "stop_token_ids")
    if collected and not any(item is None or isinstance(item, list | tuple | set | frozenset) for item in items):
        return None
    if len(items) != rows:
        what = "strings" if name == "stop" else "integers" if collected else "one value"
        raise InputError(
            f"{name}={shown(value)} has {len(items)} entries for {rows} prompt{'s'[: rows > 1]}; expected {what} for "
            "all prompts, or a list with one entry for each"
        )
    return items


def _row(values: Mapping[str, Any], vocabulary: int, stops: frozenset[int]) -> RowOptions:
    sampling = Sampling(**{name: values[name] for name in SAMPLING} | {"logit_bias": _bias(values["logit_bias"])})
    for token in sampling.logit_bias or ():
        if token >= vocabulary:
            raise InputError(f"logit_bias holds token id {shown(token)}; the vocabulary has {vocabulary} entries")
    row = RowOptions(
        values["max_tokens"],
        sampling,
        _collected("stop", values["stop"], "a string, several of them, or None"),
        _tokens(values["stop_token_ids"], vocabulary),
        values["min_tokens"],
    )
    if row.min_tokens and len(row.ends(stops)) >= vocabulary:
        raise InputError(
            f"min_tokens={row.min_tokens}, but every token of the vocabulary ends the text; leave some out"
        )
    return row


def _bias(value: Any) -> Any:
    """Biases with numpy's scalars as Python's, which are then checked."""
    if not isinstance(value, Mapping):
        return value
    return {_plain(token): _plain(bias) for token, bias in cast("Mapping[Any, Any]", value).items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.integer | np.floating) else value


def _tokens(value: Any, vocabulary: int) -> frozenset[int]:
    expected = f"token ids from 0 to {vocabulary - 1}, or None"
    if isinstance(value, str):
        raise InputError(f"stop_token_ids={shown(value)}; expected {expected}")
    found = tuple(map(_plain, _collected("stop_token_ids", value, expected)))
    for token in found:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocabulary:
            raise InputError(f"stop_token_ids={shown(token)}; expected {expected}")
    return frozenset(found)


def _collected(name: str, value: Any, expected: str) -> tuple[Any, ...]:
    """What may be given as one, several, or None for none."""
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise InputError(f"{name}={shown(value)}; expected {expected}")
    return tuple(cast("Iterable[Any]", value))
