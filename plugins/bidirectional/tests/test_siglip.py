"""SigLIP's two towers against transformers and its processor."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import ClaimError, ContextLengthExceeded, InputError

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


@pytest.mark.needs("PIL")
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


@pytest.fixture(scope="module", params=["as saved today", "with its name in front"])
def alone(request, tmp_path_factory):
    """Each tower in a checkpoint of its own, as transformers saves it, in both spellings of its tensors."""
    folder, weights = tmp_path_factory.mktemp("alone"), mx.load(str(FOLDER / "model.safetensors"))
    configs = json.loads((FOLDER / "golden.json").read_text())["alone"]
    for which, config in configs.items():
        (folder / which).mkdir()
        (folder / which / "config.json").write_text(json.dumps(config))
        prefix = f"{which}_model."
        cut = 0 if request.param == "with its name in front" else len(prefix)
        kept = {name[cut:]: value for name, value in weights.items() if name.startswith(prefix)}
        mx.save_safetensors(str(folder / which / "model.safetensors"), kept)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder / "text")
    shutil.copy(FOLDER / "preprocessor_config.json", folder / "vision")
    return {which: engine.load(folder / which) for which in configs}


def test_the_text_tower_alone_equals_transformers_and_sees_no_image(alone):
    vectors = alone["text"].embed(list(TEXTS), normalize=False)
    for index, vector in enumerate(vectors):
        assert relative(vector, GOLDEN[f"text_{index}"]) <= 1e-5
    with pytest.raises(InputError, match="text tower alone"):
        alone["text"].embed({"image": IMAGES[0]})


@pytest.mark.needs("PIL")
def test_the_image_tower_alone_equals_transformers_needs_no_tokenizer_and_reads_no_text(alone):
    vectors = alone["vision"].embed([{"image": image} for image in IMAGES], normalize=False)
    for index, vector in enumerate(vectors):
        assert relative(vector, GOLDEN[f"image_{index}"]) <= 3e-5
    with pytest.raises(InputError, match="image tower alone"):
        alone["vision"].embed("a cat")


@pytest.mark.parametrize(("half", "change"), [("vision", {"vision_use_head": False}), ("text", {"projection_size": 7})])
def test_towers_that_make_no_common_vector_are_refused(tmp_path, half, change):
    folder = shutil.copytree(FOLDER, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config[f"{half}_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ClaimError, match=r"have the widths|vision_use_head"):
        engine.load(folder)


def test_a_text_far_over_the_limit_is_cut_as_if_all_of_it_was_read(model, monkeypatch):
    from archport.reading.long_texts import LongTexts

    item = "hello world, " * 3000
    with pytest.raises(ContextLengthExceeded, match="has at least"):
        model._runtime.tokeniser([item], max_tokens=12)
    some = model._runtime.tokeniser([item], max_tokens=12, overflow="truncate")
    monkeypatch.setattr(LongTexts, "beginnings", lambda _, texts, *__, **___: [(text, False) for text in texts])
    whole = model._runtime.tokeniser([item], max_tokens=12, overflow="truncate")
    assert some.ids[0].tolist() == whole.ids[0].tolist()
    assert some.truncated == whole.truncated == (0,)
