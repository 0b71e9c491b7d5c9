"""SigLIP's two towers against transformers and its processor."""

import json
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.contract import ContextLengthExceeded, InputError

FOLDER = Path(__file__).parents[3] / "tests" / "goldens" / "siglip"
TEXTS = json.loads((FOLDER / "texts.json").read_text())["texts"]
GOLDEN = np.load(FOLDER / "golden.npz")
IMAGES = [GOLDEN[f"pixels_{i}"] for i in range(sum(key.startswith("pixels_") for key in GOLDEN))]


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


@pytest.fixture(scope="module")
def model():
    return engine.load(FOLDER)


@pytest.mark.parametrize("index", range(len(TEXTS)))
def test_a_text_takes_all_positions_and_equals_transformers(model, index):
    (ids,) = model._runtime.tokeniser([TEXTS[index]]).ids
    assert ids.tolist() == GOLDEN[f"ids_{index}"].tolist()
    assert relative(model.embed(TEXTS[index], normalize=False)[0], GOLDEN[f"text_{index}"]) <= 1e-5


@pytest.mark.parametrize("index", range(len(IMAGES)))
def test_an_image_has_the_processors_pixels_and_the_towers_vector(model, index):
    reader = model.inputs.reader
    (measured,) = model._runtime.tokeniser([{"image": IMAGES[index]}]).measured
    rows = reader.decode(measured.pictures[0]).astype(np.float32)
    values = GOLDEN[f"values_{index}"]
    side = values.shape[1] // 4
    want = values.reshape(3, side, 4, side, 4).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    assert np.abs((rows / 255 - 0.5) / 0.5 - want).max() <= 1e-6
    assert relative(model.embed({"image": IMAGES[index]}, normalize=False)[0], GOLDEN[f"image_{index}"]) <= 3e-5


def test_images_and_texts_in_a_batch_equal_single_ones(model):
    mixed = [{"image": IMAGES[0]}, TEXTS[0], {"image": IMAGES[1]}, {"image": IMAGES[2]}, TEXTS[1], {"image": IMAGES[3]}]
    for vector, item in zip(model.embed(mixed), mixed, strict=True):
        assert np.abs(vector - model.embed(item)[0]).max() <= 1e-6


def test_a_text_before_and_after_an_image_is_the_same(model):
    before = model.embed(TEXTS[0])
    model.embed({"image": IMAGES[2]})
    assert (model.embed(TEXTS[0]) == before).all()


def test_a_long_text_is_refused_or_cut_before_its_end_token(model):
    with pytest.raises(ContextLengthExceeded, match="the limit is 24"):
        model.embed("a " * 40)
    (ids,) = model._runtime.tokeniser(["a " * 40], overflow="truncate").ids
    assert (len(ids), ids[-1]) == (24, GOLDEN["ids_0"][-1])


def test_an_image_with_a_text_is_refused(model):
    with pytest.raises(InputError, match="one by one"):
        model.embed({"image": IMAGES[0], "text": "a cat"})
