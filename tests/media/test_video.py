"""Video: frames are counted, measured and sampled before any is decoded."""

import builtins
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from archport.contract import InputError
from archport.media import measure_video, sample_frames

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 8, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("frames", [FRAMES, list(FRAMES), [Image.fromarray(each) for each in FRAMES]])
def test_frames_in_any_form_are_the_same_video(frames: object):
    source = measure_video(frames, fps=2)
    assert (source.frames, source.height, source.width, source.fps) == (6, 8, 16, 2)
    np.testing.assert_array_equal(np.stack(source.read((0, 3, 5))), FRAMES[[0, 3, 5]])


@pytest.mark.parametrize(
    ("total", "fps", "indices"),
    [
        (100, 25.0, (0, 14, 28, 42, 57, 71, 85, 99)),
        (3, 24.0, (0, 1, 2)),
        (24, 24.0, (0, 8, 15, 23)),
        (10_000, 1.0, tuple(np.linspace(0, 9999, 768).round().astype(int).tolist())),
    ],
)
def test_frames_are_sampled_evenly_within_their_bounds(total: int, fps: float, indices: tuple[int, ...]):
    assert sample_frames(total, fps, 2, least=4, most=768) == indices


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(InputError, match="frame 1 of video 0 is 16 x 9 pixels, the first is 16 x 8"):
        measure_video([FRAMES[0], np.zeros((9, 16, 3), np.uint8)], name="video 0")


@pytest.mark.parametrize("value", [[], 5, b"data", np.zeros((8, 8, 3), np.uint8)])
def test_what_is_no_video_is_refused(value: object):
    with pytest.raises(InputError, match="expected"):
        measure_video(value)


def test_a_file_without_pyav_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"\0" * 64)
    real = builtins.__import__

    def without(name: str, *args: object, **options: object) -> object:
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"install archport\[video\], or give the frames"):
        measure_video(path)
