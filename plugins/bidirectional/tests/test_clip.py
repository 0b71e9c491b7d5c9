"""CLIP's two towers against transformers and its processor, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.checkpoint import normalise_config
from archport.contract import ClaimError, ContextLengthExceeded, InputError, SpecError
from archport.planning.activations import block_of
from archport_bidirectional.clip import towers
from archport_bidirectional.clip.reader import scaling

FOLDER = Path(__file__).parents[3] / "tests" / "goldens" / "clip"
TEXTS = json.loads((FOLDER / "texts.json").read_text())["texts"]
GOLDEN = np.load(FOLDER / "golden.npz")
IMAGES = [GOLDEN[f"pixels_{i}"] for i in range(sum(key.startswith("pixels_") for key in GOLDEN))]


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


@pytest.fixture(scope="module")
def model():
    return engine.load(FOLDER)


def test_texts_are_priced_as_blocks_that_rotate_nothing(model):
    """Decoders without a gate are taken to rotate; priced so, a plan was 1.36 times what was measured."""
    assert block_of(model.spec, model.spec.layers[0], False) == "post-norm"


@pytest.mark.parametrize("index", range(len(TEXTS)))
def test_a_text_is_read_at_its_first_end_token_as_transformers_does(model, index):
    (ids,) = model._runtime.tokeniser([TEXTS[index]]).ids
    want, end = GOLDEN[f"ids_{index}"], GOLDEN["ids_0"][-1]
    assert ids.tolist() == want[: want.tolist().index(end) + 1].tolist()
    assert relative(model.embed(TEXTS[index], normalize=False)[0], GOLDEN[f"text_{index}"]) <= 1e-5


@pytest.mark.needs("PIL")
@pytest.mark.parametrize("index", range(len(IMAGES)))
def test_an_image_has_the_processors_pixels_and_the_towers_vector(model, index):
    reader = model.inputs.reader
    (measured,) = model._runtime.tokeniser([{"image": IMAGES[index]}]).measured
    rows = reader.decode(measured.pictures[0])[1:].astype(np.float32)
    values, (mean, std) = GOLDEN[f"values_{index}"], reader.normalisation
    side = values.shape[1] // 4
    want = values.reshape(3, side, 4, side, 4).transpose(1, 3, 0, 2, 4).reshape(side * side, 3, 16)
    scaled = (rows.reshape(-1, 3, 16) / 255 - np.array(mean)[:, None]) / np.array(std)[:, None]
    assert np.abs(scaled - want).max() <= 1e-5
    assert relative(model.embed({"image": IMAGES[index]}, normalize=False)[0], GOLDEN[f"image_{index}"]) <= 3e-5


def test_images_and_texts_in_a_batch_equal_single_ones(model):
    mixed = [{"image": IMAGES[0]}, TEXTS[0], {"image": IMAGES[1]}, {"image": IMAGES[2]}, TEXTS[1], {"image": IMAGES[3]}]
    for vector, item in zip(model.embed(mixed), mixed, strict=True):
        assert np.abs(vector - model.embed(item)[0]).max() <= 1e-6


def test_a_later_token_changes_no_earlier_one(model):
    ids = np.arange(5, 20)[None]
    before = np.array(model.forward(ids))
    ids[0, -1] += 1
    assert np.abs(np.array(model.forward(ids))[0, :-1] - before[0, :-1]).max() <= 1e-6


def test_a_long_text_is_refused_or_cut_before_its_end_token(model):
    with pytest.raises(ContextLengthExceeded, match="the limit is 24"):
        model.embed("a " * 40)
    (ids,) = model._runtime.tokeniser(["a " * 40], overflow="truncate").ids
    assert (len(ids), ids[-1]) == (24, GOLDEN["ids_0"][-1])


def test_an_image_with_a_text_is_refused(model):
    with pytest.raises(InputError, match="one by one"):
        model.embed({"image": IMAGES[0], "text": "a cat"})


def test_towers_that_make_no_common_vector_are_refused(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "projection_dim": 16}))
    with pytest.raises(ClaimError, match="projection_dim"):
        engine.load(folder)


def test_what_an_older_file_states_a_second_time_wins_and_is_filled_up_by_its_class():
    # As openai's own files do.
    config = {"model_type": "clip", "text_config": {"hidden_size": 64, "eos_token_id": 2, "vocab_size": 99}}
    config |= {"text_config_dict": {"hidden_size": 32}}
    text, vision = towers(normalise_config(config))
    assert (text["hidden_size"], text["eos_token_id"], text["vocab_size"]) == (32, 49407, 49408)
    assert vision["hidden_size"] == 768


@pytest.mark.parametrize(
    ("settings", "short"),
    [
        ({}, 24),
        ({"size": 24, "crop_size": 24}, 24),
        ({"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}}, 30),
        ({"size": {"height": 24, "width": 24}}, None),
    ],
)
def test_an_image_is_scaled_as_its_processor_says(settings, short):
    assert scaling(settings, 24, "clip").short == short


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"resample": 2},
        {"do_normalize": False},
        {"size": {"shortest_edge": 20}},
        {"size": {"shortest_edge": 24}, "do_center_crop": False},
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    ],
    ids=json.dumps,
)
def test_a_processor_that_makes_other_squares_is_refused(settings):
    with pytest.raises(SpecError, match="image processor"):
        scaling(settings, 24, "clip")
