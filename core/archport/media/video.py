"""Video: frames in memory, a folder's worth of images, or a file through PyAV. Which frames a model sees, and when.

Knows nothing of patches. A file is decoded once, in order; each sampled frame is scaled as it comes, so one at a time
has its full size. PyAV gets an open file, never a name: FFmpeg would read names as addresses, and follow playlists.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from archport.contract import InputError
from archport.contract.errors import shown
from archport.media.images import ImageLimits, ImageSource, check_size, data_uri, file_path, measure_image, pillow
from archport.media.resize import scaled

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_FRAMES = 100_000
# FFmpeg's demuxers that read one file and nothing else. Playlists (hls, dash, concat, imf) open whatever they name, and
# others turn text or a device into pictures.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,gif,ivf"
# Whatever a container refers to stays closed: no protocol has that name.
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
# Bytes per pixel of a frame while a file is decoded: its RGB in three, what Pillow makes of it in four, and the frames
# that a decoder refers back to in 1.5 each (55 to 140 MB measured at 4K, by codec).
DECODING = 24


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video whose frames were counted and measured.

    Args:
        width, height: of every frame, upright.
        frames: how many there are.
        fps: frames per second of the source; None when nobody said.
        name: how messages call it.
        read: decodes the frames of these indices, ascending, and scales each to (height, width): pixels
            (height, width, 3) uint8, one after the other.
        content: bytes that are equal for equal videos.
        decoding: bytes of host memory that decoding takes at its peak, next to the frames that were scaled.
    """

    width: int
    height: int
    frames: int
    fps: float | None
    name: str
    read: Callable[[Sequence[int], int, int], Iterator[np.ndarray]] = field(repr=False, compare=False)
    content: Callable[[], bytes] = field(repr=False, compare=False, default=bytes)
    decoding: int = 0

    def digest(self) -> bytes:
        """32 bytes that are equal for equal videos, for caches."""
        return hashlib.blake2b(self.content(), digest_size=32).digest()


def sample_frames(total: int, fps: float, wanted: float, *, least: int, most: int) -> tuple[int, ...]:
    """Indices of the frames that a model sees, spread evenly from the first to the last.

    Args:
        total: frames there are.
        fps: of the source.
        wanted: frames per second that the model wants.
        least, most: bounds of the count; a video shorter than `least` gives all it has.
    """
    count = min(max(int(total / fps * wanted), least), most, total)
    return tuple(np.linspace(0, total - 1, count).round().astype(int).tolist())


def measure_video(
    value: object, *, fps: float | None = None, limits: ImageLimits | None = None, name: str = "the video"
) -> VideoSource:
    """Read a video's headers and say whether it may be decoded.

    Args:
        value: a sequence of frames (anything `measure_image` takes), an array (T, H, W, 3) uint8, or a video file:
            its path (str or Path, also `file://`), its bytes, or a `data:` URI.
        fps: frames per second of frames; a file says itself.
        limits: of every frame.

    Raises:
        InputError: for what can't be opened, frames of different sizes, or a file without PyAV.
    """
    if fps is not None and not fps > 0:
        raise InputError(f"{name}: {fps=}; expected frames per second > 0")
    if isinstance(value, str) and value[:5].lower() == "data:":
        value = data_uri(value, name)
    if isinstance(value, bytes | bytearray | memoryview):
        return _from_bytes(bytes(value), limits or ImageLimits(), name)
    if isinstance(value, str | Path):
        path, name = file_path(value, name)
        return _from_path(path, limits or ImageLimits(), name)
    if isinstance(value, np.ndarray) and value.ndim != 4:
        raise InputError(f"{name} is an array of shape {value.shape}; expected (T, H, W, 3)")
    if not isinstance(value, np.ndarray | Sequence):
        raise InputError(
            f"{name} is {shown(value)}; expected a sequence of frames, an array, a path, bytes or a data URI"
        )
    if not 1 <= len(value) <= MOST_FRAMES:
        raise InputError(f"{name} has {len(value)} frames; expected 1 to {MOST_FRAMES:,}")
    stills = [measure_image(each, limits=limits, name=f"frame {at} of {name}") for at, each in enumerate(value)]
    return _from_stills(stills, fps, name)


