"""Settings that no model has: null for a file, means of no channels, heads that share no width."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .damage import refusal


@pytest.mark.parametrize("file", ["modules.json", "tokenizer_config.json", "1_Pooling/config.json"])
def test_a_file_that_holds_null_is_not_taken_for_an_absent_one(damaged: Callable[..., Path], file: str):
    folder = damaged()
    (folder / "modules.json").write_text(
        '[{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "1_Pooling"}]'
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / file).write_text("null")
    said = refusal(folder)
    assert file in said
    assert "null" in said


@pytest.mark.parametrize("base", ["siglip, two", "dense, one tap"])
@pytest.mark.parametrize("key", ["image_mean", "image_std"])
@pytest.mark.parametrize("value", [[0.5, 0.5], [0.5] * 4, [2**31] * 2, ["0.5"] * 3, [1e39] * 3, "0.5", [True] * 3])
def test_a_mean_of_pictures_that_is_none_is_refused_with_its_file_and_key(
    damaged: Callable[..., Path], base: str, key: str, value: Any
):
    folder = damaged(base=base)
    place = folder / "preprocessor_config.json"
    stated = json.loads(place.read_text()) if place.exists() else {}
    place.write_text(json.dumps({**stated, key: value}))
    said = refusal(folder)
    assert place.name in said
    assert key in said


@pytest.mark.parametrize(
    ("base", "part", "key"),
    [("dense, one tap", "vision_config", "num_heads"), ("with its vision tower", "vision_config", "num_heads"),
     ("siglip, two", "vision_config", "num_attention_heads"), ("siglip, two", "text_config", "num_attention_heads"),
     ("bert, learned", None, "num_attention_heads"), ("xlm-roberta, positions", None, "num_attention_heads"),
     ("modernbert, windows", None, "num_attention_heads")],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, 5, 48, None])
def test_heads_that_do_not_share_a_width_are_refused(
    damaged: Callable[..., Path], base: str, part: str | None, key: str, value: int | None
):
    folder = damaged(base=base)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    level = config if part is None else config[part]
    level[key] = value
    path.write_text(json.dumps(config))
    said = refusal(folder)
    assert "head" in said or key in said


def test_one_mean_stands_for_all_channels():
    from archport.media.processors import channel_normalisation

    assert channel_normalisation({"image_mean": 2**31, "image_std": [1, 2, 3]}) == ((2.0**31,) * 3, (1.0, 2.0, 3.0))
