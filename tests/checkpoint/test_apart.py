"""Where a module has the rows of stored matrices, whatever its `sanitize` makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from archport.checkpoint import resolve
from archport.checkpoint.adapting import Adapted
from archport.checkpoint.apart import check_apart, factors_of, own_tensors, sources_of
from archport.contract.errors import CheckpointError

# Name of a stored matrix -> its shape.
BASE = {"qkv.weight": (12, 6), "out.weight": (6, 6), "gate.weight": (8, 6), "up.weight": (8, 6), "words.weight": (9, 6)}


class Named:
    """A module that renames tensors, and so on, as a test says."""

    def __init__(self, rule: Callable[[Mapping[str, mx.array]], dict[str, mx.array]]) -> None:
        self.sanitize = rule


@pytest.fixture
def fit(make: Callable[..., Path], put: Callable[[Path, Any], None], tmp_path: Path) -> Callable[..., Adapted]:
    """An adapter of the modules named, on BASE."""

    def build(*paths: str) -> Adapted:
        rng = np.random.default_rng(1)
        stored = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in BASE.items()}
        tensors = {}
        for path in paths:
            out, inner = BASE[f"{path}.weight"]
            if path == "words":
                tensors[f"{path}.lora_embedding_A"] = rng.standard_normal((2, out)).astype(np.float32)
                tensors[f"{path}.lora_embedding_B"] = rng.standard_normal((inner, 2)).astype(np.float32)
                continue
            tensors[f"{path}.lora_A.weight"] = rng.standard_normal((2, inner)).astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = rng.standard_normal((out, 2)).astype(np.float32)
        folder = tmp_path / "adapter"
        put(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 3})
        save_file({f"base_model.model.{name}": array for name, array in tensors.items()},
                  folder / "adapter_model.safetensors")  # fmt: skip
        checkpoint = resolve(make(tensors=stored), models={}, adapter=folder)
        assert checkpoint.adapted is not None
        check_apart(checkpoint.adapted)
        return checkpoint.adapted

    return build


def added(fit: Adapted, module: Named) -> dict[str, np.ndarray]:
    """What is added to each module's matrix (out, in)."""
    factors = factors_of(fit, sources_of(fit, module), own_tensors(fit), "float32")
    return {path: np.array((down @ up) if path == "table" else (down @ up).T) for path, (down, up) in factors.items()}


def whole(fit: Adapted, name: str) -> np.ndarray:
    """What is added to a stored matrix."""
    own, term = own_tensors(fit), fit.terms[f"{name}.weight"]
    product = np.array(own[term.b.name]) @ np.array(own[term.a.name])
    return 1.5 * (product.T if term.table else product)


def test_a_matrix_that_is_cut_has_the_rows_of_each_piece(fit: Callable[..., Adapted]):
    def cut(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        pieces = mx.split(weights["qkv.weight"], 3, axis=0)
        return {f"a.{name}.weight": piece for name, piece in zip("qkv", pieces, strict=True)}

    found, wanted = added(it := fit("qkv"), Named(cut)), np.split(whole(it, "qkv"), 3)
    assert sorted(found) == ["a.k", "a.q", "a.v"]
    for name, piece in zip("qkv", wanted, strict=True):
        np.testing.assert_allclose(found[f"a.{name}"], piece, rtol=1e-5)


def test_rows_in_another_order_are_added_in_theirs(fit: Callable[..., Adapted]):
    def turn(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        return {"q.weight": weights["qkv.weight"].reshape(2, 6, 6).swapaxes(0, 1).reshape(12, 6)}

    it = fit("qkv")
    wanted = whole(it, "qkv").reshape(2, 6, 6).swapaxes(0, 1).reshape(12, 6)
    np.testing.assert_allclose(added(it, Named(turn))["q"], wanted, rtol=1e-5)


def test_a_table_is_added_to_by_its_tokens(fit: Callable[..., Adapted]):
    it = fit("words")
    found = added(it, Named(lambda weights: {"table.weight": weights["words.weight"]}))
    np.testing.assert_allclose(found["table"], whole(it, "words"), rtol=1e-5)


def test_a_matrix_that_the_model_leaves_out_gets_nothing(fit: Callable[..., Adapted]):
    found = sources_of(fit("gate", "up"), Named(lambda weights: {"two.weight": weights["up.weight"]}))
    assert list(found) == ["two"]


@pytest.mark.parametrize(
    "rule",
    [
        lambda weights: {"both.weight": mx.concatenate([weights["gate.weight"], weights["up.weight"]])},
        lambda weights: {"one.weight": weights["gate.weight"].T, "two.weight": weights["up.weight"]},
        lambda weights: {"stack.weight": mx.stack([weights["gate.weight"], weights["up.weight"]])},
    ],
    ids=["joined", "turned", "stacked"],
)
def test_what_is_no_choice_of_rows_of_one_matrix_is_refused(fit: Callable[..., Adapted], rule: Any):
    with pytest.raises(CheckpointError, match="with adapter="):
        sources_of(fit("gate", "up"), Named(rule))
