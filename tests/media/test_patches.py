"""Sizes and patches against what transformers' PIL processors computed (see make_processor_goldens.py)."""

import json
from pathlib import Path

import numpy as np
import pytest

from archport.contract import InputError
from archport.media import normalise, patch_rows, resize, smart_resize, smart_resize_video, unfold

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "processors.npz")
SIZES = json.loads((HERE / "sizes.json").read_text())
HALF = (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def qwen_rows(image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    height, width = smart_resize(*image.shape[:2], factor=8, min_pixels=512, max_pixels=2048)
    return patch_rows(resize(image, height, width)[None], patch=4, merge=2), (height // 4, width // 4)


@pytest.mark.parametrize("at", range(4))
def test_patches_are_those_of_the_qwen_processor(at: int):
    rows, grid = qwen_rows(GOLDEN[f"image_{at}"])
    assert tuple(GOLDEN[f"grid_{at}"]) == (1, *grid)
    np.testing.assert_allclose(normalise(rows, HALF, HALF, repeat=2), GOLDEN[f"qwen_{at}"], atol=1e-6)
    np.testing.assert_allclose(normalise(rows, *CLIP, repeat=2), GOLDEN[f"clip_{at}"], atol=1e-6)


@pytest.mark.needs("PIL")
@pytest.mark.parametrize("at", range(4))
def test_a_resized_image_is_that_of_the_siglip_processor(at: int):
    image = resize(GOLDEN[f"image_{at}"], 32, 48)
    flat = normalise(unfold(image, 16), HALF, HALF)
    ours = flat.reshape(2, 3, 3, 16, 16).transpose(2, 0, 3, 1, 4).reshape(3, 32, 48)
    np.testing.assert_allclose(ours, GOLDEN[f"siglip_{at}"], atol=1e-6)


@pytest.mark.parametrize("case", SIZES["images"], ids=lambda case: f"{case['height']}x{case['width']}<{case['max']}")
def test_an_image_gets_the_size_that_transformers_gives_it(case: dict[str, int]):
    found = smart_resize(case["height"], case["width"], factor=32, min_pixels=case["min"], max_pixels=case["max"])
    assert list(found) == case["size"]


@pytest.mark.parametrize("case", SIZES["videos"], ids=lambda case: f"{case['frames']}x{case['height']}x{case['width']}")
def test_a_video_gets_the_size_that_transformers_gives_it(case: dict[str, int]):
    found = smart_resize_video(
        case["frames"],
        case["height"],
        case["width"],
        factor=32,
        temporal=2,
        min_pixels=131_072,
        max_pixels=786_432,
    )
    assert list(found) == case["size"]


def test_a_sliver_keeps_its_length_where_sides_are_clamped_first():
    bounds = {"factor": 32, "min_pixels": 4_096, "max_pixels": 1_843_200}
    assert smart_resize(10, 1900, **bounds, clamp_first=True) == (32, 1888)
    assert smart_resize(10, 1900, **bounds) == (32, 896)


def test_two_frames_alternate_inside_a_row():
    frames = np.stack([np.full((8, 8, 3), 1, np.uint8), np.full((8, 8, 3), 2, np.uint8)])
    row = patch_rows(frames, patch=4, merge=2)[0].reshape(3, 2, 16)
    assert (row[:, 0] == 1).all()
    assert (row[:, 1] == 2).all()


def test_bounds_that_admit_no_size_are_refused():
    with pytest.raises(InputError, match="expected 0 < min_pixels <= max_pixels"):
        smart_resize(100, 100, factor=32, min_pixels=5000, max_pixels=4000)
    with pytest.raises(InputError, match="at least 1024"):
        smart_resize(100, 100, factor=32, min_pixels=1, max_pixels=1000)


def test_an_image_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="squares of 8"):
        patch_rows(np.zeros((1, 12, 16, 3), np.uint8), patch=4, merge=2)
