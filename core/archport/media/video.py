"""Video: frames in memory, a folder's worth of images, or a file through PyAV. Which frames a model sees, and when.

Knows nothing of patches. A file is decoded once, in order, keeping the sampled frames only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from archport.contract import InputError
from archport.media.images import ImageLimits, ImageSource, check_size, measure_image

MOST_FRAMES = 100_000


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video whose frames were counted and measured.

    Args:
        width, height: of every frame, upright.
        frames: how many there are.
        fps: frames per second of the source; None when nobody said.
        name: how messages call it.
        read: decodes the frames of these indices, ascending, each (H, W, 3) uint8.
        content: bytes that are equal for equal videos.
    """

    width: int
    height: int
    frames: int
    fps: float | None
    name: str
    read: Callable[[Sequence[int]], list[np.ndarray]] = field(repr=False, compare=False)
    content: Callable[[], bytes] = field(repr=False, compare=False, default=bytes)

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
        value: a sequence of frames (anything `measure_image` takes), an array (T, H, W, 3) uint8, or a path of a video
            file.
        fps: frames per second of frames; a file says itself.
        limits: of every frame.

    Raises:
        InputError: for what can't be opened, frames of different sizes, or a file without PyAV.
    """
    if fps is not None and not fps > 0:
        raise InputError(f"{name}: {fps=}; expected frames per second > 0")
    if isinstance(value, str | Path):
        return _from_path(Path(str(value).removeprefix("file://")), limits or ImageLimits(), name)
    if isinstance(value, np.ndarray) and value.ndim != 4:
        raise InputError(f"{name} is an array of shape {value.shape}; expected (T, H, W, 3)")
    if not isinstance(value, np.ndarray | Sequence) or isinstance(value, bytes | bytearray):
        raise InputError(f"{name} is a {type(value).__name__}; expected a sequence of frames, an array or a path")
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
        lambda indices: [stills[index].pixels() for index in indices],
        lambda: b"".join(still.digest() for still in stills),
    )


def _from_path(path: Path, limits: ImageLimits, name: str) -> VideoSource:
    name = f"{name} ({path.name:.60})"
    if not path.is_file():
        raise InputError(f"{name}: there is no file {str(path)!r:.120}")
    av = _pyav(name)
    try:
        with av.open(str(path)) as container:
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
        raise InputError(f"{name} can't be opened as a video: {error}") from error
    if not rate or not 1 <= count <= MOST_FRAMES:
        raise InputError(
            f"{name} has {count} frames at {rate:g} per second; expected 1 to {MOST_FRAMES:,} and a known rate"
        )
    check_size(width, height, name, limits)
    return VideoSource(
        width, height, count, rate, name, lambda indices: _decode(av, path, indices, name), path.read_bytes
    )


def _decode(av: Any, path: Path, indices: Sequence[int], name: str) -> list[np.ndarray]:
    wanted, found = set(indices), {}
    try:
        with av.open(str(path)) as container:
            for at, frame in enumerate(container.decode(video=0)):
                if at in wanted:
                    found[at] = frame.to_ndarray(format="rgb24")
                if len(found) == len(wanted):
                    break
    except Exception as error:
        raise InputError(f"{name} can't be decoded, it is cut short or damaged: {error}") from error
    if not found:
        raise InputError(f"{name} holds no frame that decodes")
    # A header may promise a few frames more than there are.
    last = found[max(found)]
    return [found.get(index, last) for index in indices]


def _pyav(name: str) -> Any:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{name}: a video file needs PyAV, which is not installed; install archport[video], or give the frames"
        ) from error
    return av
