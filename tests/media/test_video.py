"""Video: frames are counted, measured and sampled before any is decoded."""

import base64
import builtins
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from archport.contract import InputError
from archport.media import measure_video, sample_frames
from archport.media.pictures import Film

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 8, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("frames", [FRAMES, list(FRAMES), [Image.fromarray(each) for each in FRAMES]])
def test_frames_in_any_form_are_the_same_video(frames: object):
    source = measure_video(frames, fps=2)
    assert (source.frames, source.height, source.width, source.fps) == (6, 8, 16, 2)
    np.testing.assert_array_equal(np.stack(list(source.read((0, 3, 5), 8, 16))), FRAMES[[0, 3, 5]])


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


@pytest.mark.needs("av")
@pytest.mark.parametrize("value", [[], 5, b"data", memoryview(b"data"), np.zeros((8, 8, 3), np.uint8)])
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


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A lossless file of twelve frames at four per second, and the frames."""
    av = pytest.importorskip("av")
    frames = np.zeros((12, 64, 96, 3), np.uint8)
    for at in range(12):
        frames[at, :, : 8 * (at + 1)] = (20 * at, 255 - 20 * at, 128)
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path, frames


def test_a_video_file_says_its_size_rate_and_length_before_it_is_decoded(film: tuple[Path, np.ndarray]):
    source = measure_video(film[0])
    assert (source.width, source.height, source.frames, source.fps) == (96, 64, 12, 4.0)


def test_frames_of_a_file_are_those_that_went_into_it(film: tuple[Path, np.ndarray]):
    path, frames = film
    found = measure_video(str(path)).read([0, 5, 11], 64, 96)
    for index, frame in zip((0, 5, 11), found, strict=True):
        np.testing.assert_array_equal(frame, frames[index])


def test_a_file_that_is_cut_short_is_refused_or_repeats_its_last_frame(film: tuple[Path, np.ndarray], tmp_path: Path):
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(film[0].read_bytes()[:400])
    with pytest.raises(InputError, match=r"cut\.mkv"):
        list(measure_video(cut).read([0], 64, 96))


def test_frames_are_scaled_as_whole_frames_are(film: tuple[Path, np.ndarray]):
    path, frames = film
    for frame, scaled in zip(frames[::3], measure_video(path).read(range(0, 12, 3), 24, 40), strict=True):
        whole = Image.fromarray(frame).resize((40, 24), resample=Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(scaled, np.asarray(whole))


def test_frames_that_a_header_promises_and_a_file_lacks_repeat_its_last_one(film: tuple[Path, np.ndarray]):
    path, frames = film
    found = list(measure_video(path).read([10, 11, 12, 15], 64, 96))
    np.testing.assert_array_equal(np.stack(found), frames[[10, 11, 11, 11]])


def large_film(path: Path, height: int, width: int, frames: int) -> Path:
    """A file of so many frames at two per second."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for at in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((height * 3 // 2, width), 4 * at, np.uint8), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# Prints how many bytes the process grew by while it did what the first argument says with the second.
GROWTH = """
import resource, sys
from archport.media import measure_video
from archport.media.images import pillow
import av
pillow()
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, source = used(), measure_video(sys.argv[1])
found = list(source.read(range(0, source.frames), 96, 160))
assert len(found) == source.frames
print(used() - before, source.decoding)
"""


def test_of_a_long_film_one_frame_at_a_time_has_its_full_size(tmp_path: Path):
    path = large_film(tmp_path / "film.mp4", 544, 960, 50)
    done = subprocess.run([sys.executable, "-c", GROWTH, path], capture_output=True, text=True, check=True)
    grown, promised = map(int, done.stdout.split())
    scaled = 50 * 3 * 96 * 160
    # All frames in RGB would be 78 MB.
    assert grown < promised + scaled + 16_000_000 < 32_000_000


def test_a_film_is_decoded_once_and_let_go_moment_by_moment(film: tuple[Path, np.ndarray]):
    source = measure_video(film[0])
    seen = Film(source, 24, 40, (0, 4, 8, 11))
    assert seen.decoding == source.decoding + 4 * 3 * 24 * 40
    wanted = list(source.read([0, 4, 8, 11], 24, 40))
    for at in ((0, 1), (2, 3)):
        np.testing.assert_array_equal(seen.moment(at).frames(), np.stack([wanted[place] for place in at]))


