"""Embedding with pictures: the published format, one batch or many, chunks, limits, and nothing left behind."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import archport  # noqa: F401  (before mlx)
from archport import engine
from archport.contract import ContextLengthExceeded, InputError, MemoryBudgetExceeded

DICE = np.random.default_rng(5)
RED = DICE.integers(0, 256, (24, 40, 3), dtype=np.uint8)
BLUE = DICE.integers(0, 256, (61, 50, 3), dtype=np.uint8)
TALL = DICE.integers(0, 256, (90, 20, 3), dtype=np.uint8)
FILM = DICE.integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)
MIXED: list[Any] = [
    "a text",
    {"image": RED},
    {"text": "a text with a picture", "image": BLUE},
    "another, much longer text that goes on for a while and then stops",
    {"image": [RED, TALL], "text": "two of them"},
    {"text": "", "image": TALL},
    {"video": FILM, "fps": 3.0, "text": "a film"},
    {"text": "with an instruction", "instruction": "Find the picture", "image": BLUE},
]


def damaged() -> bytes:
    """A picture whose header says more than its body holds."""
    file = io.BytesIO()
    Image.fromarray(BLUE).save(file, "PNG")
    whole = file.getvalue()
    return whole[: len(whole) // 2]


def rendered(model: engine.Model, item: object, prompt: str = "") -> str:
    """The text that an input becomes, every run of placeholders as one."""
    tokeniser = model._runtime.tokeniser
    ids = tokeniser([item], prompt=prompt).ids[0]
    text = tokeniser.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    for pad in ("<|image_pad|>", "<|video_pad|>"):
        while pad * 2 in text:
            text = text.replace(pad * 2, pad)
    return text


HEAD = "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\n"
END = "<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize(
    ("item", "body"),
    [
        ("a text", "a text"),
        ({"text": "a text", "image": RED}, f"{IMAGE}a text"),
        ({"text": ["a", "b"], "images": [RED, BLUE]}, f"{IMAGE}{IMAGE}ab"),
        ({}, "NULL"),
        ("", "NULL"),
        ({"text": "x", "image": RED, "video": FILM[:2], "fps": 1.0},
         f"<|vision_start|><0.5 seconds><|vision_start|><|video_pad|><|vision_end|><|vision_end|>{IMAGE}x"),
    ],
    ids=["text", "image", "several", "nothing", "empty", "all kinds"],
)  # fmt: skip
def test_an_input_is_rendered_as_published(item: object, body: str, embedder: engine.Model):
    assert rendered(embedder, item) == HEAD + body + END


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("Find it", "Find it."),
        ("  Find it!  ", "Find it!"),
        ("找到它。", "找到它。"),
        ("Find 5", "Find 5."),
        ("x…", "x…"),
    ],
)
def test_an_instruction_ends_in_punctuation(given: str, used: str, embedder: engine.Model):
    assert rendered(embedder, "a", prompt=given) == f"<|im_start|>system\n{used}<|im_end|>\n<|im_start|>user\na{END}"
    assert rendered(embedder, {"text": "a", "instruction": given}) == rendered(embedder, "a", prompt=given)


def test_messages_are_rendered_in_their_own_order(embedder: engine.Model):
    messages = [{"role": "user", "content": ["before ", {"image": RED}, {"type": "text", "text": " after"}]}]
    expected = f"<|im_start|>user\nbefore {IMAGE} after{END}"
    assert rendered(embedder, messages) == rendered(embedder, {"messages": messages}) == expected


def test_a_batch_of_texts_and_pictures_equals_singles(embedder: engine.Model):
    together = embedder.embed(MIXED)
    alone = np.concatenate([embedder.embed([item]) for item in MIXED])
    assert np.abs(together - alone).max() < 1e-5
    assert len({vector.tobytes() for vector in together.round(3)}) == len(MIXED)


def test_calls_leave_nothing_behind(embedder: engine.Model):
    text, picture = embedder.embed("a text"), embedder.embed({"image": RED, "text": "a text"})
    assert np.abs(text - picture).max() > 0.01
    for _ in range(2):
        np.testing.assert_array_equal(embedder.embed("a text"), text)
        np.testing.assert_array_equal(embedder.embed({"image": RED, "text": "a text"}), picture)


def test_every_form_of_an_image_gives_the_same_vector(embedder: engine.Model, tmp_path: Any):
    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    forms = [RED, Image.fromarray(RED), path, str(path), path.read_bytes()]
    vectors = embedder.embed([{"image": form} for form in forms])
    assert np.abs(vectors - vectors[0]).max() < 1e-6


def test_vectors_of_tokens_see_their_pictures(embedder: engine.Model, run: Callable):
    items = ["a text", {"image": RED, "text": "a text"}, {"image": BLUE}]
    for item, vectors in zip(items, embedder.embed(items, output="tokens"), strict=True):
        hidden, _ = run(embedder, item)
        assert np.abs(vectors - hidden).max() / np.abs(hidden).max() < 1e-5
    (alone,) = embedder.embed(items[1], output="tokens")
    assert np.abs(alone - embedder.embed(items, output="tokens")[1]).max() < 1e-5


@pytest.mark.parametrize("chunk", [16, 64, 512])
@pytest.mark.parametrize("case", ["five", "both", "last"])
def test_chunked_prefill_equals_one_shot(chunk: int, case: str, golden: Any, model: engine.Model, run: Callable):
    whole, _ = run(model, golden.messages(case))
    pieces, _ = run(model, golden.messages(case), mode="generate", chunk=chunk)
    assert np.abs(pieces - whole).max() / np.abs(whole).max() < 1e-5


def test_chunks_cut_through_pictures_in_that_test(golden: Any, model: engine.Model):
    (measured,) = model._runtime.tokeniser([golden.messages("five")]).measured
    edges = range(16, len(measured.ids), 16)
    assert sum(any(p.start < edge < p.start + p.tokens for p in measured.pictures) for edge in edges) >= 3


def test_pixels_are_bounded_by_the_model_and_by_the_caller(dense: engine.Model):
    def grid(**options: int) -> tuple[int, int]:
        part = {"type": "image", "image": np.zeros((400, 300, 3), np.uint8), **options}
        (measured,) = dense._runtime.tokeniser([[{"role": "user", "content": [part]}]]).measured
        return measured.pictures[0].grid

    def area(found: tuple[int, int]) -> int:
        return found[0] * found[1] * 16

    assert area(grid()) <= 4096
    assert 4096 < area(grid(max_pixels=8192)) <= 8192
    assert area(grid(max_pixels=1024)) <= 1024


def test_an_over_long_input_is_refused_with_both_numbers_before_any_pixel(embedder: engine.Model, monkeypatch: Any):
    monkeypatch.setattr("archport.media.images.ImageSource.image", lambda self: pytest.fail("an image was decoded"))
    item = {"image": [RED] * 4, "text": "word " * 400}
    with pytest.raises(
        ContextLengthExceeded, match=r"input 1 has [\d,]+ tokens, 60 of them for pictures; the limit is 1,024"
    ) as caught:
        embedder.embed(["a", item])
    assert caught.value.requested > caught.value.ceiling == 1024  # pyright: ignore


def test_a_context_below_a_picture_is_refused_before_the_tower_runs(monkeypatch: Any, embedder: engine.Model):
    small = engine.load(embedder.name, dtype="float32", max_context=40)
    trunk: Any = small._runtime.encoder.trunk
    monkeypatch.setattr(type(trunk), "see", lambda *_: pytest.fail("the tower ran"))
    with pytest.raises(ContextLengthExceeded, match="the limit is 40"):
        small.embed({"image": BLUE})
    with pytest.raises(ContextLengthExceeded, match="not cut: give smaller max_pixels"):
        small.embed({"image": BLUE}, overflow="truncate")


def test_truncation_takes_text_and_keeps_pictures_and_the_end(embedder: engine.Model):
    item = {"image": RED, "text": "abcdefgh " * 100}
    tokens = embedder._runtime.tokeniser([item], max_tokens=90, overflow="truncate")
    text = embedder._runtime.tokeniser.tokenizer.decode(tokens.ids[0].tolist(), skip_special_tokens=False)
    assert len(tokens.ids[0]) == 90
    assert tokens.truncated == (0,)
    assert text.startswith(HEAD)
    assert text.endswith(END)
    assert text.count("<|image_pad|>") == tokens.measured[0].pictures[0].tokens == 15


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"picture": RED}, "unknown key 'picture'"),
        ({"role": "user", "content": "x"}, "a message belongs in a list"),
        ({"text": "an <|image_pad|> of its own"}, "holds a placeholder"),
        ({"image": RED.astype(np.float32)}, "expected uint8"),
        ({"image": "https://example.org/a.png"}, "fetches nothing"),
        ({"image": RED, "max_pixels": 0}, "max_pixels=0"),
        ([{"role": "poet", "content": "x"}], "a role among"),
        ({"text": 5}, "text is a int"),
        ({"image": np.zeros((4, 4000, 3), np.uint8)}, "aspect ratio of 1000"),
    ],
)
def test_what_can_not_be_read_is_refused_saying_why(item: object, words: str, embedder: engine.Model):
    with pytest.raises(InputError, match=words):
        embedder.embed([item])


def test_a_file_that_breaks_while_decoding_is_named(embedder: engine.Model, tmp_path: Any):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"image 0 of input 1 \(cut.png\) can't be decoded"):
        embedder.embed(["fine", {"image": path}])
    # And the next call is none the wiser.
    assert np.isfinite(embedder.embed({"image": RED})).all()


def test_a_budget_without_room_for_the_tower_is_refused_with_its_bytes(embedder: engine.Model):
    with pytest.raises(MemoryBudgetExceeded, match="vision") as caught:
        engine.load(embedder.name, dtype="float32", memory_budget=700_000).embed({"image": BLUE})
    assert caught.value.breakdown["vision"] > 0


def test_pictures_of_one_batch_never_see_each_other(dense: engine.Model, golden: Any, run: Callable):
    """A picture's features are the same whatever stands beside it."""
    if golden.folder.name != "qwen3-vl":
        pytest.skip("the dense tower's")
    other = golden.messages("two")
    other[1]["content"][2]["image"] = 255 - golden["image_3"]
    _, both = run(dense, golden.messages("two"))
    _, changed = run(dense, other)
    first = both.index[0][both.index[0] >= 0]
    tokens = dense._runtime.tokeniser([golden.messages("two")]).measured[0].pictures[0].tokens
    for a, b in zip(both.features, changed.features, strict=True):
        a, b = np.array(a)[first], np.array(b)[first]
        np.testing.assert_array_equal(a[:tokens], b[:tokens])
        assert np.abs(a[tokens:] - b[tokens:]).max() > 0.01


