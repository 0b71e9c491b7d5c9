"""What plugins declare of their own modules is what plans price, on every kind of device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archport.contract import ArchSpec, Footprint
from archport.planning import estimate_weights
from archport.planning.activations import token_bytes

KINDS = [("cpu", True), ("cpu", False), ("cuda", False), ("metal", False)]


def declaring(spec: ArchSpec, **numbers: int) -> ArchSpec:
    layers = tuple(replace(layer, footprint=Footprint(**numbers)) for layer in spec.layers)
    return replace(spec, layers=layers)


def price(spec: ArchSpec, dtype: str, kind: str, host: bool):
    return token_bytes(spec, spec.layers[0], False, dtype, kind, host=host and dtype == "float32")


@pytest.mark.parametrize(("kind", "host"), KINDS)
@pytest.mark.parametrize("half", ["mixer", "mlp"])
def test_a_number_more_of_a_half_is_a_number_more_of_a_whole_layer(half, kind, host, qwen3_06b: ArchSpec):
    for dtype, size in (("float32", 4), ("bfloat16", 4 if kind == "cpu" else 2)):
        one, other = (price(declaring(qwen3_06b, **{half: n}), dtype, kind, host) for n in (90_000, 90_001))
        for name in ("lazy", "unfused", "documents", "part"):
            assert getattr(other, name) - getattr(one, name) == size, name


@pytest.mark.parametrize(("kind", "host"), KINDS)
def test_halves_coexist_but_where_each_ends_in_an_evaluation(kind, host, qwen3_06b: ArchSpec):
    found = price(declaring(qwen3_06b, mixer=50_000, mlp=30_000), "float32", kind, host)
    D = 3 * qwen3_06b.hidden_size
    assert found.split == 4 * (D + (50_000 if host else 80_000))
    assert found.held == 4 * (D + 50_000)
    assert found.lazy == 4 * (D + 80_000)


@pytest.mark.parametrize(("kind", "host"), KINDS)
def test_a_half_that_is_not_declared_is_archport_s(kind, host, qwen3_06b: ArchSpec):
    usual, size = price(qwen3_06b, "float32", kind, host), 4 * qwen3_06b.hidden_size
    light = price(declaring(qwen3_06b, mixer=1), "float32", kind, host)
    assert light.part == 3 * size + 3 * 4 * qwen3_06b.intermediate_size + 3 * size
    light = price(declaring(qwen3_06b, mlp=1), "float32", kind, host)
    assert usual.part <= light.part <= usual.split + 3 * size


def test_matrices_are_weighed_and_multiplied_as_declared(qwen3_06b: ArchSpec):
    one, other = (declaring(qwen3_06b, matrices=n) for n in (1_000_000, 1_500_000))
    assert estimate_weights(other, "bfloat16").total - estimate_weights(one, "bfloat16").total == 28 * 1_000_000
    # Temporaries are not declared, and stay as they are.
    assert price(one, "float32", "cpu", True) == price(qwen3_06b, "float32", "cpu", True)
