"""Documents packed one behind another in a row, boundaries off chunk edges, through whole trunks."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.testing.measure import PackedContext

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"


def off(found, want):
    return np.abs(found - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", ["qwen35-text", "qwen35-moe"])
@pytest.mark.parametrize("rows", [(6, 4), (5, 1, 6, 2, 4)], ids=["two", "five"])
def test_packed_documents_equal_single_runs_and_what_transformers_computed(name, rows):
    golden = np.load(GOLDENS / name / "golden.npz")
    model = engine.load(GOLDENS / name, dtype="float32")
    encoder = model._runtime.encoder
    documents = [golden[f"ids_{row}"] for row in rows]
    context = PackedContext(encoder.spec.layers, [len(ids) for ids in documents], replace(encoder.plan))
    packed = np.array(encoder.trunk(mx.array(np.concatenate(documents)[None]), context))[0]
    start = 0
    for row, ids in zip(rows, documents, strict=True):
        found = packed[start : start + len(ids)]
        assert off(found, np.array(model.forward(ids[None]))[0]) <= 1e-5
        assert off(found, golden[f"hidden_{row}"]) <= 3e-5
        start += len(ids)
