"""The golden file: what a reference computed from a checkpoint, or from each of a plugin's examples.

One .npz. Of each case it holds `texts` (N,), `ids` (all rows, one after the other), `lengths` (N,) and `hidden` (all
tokens, D), and where the reference has them `vectors` (N, D), `scores` (N, labels), `logits` (N, V) at the last token,
`greedy` (N, T) with `margins` (N, T). Names of an example's arrays begin with its number, as in `0/ids`. An .npz with
`texts` and `vectors` alone is read too. Knows no plugin, and nothing of how numbers are compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from archport.contract import InputError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a reference computed from some texts, each alone. Arrays are None where it has no such thing.

    Args:
        texts: (N,).
        ids: token ids of each text, int32.
        hidden: hidden states (L, D) of each after the final norm.
        vectors: (N, D).
        scores: raw scores of labels (N, labels).
        logits: (N, V) at the last token.
        greedy: the likeliest tokens that follow each text (N, T); final tokens end nothing.
        margins: how far each of those was ahead of the second, as a share of the largest logit (N, T).
        name: of the example; "" for a checkpoint.
        fingerprint: of the example it was recorded from, see `Tiny.fingerprint`.
    """

    texts: tuple[str, ...]
    ids: tuple[np.ndarray, ...] | None = None
    hidden: tuple[np.ndarray, ...] | None = None
    vectors: np.ndarray | None = None
    scores: np.ndarray | None = None
    logits: np.ndarray | None = None
    greedy: np.ndarray | None = None
    margins: np.ndarray | None = None
    name: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class GoldenFile:
    """A golden file as it is read.

    Args:
        cases: one of a checkpoint, or one per example.
        provenance: versions, date, command and whatever else says where the numbers come from.
        left_out: example -> why it has no case.
        of_examples: whether the cases are of a plugin's examples.
    """

    cases: tuple[Recorded, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    of_examples: bool = False


# Arrays with a row per text, or one array, as they are.
_PLAIN = ("vectors", "scores", "logits", "greedy", "margins")


def write_golden(file: Path, golden: GoldenFile) -> None:
    """Write a golden file.

    Raises:
        InputError: it can't be written.
    """
    arrays: dict[str, Any] = {}
    for index, case in enumerate(golden.cases):
        prefix = f"{index}/" if golden.of_examples else ""
        arrays[f"{prefix}texts"] = np.array(case.texts)
        if case.ids is not None:
            arrays[f"{prefix}ids"] = np.concatenate(case.ids)
            arrays[f"{prefix}lengths"] = np.array([len(row) for row in case.ids], np.int32)
        if case.hidden is not None:
            arrays[f"{prefix}hidden"] = np.concatenate(case.hidden)
        for name in _PLAIN:
            if getattr(case, name) is not None:
                arrays[f"{prefix}{name}"] = getattr(case, name)
    about = {
        "format": FORMAT,
        "of_examples": golden.of_examples,
        "cases": [{"name": case.name, "fingerprint": case.fingerprint} for case in golden.cases],
        "left_out": dict(golden.left_out),
        "provenance": dict(golden.provenance),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            np.savez_compressed(opened, about=np.array(json.dumps(about)), **arrays)
    except OSError as error:
        raise InputError(f"{file} can't be written: {error.strerror or error}") from error


def read_golden(file: str | Path) -> GoldenFile:
    """Read a golden file, or an .npz with `texts` and `vectors` alone.

    Raises:
        InputError: it is neither, or arrays of a case do not belong together.
    """
    try:
        with np.load(file, allow_pickle=False) as opened:
            arrays: dict[str, np.ndarray] = dict(opened)
    except Exception as error:
        raise InputError(
            f"golden={str(file)!r} can't be read ({type(error).__name__}: {error}); {_EXPECTED}"
        ) from error
    try:
        about: dict[str, Any] = json.loads(str(arrays["about"])) if "about" in arrays else {"cases": [{}]}
        if about.get("format", FORMAT) != FORMAT:
            raise InputError(
                f"golden={str(file)!r} is of format {about['format']}, and this archport reads {FORMAT}; upgrade "
                "archport, or record it again"
            )
        of_examples = bool(about.get("of_examples"))
        cases = tuple(
            _case(arrays, f"{index}/" if of_examples else "", **known) for index, known in enumerate(about["cases"])
        )
        if not of_examples and len(cases) != 1:
            raise ValueError(f"{len(cases)} cases of one checkpoint")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"golden={str(file)!r} is damaged ({type(error).__name__}: {error}); {_EXPECTED}") from error
    return GoldenFile(cases, about.get("provenance", {}), about.get("left_out", {}), of_examples)


_EXPECTED = "expected an .npz that `archport record` wrote, or one with `texts` (N,) and `vectors` (N, D)"


def _case(arrays: Mapping[str, np.ndarray], prefix: str, **known: str) -> Recorded:
    """One case of the arrays of a file.

    Raises:
        KeyError, ValueError: an array is missing, or they differ in how many texts or tokens they are of.
    """
    own = {name: arrays.get(f"{prefix}{name}") for name in ("ids", "lengths", "hidden", *_PLAIN)}
    texts = tuple(str(text) for text in arrays[f"{prefix}texts"])
    if own["ids"] is None and own["vectors"] is None:
        raise KeyError("vectors")
    wrong = {name: len(own[name]) for name in (*_PLAIN, "lengths") if own[name] is not None}  # pyright: ignore[reportArgumentType]
    if not texts or set(wrong.values()) != {len(texts)}:
        raise ValueError(f"{len(texts)} texts, and rows of {wrong}")
    lengths = own["lengths"]
    split: dict[str, tuple[np.ndarray, ...] | None] = {"ids": None, "hidden": None}
    for name in split:
        array = own[name]
        if array is not None and lengths is not None:
            if len(array) != int(lengths.sum()):
                raise ValueError(f"{name} of {len(array)} tokens, and texts of {int(lengths.sum())}")
            split[name] = tuple(np.split(array, np.cumsum(lengths)[:-1]))
    plain = {name: own[name] for name in _PLAIN}
    names = {each.name for each in fields(Recorded)}
    return Recorded(texts, **split, **plain, **{name: value for name, value in known.items() if name in names})  # pyright: ignore
