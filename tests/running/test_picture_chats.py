"""A chat with pictures is what the checkpoint's own template renders, with the pictures at its media tokens."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from archport import engine
from archport.contract import InputError

GOLDENS = Path(__file__).parents[1] / "goldens"
RECORDED: dict[str, Any] = json.loads(gzip.decompress((GOLDENS / "chats.json.gz").read_bytes()))
SEEING: str = json.loads((GOLDENS / "chat_templates.json").read_text())["seeing"]
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
FRAMES = np.random.default_rng(1).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)
MOMENTS = re.compile(r"(?:<[\d.]+ seconds><\|vision_start\|>(?:<\|video_pad\|>)+<\|vision_end\|>)+")
ASKED = {"type": "text", "text": "What is this?"}


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen35-wrapper"])
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> engine.Model:
    """A vision checkpoint with a template that does more than ChatML."""
    folder = tmp_path_factory.mktemp("seeing") / request.param
    shutil.copytree(GOLDENS / request.param, folder, ignore=shutil.ignore_patterns("golden*", "texts.json"))
    (folder / "chat_template.jinja").write_text(SEEING)
    return engine.load(folder, dtype="float32")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    return path


def ids_of(model: engine.Model, prompt: object, **told: Any) -> np.ndarray:
    (row,) = model._runtime.prompts()(prompt, **told).rows
    return row


def text_of(model: engine.Model, prompt: object, **told: Any) -> str:
    """A prompt as text, one media token in the place of each picture."""
    text = model._runtime.generator().tokenizer.decode(ids_of(model, prompt, **told), skip_special_tokens=False)
    return re.sub(r"(<\|image_pad\|>)+", "<|image_pad|>", MOMENTS.sub("<|video_pad|>", text))


def shown(value: Any) -> Any:
    """A recorded message, with pixels in the place of each picture's number."""
    if isinstance(value, Mapping):
        sources = {"image": PIXELS, "video": FRAMES, "url": Image.fromarray(PIXELS)}
        return {key: sources[key] if key in sources and item == 0 else shown(item) for key, item in value.items()}
    return [shown(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", range(len(RECORDED["pictures"])))
def test_a_chat_with_pictures_is_what_the_processor_of_transformers_renders(case: int, seeing: engine.Model):
    call = RECORDED["pictures"][case]["call"]
    told = {name: call[name] for name in ("tools", "options", "continue_final_message") if name in call}
    assert text_of(seeing, shown(call["messages"]), **told) == RECORDED["pictures"][case]["text"]


def test_every_picture_has_as_many_tokens_as_in_the_reader_s_own_format(seeing: engine.Model):
    parts = [{"type": "image", "image": PIXELS}, {"type": "video", "video": FRAMES, "fps": 2.0}, ASKED]
    measured = seeing._runtime.prompts()([{"role": "user", "content": parts}]).measured[0]
    reader, tokeniser = seeing._runtime.tokeniser.inputs.reader, seeing._runtime.tokeniser
    assert reader is not None
    own = reader.measure([{"role": "user", "content": parts}], tokeniser.encode, tokeniser.asked("x", None, 10_000))
    assert [(each.tokens, each.grid) for each in measured.pictures] == [
        (each.tokens, each.grid) for each in own.pictures
    ]
    # The template's end is two tokens longer: it opens the thoughts.
    count = len(own.ids)
    np.testing.assert_array_equal(measured.ids[:count], own.ids)
    assert measured.positions is not None
    assert own.positions is not None
    np.testing.assert_array_equal(measured.positions[:, :count], own.positions)
    assert measured.next_position is not None
    assert own.next_position is not None
    assert measured.next_position - own.next_position == len(measured.ids) - count > 0


def test_a_chat_streams_and_batches_as_it_generates(seeing: engine.Model):
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": PIXELS}, ASKED]}],
        [{"role": "user", "content": "x"}],
    ]
    told: Any = {"max_tokens": 6, "enable_thinking": False}
    alone: Any = [seeing.generate(chat, **told) for chat in chats]
    together: Any = seeing.generate(chats, **told)
    streamed: Any = seeing.generate(chats[0], stream=True, **told)
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert tuple(token for piece in streamed for token in piece.tokens) == alone[0].tokens


def test_a_mapping_is_a_user_s_turn_in_the_template(seeing: engine.Model):
    parts = [{"type": "image", "image": PIXELS}, {"type": "text", "text": "a"}]
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    mapping = {"text": "a", "image": PIXELS, "instruction": "be brief"}
    np.testing.assert_array_equal(ids_of(seeing, mapping), ids_of(seeing, chat))


def test_pictures_come_under_every_key_that_people_use(seeing: engine.Model, picture: Path):
    coded = base64.b64encode(picture.read_bytes()).decode()
    want = ids_of(seeing, [{"role": "user", "content": [{"type": "image", "image": PIXELS}, ASKED]}])
    for part in (
        {"type": "image", "url": str(picture)},
        {"type": "image", "path": picture},
        {"type": "image", "url": picture.as_uri()},
        {"type": "image", "url": f"data:image/png;base64,{coded}"},
        {"type": "image", "base64": coded},
        {"type": "image", "base64": f"{coded[:20]}\n{coded[20:]}"},
        {"type": "image", "image": picture.read_bytes()},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded}", "detail": "low"}},
        {"type": "image_url", "image_url": str(picture)},
        {"image": PIXELS},
    ):
        np.testing.assert_array_equal(ids_of(seeing, [{"role": "user", "content": [part, "What is this?"]}]), want)


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ({"type": "image", "url": "https://example.com/a.png"}, "archport fetches nothing: download it"),
        ({"type": "image_url", "image_url": {"url": "HTTP://example.com/a.png"}}, "archport fetches nothing"),
        ({"type": "video", "url": "http://example.com/a.mp4"}, "video part has the address 'http://example.com/a.mp4'"),
        ({"type": "image", "base64": "###"}, "base64 of an image is damaged"),
        ({"type": "image", "base64": 5}, "base64 is a int"),
        ({"type": "image"}, "image part has no source among its keys"),
        ({"type": "image", "url": "a", "path": "b"}, "url and path among its keys"),
        ({"type": "image", "path": "/nowhere/a.png"}, "there is no file"),
        ({"type": "input_audio", "input_audio": {}}, "a content part has the keys"),
        ({"type": "text", "text": 5}, "text is a int"),
        ({"type": "text", "text": "<|image_pad|>"}, r"its text holds '<\|image_pad\|>', which stands for a picture"),
        (5, "content holds a int"),
    ],
)
def test_a_part_that_is_no_picture_and_no_text_is_refused_in_words(part: Any, match: str, seeing: engine.Model):
    with pytest.raises(InputError, match=match):
        ids_of(seeing, [{"role": "user", "content": [{"type": "image", "image": PIXELS}, part]}])


def test_a_picture_for_which_the_template_has_no_place_is_refused(seeing: engine.Model):
    chat = seeing._runtime.chat
    assert chat is not None
    source = SEEING.replace(
        "{%- for message in messages %}", "{%- for message in messages if message.role != 'judge' %}"
    )
    lossy = type(chat)({"default": source}, {}, "lossy")
    prompts = seeing._runtime.prompts()
    prompts = type(prompts)(prompts.tokeniser, lossy, prompts.vocabulary)
    parts = [{"type": "image", "image": PIXELS}]
    with pytest.raises(InputError, match="has 2 image parts, and the chat template made places for 1"):
        prompts([{"role": "judge", "content": parts}, {"role": "user", "content": parts}])


def test_a_model_of_text_refuses_a_picture_instead_of_losing_it(tmp_path: Path):
    folder = tmp_path / "text"
    shutil.copytree(GOLDENS / "qwen3-tied", folder, ignore=shutil.ignore_patterns("golden*"))
    (folder / "chat_template.jinja").write_text("{{ messages[0].role }}")
    with pytest.raises(InputError, match=r"holds an image or a video, and .* reads text only"):
        engine.load(folder).generate([{"role": "user", "content": [{"type": "image", "image": PIXELS}]}])
