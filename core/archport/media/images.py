"""Open an image without decoding it: its upright size, and why it is refused. Pixels are a second step.

Takes what people have: a path, bytes, a data URI, a PIL image, a numpy array. Never fetches an address.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import numpy as np

from archport.contract import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats that describe pixels. Pillow also opens documents, through other programs.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# An address; a letter alone is a drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# EXIF orientations that exchange width and height.
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 0x0112
# Bytes per pixel while an image is decoded: Pillow holds RGB in four, and one with transparency, the white beneath it
# and the two together at once.
DECODING = 12


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be before it is decoded.

    Args:
        most_pixels: width times height as stored. Decoding takes up to 12 bytes per pixel; a file of some kilobytes
            can hold billions.
        most_aspect: the longer side over the shorter one.
        least_side: pixels of the shorter side.
    """

    most_pixels: int = 89_478_485
    most_aspect: float = 200.0
    least_side: int = 4


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image whose header was read and accepted.

    Args:
        width, height: upright, as a viewer shows it.
        name: how messages call it ("image 0 (cat.jpg)").
        decode: reads it again, pixels included.
        orientation: EXIF orientation found in the header, 1 when it is stored upright.
        content: the bytes that decide its pixels, read when asked for.
    """

    width: int
    height: int
    name: str
    decode: Callable[[], Image] = field(repr=False, compare=False)
    orientation: int = 1
    content: Callable[[], bytes] = field(repr=False, compare=False, default=bytes)

    @property
    def decoding(self) -> int:
        """Bytes of host memory that decoding takes at its peak."""
        return DECODING * self.width * self.height

    def pixels(self) -> np.ndarray:
        """Upright RGB pixels (height, width, 3) uint8; transparency lies on white.

        Raises:
            InputError: as `image`.
        """
        return np.asarray(self.image(), dtype=np.uint8)

    def image(self) -> Image:
        """The upright image in RGB as Pillow holds it, without a copy of its pixels; transparency lies on white.

        Raises:
            InputError: for a file that is cut short or damaged after its header.
        """
        try:
            image = self.decode()
        except InputError:
            raise
        except Exception as error:
            # Pillow's decoders raise whatever their libraries do: OSError, SyntaxError, ValueError, struct.error.
            raise InputError(f"{self.name} can't be decoded, it is cut short or damaged: {error}") from error
        try:
            return _upright(_opaque(image, self.name), self.orientation)
        except InputError:
            raise
        except Exception as error:
            # Not every mode has a way to RGB.
            raise InputError(f"{self.name} has {image.mode!r} pixels, which don't become RGB: {error}") from error

    def digest(self) -> bytes:
        """32 bytes that are equal for equal images, for caches."""
        return hashlib.blake2b(self.content(), digest_size=32, key=str(self.orientation).encode()).digest()


def measure_image(value: object, *, limits: ImageLimits | None = None, name: str = "the image") -> ImageSource:
    """Read an image's header and say whether it may be decoded.

    Args:
        value: a path (str or Path, also `file://`), encoded bytes, a `data:` URI, a PIL image, or a uint8 array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        limits: what is refused.
        name: how messages call it.

    Raises:
        InputError: for what can't be opened, is no image format archport decodes, or is out of the limits.
        ArchportError: when Pillow is not installed.
    """
    limits = limits or ImageLimits()
    if isinstance(value, np.ndarray):
        source = _from_array(value, name)
    elif isinstance(value, bytes | bytearray | memoryview):
        source = _from_bytes(bytes(value), name)
    elif isinstance(value, str) and value[:5].lower() == "data:":
        source = _from_bytes(data_uri(value, name), name)
    elif isinstance(value, str | Path):
        source = _from_path(value, name)
    elif _is_pil(value):
        source = _from_pil(value, name)
    else:
        raise InputError(
            f"{name} is a {type(value).__name__}; expected a path, bytes, a data URI, a PIL image or a numpy array"
        )
    check_size(source.width, source.height, source.name, limits)
    return source


def pillow() -> ModuleType:
    """Pillow's Image module.

    Raises:
        InputError: with what to install.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("images need Pillow, which is not installed; install archport[vision]") from error
    return Image


def check_size(width: int, height: int, name: str, limits: ImageLimits) -> None:
    """Refuse a size out of the limits, with the numbers; raises InputError."""
    size = f"{name} is {width} x {height} pixels"
    if min(width, height) < limits.least_side:
        raise InputError(f"{size}; expected sides of at least {limits.least_side}")
    if width * height > limits.most_pixels:
        raise InputError(
            f"{size}, {width * height:,} in all; at most {limits.most_pixels:,} are decoded. Scale it down first: the "
            "model sees far fewer"
        )
    if max(width, height) > limits.most_aspect * min(width, height):
        raise InputError(
            f"{size}, an aspect ratio of {max(width, height) / min(width, height):.0f}; expected at most "
            f"{limits.most_aspect:g}. Cut it into pieces"
        )


