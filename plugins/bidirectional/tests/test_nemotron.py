"""llama_nemotron_vl against its published construction: tiles, tokens, vectors, batches, refusals."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from archport import engine
from archport.contract import ContextLengthExceeded, InputError
from archport.media.images import measure_image
from archport_bidirectional.nemotron.tiles import TiledImage, choose_grid

FOLDER = Path(__file__).parents[3] / "tests" / "goldens" / "llama-nemotron-vl"
STORED = json.loads((FOLDER / "texts.json").read_text())
GOLDEN = np.load(FOLDER / "golden.npz")
COUNT = len(STORED["images"])


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


def items():
    return [{"text": note["text"], "image": GOLDEN[f"pixels_{i}"]} for i, note in enumerate(STORED["images"])]


@pytest.fixture(scope="module")
def model():
    return engine.load(FOLDER)


@pytest.mark.needs("PIL")
@pytest.mark.parametrize("index", range(COUNT))
def test_an_image_has_the_published_tiles_and_pixels(index):
    image = TiledImage(measure_image(GOLDEN[f"pixels_{index}"]), 32, 6)
    note = STORED["images"][index]
    assert ([image.columns, image.rows], image.count) == (note["grid"], note["tiles"])
    tiles = [image.tile(at) for at in range(image.count)]
    for got, want in zip((tiles[0], tiles[-1]), GOLDEN[f"tiles_{index}"], strict=True):
        values = (got.transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5
        assert np.abs(values - want).max() <= 1e-6


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [((512, 512), 6, (1, 1)), ((1024, 512), 6, (2, 1)), ((3000, 500), 6, (6, 1)), ((500, 2600), 6, (1, 5)),
     ((2000, 1300), 6, (3, 2)), ((3000, 500), 2, (2, 1)), ((4000, 4000), 2, (1, 1))],
)  # fmt: skip
def test_grids_follow_aspect_and_area_within_the_tiles_allowed(size, most, grid):
    assert choose_grid(*size, 512, most) == grid


@pytest.mark.needs("PIL")
@pytest.mark.parametrize("index", range(COUNT))
def test_an_image_becomes_the_published_tokens_and_vector(model, index):
    item = items()[index]
    tokens = model._runtime.tokeniser([item])
    assert tokens.ids[0].tolist() == GOLDEN[f"ids_{index}"].tolist()
    assert relative(model.embed(item)[0], GOLDEN[f"vector_{index}"]) <= 3e-5


def test_images_in_a_batch_equal_single_ones_and_texts_between_them(model):
    mixed = [items()[0], "query: what is in the picture?", items()[1], items()[4], "a text alone", items()[2]]
    together = model.embed(mixed)
    for vector, item in zip(together, mixed, strict=True):
        assert np.abs(vector - model.embed(item)[0]).max() <= 1e-6


def test_texts_with_their_prompts_equal_the_reference(model):
    for index, text in enumerate(STORED["texts"]):
        assert relative(model.embed(text)[0], GOLDEN[f"text_{index}"]) <= 1e-5
    assert relative(model.encode_query("what is in the picture?")[0], GOLDEN["text_0"]) <= 1e-5
    assert relative(model.encode_document("a chart of the year")[0], GOLDEN["text_1"]) <= 1e-5


def test_a_text_is_the_same_before_and_after_an_image(model):
    before = model.embed("a text alone")
    model.embed(items()[3])
    assert (model.embed("a text alone") == before).all()


def test_an_image_may_be_a_path_bytes_a_pil_image_a_data_uri_or_an_array(model, tmp_path):
    array = GOLDEN["pixels_0"]
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(stream.getvalue())
    uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    forms = [array, str(path), path, stream.getvalue(), Image.fromarray(array), uri]
    vectors = model.embed([{"image": form} for form in forms])
    assert np.abs(vectors - vectors[0]).max() <= 1e-6


def _bomb():
    header = io.BytesIO()
    Image.new("1", (30000, 30000)).save(header, "PNG")
    return header.getvalue()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"no image at all", "image"),
        (np.zeros((4, 2000, 3), np.uint8), "aspect|200|longer"),
        (_bomb(), "pixels"),
        (3.5, "float"),
    ],
    ids=["unknown format", "absurd aspect", "bomb", "no image"],
)
def test_an_image_that_no_model_should_see_is_refused_with_its_place(model, image, said):
    with pytest.raises(InputError, match=said):
        model.embed([{"text": "fine"}, {"image": image}])


def test_a_truncated_file_is_refused_when_its_pixels_are_read(model):
    stream = io.BytesIO()
    Image.fromarray(GOLDEN["pixels_3"]).save(stream, "PNG")
    with pytest.raises(InputError, match=r"damaged|cut short"):
        model.embed({"image": stream.getvalue()[: len(stream.getvalue()) // 2]})


def test_text_is_cut_on_request_and_an_image_never(model):
    long = {"text": "a " * 600, "image": GOLDEN["pixels_0"]}
    with pytest.raises(ContextLengthExceeded, match="overflow='truncate'"):
        model.embed(long)
    assert np.isfinite(model.embed(long, overflow="truncate")).all()
    with pytest.raises(ContextLengthExceeded, match="images alone"):
        model.embed(items()[4], max_tokens=40, overflow="truncate")


def test_an_image_token_written_as_text_is_refused(model):
    with pytest.raises(InputError, match="image tokens in its text"):
        model.embed("what about <IMG_CONTEXT> here")


def test_a_text_far_over_the_limit_is_cut_as_if_all_of_it_was_read(model, monkeypatch):
    from archport.reading.long_texts import LongTexts

    item = {"text": "hello world, " * 3000, "image": GOLDEN["pixels_0"]}
    with pytest.raises(ContextLengthExceeded, match="has at least"):
        model._runtime.tokeniser([item], max_tokens=120)
    some = model._runtime.tokeniser([item], max_tokens=120, overflow="truncate")
    monkeypatch.setattr(LongTexts, "beginnings", lambda _, texts, *__, **___: [(text, False) for text in texts])
    whole = model._runtime.tokeniser([item], max_tokens=120, overflow="truncate")
    assert some.ids[0].tolist() == whole.ids[0].tolist()
    assert some.truncated == whole.truncated == (0,)