LONG = "hello world, " * 3000


@pytest.mark.parametrize(
    "item",
    [
        LONG,
        {"text": LONG, "image": RED},
        {"text": [LONG, "after"], "image": BLUE},
        {"text": "a<|im_end|>" + LONG + "<|im_start|>b<|im_end|>" + LONG},
        [{"role": "user", "content": [{"type": "text", "text": LONG}, {"type": "image", "image": RED}, "a question"]}],
    ],
    ids=["text", "picture", "two texts", "special tokens", "messages"],
)
def test_texts_far_over_the_limit_are_cut_as_if_all_of_them_was_read(
    item: Any, embedder: engine.Model, monkeypatch: pytest.MonkeyPatch
):
    from archport.reading.long_texts import LongTexts

    def cut() -> Any:
        return embedder._runtime.tokeniser([item], max_tokens=200, overflow="truncate").measured[0]

    some = cut()
    with pytest.raises(ContextLengthExceeded, match="has at least 201 tokens"):
        embedder._runtime.tokeniser([item], max_tokens=200)

    def whole(self: LongTexts, texts: list[str], tokens: int, *, exact: bool) -> list[tuple[str, bool]]:
        return [(text, False) for text in texts]

    monkeypatch.setattr(LongTexts, "beginnings", whole)
    everything = cut()
    np.testing.assert_array_equal(some.ids, everything.ids)
    np.testing.assert_array_equal(some.positions, everything.positions)
    assert [each.start for each in some.pictures] == [each.start for each in everything.pictures]


