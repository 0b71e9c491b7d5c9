"""Opening images: what is accepted, what is refused before anything is decoded, and what comes out."""

import base64
import builtins
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from archport.contract import InputError
from archport.media import ImageLimits, measure_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(form: str = "PNG", pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims to be this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture(params=["path", "str", "file uri", "bytes", "data uri", "pil", "array"])
def same_image(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    path = tmp_path / "image.png"
    path.write_bytes(encoded())
    forms: dict[str, Callable[[], object]] = {
        "path": lambda: path,
        "str": lambda: str(path),
        "file uri": lambda: f"file://{path}",
        "bytes": encoded,
        "data uri": lambda: "data:image/png;base64," + base64.b64encode(encoded()).decode(),
        "pil": lambda: Image.fromarray(PIXELS),
        "array": lambda: PIXELS,
    }
    return forms[request.param]()


def test_every_form_of_an_image_gives_the_same_pixels(same_image: object):
    source = measure_image(same_image)
    assert (source.width, source.height) == (20, 12)
    np.testing.assert_array_equal(source.pixels(), PIXELS)


def test_measuring_decodes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("an image was decoded"))
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        measure_image(encoded(form))


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 9_000)])
def test_a_decompression_bomb_is_refused_from_its_header(width: int, height: int):
    with pytest.raises(InputError, match=r"refused|at most 89,478,485 are decoded"):
        measure_image(bomb(width, height))


def test_limits_can_be_raised():
    assert measure_image(bomb(10_000, 9_000), limits=ImageLimits(most_pixels=10**8)).width == 10_000


@pytest.mark.parametrize(("size", "words"), [((2000, 8), "aspect ratio of 250"), ((3, 50), "sides of at least 4")])
def test_absurd_and_tiny_sizes_are_refused_with_their_numbers(size: tuple[int, int], words: str):
    with pytest.raises(InputError, match=words) as caught:
        measure_image(Image.new("RGB", size))
    assert f"{size[0]} x {size[1]}" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"GIF", b"hello, not an image", b"%PDF-1.4\n%%EOF", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_is_refused(data: bytes):
    with pytest.raises(InputError, match="not an image that archport decodes"):
        measure_image(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_short_is_an_error_and_never_half_a_picture(form: str):
    data = encoded(form, np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(InputError, match=r"cut short|damaged"):
        measure_image(data[: len(data) * 2 // 3], name="image 3").pixels()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_measured_and_decoded_upright(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("PNG", exif=exif)
    source = measure_image(data)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert (source.height, source.width) == upright.shape[:2]
    np.testing.assert_array_equal(source.pixels(), upright)


def test_transparency_lies_on_white():
    clear = np.zeros((8, 8, 4), np.uint8)
    assert (measure_image(clear).pixels() == 255).all()


def test_grey_and_palette_images_become_rgb():
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(measure_image(grey).pixels(), np.repeat(grey[..., None], 3, axis=2))
    assert measure_image(Image.fromarray(PIXELS).convert("P")).pixels().shape == (12, 20, 3)


def test_sixteen_bits_keep_their_shades():
    deep = Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8))
    assert len(np.unique(measure_image(deep).pixels())) > 50


@pytest.mark.parametrize(
    "value",
    [np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8), np.zeros((8,), np.uint8), 5, None, ["a.png"]],
    ids=["float", "channels first", "one axis", "int", "None", "list"],
)
def test_other_values_are_refused_saying_what_is_expected(value: object):
    with pytest.raises(InputError, match="expected"):
        measure_image(value, name="image 2")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://example.org/a.png", "fetches nothing"),
        ("no/such/file.png", "there is no file"),
        ("data:image/png;base64", "without a comma"),
        ("data:image/png;base64,@@@", "base64 is damaged"),
    ],
)
def test_a_string_that_leads_nowhere_says_why(value: str, words: str):
    with pytest.raises(InputError, match=words):
        measure_image(value)


