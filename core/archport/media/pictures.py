"""Pictures between measuring and decoding: a still image, or a moment of a film. Knows nothing of tokens."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from archport.media.images import ImageSource
from archport.media.resize import scaled
from archport.media.video import VideoSource


@dataclass(frozen=True, slots=True)
class Still:
    """An image and the size it is given."""

    source: ImageSource
    height: int
    width: int

    def frames(self) -> np.ndarray:
        """(1, height, width, 3) uint8."""
        return scaled(self.source.image(), self.height, self.width)[None]

    @property
    def decoding(self) -> int:
        """Bytes of host memory that `frames` takes at its peak."""
        return self.source.decoding + 3 * self.height * self.width

    def digest(self) -> bytes:
        return _digest(self.source.digest(), self.height, self.width, ())


class Film:
    """A video's sampled frames, decoded once when the first moment is asked for, and let go with the last one.

    Each is scaled as it is decoded, so that one at a time has its full size.

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
                wanted = sorted(set(self._indices))
                found = dict(zip(wanted, self._source.read(wanted, self._height, self._width), strict=True))
                self._frames = {place: found[index] for place, index in enumerate(self._indices)}
            # Each place belongs to one moment, and is asked for once per request.
            return np.stack([self._frames.pop(place) for place in at])

    @property
    def decoding(self) -> int:
        """Bytes of host memory that the first call of `frames` takes at its peak, the scaled frames included."""
        return self._source.decoding + 3 * self._height * self._width * len(self._indices)

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

    @property
    def decoding(self) -> int:
        return self.film.decoding

    def digest(self) -> bytes:
        return self.film.digest(self.at)


def _digest(source: bytes, height: int, width: int, indices: Sequence[int]) -> bytes:
    return hashlib.blake2b(source + repr((height, width, list(indices))).encode(), digest_size=32).digest()
