"""Pictures between measuring and decoding: a still image, or a moment of a film. Knows nothing of tokens."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from archport.media.images import ImageSource
from archport.media.resize import resize
from archport.media.video import VideoSource


@dataclass(frozen=True, slots=True)
class Still:
    """An image and the size it is given."""

    source: ImageSource
    height: int
    width: int

    def frames(self) -> np.ndarray:
        """(1, height, width, 3) uint8."""
        return resize(self.source.pixels(), self.height, self.width)[None]

    def digest(self) -> bytes:
        return _digest(self.source.digest(), self.height, self.width, ())


class Film:
    """A video's sampled frames, decoded once when the first moment is asked for, and let go with the last one.

    Args:
        indices: of the sampled frames, ascending.
    """

    def __init__(self, source: VideoSource, height: int, width: int, indices: Sequence[int]) -> None:
        self._source, self._height, self._width, self._indices = source, height, width, tuple(indices)
        self._lock, self._frames, self._digest = threading.Lock(), dict[int, np.ndarray](), b""

    def moment(self, at: Sequence[int]) -> Moment:
        """The frames `at` (places among the sampled ones) as one picture."""
        return Moment(self, tuple(at))

    def frames(self, at: Sequence[int]) -> np.ndarray:
        """(T, height, width, 3) uint8 of the frames at these places."""
        with self._lock:
            if any(place not in self._frames for place in at):
                found = self._source.read(sorted(set(self._indices)))
                by_index = dict(zip(sorted(set(self._indices)), found, strict=True))
                self._frames = {
                    place: resize(by_index[index], self._height, self._width)
                    for place, index in enumerate(self._indices)
                }
            # Each place belongs to one moment, and is asked for once per request.
            return np.stack([self._frames.pop(place) for place in at])

    def digest(self, at: Sequence[int]) -> bytes:
        with self._lock:
            self._digest = self._digest or self._source.digest()
        return _digest(self._digest, self._height, self._width, [self._indices[place] for place in at])


@dataclass(frozen=True, slots=True)
class Moment:
    """Some consecutive frames of a film, which make one token grid."""

    film: Film = field(repr=False)
    at: tuple[int, ...]

    def frames(self) -> np.ndarray:
        return self.film.frames(self.at)

    def digest(self) -> bytes:
        return self.film.digest(self.at)


def _digest(source: bytes, height: int, width: int, indices: Sequence[int]) -> bytes:
    return hashlib.blake2b(source + repr((height, width, list(indices))).encode(), digest_size=32).digest()