def test_equal_images_have_equal_digests_and_others_do_not():
    assert measure_image(PIXELS).digest() == measure_image(PIXELS.copy()).digest()
    assert measure_image(PIXELS).digest() != measure_image(255 - PIXELS).digest()
    assert measure_image(PIXELS).digest() != measure_image(PIXELS.reshape(20, 12, 3)).digest()


def test_editing_an_image_after_it_was_measured_changes_nothing():
    image = Image.fromarray(PIXELS)
    source = measure_image(image)
    image.close()
    # A measured PIL image is decoded from the caller's object, so a closed one is an error and not other pixels.
    with pytest.raises(InputError, match="can't be decoded"):
        source.pixels()


def test_a_missing_pillow_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: object, **options: object) -> object:
        if name == "PIL" or name.startswith("PIL."):
            raise ImportError(name)
        return real(name, *args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"install archport\[vision\]"):
        measure_image(b"\x89PNG")


def of_mode(mode: str) -> Image.Image:
    """A picture of that mode, of which half is transparent where the mode knows that."""
    shades = np.random.default_rng(0).integers(0, 256, (8, 12, 4), dtype=np.uint8)
    shades[..., 3] = np.where(np.arange(12) < 6, 255, 0)
    colours = Image.fromarray(shades)
    if mode in ("RGBA", "LA", "RGBa"):
        return colours.convert(mode)
    if mode == "La":
        return colours.convert("LA").convert("La")
    if mode == "PA":
        return colours.convert("RGB").convert("P").convert("PA")
    if mode.startswith("I;16") or mode == "LAB":
        return Image.frombytes(mode, (12, 8), shades.tobytes()[: 12 * 8 * (3 if mode == "LAB" else 2)])
    return colours.convert("RGB").convert("L" if mode in ("I", "F") else mode).convert(mode)


@pytest.mark.parametrize("mode", sorted(set(Image.MODES) - {"I", "F"}))
def test_every_mode_of_a_picture_becomes_rgb(mode: str):
    picture = of_mode(mode)
    pixels = measure_image(picture).pixels()
    assert pixels.shape == (8, 12, 3)
    if mode in ("RGBA", "LA", "La", "RGBa"):
        # As the reference: what is transparent lies on white.
        assert (pixels[:, 6:] == 255).all()
        picture = picture.convert("LA") if mode == "La" else picture
        opaque = np.asarray(picture.convert("RGBA").convert("RGB"))[:, :6]
        np.testing.assert_array_equal(pixels[:, :6], opaque)
    elif not mode.startswith("I;16"):
        np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_mode_without_a_range_is_refused_and_named(mode: str):
    with pytest.raises(InputError, match=f"photo has '{mode}' pixels"):
        measure_image(of_mode(mode), name="photo").pixels()


@pytest.mark.parametrize("colours", [2, 16, 256])
def test_a_palette_with_a_transparent_entry_lies_on_white(colours: int):
    palette = of_mode("RGB").quantize(colours)
    data = io.BytesIO()
    palette.save(data, "PNG", transparency=0)
    clear = np.asarray(palette) == 0
    assert (measure_image(data.getvalue()).pixels()[clear] == 255).all()


@pytest.mark.parametrize("form", ["EPS", "PDF", "TGA", "ICO", "JPEG2000", "PCX", "SGI", "IM", "ICNS", "DDS"])
def test_a_format_that_is_not_listed_is_refused(form: str):
    data = io.BytesIO()
    try:
        Image.new("RGB", (32, 32)).save(data, form)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow writes no {form}")
    with pytest.raises(InputError, match="not an image that archport decodes"):
        measure_image(data.getvalue())


@pytest.mark.parametrize(
    "value", ["a" * 5000, "/" + "a/" * 3000, "a\0b", "ftp://x/y.png", "s3://bucket/y.png", "/dev/zero"]
)
def test_an_address_or_a_path_that_leads_nowhere_is_named(value: str):
    with pytest.raises(InputError, match="picture 4"):
        measure_image(value, name="picture 4")