def _from_array(pixels: np.ndarray, name: str) -> ImageSource:
    shape = pixels.shape
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise InputError(f"{name} is an array of shape {shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if pixels.dtype != np.uint8:
        raise InputError(f"{name} is an array of {pixels.dtype}; expected uint8, 0 to 255")

    def decode() -> Image:
        flat = pixels[..., 0] if pixels.ndim == 3 and shape[2] == 1 else pixels
        return pillow().fromarray(np.ascontiguousarray(flat))

    return ImageSource(
        shape[1], shape[0], name, decode, content=lambda: repr(shape).encode() + np.ascontiguousarray(pixels).tobytes()
    )


def _from_pil(image: Any, name: str) -> ImageSource:
    orientation = _orientation(image)
    width, height = _turned(image.size, orientation)
    # A copy, because closing or editing the caller's image later must change nothing here.
    return ImageSource(
        width,
        height,
        name,
        image.copy,
        orientation,
        lambda: f"{image.mode}{image.size}".encode() + image.tobytes(),
    )


def _from_bytes(data: bytes, name: str) -> ImageSource:
    return _from_file(lambda: io.BytesIO(data), name, lambda: data)


def _from_path(value: str | Path, name: str) -> ImageSource:
    path, name = file_path(value, name)
    return _from_file(lambda: path.open("rb"), name, path.read_bytes)


def file_path(value: str | Path, name: str) -> tuple[Path, str]:
    """(a regular file that exists, how messages call what it holds), of a path or a `file://` address.

    Raises:
        InputError: for any other address, and where there is no such file.
    """
    text = str(value)
    scheme = _SCHEME.match(text)
    if scheme and scheme[0].lower() != "file://":
        raise InputError(f"{name} is the address {text!r:.80}; archport fetches nothing: download it and give the file")
    path = Path(text[7:] if scheme else text)
    name = f"{name} ({path.name:.60})"
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        # A name too long, or with a zero byte: most likely encoded data without its `data:` prefix.
        is_file = False
    if not is_file:
        raise InputError(f"{name}: there is no file {text!r:.120}; expected a path, or a URI starting with 'data:'")
    return path, name


def _from_file(stream: Callable[[], Any], name: str, content: Callable[[], bytes]) -> ImageSource:
    def decode() -> Image:
        with stream() as file, _open(file, name) as image:
            # Leaving the block closes the file, not what was loaded from it.
            image.load()
            return image

    try:
        file = stream()
    except OSError as error:
        raise InputError(f"{name} can't be read: {error}") from error
    with file, _open(file, name) as image:
        orientation = _orientation(image)
        width, height = _turned(image.size, orientation)
    return ImageSource(width, height, name, decode, orientation, content)


def _open(file: Any, name: str) -> Any:
    """Pillow's image of a file, header read only."""
    Image = pillow()
    try:
        with warnings.catch_warnings():
            # Its warning about large images says what `check_size` refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=[form for form in FORMATS if form in _registered(Image)])
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is refused before decoding: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image that archport decodes, or is cut short in its header; expected "
            f"{', '.join(form for form in FORMATS if form != 'MPO')}"
        ) from error
    except Exception as error:
        raise InputError(f"{name} has a damaged header: {error}") from error


def _registered(Image: Any) -> Any:
    Image.init()
    return Image.OPEN


def _orientation(image: Any) -> int:
    # Asking a PNG for its EXIF decodes it, unless the chunk came before the pixels.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # Damaged metadata is common and says nothing about the pixels.
        return 1
    return found if found in range(1, 9) else 1


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in _SIDEWAYS else size


def _upright(image: Any, orientation: int) -> Any:
    turn = pillow().Transpose
    ways = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return image.transpose(ways[orientation]) if orientation in ways else image


def _opaque(image: Any, name: str) -> Any:
    """The image as RGB; what is transparent shows white."""
    Image = pillow()
    if image.mode.startswith("I;16"):
        # Pillow would cut 16 bits off at 255, which is white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "La":
        # Pillow takes the multiplication back in this step only.
        image = image.convert("LA")
    if image.mode in ("F", "I"):
        raise InputError(f"{name} has {image.mode!r} pixels, whose range nobody states; convert it to 8 bits")
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
        del white
    # Pillow would copy what is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_pil(value: object) -> bool:
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(value).__mro__)


def data_uri(text: str, name: str) -> bytes:
    """The bytes of a `data:` URI; raises InputError for one that is damaged."""
    head, comma, body = text.partition(",")
    if not comma:
        raise InputError(f"{name} is a data URI without a comma: {text!r:.60}")
    try:
        if head.lower().endswith(";base64"):
            return base64.b64decode(unquote_to_bytes(body), validate=True)
        return unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{name} is a data URI whose base64 is damaged: {error}") from error
