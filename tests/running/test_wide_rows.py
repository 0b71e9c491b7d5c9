"""Rows padded beyond the longest one, as CUDA pads them to few widths, run here: the same answers as without.

Nothing else on a CPU pads a row that runs alone.
"""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.answering import yes_no
from archport.answering.yes_no import YesNoScorer
from archport.planning import batches, caches, planner, search, shapes

GOLDENS = Path(__file__).parents[1] / "goldens"
QUERY = "which planet is the largest, and which is the one with the most moons? " * 4
DOCUMENTS = ["Jupiter is larger than all others together.", "A short one.", "Saturn has rings of ice, and moons."]
STEP = 16


def use(monkeypatch, width):
    """Let rows and prompts be padded to `width(tokens, kind, most)`."""
    monkeypatch.setattr(shapes, "padded_length", width)
    for module in (batches, planner):
        monkeypatch.setattr(module, "prompt_width", width)


@pytest.fixture
def wide(monkeypatch):
    """Widths in steps of 16 tokens, on whatever device."""
    padded: list[tuple[int, int]] = []

    def padded_length(tokens: int, kind: str, most: int) -> int:
        padded.append((tokens, max(tokens, min(-(-tokens // STEP) * STEP, most))))
        return padded[-1][1]

    use(monkeypatch, padded_length)
    yield padded
    assert any(width > tokens for tokens, width in padded)


@pytest.mark.parametrize("name", ["qwen3-reranker", "qwen35-reranker", "xlm-roberta-rerank"])
@pytest.mark.parametrize("share", [True, False])
def test_reranking(name, share, monkeypatch, wide):
    # On a GPU a tiny model gains nothing by it.
    monkeypatch.setattr(yes_no, "sharing_pays", lambda first, rest, whole: True)
    with monkeypatch.context() as usual:
        use(usual, lambda tokens, kind, most: tokens)
        want = engine.load(GOLDENS / name, dtype="float32").rerank(QUERY, DOCUMENTS, share_prefix=share)
    runs = []
    shared = YesNoScorer._run_shared
    monkeypatch.setattr(YesNoScorer, "_run_shared", lambda self, ids: runs.append(len(ids)) or shared(self, ids))
    found = engine.load(GOLDENS / name, dtype="float32").rerank(QUERY, DOCUMENTS, share_prefix=share)
    assert bool(runs) == (share and name != "xlm-roberta-rerank")
    assert not runs or runs[0] % STEP
    assert [each.index for each in found] == [each.index for each in want]
    np.testing.assert_allclose([each.score for each in found], [each.score for each in want], atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3-causal-sharded", "qwen3-windowed", "qwen35-text", "qwen3-next", "qwen3-vl"])
@pytest.mark.parametrize("rows", [[21], [21, 3, 40]])
def test_generating_and_going_on_from_what_was_left_behind(name, rows, wide):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 100, count).astype(np.int32) for count in rows]
    longer = [np.concatenate([row, rng.integers(0, 100, 7).astype(np.int32)]) for row in prompts]
    found = engine.load(GOLDENS / name)
    found.generate(prompts, max_tokens=5)
    # One by one and without what earlier calls left, in the width of its own.
    alone = engine.load(GOLDENS / name, prefix_cache=0)
    for given in (prompts, longer):
        several = found.generate(given, max_tokens=9)
        for row, made in zip(given, several, strict=True):
            hidden = alone.forward(row[None])
            first = int(mx.argmax(alone._runtime.encoder.trunk.logits(hidden[:, -1:])[0, -1]).item())
            assert made.tokens[0] == first
            assert made.tokens == alone.generate([row], max_tokens=9)[0].tokens


@pytest.mark.parametrize("pad", [8, 24, 40, 60])
def test_chunks_of_nothing_but_padding_push_nothing_out_of_a_window(pad, monkeypatch):
    prompt = np.random.default_rng(0).integers(0, 100, 200).astype(np.int32)
    want = engine.load(GOLDENS / "qwen3-windowed", prefix_cache=0).generate([prompt], max_tokens=9)[0].tokens
    monkeypatch.setattr(caches, "RING_STEP", STEP)
    monkeypatch.setattr(search, "chunk_widths", lambda *_, **__: (STEP,))
    use(monkeypatch, lambda tokens, kind, most: min(tokens + pad, most))
    found = engine.load(GOLDENS / "qwen3-windowed", prefix_cache=0).generate([prompt], max_tokens=9)[0].tokens
    assert found == want


@pytest.mark.parametrize("name", ["qwen3-embed", "bert-plain", "modernbert", "roberta", "embeddinggemma"])
def test_embedding(name, wide):
    texts = ["one", "a text of a few more words than that", *DOCUMENTS]
    model = engine.load(GOLDENS / name)
    together = model.embed(texts)
    alone = np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