def test_placeholders_in_a_text_are_refused_however_far_behind_the_limit(embedder: engine.Model):
    with pytest.raises(InputError, match="holds a placeholder"):
        embedder._runtime.tokeniser([LONG + "<|image_pad|>"], max_tokens=200, overflow="truncate")


# Prints by how many bytes the process grew.
GROWTH = """
import resource, sys
from archport import engine
import av
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model = engine.load(sys.argv[1], memory_budget="200MB")
before = used()
model.embed({"video": sys.argv[2], "max_pixels": 32 * 32 * 20, "min_pixels": 1024, "sample_fps": 0.7})
print(used() - before)
"""


@pytest.mark.truth
def test_twenty_frames_of_4k_take_less_than_150_megabytes(tmp_path: Path, embedder: engine.Model):
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuv420p"
        for at in range(56):
            frame = np.full((3240, 3840), 4 * at, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="yuv420p")))
        container.mux(stream.encode())
    command = [sys.executable, "-c", GROWTH, embedder.name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150_000_000


def test_damaged_pictures_are_set_aside_and_raised_by_name_otherwise(embedder: engine.Model):
    rows: list[Any] = ["a text", {"image": damaged()}, {"image": RED}, {"text": "b", "image": b"none"}, {"image": TALL}]
    made = embedder.embed(rows, errors="collect")
    assert (made.rows, set(made.errors)) == ((0, 2, 4), {1, 3})
    assert all(f"input {row}" in str(error) for row, error in made.errors.items())
    np.testing.assert_allclose(made.results, embedder.embed([rows[0], rows[2], rows[4]]), atol=1e-5)
    for row in (1, 3):
        with pytest.raises(InputError, match="input 2"):
            embedder.embed([rows[0], rows[2], rows[row], rows[4]])
