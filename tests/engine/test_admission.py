"""What a load asks a budget for is what the loaded model holds: of every example that ships, and of every golden."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from archport import engine
from archport.admission import bytes_of
from archport.contract import ArchportError, MemoryBudgetExceeded
from archport.contract.plugins import discover
from archport.loading import Description, narrowed
from archport.testing.subject import Subject, Tiny

GOLDENS = Path(__file__).parents[1] / "goldens"
FOLDERS = sorted(path.parent for path in GOLDENS.glob("*/config.json"))
# Tensors that published checkpoints have and some module leaves out.
PREFIXES = ("", "model.", "bert.", "roberta.", "mpnet.", "electra.", "albert.", "deberta.", "text_model.")
SPARE = (
    *(f"{prefix}{name}" for prefix in PREFIXES for name in ("pooler.dense.weight", "embeddings.position_ids")),
    *("cls.seq_relationship.weight", "lm_head.weight", "logit_scale", "mtp.norm.weight", "classifier.weight"),
    *("score.weight", "visual.pos_embed.weight", "vision_tower.pos_embed.weight", "vocab_projector.weight"),
)


@cache
def tinies() -> tuple[Tiny, ...]:
    subjects = [Subject(plugin) for plugin in discover() if plugin.module is not None]
    return tuple(tiny for subject in subjects if not subject.is_guest for tiny in subject.tinies)


def described(folder: Path, **options) -> Description:
    about = engine.describe(folder, **options)
    return narrowed(about, about.hooks.head(about.spec, about.checkpoint))


def spare(tiny: Tiny) -> dict[str, mx.array]:
    """Tensors that the example's module takes in a checkpoint and leaves out."""
    found: dict[str, mx.array] = {}
    for name in set(SPARE) - set(tiny.published):
        module = tiny.build()
        array = mx.zeros((1, 9), mx.int64) if name.endswith("position_ids") else mx.zeros((8, 8))
        try:
            kept = module.sanitize({**tiny.published, name: array})
        except (ArchportError, KeyError, ValueError):
            continue
        shapes = {own: value.shape for own, value in tree_flatten(module.parameters())}
        if {own: value.shape for own, value in kept.items()} == shapes:
            found[name] = array
    return found


def check(folder: Path, **options) -> None:
    """Whether what is foretold is held, and what a load refuses a budget below."""
    about, model = described(folder, plugins=options.get("plugins")), engine.load(folder, **options)
    held = model.memory().weights
    assert bytes_of(about)(model.dtype.dtype, model.dtype.dequantize) == held
    if about.spec.quantization is None:
        assert engine.load(folder, memory_budget=held, **options).memory().weights == held
        with pytest.raises(MemoryBudgetExceeded) as refusal:
            engine.load(folder, memory_budget=held - 1, **options)
        assert refusal.value.required_bytes == held


@pytest.mark.parametrize("tiny", tinies(), ids=lambda tiny: f"{tiny.subject.plugin.name}: {tiny.example.name}")
def test_a_load_asks_for_what_an_example_holds(tiny: Tiny):
    folder = tiny.write(tiny.named("spare"), {**tiny.published, **spare(tiny)})
    for dtype in ("float32", "checkpoint"):
        check(folder, dtype=dtype, plugins=(tiny.subject.plugin,))


def test_examples_are_asked_with_tensors_that_their_modules_leave_out():
    names = {tiny.spec.arch: set(spare(tiny)) for tiny in tinies()}
    assert all(any("pooler" in name for name in names[arch]) for arch in ("bert", "mpnet"))
    assert {"mtp.norm.weight", "lm_head.weight"} <= set().union(*names.values())


@pytest.mark.parametrize("differs", [False, True])
def test_a_stored_head_of_a_tied_model_counts_where_it_differs(differs: bool):
    tied = [tiny for tiny in tinies() if tiny.spec.tied_head and "generate" in tiny.spec.tasks]
    assert tied
    for tiny in tied:
        words = next(value for name, value in tiny.published.items() if name.endswith("embed_tokens.weight"))
        folder = tiny.write(f"tied-{differs}", {**tiny.published, "lm_head.weight": words + differs})
        check(folder, dtype="float32", plugins=(tiny.subject.plugin,))
        more = engine.load(folder, plugins=(tiny.subject.plugin,)).memory().weights - tiny.model.memory().weights
        assert more == differs * words.nbytes


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("dtype", ["float32", "checkpoint"])
def test_a_load_asks_for_what_a_golden_holds(folder: Path, dtype: str):
    check(folder, dtype=dtype)


def test_the_bytes_are_foretold_without_reading_a_tensor(monkeypatch: pytest.MonkeyPatch):
    about = described(GOLDENS / "bert-prefixed")
    monkeypatch.setattr(mx, "load", lambda *_: pytest.fail("read"))
    assert bytes_of(about)("float32", False) > 0
