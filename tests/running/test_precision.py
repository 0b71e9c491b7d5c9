"""Quantised vectors by their definition."""

import numpy as np
import pytest

from archport.answering.precision import check_precision, quantise
from archport.answering.similarity import similarity
from archport.contract import InputError

VECTORS = np.random.default_rng(3).standard_normal((20, 20)).astype(np.float32)


def test_ubinary_packs_the_signs_of_eight_dimensions_into_a_byte():
    packed = quantise(VECTORS, "ubinary")
    assert packed.dtype == np.uint8
    assert packed.shape == (20, 3)
    assert (np.unpackbits(packed, axis=1)[:, :20].astype(bool) == (VECTORS > 0)).all()


def test_binary_is_ubinary_minus_128():
    assert (quantise(VECTORS, "binary").astype(int) + 128 == quantise(VECTORS, "ubinary")).all()
    assert quantise(VECTORS, "binary").dtype == np.int8


@pytest.mark.parametrize(("precision", "offset"), [("int8", -128), ("uint8", 0)])
def test_eight_bit_vectors_span_their_range_and_undo_within_a_step(precision, offset):
    packed = quantise(VECTORS, precision).astype(np.float64) - offset
    low, step = VECTORS.min(0), (VECTORS.max(0) - VECTORS.min(0)) / 255
    assert packed.min() == 0
    assert packed.max() >= 254
    assert (np.abs(packed * step + low - VECTORS) <= step * 1.01).all()


def test_eight_bits_need_vectors_that_differ():
    with pytest.raises(InputError, match="these 1 are all equal"):
        quantise(VECTORS[:1], "int8")


def test_a_dimension_that_never_changes_is_not_a_division_by_zero():
    vectors = VECTORS.copy()
    vectors[:, 0] = 0.5
    assert (quantise(vectors, "uint8")[:, 0] == 0).all()


def test_no_vectors_quantise_to_no_vectors():
    for precision in ("int8", "binary"):
        assert quantise(np.zeros((0, 8), np.float32), precision).shape[0] == 0


def test_an_unknown_precision_lists_the_known_ones():
    with pytest.raises(InputError, match="precision='int4'; expected one of float32, int8"):
        check_precision("int4")


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_equals_its_definition_pair_by_pair(kind):
    a, b = VECTORS[:3], VECTORS[3:8]
    pairs = {
        "cosine": lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y),
        "dot": lambda x, y: x @ y,
        "euclidean": lambda x, y: -np.linalg.norm(x - y),
        "manhattan": lambda x, y: -np.abs(x - y).sum(),
    }[kind]
    want = np.array([[pairs(x.astype(np.float64), y.astype(np.float64)) for y in b] for x in a])
    assert np.abs(similarity(a, b, kind) - want).max() < 1e-4


def test_similarity_of_quantised_vectors_is_refused():
    with pytest.raises(InputError, match="expected float vectors"):
        similarity(quantise(VECTORS, "int8"), VECTORS, "cosine")


def test_similarity_of_different_widths_names_both_shapes():
    with pytest.raises(InputError, match=r"\(20, 20\) and \(20, 7\)"):
        similarity(VECTORS, VECTORS[:, :7], "cosine")
