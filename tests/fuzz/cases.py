"""What a kind of case is, where cases start from, and what becomes of one."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from hypothesis import strategies as st

from archport import engine
from archport.contract import ArchportError, ClassificationHead, EmbeddingHead, PluginError, TokenHead, YesNoHead
from archport.contract.plugins import discover
from archport.testing.subject import Subject

Verdict = Literal["worked", "refused", "bare"]
# Name -> (plugin, how the name of its example begins): one for every way in which a family reads files.
BASES: Mapping[str, tuple[str, str]] = {
    "bert": ("bidirectional", "bert, learned"),
    "labels": ("bidirectional", "bert, classifier"),
    "masked": ("bidirectional", "bert, masked"),
    "roberta": ("bidirectional", "xlm-roberta, positions"),
    "modernbert": ("bidirectional", "modernbert, windows"),
    "gemma": ("bidirectional", "embeddinggemma"),
    "llama": ("bidirectional", "llama_bidirec, stretched"),
    "siglip": ("bidirectional", "siglip, two"),
    "qwen3": ("qwen3", "gqa"),
    "generates": ("qwen3", "generates, untied"),
    "windows": ("qwen3", "generates, second"),
    "experts": ("qwen3", "experts"),
    "hybrid": ("qwen35", "text"),
    "sees": ("qwen3_vl", "dense"),
}


@dataclass(slots=True)
class Seen:
    """What a case came to while it ran."""

    reached: bool = False
    models: dict[str, engine.Model] = field(default_factory=dict)


class Kind(Protocol):
    """A module of `kinds`: what it has to have.

    Attributes:
        FILES: whether its cases are files of a checkpoint, so that no plugin may be blamed and a forward pass counts.
    """

    FILES: bool

    def cases(self) -> st.SearchStrategy[Any]:
        """Cases as plain values, which another process can be sent."""
        ...

    def run(self, case: Any, bases: Path, place: Path, seen: Seen) -> None:
        """Run one in the empty folder `place`, from folders of `bases` by their name; raises what archport raises."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case.

    Args:
        verdict: `worked`, `refused` on purpose, or `bare`: an error that nobody raises on purpose, or that blames a
            plugin for a file.
        reached: whether a forward pass ran.
        told: the error's text; of a bare one with its traceback.
    """

    verdict: Verdict
    reached: bool
    told: str = ""


def write_bases(folder: Path) -> None:
    """The intact checkpoints that cases start from, a folder each."""
    plugins = {plugin.name: plugin for plugin in discover() if plugin.error is None}
    subjects = {name: Subject(plugin) for name, plugin in plugins.items()}
    for name, (plugin, begins) in BASES.items():
        tiny = next(tiny for tiny in subjects[plugin].tinies if tiny.example.name.startswith(begins))
        shutil.copytree(tiny.folder, folder / name)


def copied(bases: Path, name: str, place: Path) -> Path:
    """A copy of a base, to damage."""
    folder = place / name
    shutil.copytree(bases / name, folder)
    return folder


def judged(kind: Kind, case: Any, bases: Path, place: Path, seen: Seen | None = None) -> Outcome:
    """Run a case and say what became of it."""
    seen = seen or Seen()
    seen.reached = False
    place.mkdir(parents=True)
    try:
        kind.run(case, bases, place, seen)
    except ArchportError as error:
        blames = isinstance(error, PluginError) or "failed while looking at this config" in str(error)
        if kind.FILES and blames:
            return Outcome("bare", seen.reached, f"blames a plugin: {error}")
        return Outcome("refused", seen.reached, f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        raise
    # Panics of other languages are no Exception.
    except BaseException:
        return Outcome("bare", seen.reached, traceback.format_exc())
    finally:
        with suppress(OSError):
            shutil.rmtree(place)
    return Outcome("worked", seen.reached)


def load(folder: Path, seen: Seen, **options: Any) -> engine.Model:
    return engine.load(folder, memory_budget="1GB", **options)


def use(model: engine.Model, seen: Seen, texts: Any = ("hello world", "a")) -> None:
    """What a stranger does first with a model, whatever it is for."""
    texts = list(texts)
    if isinstance(model.head, ClassificationHead):
        model.classify(texts)
    elif isinstance(model.head, YesNoHead):
        model.rerank(texts[0], texts)
    elif isinstance(model.head, TokenHead):
        model.embed(texts, output="tokens")
    else:
        assert isinstance(model.head, EmbeddingHead)
        model.embed(texts)
        if "generate" in model.spec.tasks:
            model.generate(texts[0], max_tokens=3)
        if model.spec.vision is not None:
            model.embed({"image": np.zeros((40, 48, 3), np.uint8)})
    seen.reached = True


def loaded(name: str, bases: Path, seen: Seen) -> engine.Model:
    """An intact base as a model, kept for the next case."""
    if name not in seen.models:
        seen.models[name] = load(bases / name, seen)
    return seen.models[name]


def edit_json(path: Path, value: Any) -> None:
    # Halves of surrogate pairs are written as their escapes.
    path.write_text(json.dumps(value), encoding="utf-8")