def _from_stills(stills: Sequence[ImageSource], fps: float | None, name: str) -> VideoSource:
    first = stills[0]
    for still in stills:
        if (still.width, still.height) != (first.width, first.height):
            raise InputError(
                f"{still.name} is {still.width} x {still.height} pixels, the first is {first.width} x {first.height}; "
                "frames of one video have one size"
            )
    return VideoSource(
        first.width,
        first.height,
        len(stills),
        fps,
        name,
        lambda indices, height, width: (scaled(stills[index].image(), height, width) for index in indices),
        lambda: b"".join(still.digest() for still in stills),
        first.decoding,
    )


def _from_bytes(data: bytes, limits: ImageLimits, name: str) -> VideoSource:
    return _from_file(lambda: io.BytesIO(data), lambda: data, limits, name)


def _from_path(path: Path, limits: ImageLimits, name: str) -> VideoSource:
    return _from_file(lambda: path.open("rb"), lambda: _file_digest(path, name), limits, name)


def _from_file(
    stream_of: Callable[[], IO[bytes]], content: Callable[[], bytes], limits: ImageLimits, name: str
) -> VideoSource:
    """A video file, of which `stream_of` opens the bytes."""
    av = _pyav(name)
    try:
        with stream_of() as file, av.open(file, options=_OPTIONS) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            duration = (
                float(stream.duration * stream.time_base) if stream.duration else float(container.duration or 0) / 1e6
            )
            width, height = stream.codec_context.width, stream.codec_context.height
            count = stream.frames or round(duration * rate)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} can't be opened as a video ({error}); expected a file that holds its frames itself (MP4, MOV, "
            "WebM, Matroska, AVI, MPEG, FLV, WMV, Ogg, GIF). Playlists and addresses are not followed"
        ) from error
    if not rate or not 1 <= count <= MOST_FRAMES:
        raise InputError(
            f"{name} has {count} frames at {rate:g} per second; expected 1 to {MOST_FRAMES:,} and a known rate"
        )
    check_size(width, height, name, limits)
    return VideoSource(
        width,
        height,
        count,
        rate,
        name,
        lambda indices, height, width: _decode(av, stream_of, indices, height, width, name, limits),
        content,
        DECODING * width * height,
    )


def _decode(
    av: Any,
    stream_of: Callable[[], IO[bytes]],
    indices: Sequence[int],
    height: int,
    width: int,
    name: str,
    limits: ImageLimits,
) -> Iterator[np.ndarray]:
    waiting, frame = list(reversed(indices)), None
    try:
        with stream_of() as file, av.open(file, options=_OPTIONS) as container:
            for at, decoded in enumerate(container.decode(video=0)):
                if at != waiting[-1]:
                    continue
                # A stream may change its size after the header.
                check_size(decoded.width, decoded.height, f"frame {at} of {name}", limits)
                frame = scaled(_image(decoded), height, width)
                while waiting and waiting[-1] == at:
                    waiting.pop()
                    yield frame
                if not waiting:
                    return
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} can't be decoded, it is cut short or damaged: {error}") from error
    if frame is None:
        raise InputError(f"{name} holds no frame that decodes")
    # A header may promise a few frames more than there are.
    for _ in waiting:
        yield frame


def _image(frame: Any) -> Image:
    """A decoded frame as Pillow holds it, made without another copy between the two."""
    plane = frame.reformat(format="rgb24").planes[0]
    size = (plane.width, plane.height)
    return pillow().frombuffer("RGB", size, plane, "raw", "RGB", plane.line_size, 1)


def _file_digest(path: Path, name: str) -> bytes:
    """A digest of a file's content, read piece by piece."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, hashlib.blake2b).digest()
    except OSError as error:
        raise InputError(f"{name} can't be read: {error}") from error


def _pyav(name: str) -> Any:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{name}: a video file needs PyAV, which is not installed; install archport[video], or give the frames"
        ) from error
    return av