# Name, codec, pixels: what cameras, browsers and older programs write.
FILES = [
    ("film.mp4", "mpeg4", "yuv420p"),
    ("film.mov", "mpeg4", "yuv420p"),
    ("film.mkv", "mpeg4", "yuv420p"),
    ("film.webm", "libvpx", "yuv420p"),
    ("film.avi", "mpeg4", "yuv420p"),
    ("film.ts", "mpeg2video", "yuv420p"),
    ("film.flv", "flv", "yuv420p"),
    ("film.wmv", "wmv2", "yuv420p"),
    ("film.gif", "gif", "rgb8"),
]


def written(path: Path, codec: str, pixels: str) -> Path:
    """Six frames of 64 x 96, each of one grey."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        try:
            stream = container.add_stream(codec, rate=25)
        except av.FFmpegError:
            pytest.skip(f"this PyAV writes no {codec}")
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        for at in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 40 * at, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("name", "codec", "pixels"), FILES)
def test_every_container_that_is_allowed_decodes(name: str, codec: str, pixels: str, tmp_path: Path):
    frames = list(measure_video(written(tmp_path / name, codec, pixels)).read([0, 3, 5], 64, 96))
    for at, frame in zip((0, 3, 5), frames, strict=True):
        assert abs(float(frame.mean()) - 40 * at) < 25


@pytest.mark.parametrize(
    "form", ["path", "file address", "bytes", "bytearray", "memoryview", "data URI", "plain data URI"]
)
def test_every_form_of_a_file_gives_the_same_frames(form: str, film: tuple[Path, np.ndarray]):
    path, frames = film
    data = path.read_bytes()
    value = {
        "path": path,
        "file address": f"file://{path}",
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "data URI": "data:video/x-matroska;base64," + base64.b64encode(data).decode(),
        "plain data URI": "data:video/x-matroska," + quote(data),
    }[form]
    source = measure_video(value)
    assert (source.frames, source.fps) == (12, 4.0)
    for frame, want in zip(source.read(range(12), 64, 96), frames, strict=True):
        np.testing.assert_array_equal(frame, want)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{file}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {name}\n",
    "list.txt": "ffconcat version 1.0\nfile '{name}'\n",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="0" mimeType="video/mp2t"><BaseURL>{name}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "art.txt": "only text\n" * 50,
    "art.ans": "\x1b[31mred\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("form", ["path", "bytes"])
def test_a_file_that_names_other_files_opens_none(name: str, form: str, tmp_path: Path):
    clip = written(tmp_path / "clip.ts", "mpeg2video", "yuv420p")
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(file=clip, name=clip.name))
    with pytest.raises(InputError, match="Playlists and addresses are not followed"):
        measure_video(path if form == "path" else path.read_bytes())


def test_ffmpeg_itself_would_follow_a_playlist(tmp_path: Path):
    """Else the tests above would hold whatever archport does."""
    av = pytest.importorskip("av")
    clip = written(tmp_path / "clip.ts", "mpeg2video", "yuv420p")
    path = tmp_path / "list.m3u8"
    path.write_text(PLAYLISTS["list.m3u8"].format(file=clip))
    with path.open("rb") as file, av.open(file) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


@pytest.mark.parametrize(
    "value",
    [
        "a" * 5000,
        Path("/" + "a" * 5000),
        "x/" * 3000,
        "a\0b.mp4",
        "http://example.invalid/film.mp4",
        "rtsp://127.0.0.1/film",
        "concat:a.ts|b.ts",
        "subfile,,start,0,end,9,,:a.ts",
        "/dev/null",
        "/",
        "data:video/mp4;base64,!!!!",
        "data:video/mp4;base64",
        "data:,",
        b"",
        b"\0" * 100_000,
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_leads_to_no_video_is_refused_and_named(value: object):
    pytest.importorskip("av")
    with pytest.raises(InputError, match="film 3"):
        measure_video(value, name="film 3")


def test_a_pipe_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "film.mp4")
    with pytest.raises(InputError, match="there is no file"):
        measure_video(tmp_path / "film.mp4")
