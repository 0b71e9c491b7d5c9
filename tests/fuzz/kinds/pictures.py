"""Pictures in every form that a model takes: damaged files, arrays, odd modes and names of files."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from fuzz.cases import Seen, loaded
from fuzz.values import odd

FILES = False
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "EPS", "TGA"]
MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "I", "F", "CMYK", "I;16", "YCbCr", "HSV", "LAB"]
SIZES = [(32, 32), (1, 1), (40, 48), (1, 3000), (64, 17)]
FORMS = ["bytes", "path", "data", "image", "array", "odd"]


def cases() -> st.SearchStrategy[Any]:
    return st.tuples(
        st.sampled_from(["sees", "sees", "siglip"]),
        st.sampled_from([*FORMATS[:2] * 4, *FORMATS]),
        st.sampled_from([*MODES[:1] * 5, *MODES]),
        st.sampled_from(SIZES),
        st.sampled_from(["none", "none", "cut", "flip", "append", "header"]),
        st.sampled_from([*FORMS[:3] * 2, *FORMS]),
        st.one_of(st.none(), odd()),
        st.integers(0, 2**32),
    )


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, form, mode, size, damage, given, strange, number = case
    draw = random.Random(number)
    model = loaded(base, bases, seen)
    try:
        picture = Image.new(mode, size)
    # Not every build of the library has all modes.
    except (ValueError, KeyError):
        picture = Image.new("RGB", size)
    out = io.BytesIO()
    try:
        picture.save(out, form)
    except (OSError, KeyError, ValueError):
        picture.convert("RGB").save(out, "PNG")
    content = damaged(out.getvalue(), damage, draw)
    value: Any = content
    if given == "path":
        value = place / "picture.png"
        value.write_bytes(content)
        value = str(value) if draw.random() < 0.5 else value
    elif given == "data":
        value = "data:image/png;base64," + base64.b64encode(content).decode()
    elif given == "image":
        value = picture
    elif given == "array":
        shape = draw.choice([(8, 8, 3), (8, 8), (3, 8, 8), (0, 8, 3), (8, 8, 4), (1,), (8, 8, 3, 1)])
        value = np.zeros(shape, draw.choice(["uint8", "float32", "int64", "bool", "complex64"]))
    elif given == "odd":
        value = draw.choice(
            ["", "x" * 5000, "/dev/zero", "/", "\0", "http://127.0.0.1:9/x", "data:", "file:///etc/passwd", strange]
        )
    item = {"image": value}
    if strange is not None and draw.random() < 0.3:
        item["text"] = strange
    model.embed(item)
    seen.reached = True


def damaged(content: bytes, how: str, draw: random.Random) -> bytes:
    """Bytes of a file after a kind of damage."""
    if how == "cut":
        return content[: draw.randrange(len(content))]
    if how == "append":
        return content + bytes(draw.randrange(256) for _ in range(20))
    out = bytearray(content)
    if how in ("flip", "header"):
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(min(len(out), 40) if how == "header" else len(out))
            out[at] = draw.choice([0, 255, draw.randrange(256)])
    return bytes(out)
