"""Videos in every form that a model takes: damaged files, playlists, lists of frames, rates."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from fuzz.cases import Seen, loaded
from fuzz.kinds.pictures import damaged
from fuzz.values import odd

FILES = False
PLAYLISTS = [
    b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
    b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"#EXTM3U\nhttp://127.0.0.1:9/x.ts\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    b"RIFF",
    b"",
    b"GIF89a",
]
CONTAINERS = {"mp4": "mpeg4", "avi": "mpeg4", "matroska": "mpeg4", "mpegts": "mpeg2video"}


def cases() -> st.SearchStrategy[Any]:
    return st.tuples(
        st.sampled_from([*CONTAINERS, "playlist", "frames", "odd"]),
        st.sampled_from(["none", "none", "cut", "flip", "append", "header"]),
        st.dictionaries(
            st.sampled_from(["fps", "sample_fps", "max_pixels", "min_pixels", "max_frames", "text", "odd"]),
            odd(),
            max_size=1,
        ),
        st.integers(0, 2**32),
    )


@functools.cache
def film(container: str) -> bytes:
    """A film of six small frames."""
    import io

    import av

    out = io.BytesIO()
    with av.open(out, "w", format=container) as writer:
        stream: Any = writer.add_stream(CONTAINERS[container], rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(6):
            pixels = np.full((48, 64, 3), 40 * index, np.uint8)
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        writer.mux(stream.encode())
    return out.getvalue()


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    form, damage, options, number = case
    draw = random.Random(number)
    model = loaded("sees", bases, seen)
    value: Any
    if form == "frames":
        value = [Image.new("RGB", (40, 40)) for _ in range(draw.randrange(4))]
        value += draw.choice([[], [None], ["x"], [Image.new("RGB", (8, 80))], [b""]])
    elif form == "odd":
        value = draw.choice(
            [
                "",
                "/dev/zero",
                "x" * 9000,
                "\0",
                "concat:a|b",
                "http://127.0.0.1:9/a",
                "/",
                5,
                None,
                [],
                {},
                b"",
                "pipe:0",
            ]
        )
    else:
        content = draw.choice(PLAYLISTS) if form == "playlist" else damaged(film(form), damage, draw)
        path = place / draw.choice(["film.mp4", "film.m3u8", "film.concat", "film"])
        path.write_bytes(content)
        value = draw.choice([str(path), path])
    model.embed({"video": value, **options})
    seen.reached = True
